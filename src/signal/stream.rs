//! Tasks of a TCP connection: accept or connect, read, write.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use monoio::io::{
    AsyncWriteRent, CancelHandle, CancelableAsyncReadRent, CancelableAsyncWriteRent, Splitable,
};
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};
use monoio::net::{TcpListener, TcpStream};

use super::core::{Cause, Core, Shared, Stage, next_flow_id};
use super::role::Role;
use crate::base::clock;
use crate::sip::flow::{Destination, Flow, FlowId, Transmit, Transport};
use crate::sip::framer::{Frame, Framer, FramerLimits};
use crate::sip::message::Message;

/// Bytes one read takes at most; a connection holds that much while it waits.
const READ_BYTES: usize = 8192;
/// How long a connection we open may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the kernel refused to hand out a connection: descriptors come back in time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the shard stops.
pub(super) async fn accept<R: Role + 'static>(shared: Shared<R>, listener: TcpListener, index: u16) {
    loop {
        let cancel = shared.borrow().listening.handle();
        let accepted = listener.cancelable_accept(cancel).await;
        let now = clock::now();
        let core = &mut *shared.borrow_mut();
        if core.stopping {
            return;
        }
        match accepted {
            Ok((_, remote)) if core.is_full() => {
                core.counters.refused.add(1);
                tracing::warn!(%remote, "connection refused: connections_max are open");
            }
            Ok((stream, remote)) => {
                core.counters.accepted.add(1);
                let local = stream.local_addr().or_else(|_| listener.local_addr());
                let Ok(local) = local else { continue };
                let flow =
                    Flow { id: next_flow_id(), listener: index, transport: Transport::Tcp, local, remote };
                open(core, now, flow, stream);
            }
            Err(error) => {
                core.counters.accept_errors.add(1);
                tracing::warn!("no connection accepted: {error}");
                let shared = core.shared();
                core.spawn(pause_accepting(shared, listener, index));
                return;
            }
        }
    }
}

async fn pause_accepting<R: Role + 'static>(shared: Shared<R>, listener: TcpListener, index: u16) {
    monoio::time::sleep(ACCEPT_PAUSE).await;
    let core = shared.borrow();
    if !core.stopping {
        core.spawn(accept(core.shared(), listener, index));
    }
}

/// Takes up an established connection.
fn open<R: Role + 'static>(core: &mut Core<R>, now: Instant, flow: Flow, stream: TcpStream) {
    // Messages are written whole; waiting to fill segments would only delay them.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    if let Some(connection) = core.connections.get_mut(&flow.id) {
        connection.flow = flow;
        connection.stage = Stage::Open;
        connection.writer = Some(writer);
        connection.active = now;
        core.start_writing(flow.id);
    } else {
        core.insert(now, flow, Some(writer));
    }
    core.spawn(read(core.shared(), flow, reader));
}

/// Opens a connection that has messages waiting.
pub(super) async fn connect<R: Role + 'static>(shared: Shared<R>, id: FlowId, remote: SocketAddr) {
    let result = monoio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect_addr(remote)).await;
    let now = clock::now();
    let core = &mut *shared.borrow_mut();
    let result = result.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let opened = result.and_then(|stream| Ok((stream.local_addr()?, stream)));
    match (opened, core.connections.get(&id).map(|connection| connection.flow)) {
        (Ok((local, stream)), Some(flow)) => {
            core.counters.connected.add(1);
            open(core, now, Flow { local, ..flow }, stream);
        }
        (Err(error), _) => core.close(now, id, Cause::Connect(error)),
        (Ok(_), None) => {} // The shard ended meanwhile.
    }
    core.flush(now);
}

/// Reads until the connection ends.
async fn read<R: Role + 'static>(shared: Shared<R>, flow: Flow, mut reader: TcpOwnedReadHalf) {
    let mut framer = Framer::new(FramerLimits::default());
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let Some(cancel) = shared.borrow().cancel_handle(flow.id) else { return };
        let (result, returned) = reader.cancelable_read(buffer, cancel).await;
        buffer = returned;
        let now = clock::now();
        let core = &mut *shared.borrow_mut();
        let Some(connection) = core.connections.get_mut(&flow.id) else { return };
        let ending = matches!(connection.stage, Stage::Ending { .. });
        match result {
            Ok(0) => {
                core.end_of_stream(now, flow.id);
                core.flush(now);
                return;
            }
            Err(error) => {
                core.close(now, flow.id, Cause::Broken(error));
                core.flush(now);
                return;
            }
            Ok(_) if ending => {} // Thrown away: see Stage::Ending.
            Ok(len) => {
                core.counters.bytes_in.add(len);
                framer.push(buffer.get(..len).unwrap_or(&[]));
                core.read_frames(now, flow, &mut framer);
            }
        }
        core.flush(now);
    }
}

/// Writes until the queue is empty, then hands the writer back or shuts our side down.
pub(super) async fn write<R: Role + 'static>(shared: Shared<R>, id: FlowId, mut writer: TcpOwnedWriteHalf) {
    loop {
        let (transmit, cancel) = {
            let core = &mut *shared.borrow_mut();
            let Some(connection) = core.connections.get_mut(&id) else { return };
            let Some(transmit) = connection.queue.pop_front() else {
                return core.written(clock::now(), id, writer);
            };
            connection.queue_bytes -= transmit.bytes.len();
            let Some(cancel) = core.cancel_handle(id) else { return };
            (transmit, cancel)
        };
        let result = write_all(&mut writer, transmit.bytes.clone(), &cancel).await;
        let now = clock::now();
        let core = &mut *shared.borrow_mut();
        match result {
            Ok(()) => {
                core.counters.bytes_out.add(transmit.bytes.len());
                core.counters.messages_out.add(1);
            }
            Err(error) => {
                if !core.stopping {
                    core.fail(now, &transmit);
                }
                core.close(now, id, Cause::Broken(error));
                return core.flush(now);
            }
        }
    }
}

async fn write_all(
    writer: &mut TcpOwnedWriteHalf,
    mut bytes: Bytes,
    cancel: &CancelHandle,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let (result, returned) = writer.cancelable_write(bytes, cancel.clone()).await;
        bytes = returned;
        match result? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            len => bytes.advance(len),
        }
    }
    Ok(())
}

impl<R: Role + 'static> Core<R> {
    /// Acts on every frame that is complete and notes when an incomplete one began.
    fn read_frames(&mut self, now: Instant, flow: Flow, framer: &mut Framer) {
        let mut any = false;
        loop {
            match framer.poll() {
                Ok(Some(Frame::Message(bytes))) => {
                    any = true;
                    self.read_message(now, flow, bytes);
                    // Answers leave in the order of their requests, and queues stay short.
                    self.flush(now);
                }
                Ok(Some(Frame::Ping)) => {
                    any = true;
                    self.counters.keep_alives.add(1);
                    // RFC 5626 §3.5.1: a ping of two CRLF is answered by one.
                    self.reply(now, flow, Bytes::from_static(b"\r\n"));
                }
                Ok(Some(Frame::Pong)) => any = true,
                Ok(None) => break,
                Err(error) => {
                    if self.log.take(now) {
                        tracing::warn!(peer = %flow.remote, rule = "framing", "connection given up: {error}");
                    }
                    if let Some(response) = error.response() {
                        self.reply(now, flow, response);
                    }
                    return self.end(now, flow.id, Cause::Framing);
                }
            }
        }
        let Some(connection) = self.connections.get_mut(&flow.id) else { return };
        if any {
            connection.active = now;
            connection.partial_since = None;
        }
        if framer.is_partial() {
            connection.partial_since.get_or_insert(now);
        }
    }

    /// Hands one message to the role, or refuses it.
    pub(super) fn read_message(&mut self, now: Instant, flow: Flow, bytes: Bytes) {
        match Message::parse(bytes) {
            Ok(message) => {
                self.counters.messages_in.add(1);
                self.role.handle_message(now, flow, message);
            }
            Err(error) => {
                self.counters.parse_errors.add(1);
                if self.log.take(now) {
                    let transport = flow.transport.name();
                    tracing::warn!(peer = %flow.remote, transport, rule = "unreadable", "refused: {error}");
                }
                if let Some(response) = error.response() {
                    self.reply(now, flow, response);
                }
            }
        }
    }

    fn reply(&mut self, now: Instant, flow: Flow, bytes: Bytes) {
        self.send(now, Transmit { destination: Destination::Flow(flow), bytes });
    }

    /// The peer sends nothing more; what is queued for it is still written.
    fn end_of_stream(&mut self, now: Instant, id: FlowId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Stage::Ending { until, .. } = connection.stage {
            connection.stage = Stage::Ending { until, peer_done: true };
            if connection.queue.is_empty() && connection.writer.is_some() {
                self.close(now, id, Cause::Peer);
            }
        } else {
            self.end(now, id, Cause::Peer);
        }
    }

    /// The queue is written.
    fn written(&mut self, now: Instant, id: FlowId, mut writer: TcpOwnedWriteHalf) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let stage = connection.stage;
        if matches!(stage, Stage::Ending { .. }) {
            // Shutting down happens in the call; there is nothing to wait for.
            drop(writer.shutdown());
        }
        connection.writer = Some(writer);
        if matches!(stage, Stage::Ending { peer_done: true, .. }) {
            self.close(now, id, Cause::Peer);
            self.flush(now);
        }
    }
}

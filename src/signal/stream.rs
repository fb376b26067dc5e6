//! Tasks of a TCP or TLS connection: connect, read, write.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use monoio::io::{
    AsyncWriteRent, CancelHandle, CancelableAsyncReadRent, CancelableAsyncWriteRent, Splitable,
};
use monoio::net::TcpStream;
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};

use super::connection::{Cause, Stage};
use super::core::{Core, HALF_CLOSED, Shared};
use super::role::Role;
use crate::base::bucket::Rate;
use crate::base::clock;
use crate::sip::flow::{Destination, Flow, FlowId, PeerNames, Transmit};
use crate::sip::framer::{Frame, Framer, FramerLimits};
use crate::sip::message::{Message, Method, ParseError};

/// What a connection holds while it waits: an ordinary message fits.
const WAIT_BYTES: usize = 2048;
/// Bytes one read takes at most, of a connection that has just filled its own buffer.
const READ_BYTES: usize = 16 * 1024;
/// How long a connection we open may take, TLS not included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer's kernel may take to accept our last record.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// Bounds of the pause of a connection that has brought its messages for now.
const THROTTLE_MIN: Duration = Duration::from_millis(1);
const THROTTLE_MAX: Duration = Duration::from_millis(100);

/// What a connection's reader is at.
struct Incoming {
    flow: Flow,
    framer: Framer,
    /// Complete, but the peer may not bring it yet.
    waiting: Option<Frame>,
    /// What is to be done when the framer is empty.
    after: Option<After>,
}

enum After {
    Closed,
    Failed(rustls::Error),
}

/// What a reader does next.
enum Step {
    Read,
    /// The peer has brought its messages for now.
    Wait(Duration),
    /// Leave the rest in the kernel.
    Park,
    Done,
}

/// Takes up an established connection that the core knows.
pub(super) fn open<R: Role + 'static>(core: &mut Core<R>, now: Instant, flow: Flow, stream: TcpStream) {
    let until = now + core.limits.peers.handshake_timeout;
    let Some(connection) = core.connections.get_mut(&flow.id) else { return };
    let (reader, writer) = stream.into_split();
    connection.flow = flow;
    connection.writer = Some(writer);
    connection.active = now;
    if connection.tls.is_some() {
        connection.stage = Stage::Handshaking { until };
    } else {
        connection.stage = Stage::Open;
        // A peer that connects and says nothing is as slow as one that stops in the middle.
        connection.partial_since = connection.source.is_some().then_some(now);
    }
    core.start_writing(flow.id);
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
            // As the listeners have it.
            let _ = stream.set_nodelay(true);
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
    let mut incoming =
        Incoming { flow, framer: Framer::new(FramerLimits::default()), waiting: None, after: None };
    let mut own = Vec::with_capacity(WAIT_BYTES);
    let mut wants_more = false;
    loop {
        let Some(cancel) = shared.borrow().cancel_handle(flow.id) else { return };
        let buffer =
            if wants_more { shared.borrow_mut().lend_buffer(READ_BYTES) } else { std::mem::take(&mut own) };
        let (result, buffer) = reader.cancelable_read(buffer, cancel).await;
        let filled = matches!(result, Ok(len) if len == buffer.capacity());
        let mut step = shared.borrow_mut().arrived(clock::now(), &mut incoming, result, &buffer);
        if std::mem::replace(&mut wants_more, filled) {
            shared.borrow_mut().return_buffer(buffer);
        } else {
            own = buffer;
        }
        while let Step::Wait(pause) = step {
            monoio::time::sleep(pause).await;
            step = shared.borrow_mut().drain(clock::now(), &mut incoming);
        }
        match step {
            Step::Done => return,
            Step::Park => return shared.borrow_mut().park(flow.id, reader),
            Step::Read | Step::Wait(_) => {}
        }
    }
}

/// Writes until there is nothing to write, then hands the writer back or shuts our side down.
pub(super) async fn write<R: Role + 'static>(shared: Shared<R>, id: FlowId, mut writer: TcpOwnedWriteHalf) {
    loop {
        let (bytes, transmits, cancel) = {
            let core = &mut *shared.borrow_mut();
            let Some(connection) = core.connections.get_mut(&id) else { return };
            let Some((bytes, transmits)) = connection.next_output() else {
                return core.written(clock::now(), id, writer);
            };
            (bytes, transmits, connection.canceller.handle())
        };
        let len = bytes.len();
        let result = write_all(&mut writer, bytes, &cancel).await;
        let now = clock::now();
        let core = &mut *shared.borrow_mut();
        match result {
            Ok(()) => {
                core.counters.bytes_out.add(len);
                core.counters.messages_out.add(transmits.len());
                if let Some(connection) = core.connections.get_mut(&id) {
                    connection.taken_at = now;
                }
            }
            Err(error) => {
                let unsent = if core.stopping { &[] } else { transmits.as_slice() };
                for transmit in unsent {
                    core.fail(now, transmit);
                }
                core.break_off(now, id, error);
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

/// Writes the last bytes of a connection that is gone already.
pub(super) async fn say_goodbye(mut writer: TcpOwnedWriteHalf, bytes: Vec<u8>) {
    let write = monoio::time::timeout(GOODBYE_TIMEOUT, writer.write(bytes));
    // Who does not take it in one piece and in time finds the connection closed without it.
    // Dropping the writer shuts our side down.
    drop(write.await);
}

impl<R: Role + 'static> Core<R> {
    /// Acts on what a read brought.
    fn arrived(
        &mut self,
        now: Instant,
        incoming: &mut Incoming,
        result: std::io::Result<usize>,
        buffer: &[u8],
    ) -> Step {
        let id = incoming.flow.id;
        let Some(connection) = self.connections.get_mut(&id) else { return Step::Done };
        match result {
            Ok(0) => {
                self.end_of_stream(now, id);
                self.flush(now);
                return Step::Done;
            }
            Err(error) if self.passing.is_some() && error.raw_os_error() == Some(libc::ECANCELED) => {
                // The rest of a message that has begun is on its way: it is read first.
                let is_clean = !incoming.framer.is_partial() && incoming.waiting.is_none();
                return if is_clean { Step::Park } else { Step::Read };
            }
            Err(error) => {
                self.break_off(now, id, error);
                self.flush(now);
                return Step::Done;
            }
            Ok(_) if connection.is_ending() => return Step::Read, // Thrown away: see Stage::Ending.
            Ok(len) => {
                self.counters.bytes_in.add(len);
                let bytes = buffer.get(..len).unwrap_or(&[]);
                if connection.tls.is_some() {
                    self.decrypt(now, incoming, bytes);
                } else {
                    incoming.framer.push(bytes);
                }
            }
        }
        self.drain(now, incoming)
    }

    /// Takes records in; notes when the handshake ends.
    fn decrypt(&mut self, now: Instant, incoming: &mut Incoming, bytes: &[u8]) {
        let id = incoming.flow.id;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(tls) = &mut connection.tls else { return };
        match tls.receive(bytes, &mut incoming.framer) {
            Ok(received) => {
                if received.closed {
                    incoming.after = Some(After::Closed);
                }
                if received.secured {
                    self.secured(now, incoming.flow);
                }
            }
            Err(error) => incoming.after = Some(After::Failed(error)),
        }
        // What the library has to say, and what waited for the handshake.
        self.start_writing(id);
    }

    /// The handshake is done: the peer is whom its certificate names, if we still believe that.
    fn secured(&mut self, now: Instant, flow: Flow) {
        let Some(connection) = self.connections.get_mut(&flow.id) else { return };
        let Some(tls) = &connection.tls else { return };
        // A resumed session was judged when it began, an old setup by what held then.
        if let Some(setup) = &self.tls
            && !tls.was_judged_by(setup)
            && let Err(error) = tls.judge(setup, clock::calendar())
        {
            return self.close(now, flow.id, Cause::Tls(error));
        }
        self.counters.tls_handshakes.add(1);
        self.counters.tls_resumed.add(usize::from(tls.is_resumed()));
        let names = tls.peer_names().map(Arc::new);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let peer = names.as_deref().map(PeerNames::to_string).unwrap_or_default();
            tracing::debug!(remote = %flow.remote, how = tls.describe(), peer, "TLS is up");
        }
        connection.active = now;
        if matches!(connection.stage, Stage::Handshaking { .. }) {
            connection.stage = Stage::Open;
            connection.partial_since = connection.source.is_some().then_some(now);
        }
        self.role.handle_secured(now, flow, names);
    }

    /// Acts on what the framer holds, then on how the stream went on.
    fn drain(&mut self, now: Instant, incoming: &mut Incoming) -> Step {
        let flow = incoming.flow;
        let Some(connection) = self.connections.get(&flow.id) else { return Step::Done };
        if connection.is_ending() {
            return Step::Read;
        }
        if connection.is_known() && !self.read_frames(now, incoming) {
            self.flush(now);
            let token = Duration::from_secs(1) / self.limits.peers.messages_per_s.max(1);
            return Step::Wait(token.clamp(THROTTLE_MIN, THROTTLE_MAX));
        }
        let step = match incoming.after.take() {
            None => Step::Read,
            Some(After::Closed) => {
                self.end_of_stream(now, flow.id);
                Step::Done
            }
            Some(After::Failed(error)) => {
                self.end(now, flow.id, Cause::Tls(error));
                Step::Read
            }
        };
        self.flush(now);
        step
    }

    /// Ends a connection the kernel has given up; during a handshake TLS has failed with it.
    fn break_off(&mut self, now: Instant, id: FlowId, error: std::io::Error) {
        let connection = self.connections.get(&id);
        let is_unsecured = connection.is_some_and(|c| matches!(c.stage, Stage::Handshaking { .. }));
        let cause = if is_unsecured {
            Cause::Tls(rustls::Error::General(format!("network error during the handshake: {error}")))
        } else {
            Cause::Broken(error)
        };
        self.close(now, id, cause);
    }

    /// Acts on every frame that is complete and notes when an incomplete one began. False when the
    /// peer has brought its messages for now and one is left.
    fn read_frames(&mut self, now: Instant, incoming: &mut Incoming) -> bool {
        let (flow, framer) = (incoming.flow, &mut incoming.framer);
        let rate = Rate::steady(self.limits.peers.messages_per_s);
        let mut any = false;
        loop {
            let frame = incoming.waiting.take().map_or_else(|| framer.poll(), |frame| Ok(Some(frame)));
            let Some(connection) = self.connections.get_mut(&flow.id) else { return true };
            if let Ok(Some(frame)) = &frame
                && rate.per_s > 0
                && !connection.pace.take(now, rate)
            {
                // Who is left waiting by us is neither idle nor slow.
                (connection.active, connection.partial_since) = (now, None);
                incoming.waiting = Some(frame.clone());
                self.counters.throttled.add(1);
                return false;
            }
            match frame {
                Ok(Some(Frame::Message(bytes))) => {
                    any = true;
                    self.take_message(now, flow, Message::parse(bytes));
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
                    if self.log.take(now, "framing") {
                        tracing::warn!(peer = %flow.remote, rule = "framing", "connection given up: {error}");
                    }
                    if let Some(response) = error.response() {
                        self.reply(now, flow, response);
                    }
                    self.end(now, flow.id, Cause::Framing);
                    return true;
                }
            }
        }
        let Some(connection) = self.connections.get_mut(&flow.id) else { return true };
        if any {
            connection.active = now;
            connection.partial_since = None;
        }
        if framer.is_partial() {
            connection.partial_since.get_or_insert(now);
        }
        true
    }

    /// Hands one message to the role, or refuses it.
    pub(super) fn take_message(&mut self, now: Instant, flow: Flow, parsed: Result<Message, ParseError>) {
        match parsed {
            Ok(message) => {
                self.counters.messages_in.add(1);
                // RFC 3261 §17.2.1: an ACK has no response.
                if matches!(&message, Message::Request(request) if request.method != Method::Ack) {
                    self.owe(flow.id);
                }
                self.role.handle_message(now, flow, message);
            }
            Err(error) => {
                self.counters.parse_errors.add(1);
                if self.log.take(now, "unreadable") {
                    let transport = flow.transport.name();
                    tracing::warn!(peer = %flow.remote, transport, rule = "unreadable", "refused: {error}");
                }
                if let Some(response) = error.response() {
                    self.owe(flow.id);
                    self.reply(now, flow, response);
                }
            }
        }
    }

    fn owe(&mut self, id: FlowId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.owed = connection.owed.saturating_add(1);
        }
    }

    fn reply(&mut self, now: Instant, flow: Flow, bytes: Bytes) {
        self.send(now, Transmit { destination: Destination::Flow(flow), bytes });
    }

    /// The peer sends nothing more; what is queued for it, and the answers it waits for, are still
    /// written.
    fn end_of_stream(&mut self, now: Instant, id: FlowId) {
        // What the role has ready may be all that is owed.
        self.flush(now);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.stage {
            Stage::Ending { until, .. } => {
                connection.stage = Stage::Ending { until, peer_done: true };
                if connection.queue.is_empty() && connection.writer.is_some() {
                    self.close(now, id, Cause::Peer);
                }
            }
            Stage::Handshaking { .. } => {
                let why = "the peer closed the connection during the handshake";
                self.close(now, id, Cause::Tls(rustls::Error::General(why.into())));
            }
            Stage::Open if connection.owed > 0 => {
                connection.stage = Stage::HalfClosed { until: now + HALF_CLOSED };
                let flow = connection.flow;
                self.forget_remote(&flow);
            }
            Stage::Connecting | Stage::Open | Stage::HalfClosed { .. } => self.end(now, id, Cause::Peer),
        }
    }

    /// There is nothing to write.
    fn written(&mut self, now: Instant, id: FlowId, mut writer: TcpOwnedWriteHalf) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let stage = connection.stage;
        if matches!(stage, Stage::Ending { peer_done: false, .. }) {
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

//! One io_uring for one thread, with its receive buffers and send arena.
//!
//! Everything unsafe about submitting rests on these invariants:
//!
//! * **I1 pinned**: arena, buffers, buffer ring and the receive template are allocated once, before
//!   the first submission, and never move or grow.
//! * **I2 outlived**: `Drop` cancels every receive and reaps until none is in flight before memory
//!   is freed; if the kernel does not confirm, the memory is leaked instead.
//! * **I3 named once**: a provided buffer is reachable only through its [`Buffer`], which exists
//!   from the completion that released it until it is given back or lent to a send.
//! * **I4 inline**: a send (plain `SEND`, `MSG_DONTWAIT`, no zero copy, no link, no SQPOLL) is over
//!   when the enter that consumed it returns: it cannot wait for the socket, and is not handed to
//!   a worker. So arena slots and lent buffers are reused only once the submission queue was seen
//!   empty after an enter.
//! * **I5 one thread**: the type is neither `Send` nor `Sync`, which `SINGLE_ISSUER` requires.
#![expect(unsafe_code, reason = "submissions carry raw pointers; see the invariants")]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use nix::sys::resource::{Resource, getrlimit};

use super::bufring::{BUFFER_BYTES, BufRing, Buffer, GROUP};
use super::io::{Arrived, FORWARD_ROOM_BYTES, Packet};
use super::region::Region;
use super::sockaddr::{self, SOCKADDR_BYTES};
use super::thread::monotonic;
use super::token::{Op, Token};
use crate::base::clock;
use crate::base::limits::RTP_DATAGRAM_BYTES_MAX;

/// Submissions that fit between two enters; a full queue is flushed.
const SQ_ENTRIES: u32 = 1024;
/// Multishot receives complete without being submitted, up to one per buffer.
const CQ_ENTRIES: u32 = 16_384;
/// Receive buffers: twice what 4000 streams bring in 10 ms.
pub(super) const BUFFERS_MAX: u16 = 4096;
const _: () = assert!(CQ_ENTRIES >= 2 * BUFFERS_MAX as u32 + SQ_ENTRIES);

/// Longest packet we make ourselves: 60 ms of G.711 is 492 bytes, a compound RTCP less than 700.
pub(super) const SEND_BYTES_MAX: usize = 960;
/// Arena slot: the address, padded to a cache line, then the packet.
const SLOT_BYTES: usize = 1024;
const PACKET_AT: usize = SLOT_BYTES - SEND_BYTES_MAX;
const _: () = assert!(PACKET_AT >= SOCKADDR_BYTES);

/// `struct io_uring_recvmsg_out` in front of each datagram, then the source address.
const HEADER_BYTES: usize = 16;
/// Where the datagram starts in its buffer.
const PAYLOAD_AT: usize = HEADER_BYTES + SOCKADDR_BYTES;
const _: () = assert!(BUFFER_BYTES > PAYLOAD_AT + RTP_DATAGRAM_BYTES_MAX + FORWARD_ROOM_BYTES);

/// `IORING_RECVSEND_POLL_FIRST`: wait for readiness before the first attempt.
const POLL_FIRST: u16 = 1;
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// How a submission names a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handle {
    /// By its descriptor, which the kernel looks up and holds for each submission.
    Descriptor(RawFd),
    /// By its place in the ring's table of registered sockets, which needs neither.
    Registered(u32),
}

impl Handle {
    /// What goes into the submission's descriptor field, and the flag that says so.
    fn parts(self) -> (Fd, squeue::Flags) {
        match self {
            Self::Descriptor(descriptor) => (Fd(descriptor), squeue::Flags::empty()),
            Self::Registered(place) => (Fd(place.cast_signed()), squeue::Flags::FIXED_FILE),
        }
    }
}

/// One completion. `token` is `None` if its `user_data` is not ours.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) token: Option<Token>,
    pub(super) result: i32,
    /// The submission stays in flight.
    pub(super) more: bool,
    /// The buffer the datagram is in.
    pub(super) buffer: Option<Buffer>,
}

impl Completion {
    /// The stream whose datagram it brings.
    pub(super) fn datagram_of(&self) -> Option<u32> {
        self.buffer.as_ref()?;
        self.token.map(|token| token.slot)
    }
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GetEvents {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTime {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_rsrc_update`, for registering the ring's own descriptor.
#[repr(C)]
struct RingFd {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// The ring. Sans protocol: it knows sockets, bytes and tokens.
pub(super) struct Ring {
    uring: ManuallyDrop<IoUring>,
    buffers: ManuallyDrop<BufRing>,
    arena: ManuallyDrop<Region>,
    /// Only the name length matters to a multishot receive.
    template: ManuallyDrop<Box<libc::msghdr>>,
    /// Arena slots used since the submission queue was last empty.
    arena_used: usize,
    /// Buffers that queued sends point into.
    lent: Vec<Buffer>,
    /// Receives that have not had their final completion.
    in_flight: usize,
    /// Index of the ring's registered descriptor.
    registered: Option<u32>,
    /// Places in the table of registered sockets.
    places: u32,
    /// The kernel takes absolute deadlines (6.12).
    absolute: bool,
    /// The same moment on both clocks.
    origin: (Instant, Duration),
    pub(super) enters: u64,
    pub(super) overflows: u64,
}

impl Ring {
    /// A ring for the calling thread with `buffers` receive buffers (a power of two).
    ///
    /// # Errors
    /// `ENOSYS`, `EPERM` (forbidden), `EINVAL` (Linux before 6.1), `ENOMEM`.
    pub(super) fn new(buffers: u16) -> io::Result<Self> {
        let uring = build(true).or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => build(false),
            _ => Err(error),
        })?;
        let buffers = BufRing::new(&uring.submitter(), buffers)?;
        // SAFETY: all-zero is a valid msghdr: null pointers and nought lengths.
        let mut template: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        template.msg_namelen = libc::socklen_t::try_from(SOCKADDR_BYTES).expect("small");
        let mut ring = Self {
            uring: ManuallyDrop::new(uring),
            buffers: ManuallyDrop::new(buffers),
            arena: ManuallyDrop::new(Region::new(SQ_ENTRIES as usize * SLOT_BYTES)),
            template: ManuallyDrop::new(template),
            arena_used: 0,
            lent: Vec::with_capacity(SQ_ENTRIES as usize),
            in_flight: 0,
            registered: None,
            places: 0,
            absolute: true,
            origin: (clock::now(), monotonic()),
            enters: 0,
            overflows: 0,
        };
        ring.register_descriptor();
        // A deadline that has passed returns at once where absolute deadlines are understood.
        let past = ring.origin.0;
        let outcome = ring.enter(0, 1, Some(past));
        ring.absolute = outcome.err().and_then(|error| error.raw_os_error()) == Some(libc::ETIME);
        Ok(ring)
    }

    /// Whether deadlines are absolute; else the same moment is waited for as a time span.
    pub(super) fn is_absolute(&self) -> bool {
        self.absolute
    }

    /// Makes a table for `places` sockets, or for as many as the limit of open files lets us have at
    /// all: the kernel takes no larger one. What finds no place is named by its descriptor.
    pub(super) fn make_places(&mut self, places: usize) {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let places = u64::try_from(places).unwrap_or(u64::MAX).min(files);
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        let made = places > 0 && self.uring.submitter().register_files_sparse(places).is_ok();
        self.places = if made { places } else { 0 };
    }

    /// Puts a socket into its place; the handle to use from now on. The kernel holds the socket open
    /// until [`Self::vacate`].
    pub(super) fn occupy(&mut self, place: u32, socket: RawFd) -> Handle {
        let update = |ring: &mut Self| ring.uring.submitter().register_files_update(place, &[socket]);
        if place < self.places && update(self).is_ok_and(|updated| updated == 1) {
            Handle::Registered(place)
        } else {
            Handle::Descriptor(socket)
        }
    }

    /// Takes a socket out of its place.
    pub(super) fn vacate(&mut self, handle: Handle) {
        if let Handle::Registered(place) = handle {
            let vacated = self.uring.submitter().register_files_update(place, &[-1]);
            debug_assert!(vacated.is_ok(), "a place of the table: {vacated:?}");
        }
    }

    /// Receives on `socket` until the completion without `more`.
    pub(super) fn receive(&mut self, socket: Handle, token: Token) -> io::Result<()> {
        self.make_room()?;
        let template: *const libc::msghdr = &raw const **self.template;
        let (socket, flags) = socket.parts();
        let entry = opcode::RecvMsgMulti::new(socket, template, GROUP)
            .ioprio(POLL_FIRST)
            .build()
            .flags(flags)
            .user_data(token.encode());
        // SAFETY: the template is pinned and outlives the receive (I1, I2); data goes only into
        // provided buffers, which are pinned too and unreachable while the kernel has them (I3).
        unsafe { self.push(&entry)? };
        self.in_flight += 1;
        Ok(())
    }

    /// Queues a packet from the arena. `fill` writes it and says its length and destination.
    pub(super) fn send(
        &mut self,
        socket: Handle,
        token: Token,
        fill: &mut dyn FnMut(&mut [u8]) -> Packet,
    ) -> io::Result<bool> {
        // First of all: a flush in between would declare this packet's slot free.
        self.make_room()?;
        let slot = self.arena.at(self.arena_used * SLOT_BYTES);
        // SAFETY: the slot is inside the arena and unused by any queued send (`arena_used` counts
        // those, I4); the two parts do not overlap, and the arena is zeroed memory.
        let (name, packet) = unsafe {
            (
                &mut *slot.cast::<[u8; SOCKADDR_BYTES]>().as_ptr(),
                std::slice::from_raw_parts_mut(slot.add(PACKET_AT).as_ptr(), SEND_BYTES_MAX),
            )
        };
        let Some((length, to)) = fill(packet) else { return Ok(false) };
        let bytes = packet.get(..length).ok_or(io::ErrorKind::InvalidInput)?;
        let name_bytes = sockaddr::encode(to, name);
        let entry = send_entry(socket, bytes, &name[..name_bytes], token);
        self.arena_used += 1;
        // SAFETY: packet and address stay untouched until the queue was seen empty (I1, I4).
        unsafe { self.push(&entry)? };
        Ok(true)
    }

    /// Queues the first `length` payload bytes of a received datagram to go out from its buffer.
    pub(super) fn send_received(
        &mut self,
        socket: Handle,
        token: Token,
        mut buffer: Buffer,
        length: usize,
        to: SocketAddr,
    ) -> io::Result<()> {
        if let Err(error) = self.make_room() {
            self.buffers.give_back(buffer);
            return Err(error);
        }
        let bytes = self.buffers.bytes(&mut buffer);
        // The source address is of no more use: its field takes the destination.
        let (head, payload) = bytes.split_at_mut(PAYLOAD_AT);
        let name = head.last_chunk_mut().expect("the header is longer than an address");
        let name_bytes = sockaddr::encode(to, name);
        let Some(packet) = payload.get(..length) else {
            self.buffers.give_back(buffer);
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let entry = send_entry(socket, packet, &name[..name_bytes], token);
        // SAFETY: the buffer is in `lent` or lost, in either case out of the kernel's and of our
        // reach until the queue was seen empty (I3, I4).
        unsafe { self.push(&entry)? };
        self.lent.push(buffer);
        Ok(())
    }

    /// Cancels the receive that was submitted with `target`.
    pub(super) fn cancel(&mut self, target: Token, token: Token) -> io::Result<()> {
        self.make_room()?;
        let entry = opcode::AsyncCancel::new(target.encode())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(token.encode());
        // SAFETY: no pointers.
        unsafe { self.push(&entry) }
    }

    /// Completes once `descriptor` is readable.
    pub(super) fn watch(&mut self, descriptor: RawFd, token: Token) -> io::Result<()> {
        self.make_room()?;
        let readable = u32::from(libc::POLLIN.unsigned_abs());
        let entry = opcode::PollAdd::new(Fd(descriptor), readable).build();
        // SAFETY: no pointers.
        unsafe { self.push(&entry.user_data(token.encode())) }
    }

    /// Submits without waiting.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.turn(0, None)
    }

    /// Submits and waits for `want` completions until `deadline`.
    pub(super) fn wait(&mut self, want: u32, deadline: Instant) -> io::Result<()> {
        self.turn(want, Some(deadline))
    }

    /// Every send queued so far is over.
    pub(super) fn is_submitted(&mut self) -> bool {
        self.uring.submission().is_empty()
    }

    /// Moves all completions to `into`.
    pub(super) fn completions(&mut self, into: &mut VecDeque<Completion>) {
        for entry in self.uring.completion() {
            let token = Token::decode(entry.user_data());
            let more = cqueue::more(entry.flags());
            if !more && token.is_some_and(|token| token.op == Op::Receive) {
                self.in_flight = self.in_flight.saturating_sub(1);
            }
            let buffer = cqueue::buffer_select(entry.flags());
            let buffer = buffer.and_then(|index| self.buffers.completed(index));
            into.push_back(Completion { token, result: entry.result(), more, buffer });
        }
    }

    /// The datagram in `buffer`, which came `at`; `None` if its header makes no sense.
    pub(super) fn datagram<'a>(&'a mut self, buffer: &'a mut Buffer, at: Instant) -> Option<Arrived<'a>> {
        let bytes = self.buffers.bytes(buffer);
        let (head, payload) = bytes.split_at_mut(PAYLOAD_AT);
        let word = |index: usize| {
            let bytes = head.get(index * 4..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        let (name_bytes, length, flags) = (word(0)?, word(2)?, word(3)?);
        let truncated = flags & libc::MSG_TRUNC.unsigned_abs() != 0;
        let name = head.get(HEADER_BYTES..)?;
        let from = sockaddr::decode(name.get(..usize::try_from(name_bytes).ok()?)?)?;
        let length = if truncated { usize::MAX } else { usize::try_from(length).ok()?.min(payload.len()) };
        Some(Arrived { from, at, bytes: payload, length })
    }

    /// Returns a buffer to the kernel at the next enter.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        self.buffers.give_back(buffer);
    }

    /// Makes sure that one more submission, with an arena slot, fits.
    fn make_room(&mut self) -> io::Result<()> {
        let is_full =
            |ring: &mut Self| ring.uring.submission().is_full() || ring.arena_used == SQ_ENTRIES as usize;
        if is_full(self) {
            self.submit()?;
        }
        if is_full(self) { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) }
    }

    /// Queues one submission; to be preceded by `make_room`.
    ///
    /// # Safety
    /// What the entry points to must stay valid and untouched until its final completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: promised by the caller.
        let pushed = unsafe { self.uring.submission().push(entry) };
        pushed.map_err(|_| io::ErrorKind::ResourceBusy.into())
    }

    /// One enter, and what becomes free by it.
    fn turn(&mut self, want: u32, deadline: Option<Instant>) -> io::Result<()> {
        self.buffers.publish();
        let queue = self.uring.submission();
        let queued = u32::try_from(queue.len()).unwrap_or(SQ_ENTRIES);
        self.overflows += u64::from(queue.cq_overflow());
        drop(queue);
        match self.enter(queued, want, deadline) {
            Ok(()) => {}
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        if self.is_submitted() {
            self.arena_used = 0;
            for buffer in self.lent.drain(..) {
                self.buffers.give_back(buffer);
            }
            self.buffers.publish();
        }
        Ok(())
    }

    fn enter(&mut self, submit: u32, want: u32, deadline: Option<Instant>) -> io::Result<()> {
        self.enters += 1;
        let mut flags = EnterFlags::EXT_ARG;
        if want > 0 {
            flags |= EnterFlags::GETEVENTS;
        }
        let mut time = KernelTime { seconds: 0, nanoseconds: 0 };
        let mut argument = GetEvents { sigmask: 0, sigmask_bytes: 0, min_wait_us: 0, timespec: 0 };
        if let Some(deadline) = deadline {
            let after = if self.absolute {
                flags |= EnterFlags::ABS_TIMER;
                self.origin.1 + deadline.saturating_duration_since(self.origin.0)
            } else {
                deadline.saturating_duration_since(clock::now())
            };
            time.seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
            time.nanoseconds = i64::from(after.subsec_nanos());
            argument.timespec = &raw const time as u64;
        }
        let descriptor = match self.registered {
            Some(index) => {
                flags |= EnterFlags::REGISTERED_RING;
                i64::from(index)
            }
            None => i64::from(self.uring.as_raw_fd()),
        };
        // SAFETY: `argument` and `time` live until the call returns; the submissions were pushed
        // under `push`'s promise; only this thread enters this ring (I5).
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                descriptor,
                submit,
                want,
                flags.bits(),
                &raw const argument,
                size_of::<GetEvents>(),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Saves a descriptor look-up per enter; without it all works the same.
    fn register_descriptor(&mut self) {
        let data = u64::try_from(self.uring.as_raw_fd()).unwrap_or(0);
        let mut update = RingFd { offset: u32::MAX, reserved: 0, data };
        if self.register_call(REGISTER_RING_FDS, &mut update) == 1 {
            self.registered = Some(update.offset);
        }
    }

    fn register_call(&self, operation: libc::c_uint, update: &mut RingFd) -> libc::c_long {
        // SAFETY: the descriptor is this ring's, the operation takes one `io_uring_rsrc_update`.
        unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.uring.as_raw_fd(),
                operation,
                ptr::from_mut(update),
                1,
            )
        }
    }

    /// Cancels all receives and reaps until none is left. True if the kernel let go of everything.
    fn quiesce(&mut self) -> bool {
        let _ = self.submit();
        let mut reaped = VecDeque::new();
        for _ in 0..50 {
            self.completions(&mut reaped);
            if self.in_flight == 0 {
                break;
            }
            let limit = Timespec::from(Duration::from_millis(100));
            let all = CancelBuilder::any().all();
            // Not found: all ended by themselves and their completions wait.
            let _ = self.uring.submitter().register_sync_cancel(Some(limit), all);
            let _ = self.wait(1, clock::now() + Duration::from_millis(1));
        }
        self.in_flight == 0 && self.is_submitted()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let quiet = self.quiesce();
        if let Some(offset) = self.registered.take() {
            self.register_call(UNREGISTER_RING_FDS, &mut RingFd { offset, reserved: 0, data: 0 });
        }
        if self.places > 0 {
            // Else the sockets stay open, and their ports taken, until the kernel has torn the ring down.
            let _ = self.uring.submitter().unregister_files();
        }
        let unregistered = self.uring.submitter().unregister_buf_ring(GROUP).is_ok();
        // SAFETY: dropped once, here. The ring goes first; its memory only if the kernel let go of
        // it (I2), else it stays allocated for good.
        unsafe {
            ManuallyDrop::drop(&mut self.uring);
            if quiet && unregistered {
                ManuallyDrop::drop(&mut self.buffers);
                ManuallyDrop::drop(&mut self.arena);
                ManuallyDrop::drop(&mut self.template);
            }
        }
    }
}

fn build(without_array: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(CQ_ENTRIES);
    if without_array {
        builder.setup_no_sqarray();
    }
    builder.build(SQ_ENTRIES)
}

fn send_entry(socket: Handle, packet: &[u8], name: &[u8], token: Token) -> squeue::Entry {
    let (socket, flags) = socket.parts();
    let length = u32::try_from(packet.len()).expect("shorter than a buffer");
    let name_bytes = libc::socklen_t::try_from(name.len()).expect("shorter than a buffer");
    let name: NonNull<u8> = NonNull::from(name).cast();
    opcode::Send::new(socket, packet.as_ptr(), length)
        .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        .dest_addr(name.as_ptr().cast())
        .dest_addr_len(name_bytes)
        .build()
        .flags(flags | squeue::Flags::SKIP_SUCCESS)
        .user_data(token.encode())
}

/// The wait is over (deadline, signal) or the kernel asks us to reap first.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: without absolute deadlines (before Linux 6.12) a wait still ends at its deadline.
    /// Method: force the fallback, wait 20 ms; then once with a deadline that has passed.
    #[test]
    fn relative_waits_end_at_the_same_moment() {
        let mut ring = Ring::new(256).unwrap();
        ring.absolute = false;
        let began = clock::now();
        ring.wait(1, began + Duration::from_millis(20)).unwrap();
        let took = clock::now() - began;
        assert!((20..500).contains(&took.as_millis()), "{took:?}");
        ring.wait(1, began).unwrap();
    }

    /// Goal: the constants are the kernel's. Method: the sizes in its headers.
    #[test]
    fn structures_shared_with_the_kernel_have_its_sizes() {
        assert_eq!(size_of::<GetEvents>(), 24);
        assert_eq!(size_of::<KernelTime>(), 16);
        assert_eq!(size_of::<RingFd>(), 16);
    }
}

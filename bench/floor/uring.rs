//! io_uring: the ring of a media shard without anything around it.
//!
//! One multishot receive a socket into provided buffers; sends straight from the receive buffer,
//! without completion; one enter a tick. Buffers that sends point into go back after the enter that
//! submitted them: a plain send with `MSG_DONTWAIT` is over by then.
#![expect(unsafe_code, reason = "the bare ring is the point: no safe layer between it and the kernel")]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use super::{Ciphers, FRAME_TICKS, Mode, PACKET_BYTES, Streams, TICK, name, stamp};

const SQ_ENTRIES: u32 = 1024;
const CQ_ENTRIES: u32 = 16_384;
const BUFFERS: u16 = 4096;
const BUFFER_BYTES: usize = 2112;
/// `struct sockaddr_in`.
const NAME_BYTES: u32 = 16;
/// `struct io_uring_recvmsg_out`, then the name.
const NAME_AT: usize = 16;
const PAYLOAD_AT: usize = NAME_AT + NAME_BYTES as usize;
const SEND: u64 = 1 << 32;
/// Most completions waited for within a tick.
const WANT_MAX: usize = 256;
/// So many times the mean, as the shard does: nearly every sleep lasts to the tick.
const WANT_FACTOR: usize = 4;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GetEvents {
    sigmask: u64,
    sigmask_bytes: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// All of it, in one place. Memory is never freed: the process ends with the loop.
struct Floor {
    ring: IoUring,
    entries: *mut BufRingEntry,
    tail: u16,
    buffers: *mut u8,
    lent: Vec<u16>,
    template: &'static libc::msghdr,
    fds: Vec<RawFd>,
    /// As the kernel reads them; their place is fixed.
    names: Vec<libc::sockaddr_in>,
    mode: Mode,
    ciphers: Ciphers,
}

/// Works until `over`.
pub(super) fn run(mut streams: Streams, over: &AtomicBool) -> Result<()> {
    let mut floor = Floor::new(&mut streams).context("no ring")?;
    let mut packets = vec![[0x80_u8; PACKET_BYTES]; streams.sockets.len().div_ceil(FRAME_TICKS) + 1];
    if streams.mode != Mode::Send {
        for index in 0..floor.fds.len() {
            floor.arm(index)?;
        }
    }
    let (mut deadline, mut mean) = (monotonic(), 0);
    for tick in 0_usize.. {
        deadline += TICK;
        // Late: no burst of turns, the grid goes on from here.
        deadline = deadline.max(monotonic());
        let mut taken = 0;
        loop {
            floor.enter((mean * WANT_FACTOR / 256).clamp(1, WANT_MAX), deadline)?;
            taken += floor.reap()?;
            if monotonic() >= deadline {
                break;
            }
        }
        mean = (mean * 7 + taken * 256) / 8;
        if streams.mode == Mode::Send {
            for (index, packet) in streams.due(tick).zip(&mut packets) {
                stamp(packet, u16::try_from((tick / FRAME_TICKS) & 0xFFFF)?);
                floor.send(index, packet.as_ptr(), PACKET_BYTES)?;
            }
        }
        if over.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

impl Floor {
    fn new(streams: &mut Streams) -> Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_cqsize(CQ_ENTRIES);
        let ring: IoUring = builder.build(SQ_ENTRIES)?;
        let entries = pages(usize::from(BUFFERS) * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let buffers = pages(usize::from(BUFFERS) * BUFFER_BYTES);
        // SAFETY: page aligned, long enough, never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, 0, 0)? };
        // SAFETY: all-zero is a valid msghdr.
        let template = Box::leak(Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() }));
        template.msg_namelen = NAME_BYTES;
        let name =
            |peer: &Option<SocketAddrV4>| name(peer.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));
        let mut floor = Self {
            ring,
            entries,
            tail: 0,
            buffers,
            lent: Vec::new(),
            template,
            fds: streams.sockets.iter().map(AsRawFd::as_raw_fd).collect(),
            names: streams.peers.iter().map(name).collect(),
            mode: streams.mode,
            ciphers: std::mem::take(&mut streams.ciphers),
        };
        (0..BUFFERS).for_each(|bid| floor.give_back(bid));
        Ok(floor)
    }

    fn arm(&mut self, index: usize) -> Result<()> {
        let entry = opcode::RecvMsgMulti::new(Fd(self.fds[index]), self.template, 0).ioprio(1).build();
        self.push(&entry.user_data(index as u64))
    }

    fn send(&mut self, index: usize, packet: *const u8, length: usize) -> Result<()> {
        let name = &raw const self.names[index];
        let entry = opcode::Send::new(Fd(self.fds[index]), packet, u32::try_from(length)?)
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .dest_addr(name.cast())
            .dest_addr_len(NAME_BYTES)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.push(&entry.user_data(SEND))
    }

    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        if self.ring.submission().is_full() {
            self.enter(0, Duration::ZERO)?;
        }
        // SAFETY: buffers, names and template are never moved or freed; buffers are lent until the
        // enter that submits them.
        unsafe { self.ring.submission().push(entry)? };
        Ok(())
    }

    /// Handles what completed; says how much.
    fn reap(&mut self) -> Result<usize> {
        let completions: Vec<cqueue::Entry> = self.ring.completion().collect();
        for completion in &completions {
            if completion.user_data() == SEND {
                continue;
            }
            let index = usize::try_from(completion.user_data())?;
            if let Some(bid) = cqueue::buffer_select(completion.flags()) {
                self.take(index, bid)?;
            }
            if !cqueue::more(completion.flags()) {
                self.arm(index)?;
            }
        }
        Ok(completions.len())
    }

    fn take(&mut self, index: usize, bid: u16) -> Result<()> {
        if self.mode != Mode::Relay {
            self.give_back(bid);
            return Ok(());
        }
        let at = usize::from(bid) * BUFFER_BYTES;
        // SAFETY: the kernel released this buffer with its completion; it wrote all of the header.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.buffers.add(at), BUFFER_BYTES) };
        let length = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        // SAFETY: sixteen bytes of a name follow the header, in an array of the same size.
        self.names[index] = unsafe { std::ptr::read_unaligned(bytes[NAME_AT..].as_ptr().cast()) };
        let packet = &mut bytes[PAYLOAD_AT..];
        if self.names[index ^ 1].sin_port == 0 {
            self.give_back(bid);
            return Ok(());
        }
        let sequence = u16::from_be_bytes([packet[2], packet[3]]);
        stamp(packet, sequence);
        let length = self.ciphers.apply(index, packet, length);
        let start = packet.as_ptr();
        self.send(index ^ 1, start, length)?;
        self.lent.push(bid);
        Ok(())
    }

    fn give_back(&mut self, bid: u16) {
        let slot = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: inside the ring; the kernel reads the entry only once the tail has passed it.
        unsafe {
            let entry = &mut *self.entries.add(slot);
            entry.set_addr(self.buffers.add(usize::from(bid) * BUFFER_BYTES) as u64);
            entry.set_len(u32::try_from(BUFFER_BYTES).unwrap_or(0));
            entry.set_bid(bid);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the ring's tail, which the kernel reads with acquire.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    /// Submits all, waits for `want` completions or until `deadline`; lent buffers come back.
    fn enter(&mut self, want: usize, deadline: Duration) -> Result<()> {
        self.publish();
        let queued = self.ring.submission().len();
        let time = [i64::try_from(deadline.as_secs())?, i64::from(deadline.subsec_nanos())];
        let argument =
            GetEvents { sigmask: 0, sigmask_bytes: 0, min_wait_us: 0, timespec: &raw const time as u64 };
        let mut flags = EnterFlags::EXT_ARG | EnterFlags::ABS_TIMER;
        if want > 0 {
            flags |= EnterFlags::GETEVENTS;
        }
        // SAFETY: argument and time live through the call; what the submissions point to is never
        // freed.
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.ring.as_raw_fd(),
                queued,
                want,
                flags.bits(),
                &raw const argument,
                size_of::<GetEvents>(),
            )
        };
        let passing = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
        let error = io::Error::last_os_error();
        if entered < 0 && !error.raw_os_error().is_some_and(|code| passing.contains(&code)) {
            return Err(error.into());
        }
        if self.ring.submission().is_empty() {
            let lent = std::mem::take(&mut self.lent);
            lent.iter().for_each(|bid| self.give_back(*bid));
            self.lent = lent;
            self.lent.clear();
        }
        Ok(())
    }
}

/// Zeroed pages, never given back.
fn pages(bytes: usize) -> *mut u8 {
    let layout = std::alloc::Layout::from_size_align(bytes, 4096).expect("a small size");
    // SAFETY: the size is not nought.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    assert!(!memory.is_null(), "no memory for {bytes} bytes");
    memory
}

fn monotonic() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

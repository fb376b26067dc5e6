//! epoll: wake at the tick, ask who has something, one system call a packet each way.
#![expect(unsafe_code, reason = "epoll has no safe form in the standard library")]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::{FRAME_TICKS, Mode, PACKET_BYTES, Streams, TICK, stamp};
use voxring::base::clock;

const EVENTS: usize = 1024;

/// Works until `over`.
pub(super) fn run(mut streams: Streams, over: &AtomicBool) -> Result<()> {
    let epoll = watch(&streams)?;
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    let mut packet = [0x80; 2048];
    let start = clock::now();
    for tick in 1_u32.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep((start + TICK * tick).saturating_duration_since(clock::now()));
        if streams.mode == Mode::Send {
            for index in streams.due(tick as usize) {
                stamp(&mut packet, u16::try_from((tick as usize / FRAME_TICKS) & 0xFFFF)?);
                if let Some(to) = streams.peers[index] {
                    // A refused packet is the floor's loss, seen by who counts them.
                    let _ = streams.sockets[index].send_to(&packet[..PACKET_BYTES], to);
                }
            }
            continue;
        }
        loop {
            // SAFETY: the kernel writes at most `EVENTS` of the live events.
            let ready = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 1024, 0) };
            let ready = usize::try_from(ready).unwrap_or(0);
            for event in &events[..ready] {
                take(&mut streams, usize::try_from(event.u64)?, &mut packet);
            }
            if ready < EVENTS {
                break;
            }
        }
    }
    Ok(())
}

fn watch(streams: &Streams) -> Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is ours alone.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: just made, and owned by nobody else.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    for (index, socket) in streams.sockets.iter().enumerate() {
        socket.set_nonblocking(true)?;
        let mut event = libc::epoll_event { events: libc::EPOLLIN.cast_unsigned(), u64: index as u64 };
        // SAFETY: `event` lives through the call.
        let added = unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event)
        };
        if added < 0 {
            return Err(io::Error::last_os_error().into());
        }
    }
    Ok(epoll)
}

fn take(streams: &mut Streams, index: usize, packet: &mut [u8]) {
    let Ok((length, SocketAddr::V4(from))) = streams.sockets[index].recv_from(packet) else { return };
    if streams.mode != Mode::Relay {
        return;
    }
    streams.peers[index] = Some(from);
    if let Some(to) = streams.peers[index ^ 1] {
        let sequence = u16::from_be_bytes([packet[2], packet[3]]);
        stamp(packet, sequence);
        let length = streams.ciphers.apply(index, packet, length);
        let _ = streams.sockets[index ^ 1].send_to(&packet[..length], to);
    }
}

//! One socket for many ports: a program in the kernel's socket lookup (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9)
//! gives it the datagrams of every port that was taken for it.
//!
//! The program is the process's; all its shards share it, since the kernel runs one after the other for each
//! packet that is for this machine and for no connected socket. It lets pass what is not UDP to a taken port at
//! the address it was taken for; so other sockets, other nodes and other programs of the same kind go on as
//! before. With the last shard, or the process, it is gone.
#![expect(unsafe_code, reason = "the bpf system call")]

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Commands of bpf(2), types of maps and programs, as linux/bpf.h numbers them.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_ARRAY: u32 = 2;
const MAP_SOCKMAP: u32 = 15;
const PROG_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;
/// Functions the program calls.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
/// Where `struct bpf_sk_lookup` has what the program looks at.
const PROTOCOL_AT: i16 = 12;
const LOCAL_IP4_AT: i16 = 40;
const LOCAL_PORT_AT: i16 = 60;
/// Where [`Taken`] has its two numbers.
const ADDRESS_AT: i16 = 0;
const PLACE_AT: i16 = 4;
/// Sockets of the process; a worker has one for each media shard.
const SOCKETS_MAX: usize = 256;
const PORTS: u32 = 1 << 16;

/// The process's, for as long as somebody uses it.
static PROGRAM: Mutex<Weak<Program>> = Mutex::new(Weak::new());

/// What is known of a port: for whom it is taken. All nought: for nobody.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Taken {
    address: [u8; 4],
    /// Of the socket.
    place: u32,
}

/// The program and what it reads.
#[derive(Debug)]
struct Program {
    /// [`Taken`] by port.
    taken: OwnedFd,
    /// The sockets by place.
    sockets: OwnedFd,
    places: Mutex<[bool; SOCKETS_MAX]>,
    /// Keeps the program in the lookup.
    _link: OwnedFd,
}

impl Program {
    /// The one that runs, or a new one.
    fn of_process() -> io::Result<Arc<Self>> {
        let mut running = PROGRAM.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = running.upgrade() {
            return Ok(program);
        }
        let taken = create_map(MAP_ARRAY, size_of::<Taken>(), PORTS)?;
        let sockets = create_map(MAP_SOCKMAP, size_of::<u64>(), u32::try_from(SOCKETS_MAX).unwrap_or(0))?;
        let code = load(&code(taken.as_raw_fd(), sockets.as_raw_fd()))?;
        let namespace = std::fs::File::open("/proc/self/ns/net")?;
        let link =
            [code.as_raw_fd().unsigned_abs(), namespace.as_raw_fd().unsigned_abs(), ATTACH_SK_LOOKUP, 0];
        // SAFETY: `link` is the first four numbers of the attributes of BPF_LINK_CREATE.
        let link = unsafe { bpf(LINK_CREATE, &link)? };
        // SAFETY: a fresh descriptor that nobody else owns.
        let link = unsafe { OwnedFd::from_raw_fd(link) };
        let program =
            Arc::new(Self { taken, sockets, places: Mutex::new([false; SOCKETS_MAX]), _link: link });
        *running = Arc::downgrade(&program);
        Ok(program)
    }

    fn places(&self) -> MutexGuard<'_, [bool; SOCKETS_MAX]> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What may wait for a turn, all ports together; the kernel doubles it: 100 000 packets, what 1000 anchored
/// calls bring in a second.
const QUEUE_BYTES: usize = 64 << 20;

/// A socket for many ports to lead to: it has a long queue, and tells to which port each datagram was sent.
///
/// # Errors
/// `PermissionDenied` without `CAP_NET_ADMIN`.
pub fn funnel() -> io::Result<Socket> {
    let funnel = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    setsockopt(&funnel, sockopt::RcvBufForce, &QUEUE_BYTES)?;
    setsockopt(&funnel, sockopt::Ipv4OrigDstAddr, &true)?;
    // A port of its own, to which nobody sends.
    funnel.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into())?;
    Ok(funnel)
}

/// The ports that lead to one socket.
#[derive(Debug)]
pub struct Steering {
    program: Arc<Program>,
    place: u32,
    taken: BTreeSet<u16>,
}

impl Steering {
    /// Of some ports, none at first, all datagrams are to come to `socket`, a bound UDP socket over IPv4.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_BPF` and `CAP_NET_ADMIN`, `InvalidInput` from an older kernel,
    /// `ArgumentListTooLong` when the network namespace has 64 such programs, `QuotaExceeded` when the process
    /// has 256 such sockets.
    pub fn new(socket: &impl AsFd) -> io::Result<Self> {
        let program = Program::of_process()?;
        let free = program.places().iter_mut().position(|is_used| !std::mem::replace(is_used, true));
        let place = free.and_then(|free| u32::try_from(free).ok()).ok_or(io::ErrorKind::QuotaExceeded)?;
        // From here on dropping it frees the place.
        let steering = Self { program, place, taken: BTreeSet::new() };
        let descriptor = u64::from(socket.as_fd().as_raw_fd().unsigned_abs());
        update(&steering.program.sockets, place, &descriptor)?;
        Ok(steering)
    }

    /// What comes to `port` at `address` comes to the socket from now on.
    ///
    /// # Errors
    /// `InvalidInput` for no certain address.
    pub fn take(&mut self, address: Ipv4Addr, port: u16) -> io::Result<()> {
        if address.is_unspecified() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let taken = Taken { address: address.octets(), place: self.place };
        update(&self.program.taken, u32::from(port), &taken)?;
        self.taken.insert(port);
        Ok(())
    }

    /// What comes to `port` goes where it would go without us.
    pub fn leave(&mut self, port: u16) {
        if self.taken.remove(&port) {
            // Nothing can be wrong with it: the map has all ports.
            let _ = update(&self.program.taken, u32::from(port), &Taken::default());
        }
    }

    /// Whether it comes to the socket.
    pub fn is_taken(&self, port: u16) -> bool {
        self.taken.contains(&port)
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        while let Some(port) = self.taken.first().copied() {
            self.leave(port);
        }
        let place = usize::try_from(self.place).unwrap_or(usize::MAX);
        // The kernel forgets the socket itself when that is closed.
        if let Some(is_used) = self.program.places().get_mut(place) {
            *is_used = false;
        }
    }
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The program: `pass` is where every jump goes.
fn code(taken: RawFd, sockets: RawFd) -> Vec<Instruction> {
    const JUMP_EQ: u8 = 0x15;
    const JUMP_NE: u8 = 0x55;
    const JUMP_NE_REGISTER: u8 = 0x5D;
    let op = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    };
    let copy = |to, from| op(0xBF, to, from, 0, 0);
    let load_u32 = |to, from, at| op(0x61, to, from, at, 0);
    let set = |to, value| op(0xB7, to, 0, 0, value);
    let call = |function| op(0x85, 0, 0, 0, function);
    // The key, from this register, lies on the stack, below the frame pointer.
    let look_up = |map, key| {
        [
            op(0x63, 10, key, -4, 0),
            op(0x18, 1, 1, 0, map),
            op(0, 0, 0, 0, 0),
            copy(2, 10),
            op(0x07, 2, 0, 0, -4),
            call(MAP_LOOKUP_ELEM),
            op(JUMP_EQ, 0, 0, 0, 0),
        ]
    };
    let mut code = vec![
        copy(6, 1),
        load_u32(2, 6, PROTOCOL_AT),
        op(JUMP_NE, 2, 0, 0, libc::IPPROTO_UDP),
        load_u32(2, 6, LOCAL_PORT_AT),
    ];
    code.extend(look_up(taken, 2));
    code.extend([
        load_u32(3, 0, ADDRESS_AT),
        op(JUMP_EQ, 3, 0, 0, 0),
        load_u32(2, 6, LOCAL_IP4_AT),
        op(JUMP_NE_REGISTER, 2, 3, 0, 0),
        load_u32(2, 0, PLACE_AT),
    ]);
    code.extend(look_up(sockets, 2));
    code.extend([
        copy(7, 0),
        copy(1, 6),
        copy(2, 0),
        set(3, 0),
        call(SK_ASSIGN),
        copy(1, 7),
        call(SK_RELEASE),
    ]);
    let pass = code.len();
    // SK_PASS, with the socket that was assigned or without.
    code.extend([set(0, 1), op(0x95, 0, 0, 0, 0)]);
    for (index, instruction) in code.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_EQ | JUMP_NE | JUMP_NE_REGISTER) {
            instruction.offset = i16::try_from(pass - index - 1).unwrap_or(0);
        }
    }
    code
}

/// Attributes of `BPF_PROG_LOAD`, as far as they are of use here.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: *const Instruction,
    license: *const libc::c_char,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        kind: PROG_SK_LOOKUP,
        instructions: u32::try_from(code.len()).unwrap_or(0),
        code: code.as_ptr(),
        license: c"MIT".as_ptr(),
        log: [0; 4],
        kernel: 0,
        flags: 0,
        name: *b"voxring_rtp\0\0\0\0\0",
        interface: 0,
        attach: ATTACH_SK_LOOKUP,
    };
    // SAFETY: the code has the stated length, the license is a C string; both outlive the call.
    let program = unsafe { bpf(PROG_LOAD, &load)? };
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

fn create_map(kind: u32, value_bytes: usize, entries: u32) -> io::Result<OwnedFd> {
    let bytes = |bytes: usize| u32::try_from(bytes).unwrap_or(0);
    let attributes = [kind, bytes(size_of::<u32>()), bytes(value_bytes), entries];
    // SAFETY: the first four numbers of the attributes of BPF_MAP_CREATE.
    let map = unsafe { bpf(MAP_CREATE, &attributes)? };
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(map) })
}

/// Attributes of `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Update<T> {
    map: u32,
    key: *const u32,
    value: *const T,
    flags: u64,
}

/// `value` is what the map was made for.
fn update<T>(map: &OwnedFd, key: u32, value: &T) -> io::Result<()> {
    let update = Update { map: map.as_raw_fd().unsigned_abs(), key: &raw const key, value, flags: 0 };
    // SAFETY: a key and a value of the map's sizes, which outlive the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &update) }.map(|_| ())
}

/// The system call; its result is a descriptor or nought.
///
/// # Safety
/// `attributes` are those of the command, padding aside, and what they point to is there.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads so many bytes of a live value; the rest is the caller's word.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of_val(attributes))
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        RawFd::try_from(result).map_err(io::Error::other)
    }
}

//! The SIP loop: listeners, connections, datagrams, TLS, and limits on who uses them. No media.
//!
//! [`run()`] turns one thread into a signalling shard: monoio underneath (io_uring, or epoll where
//! that is forbidden), a [`Role`] on top that never sees a socket.
//!
//! * One task accepts per listener, one reads per connection or UDP socket. What goes out waits in
//!   a bounded queue and is written by a task that lives as long as the queue is not empty.
//! * A read in flight is cancelled only to close its connection: cancelling may lose bytes. Idle
//!   and slow peers are therefore found by a sweep, not by a timer around the read.
//! * The role is driven from three places only: bytes that arrived, connections that failed, and
//!   the pump. After each of them everything it wants to send is taken.
//! * TLS is a layer between socket and framer: the connection's session takes what the reader
//!   brings and seals what the writer sends. No task waits for both directions at once.
//! * Who may speak at all is the role's to say ([`Role::admits`]); how often and how much is the
//!   loop's ([`ConnectionLimits`]). Both are decided before a message is parsed, and a flood costs
//!   a bounded number of log lines, sources and connections.
//! * Other threads change a running loop by [`SignalOrder`]s, which the pump takes: listeners come
//!   and go, limits change, and a new [`TlsSetup`] cuts exactly whom it does not take.
//! * A loop can give its listeners and plain connections to the next program in the same process:
//!   readers stop between two messages, and what comes meanwhile waits in the kernel.
//! * A peer that has shut its sending side keeps its connection while it waits for a final
//!   response, as long as a transaction lives. Requests are not sent to it: it could not answer.

mod connection;
mod core;
mod counters;
mod datagram;
mod listen;
mod log_budget;
mod obey;
mod order;
mod pace;
mod pass;
mod role;
mod run;
mod sources;
mod stream;
pub mod tls;

pub use counters::{Counter, Counters};
pub use listen::bind_socket;
pub use order::{ConnectionLimits, SignalOrder};
pub use pass::{Passed, PassedConnection};
pub use role::Role;
pub use run::{ListenError, Listener, SignalConfig, is_on_io_uring, run, run_with};
pub use tls::{PeerCertificate, TlsError, TlsFacts, TlsFiles, TlsSetup};

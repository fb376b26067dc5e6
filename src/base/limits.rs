//! Hard limits on what a peer or a call can make the node hold, in one place.

/// Longest SIP message, start line to body end, in bytes.
pub const SIP_MESSAGE_BYTES_MAX: usize = 65_535;
/// Most header fields in one SIP message, after comma lists are counted as one.
pub const SIP_HEADERS_MAX: usize = 128;
/// Largest RTP or RTCP datagram the media loop reads whole, in bytes.
pub const RTP_DATAGRAM_BYTES_MAX: usize = 1500;
/// Samples per second of every codec here.
pub const SAMPLE_RATE_HZ: u32 = 8_000;
/// Longest greeting of a mailbox, in seconds.
pub const GREETING_S_MAX: u32 = 300;
/// Samples of greetings a worker's file thread keeps in memory: an hour, 58 MB.
pub const GREETINGS_SAMPLES_MAX: usize = 3_600 * SAMPLE_RATE_HZ as usize;
const _: () = assert!(GREETINGS_SAMPLES_MAX >= GREETING_S_MAX as usize * SAMPLE_RATE_HZ as usize);
/// Samples in one recording block. 800 ms, so that a block, the reorder window (100 ms), the time between
/// two looks at a socket (95 ms) and the file thread's poll (5 ms) are the one second that a crash may cost.
pub const RECORD_BLOCK_SAMPLES: usize = 6_400;
/// Most orders that may wait for a media shard; a full queue is a 503.
pub const ORDERS_MAX: usize = 8_192;
/// Most events that may wait for a signalling shard.
pub const EVENTS_MAX: usize = 65_536;
/// Receive buffer of a socket for SIP over UDP, in bytes: it holds a burst of calls. The kernel cuts
/// it to `net.core.rmem_max`.
pub const SIP_UDP_QUEUE_BYTES: u32 = 4 << 20;

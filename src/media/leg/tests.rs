//! Whole legs on a fake clock: a phone that sends, a network that loses, and the shard's calls.

#![expect(
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "numbers wrap as on the wire; tests look for single events"
)]

use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;
use crate::base::clock;
use crate::base::id::MessageId;
use crate::base::limits::RECORD_BLOCK_SAMPLES;
use crate::media::order::{Audio, CodedBlock, DigitSource, RecordingMeta};
use crate::media::test_signal::{PEAK_0_DBM0, Random, dual_tone, noise, sample, speech};
use crate::rtp::packet::parse;

mod relay;
mod resume;
mod srtp;

const PHONE: &str = "192.0.2.7:4000";
const STRANGER: &str = "198.51.100.9:4000";
/// Behind a NAT whose outside is also where signalling comes from.
const BESIDE: &str = "203.0.113.1:61234";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn media() -> MediaPlan {
    MediaPlan {
        remote_rtp: Some(addr(PHONE)),
        remote_rtcp: Some(addr("192.0.2.7:4001")),
        codec: Codec::Pcmu,
        payload_type: 0,
        dtmf_payload_type: Some(101),
        ptime_ms: 20,
        send: true,
        receive: true,
        nat: None,
        srtp: None,
    }
}

fn record_plan(id: u64) -> RecordPlan {
    let meta = RecordingMeta {
        id: MessageId::new(UNIX_EPOCH, id),
        mailbox: "1001".into(),
        caller: String::new(),
        caller_name: String::new(),
        called: "1001".into(),
        diversion_reason: String::new(),
        call_id: "c".into(),
        started_ms: 0,
        keep: true,
    };
    RecordPlan { meta: Box::new(meta), duration_max: ms(1_200_000), silence_max: ms(1_200_000) }
}

/// One RTP packet of the phone.
fn rtp(payload_type: u8, sequence: u16, timestamp: u32, payload: &[u8]) -> Vec<u8> {
    let header = RtpHeader {
        marker: false,
        payload_type,
        sequence: SeqNo(sequence),
        timestamp: RtpTimestamp(timestamp),
        ssrc: 0x0A0B_0C0D,
    };
    let mut packet = vec![0; HEADER_BYTES];
    write_header(&header, &mut packet);
    packet.extend(payload);
    packet
}

fn with_ssrc(mut packet: Vec<u8>, ssrc: u32) -> Vec<u8> {
    packet[8..12].copy_from_slice(&ssrc.to_be_bytes());
    packet
}

fn event(sequence: u16, timestamp: u32, event: u8, end: bool, duration: u16) -> Vec<u8> {
    let [d0, d1] = duration.to_be_bytes();
    rtp(101, sequence, timestamp, &[event, if end { 0x8A } else { 0x0A }, d0, d1])
}

/// `signal` in packets of 20 ms, with the time each is sent: at the end of what it holds.
fn stream(signal: &[i16], sequence: u16, timestamp: u32) -> Vec<(Duration, Vec<u8>)> {
    let packet = |(index, part): (usize, &[i16])| {
        let payload: Vec<u8> = part.iter().map(|sample| Codec::Pcmu.encode(*sample)).collect();
        let index = u32::try_from(index).unwrap();
        let sequence = sequence.wrapping_add(index as u16);
        let packet = rtp(0, sequence, timestamp.wrapping_add(index * 160), &payload);
        (ms(20) * (index + 1), packet)
    };
    signal.chunks(160).enumerate().map(packet).collect()
}

fn coded(signal: &[i16]) -> Vec<i16> {
    signal.iter().map(|sample| Codec::Pcmu.decode(Codec::Pcmu.encode(*sample))).collect()
}

/// A leg, its time, and all it said.
struct Rig {
    leg: Leg,
    began: Instant,
    now: Instant,
    phase: Instant,
    events: Vec<Event>,
    file: Vec<i16>,
    begun: usize,
    ended: Vec<u64>,
    sent: Vec<(Duration, Vec<u8>)>,
}

impl Rig {
    fn new(media: MediaPlan) -> Self {
        let now = clock::now();
        let plan = LegPlan {
            media: Some(media),
            address: addr(PHONE).ip(),
            cname: "voxring@test".into(),
            media_timeout: ms(60_000),
        };
        let seed = LegSeed { ssrc: 0x1111_2222, sequence: 0xFFFE, timestamp: 0xFFFF_FF00 };
        Self {
            leg: Leg::new(now, UNIX_EPOCH, LegId(1), plan, seed),
            began: now,
            now,
            phase: now + ms(7),
            events: Vec::new(),
            file: Vec::new(),
            begun: 0,
            ended: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn recording(media: MediaPlan) -> Self {
        let mut rig = Self::new(media);
        rig.leg.record(rig.now, record_plan(1));
        rig
    }

    fn at(&self) -> Duration {
        self.now - self.began
    }

    /// Time goes on until `at`; the leg's phase comes as often as it wants.
    fn until(&mut self, at: Duration) {
        while self.phase <= self.began + at {
            self.now = self.phase;
            self.leg.handle_timeout(self.now);
            self.drain();
            let mut buf = [0; 1500];
            if let Some((len, _)) = self.leg.poll_rtp(self.now, &mut buf) {
                self.sent.push((self.at(), buf[..len].to_vec()));
            }
            self.drain();
            self.phase += ms(self.leg.period_ms().into());
        }
        self.now = self.now.max(self.began + at);
    }

    fn arrive(&mut self, at: Duration, packet: &[u8]) -> Verdict {
        self.until(at);
        let verdict = self.leg.handle_rtp(self.now, addr(PHONE), &mut packet.to_vec());
        self.drain();
        verdict
    }

    fn arrive_all(&mut self, packets: &[(Duration, Vec<u8>)], from: Duration) {
        for (at, packet) in packets {
            self.arrive(from + *at, packet);
        }
    }

    fn stop(&mut self) -> (Duration, Duration, RecordEnd) {
        self.leg.stop_record(self.now);
        self.drain();
        self.recorded()
    }

    fn drain(&mut self) {
        while let Some(output) = self.leg.poll_output() {
            match output {
                LegOutput::Event(event) => self.events.push(event),
                LegOutput::File(FileItem::Begin(_)) => self.begun += 1,
                LegOutput::File(FileItem::Block(_, block)) => {
                    assert!(block.bytes.len() <= RECORD_BLOCK_SAMPLES && !block.bytes.is_empty());
                    self.file.extend(block.to_pcm());
                }
                LegOutput::File(FileItem::End { samples, .. }) => {
                    assert!(self.file.len() as u64 >= samples, "{} < {samples}", self.file.len());
                    self.file.truncate(usize::try_from(samples).unwrap());
                    self.ended.push(samples);
                }
            }
        }
    }

    fn recorded(&self) -> (Duration, Duration, RecordEnd) {
        let found = self.events.iter().rev().find_map(|event| match event {
            Event::Recorded { duration, voiced, end, .. } => Some((*duration, *voiced, *end)),
            _ => None,
        });
        let (duration, voiced, end) = found.expect("a recording ends with an event");
        assert_eq!(duration, duration_of(self.file.len() as u64));
        (duration, voiced, end)
    }

    fn digits(&self) -> String {
        let digit = |event: &Event| match event {
            Event::Digit { digit, .. } => Some(*digit),
            _ => None,
        };
        self.events.iter().filter_map(digit).collect()
    }
}

fn assert_near(duration: Duration, wanted: Duration, tolerance: Duration) {
    assert!(duration.abs_diff(wanted) <= tolerance, "{duration:?} instead of {wanted:?}");
}

/// Goal: what arrives whole is recorded whole, sample for sample, through the wrap of sequence
/// numbers and timestamps; the first packets are not lost to probation (RFC 3550 A.1).
/// Method: 10 s of speech in order, compared with the G.711-coded source.
#[test]
fn a_stream_without_loss_is_recorded_sample_for_sample() {
    let signal = speech(1, 80_000);
    let mut rig = Rig::recording(media());
    rig.arrive_all(&stream(&signal, 0xFFF0, 0xFFFF_F000), ms(0));
    let (duration, _, end) = rig.stop();
    assert_eq!((duration, end), (ms(10_000), RecordEnd::Stopped));
    assert!(rig.file == coded(&signal));
    assert_eq!((rig.begun, rig.ended.as_slice()), (1, [80_000].as_slice()));
}

/// Goal: a recording begun within a running stream has nothing from before, and all from after.
/// Method: a second of stream, then `record` between two packets.
#[test]
fn a_recording_begins_where_it_was_ordered() {
    let signal = speech(2, 32_000);
    let packets = stream(&signal, 100, 5000);
    let mut rig = Rig::new(media());
    rig.arrive_all(&packets[..50], ms(0));
    rig.until(ms(1011));
    rig.leg.record(rig.now, record_plan(1));
    rig.arrive(ms(1012), &packets[48].1);
    rig.arrive_all(&packets[50..], ms(0));
    rig.stop();
    assert!(rig.file == coded(&signal[8000..]));
}

/// Goal: 5 % loss, swaps over up to three places and duplicates leave the right duration, and what
/// came is where it belongs. Method: three seeds of 10 s of speech.
#[test]
fn loss_reordering_and_duplication_keep_the_duration() {
    for seed in 0..3 {
        let signal = speech(seed, 80_000);
        let mut random = Random::new(seed);
        let mut packets = stream(&signal, 7, 77);
        let times: Vec<Duration> = packets.iter().map(|(at, _)| *at).collect();
        for index in (1..packets.len() - 4).step_by(4) {
            if random.below(3) == 0 {
                packets.swap(index, index + 1 + random.below(3) as usize);
            }
        }
        let mut sent = Vec::new();
        let mut lost = 0;
        for (at, (_, packet)) in times.iter().zip(packets) {
            if random.below(20) == 0 && !sent.is_empty() {
                lost += 1;
                continue;
            }
            if random.below(20) == 0 {
                sent.push((*at, packet.clone()));
            }
            sent.push((*at, packet));
        }
        let mut rig = Rig::recording(media());
        rig.arrive_all(&sent, ms(0));
        rig.until(ms(10_000));
        let (duration, ..) = rig.stop();
        assert_near(duration, ms(10_000), ms(20));
        let source = coded(&signal);
        let same = rig.file.iter().zip(&source).filter(|(a, b)| a == b).count();
        assert!(same > 70_000, "{same} samples of 80000 in place");
        let stats = rig.leg.stats();
        assert!(stats.lost.abs_diff(lost) <= 2, "{} lost, {lost} dropped", stats.lost);
        assert_eq!(stats.late, 0);
        assert!(stats.duplicate > 10);
    }
}

/// Goal: a stream that stalls for 3 s leaves 3 s of silence, not more when it comes back: with its
/// clock run on, stood still, or with all held-up packets at once.
/// Method: 2 s, stall, 2 s, in the three ways.
#[test]
fn a_stall_of_3_s_is_3_s_of_silence() {
    let signal = speech(3, 56_000);
    let packets = stream(&signal, 1, 1);
    let (before, after) = (&packets[..100], &packets[250..]);
    let stood_still: Vec<_> =
        stream(&signal[40_000..], 101, 1 + 16_000).into_iter().map(|(at, p)| (at + ms(5000), p)).collect();
    let held_up: Vec<_> = packets[100..].iter().map(|(at, p)| ((*at).max(ms(5000)), p.clone())).collect();
    for (name, rest) in [("ran on", after), ("stood still", &stood_still[..]), ("held up", &held_up[..])] {
        let mut rig = Rig::recording(media());
        rig.arrive_all(before, ms(0));
        rig.arrive_all(rest, ms(0));
        let (duration, ..) = rig.stop();
        assert_near(duration, ms(7000), ms(20));
        let source = coded(&signal);
        assert!(rig.file[..16_000] == source[..16_000], "{name}");
        assert!(rig.file[16_480..38_000].iter().all(|sample| *sample == 0), "{name}");
        let tail = rig.file.len() - 8000;
        let wanted = if name == "stood still" { tail } else { 48_000 };
        assert!(rig.file[tail..] == source[wanted..], "{name}: the last second is in place");
    }
}

/// Goal: a peer on hold costs no recording time and none is counted twice: hold by re-INVITE, the
/// prompt stands still, RTP comes back with another SSRC and clock.
/// Method: 1 s of stream, 2 s of inactive, 1 s of a new stream.
#[test]
fn hold_and_resume_keep_the_recording_in_real_time() {
    let signal = speech(4, 8000);
    let mut rig = Rig::recording(media());
    rig.leg.play(PlayId(1), Playlist { items: vec![Audio::from_pcm(&speech(9, 80_000))], repeat: false });
    rig.arrive_all(&stream(&signal, 1, 1), ms(0));
    rig.leg.update(rig.now, MediaPlan { send: false, receive: false, ..media() });
    let sent = rig.sent.len();
    rig.until(ms(3000));
    assert_eq!(rig.sent.len(), sent, "nothing is sent on hold");
    rig.leg.update(rig.now, media());
    for (at, packet) in stream(&signal, 40_000, 0x8000_0000) {
        rig.arrive(ms(3000) + at, &with_ssrc(packet, 99));
    }
    let (duration, ..) = rig.stop();
    assert_near(duration, ms(4000), ms(40));
    let tail = rig.file.len() - 8000;
    assert!(rig.file[tail..] == coded(&signal));
    // The prompt: the packet after the hold continues where the one before it stopped, the clock
    // of our stream ran on, and the marker says so.
    let prompt = Audio::from_pcm(&speech(9, 80_000));
    let ((before, last), (after, next)) = (&rig.sent[sent - 1], &rig.sent[sent]);
    assert_eq!(next[12..], prompt.pcmu[sent * 160..(sent + 1) * 160]);
    let paused = u32::try_from((*after - *before).as_millis()).unwrap();
    let (last, next) = (parse(last).unwrap().header, parse(next).unwrap().header);
    assert!(next.marker && !last.marker);
    assert_eq!(next.sequence.since(last.sequence), 1);
    assert_eq!(next.timestamp.since(last.timestamp), paused * 8);
}

/// Goal: a new SSRC from the same source goes on in real time, whatever its numbers; so does a jump
/// of sequence numbers and timestamps without a new SSRC, which costs A.1's one packet.
/// Method: two streams of 1 s, one after the other.
#[test]
fn a_new_ssrc_or_a_jump_of_the_clock_goes_on_in_real_time() {
    let signal = speech(5, 8000);
    for ssrc in [0x0A0B_0C0D, 7] {
        let mut rig = Rig::recording(media());
        rig.arrive_all(&stream(&signal, 1, 1), ms(0));
        for (at, packet) in stream(&signal, 20_000, 0x7000_0000) {
            rig.arrive(ms(1000) + at, &with_ssrc(packet, ssrc));
        }
        let (duration, ..) = rig.stop();
        assert_near(duration, ms(2000), ms(20));
        let source = coded(&signal);
        assert!(rig.file[..8000] == source);
        let tail = rig.file.len() - 7000;
        assert!(rig.file[tail..] == source[1000..]);
    }
}

/// Goal: a sender whose clock is 200 ppm off for 5 minutes stays within 100 ms of real time and
/// loses nothing. Method: packets 20 ms and 4 µs, or 19.996 ms, apart.
#[test]
fn a_drifting_clock_stays_within_100_ms_in_5_minutes() {
    let signal = noise(1, -20.0, 160);
    let payload: Vec<u8> = signal.iter().map(|sample| Codec::Pcmu.encode(*sample)).collect();
    for step_us in [19_996_u64, 20_004] {
        let mut rig = Rig::recording(media());
        for index in 0..15_000_u32 {
            let at = Duration::from_micros(step_us * u64::from(index + 1));
            rig.arrive(at, &rtp(0, index as u16, index * 160, &payload));
        }
        let real = rig.at();
        let (duration, ..) = rig.stop();
        assert_eq!(duration, ms(300_000));
        assert_near(duration, real, ms(100));
    }
}

/// Goal: without any RTP a recording is silence in real time, and ends by silence with nothing in
/// it. Method: 3 s and a stop; 5 s of `silence_max`.
#[test]
fn no_rtp_at_all_is_silence_in_real_time() {
    let mut rig = Rig::recording(media());
    rig.until(ms(3000));
    let (duration, voiced, _) = rig.stop();
    assert_near(duration, ms(3000), ms(20));
    assert_eq!(voiced, ms(0));

    let mut rig = Rig::new(media());
    rig.leg.record(rig.now, RecordPlan { silence_max: ms(5000), ..record_plan(1) });
    rig.until(ms(5400));
    assert_eq!(rig.recorded(), (ms(0), ms(0), RecordEnd::Silence));
}

/// Goal: silence ends a recording and is cut off it, with and without RTP.
/// Method: 2 s of tone, then silent packets or none; the file ends where the tone does.
#[test]
fn silence_ends_a_recording_and_is_cut_off() {
    let tone: Vec<i16> =
        (0..16_000).map(|n| sample(PEAK_0_DBM0 * 0.1 * (f64::from(n) * 0.5).sin())).collect();
    for silent_packets in [true, false] {
        let mut signal = tone.clone();
        if silent_packets {
            signal.extend(vec![0; 60_000]);
        }
        let mut rig = Rig::new(media());
        rig.leg.record(rig.now, RecordPlan { silence_max: ms(3000), ..record_plan(1) });
        rig.arrive_all(&stream(&signal, 1, 1), ms(0));
        rig.until(ms(9000));
        assert_eq!(rig.recorded(), (ms(2000), ms(2000), RecordEnd::Silence));
        assert_eq!(rig.file, coded(&tone));
    }
}

/// Goal: a sender that pauses between words (VAD) with comfort noise, or with nothing, leaves true
/// silence of the right length, not concealment. Method: speech, pause of 1 s, speech; the clock
/// runs on, sequence numbers do not (RFC 3551 §4.1, RFC 3389).
#[test]
fn pauses_of_the_sender_are_silence_of_their_length() {
    let words = (speech(20, 8000), speech(21, 8000));
    for comfort_noise in [true, false] {
        let mut rig = Rig::recording(media());
        rig.arrive_all(&stream(&words.0, 1, 0), ms(0));
        let mut sequence = 51;
        if comfort_noise {
            for (at, timestamp) in [(1020, 8000), (1220, 9600)] {
                rig.arrive(ms(at), &rtp(13, sequence, timestamp, &[60]));
                sequence += 1;
            }
        }
        rig.arrive_all(&stream(&words.1, sequence, 16_000), ms(2000));
        rig.stop();
        let wanted = [coded(&words.0), vec![0; 8000], coded(&words.1)].concat();
        assert!(rig.file == wanted, "comfort noise: {comfort_noise}");
    }
}

/// Goal: the limit ends a recording to the sample, a hang-up keeps what was heard.
/// Method: a limit of 1 s in a running stream; a close after 0.5 s with a gap still open.
#[test]
fn limit_and_hang_up_end_a_recording_with_what_was_heard() {
    let signal = speech(6, 16_000);
    let packets = stream(&signal, 1, 1);
    let mut rig = Rig::new(media());
    rig.leg.record(rig.now, RecordPlan { duration_max: ms(1000), ..record_plan(1) });
    rig.arrive_all(&packets, ms(0));
    let (duration, _, end) = rig.recorded();
    assert_eq!((duration, end), (ms(1000), RecordEnd::Limit));
    assert!(rig.file == coded(&signal[..8000]));

    let mut rig = Rig::recording(media());
    rig.arrive_all(&packets[..23], ms(0));
    rig.arrive(ms(500), &packets[24].1);
    rig.leg.close(rig.now);
    rig.drain();
    let (duration, _, end) = rig.recorded();
    assert_eq!((duration, end), (ms(500), RecordEnd::Closed));
    assert!(rig.file[4000 - 80..] == coded(&signal[4000 - 80..4000]), "behind the blended gap");
}

/// Goal: a second `record` ends the first; both end with their event, also after `close`.
/// Method: count begins, ends and events.
#[test]
fn every_recording_ends_with_its_event() {
    let mut rig = Rig::recording(media());
    rig.leg.record(rig.now, record_plan(2));
    rig.leg.close(rig.now);
    rig.leg.record(rig.now, record_plan(3));
    rig.leg.stop_record(rig.now);
    rig.drain();
    let ends: Vec<RecordEnd> = rig
        .events
        .iter()
        .filter_map(|event| if let Event::Recorded { end, .. } = event { Some(*end) } else { None })
        .collect();
    assert_eq!(ends, [RecordEnd::Stopped, RecordEnd::Closed, RecordEnd::Closed]);
    assert_eq!((rig.begun, rig.ended.len()), (3, 3));
}

/// Goal: only the signalled source is heard, then only the latched one; with NAT a first source is
/// any port of the signalling's address; what is latched is never latched again but by a new remote
/// address, and then the old source's stragglers do not take it.
/// Method: packets from phone and stranger before and after each.
#[test]
fn only_the_signalled_or_latched_source_is_heard() {
    let packets = stream(&speech(7, 3200), 1, 1);
    let mut rig = Rig::new(media());
    let send = |rig: &mut Rig, from: &str, index: usize| {
        rig.leg.handle_rtp(rig.now, addr(from), &mut packets[index].1.clone());
        rig.drain();
    };
    send(&mut rig, STRANGER, 0);
    assert_eq!((rig.leg.latched(), rig.leg.stats().source_filtered), (None, 1));
    send(&mut rig, PHONE, 0);
    assert_eq!(rig.leg.latched(), Some(addr(PHONE)));
    assert!(matches!(rig.events.last(), Some(Event::Latched { peer, .. }) if *peer == addr(PHONE)));
    send(&mut rig, STRANGER, 1);
    assert_eq!((rig.leg.stats().rx_packets, rig.leg.stats().source_filtered), (1, 2));

    let nat = MediaPlan { nat: Some(addr(BESIDE).ip()), ..media() };
    let mut rig = Rig::new(nat.clone());
    send(&mut rig, STRANGER, 0);
    assert_eq!((rig.leg.latched(), rig.leg.stats().source_filtered), (None, 1));
    send(&mut rig, BESIDE, 0);
    assert_eq!(rig.leg.latched(), Some(addr(BESIDE)));
    for (filtered, other) in [(2, PHONE), (3, STRANGER), (4, "203.0.113.1:9")] {
        send(&mut rig, other, 1);
        assert_eq!((rig.leg.latched(), rig.leg.stats().source_filtered), (Some(addr(BESIDE)), filtered));
    }
    assert_eq!(rig.leg.stats().rx_packets, 1);
    let mut buf = [0; 1500];
    assert_eq!(rig.leg.poll_rtp(rig.now, &mut buf), Some((172, addr(BESIDE))));
    let moved = MediaPlan { remote_rtp: Some(addr("192.0.2.7:5000")), ..nat };
    rig.leg.update(rig.now, moved.clone());
    assert_eq!(rig.leg.poll_rtp(rig.now, &mut buf), Some((172, addr("192.0.2.7:5000"))));
    send(&mut rig, BESIDE, 2);
    assert_eq!(rig.leg.latched(), None);
    send(&mut rig, "203.0.113.1:9", 3);
    assert_eq!(rig.leg.latched(), Some(addr("203.0.113.1:9")));
    rig.leg.update(rig.now, MediaPlan { ptime_ms: 30, ..moved });
    assert_eq!(rig.leg.latched(), Some(addr("203.0.113.1:9")), "the address did not change");
}

/// Goal: what is no RTP, or of an unknown payload type, is counted and does nothing more.
/// Method: garbage, a wrong version, payload type 96, an empty datagram.
#[test]
fn datagrams_that_are_no_rtp_are_counted() {
    let mut rig = Rig::recording(media());
    let mut version = rtp(0, 1, 1, &[0; 160]);
    version[0] = 0x40;
    for bytes in [vec![], vec![0; 11], version, rtp(96, 1, 1, &[0; 160])] {
        assert_eq!(rig.arrive(ms(0), &bytes), Verdict::Consumed);
    }
    let stats = rig.leg.stats();
    assert_eq!((stats.invalid, stats.rx_packets, rig.leg.latched()), (4, 0, None));
}

/// Goal: an event is one key in spite of repeats and a lost end, silence in the recording for its
/// time, and in-band copies of it are not reported.
/// Method: 200 ms of event over the same key's tone in the audio, end packets thrice; then one
/// whose end never comes.
#[test]
fn an_event_is_one_key_and_silence_in_the_recording() {
    let tone = dual_tone(852.0, 1336.0, (-10.0, -10.0), 1600); // 8
    let mut signal = speech(8, 4000);
    signal.extend(&tone);
    signal.extend(vec![0; 2400]);
    let mut rig = Rig::recording(media());
    let mut sequence = 0;
    for (index, (at, packet)) in stream(&signal, 0, 0).into_iter().enumerate() {
        let mut packet = packet;
        packet[2..4].copy_from_slice(&u16::to_be_bytes(sequence));
        sequence += 1;
        rig.arrive(at, &packet);
        let duration = (index as u16 + 1).saturating_mul(160).saturating_sub(4000);
        if (160..1600).contains(&duration) {
            rig.arrive(at, &event(sequence, 4000, 8, false, duration));
            sequence += 1;
        } else if duration == 1600 {
            for _ in 0..3 {
                rig.arrive(at, &event(sequence, 4000, 8, true, 1600));
                sequence += 1;
            }
        }
    }
    assert_eq!(rig.digits(), "8");
    let event_source =
        rig.events.iter().any(|event| matches!(event, Event::Digit { source: DigitSource::Event, .. }));
    assert!(event_source);
    for step in 1..4 {
        rig.arrive(ms(1000) + ms(20) * step, &event(sequence, 8000, 11, false, step as u16 * 160));
        sequence += 1;
    }
    rig.until(ms(1300));
    assert_eq!(rig.digits(), "8#");
    rig.stop();
    assert!(rig.file[..3900] == coded(&signal)[..3900]);
    assert!(rig.file[4160..5600].iter().all(|sample| sample.abs() < 100), "the tone is silenced");
}

/// Goal: a key heard only as a tone is reported once, is no speech, and is cut off the end of the
/// recording that it stops; the speech before it stays.
/// Method: 2 s of speech, a pause, 120 ms of `#`, and a stop when it is reported.
#[test]
fn an_in_band_key_is_cut_off_the_recordings_tail() {
    let mut signal = speech(11, 16_000);
    signal.extend(vec![0; 2400]);
    signal.extend(dual_tone(941.0, 1477.0, (-8.0, -8.0), 960));
    signal.extend(vec![0; 1600]);
    let mut rig = Rig::recording(MediaPlan { dtmf_payload_type: None, ..media() });
    for (at, packet) in stream(&signal, 1, 1) {
        rig.arrive(at, &packet);
        if !rig.digits().is_empty() {
            break;
        }
    }
    assert_eq!(rig.digits(), "#");
    let (duration, voiced, _) = rig.stop();
    assert!((ms(2270)..=ms(2300)).contains(&duration), "{duration:?}");
    assert!(rig.file[..] == coded(&signal)[..rig.file.len()]);
    let mut without = crate::media::silence::EnergyGate::default();
    without.push(Codec::Pcmu, &CodedBlock::from_pcm(Codec::Pcmu, &signal[..18_000]).bytes);
    assert_eq!(voiced, duration_of(without.sound()));
}

/// Goal: a recording whose codec changes on its way (re-INVITE) has both parts, each as it was coded.
/// Method: half a second of µ-law, half a second of A-law in the same stream, which no block divides.
#[test]
fn a_recording_goes_on_in_another_codec() {
    let signal = speech(21, 8000);
    let mut rig = Rig::recording(media());
    for (index, (at, mut packet)) in stream(&signal, 1, 1).into_iter().enumerate() {
        if index == 25 {
            rig.leg.update(rig.now, MediaPlan { codec: Codec::Pcma, payload_type: 8, ..media() });
        }
        if index >= 25 {
            packet[1] = 8;
            let part = &signal[index * 160..][..160];
            packet[12..].copy_from_slice(&CodedBlock::from_pcm(Codec::Pcma, part).bytes);
        }
        rig.arrive(at, &packet);
    }
    let (duration, ..) = rig.stop();
    assert_eq!(duration, ms(1000));
    let later = CodedBlock::from_pcm(Codec::Pcma, &signal[4000..]).to_pcm();
    assert!(rig.file == [coded(&signal[..4000]), later].concat());
}

/// Goal: prompts reach the wire byte for byte, with steps of one in sequence and of a packet time in
/// the timestamp, one marker at the beginning; silence follows, and the end is told.
/// Method: two pieces; payloads of all packets against the audio's bytes.
#[test]
fn a_playlist_reaches_the_wire_byte_for_byte() {
    let items = vec![Audio::from_pcm(&speech(12, 8100)), Audio::from_pcm(&speech(13, 901))];
    let bytes: Vec<u8> = items.iter().flat_map(|audio| audio.pcmu.to_vec()).collect();
    for ptime_ms in [10_u8, 20, 60] {
        let frame = usize::from(ptime_ms) * 8;
        let mut rig = Rig::new(MediaPlan { ptime_ms, ..media() });
        rig.leg.play(PlayId(5), Playlist { items: items.clone(), repeat: false });
        let packets = bytes.len().div_ceil(frame);
        rig.until(ms(7 + u64::from(ptime_ms) * (packets as u64 + 1)));
        let payload: Vec<u8> = rig.sent.iter().flat_map(|(_, packet)| packet[12..].to_vec()).collect();
        assert!(payload[..bytes.len()] == bytes);
        assert!(payload[bytes.len()..].iter().all(|byte| *byte == 0xFF));
        assert_eq!(rig.sent.len(), packets + 2);
        let headers: Vec<RtpHeader> = rig.sent.iter().map(|(_, p)| parse(p).unwrap().header).collect();
        assert_eq!((headers[0].sequence, headers[0].timestamp), (SeqNo(0xFFFE), RtpTimestamp(0xFFFF_FF00)));
        for (index, pair) in headers.windows(2).enumerate() {
            assert_eq!(pair[1].sequence.since(pair[0].sequence), 1);
            assert_eq!(pair[1].timestamp.since(pair[0].timestamp) as usize, frame);
            assert!(pair[0].marker == (index == 0) && pair[0].ssrc == 0x1111_2222);
        }
        let played = rig.events.iter().filter(|e| matches!(e, Event::Played { play: PlayId(5), .. })).count();
        assert_eq!(played, 1);
        assert_eq!(rig.leg.stats().tx_bytes, payload.len() as u64);
    }
}

/// Goal: an empty playlist is played at once; a replaced or stopped one tells nothing; a stalled
/// shard moves the clock and not the prompt. Method: the four orders in turn.
#[test]
fn play_orders_replace_stop_and_skip() {
    let prompt = Audio::from_pcm(&speech(14, 8000));
    let list = || Playlist { items: vec![prompt.clone()], repeat: false };
    let mut rig = Rig::new(media());
    rig.leg.play(PlayId(1), list());
    rig.leg.play(PlayId(2), Playlist { items: vec![], repeat: true });
    rig.leg.play(PlayId(3), list());
    rig.until(ms(10));
    rig.leg.skip_packets(3);
    rig.until(ms(30));
    rig.leg.stop_play();
    rig.until(ms(3000));
    let played: Vec<PlayId> = rig
        .events
        .iter()
        .filter_map(|event| if let Event::Played { play, .. } = event { Some(*play) } else { None })
        .collect();
    assert_eq!(played, [PlayId(2)]);
    assert_eq!(rig.sent[1].1[12..], prompt.pcmu[160..320]);
    let header = |index: usize| parse(&rig.sent[index].1).unwrap().header;
    assert_eq!(header(1).timestamp.since(header(0).timestamp), 4 * 160);
    assert_eq!(header(1).sequence.since(header(0).sequence), 1);
    assert!(header(1).marker);
    assert!(rig.sent[2].1[12..].iter().all(|byte| *byte == 0xFF));
}

/// Goal: echo sends each packet back in place, with our SSRC and the sender's distances, and our
/// stream goes on from there afterwards. Method: packets with a gap and a marker; then voice mode.
#[test]
fn echo_sends_packets_back_with_our_numbers() {
    let mut rig = Rig::new(media());
    rig.leg.set_mode(LegMode::Echo);
    let mut back = Vec::new();
    for (sequence, timestamp) in [(10, 1000), (11, 1160), (13, 1480), (12, 1320)] {
        let mut packet = rtp(0, sequence, timestamp, &[sequence as u8; 160]);
        let verdict = rig.leg.handle_rtp(rig.now, addr(PHONE), &mut packet);
        assert_eq!(verdict, Verdict::Send { len: 172, to: addr(PHONE) });
        assert!(packet[12..].iter().all(|byte| u16::from(*byte) == sequence));
        back.push(parse(&packet).unwrap().header);
    }
    let steps: Vec<(u16, u32)> = back
        .iter()
        .map(|header| (header.sequence.since(SeqNo(0xFFFE)), header.timestamp.since(back[0].timestamp)))
        .collect();
    assert_eq!(steps, [(0, 0), (1, 160), (3, 480), (2, 320)]);
    assert!(back.iter().all(|header| header.ssrc == 0x1111_2222));
    assert_eq!(rig.leg.handle_rtp(rig.now, addr(PHONE), &mut rtp(0, 13, 1480, &[0; 160])), Verdict::Consumed);
    let mut buf = [0; 1500];
    assert_eq!(rig.leg.poll_rtp(rig.now, &mut buf), None);
    rig.leg.set_mode(LegMode::Voice);
    let (len, _) = rig.leg.poll_rtp(rig.now, &mut buf).unwrap();
    assert_eq!(parse(&buf[..len]).unwrap().header.sequence.since(SeqNo(0xFFFE)), 4);
    assert_eq!(rig.leg.stats().tx_packets, 5);
}

/// Goal: sink counts and sends silence. Method: a tone in, a prompt ordered; only silence goes out.
#[test]
fn sink_counts_and_sends_silence() {
    let mut rig = Rig::new(media());
    rig.leg.set_mode(LegMode::Sink);
    rig.leg.play(PlayId(1), Playlist { items: vec![Audio::from_pcm(&speech(1, 8000))], repeat: true });
    rig.arrive_all(&stream(&dual_tone(697.0, 1209.0, (-9.0, -9.0), 3200), 1, 1), ms(0));
    rig.until(ms(1000));
    assert_eq!((rig.leg.stats().rx_packets, rig.leg.stats().rx_bytes), (20, 3200));
    assert_eq!(rig.digits(), "");
    assert!(rig.sent.len() > 40);
    assert!(rig.sent.iter().all(|(_, packet)| packet[12..].iter().all(|byte| *byte == 0xFF)));
}

/// Goal: no RTP for the agreed time is told once; RTP starts the time anew; a leg that may not
/// receive has none. Method: 60 s of nothing, a packet, 60 s; then inactive for 100 s.
#[test]
fn media_timeout_is_told_once() {
    let timeouts = |rig: &Rig| rig.events.iter().filter(|e| matches!(e, Event::MediaTimeout { .. })).count();
    let mut rig = Rig::new(media());
    rig.until(ms(59_900));
    assert_eq!(timeouts(&rig), 0);
    rig.until(ms(90_000));
    assert_eq!(timeouts(&rig), 1);
    rig.arrive(ms(90_000), &rtp(0, 1, 1, &[0xFF; 160]));
    rig.until(ms(200_000));
    assert_eq!(timeouts(&rig), 2);
    let mut rig = Rig::new(MediaPlan { receive: false, ..media() });
    rig.until(ms(100_000));
    assert_eq!(timeouts(&rig), 0);
}

/// Goal: reports go out about every 5 s, say what was sent and heard, and BYE is last; the round
/// trip comes from the peer's report. Method: 60 s with RTP both ways; a report built by hand.
#[test]
fn reports_leave_on_schedule_and_end_with_bye() {
    use crate::rtp::rtcp;
    let mut rig = Rig::new(media());
    let mut reports = Vec::new();
    for (at, packet) in stream(&speech(1, 480_000), 1, 1) {
        rig.arrive(at, &packet);
        let mut buf = [0; 1500];
        if let Some((len, to)) = rig.leg.poll_rtcp(rig.now, &mut buf) {
            assert_eq!(to, addr("192.0.2.7:4001"));
            reports.push((rig.at(), rtcp::read(&buf[..len], 0x0A0B_0C0D).unwrap()));
        }
    }
    assert!((7..=25).contains(&reports.len()), "{}", reports.len());
    let (at, last) = reports.last().unwrap();
    let sender = last.sender.unwrap();
    assert!(u64::from(sender.packets).abs_diff(at.as_millis() as u64 / 20) <= 1);
    assert_eq!(sender.octets, sender.packets * 160);
    assert_eq!(last.about_us.unwrap().reception.cumulative_lost, 0);

    let block = rtcp::ReportBlock {
        ssrc: 0x1111_2222,
        reception: crate::rtp::sequence::Reception {
            fraction_lost: 64,
            cumulative_lost: 1,
            extended_highest: 1,
            jitter: 8,
        },
        last_sr: sender.ntp.middle(),
        delay_since_last_sr: 65_536 / 4,
    };
    let report = rtcp::Report { ssrc: 5, sender: None, block: Some(block), cname: "p", bye: false };
    let mut buf = [0; 200];
    let len = report.write(&mut buf).unwrap();
    let arrival = rig.began + *at + ms(250 + 30);
    rig.leg.handle_rtcp(arrival, addr(STRANGER), &mut buf[..len]);
    assert_eq!((rig.leg.stats().rtt_us, rig.leg.stats().source_filtered), (None, 1));
    rig.leg.handle_rtcp(arrival, addr("192.0.2.7:4001"), &mut buf[..len]);
    assert_eq!(rig.leg.stats().remote_fraction_lost, 64);
    assert!(rig.leg.stats().rtt_us.unwrap().abs_diff(30_000) < 100);

    rig.leg.close(rig.now);
    let (len, _) = rig.leg.poll_rtcp(rig.now, &mut buf).unwrap();
    assert!(rtcp::read(&buf[..len], 0).unwrap().bye);
    assert_eq!(rig.leg.poll_rtcp(rig.now + ms(60_000), &mut buf), None);
    assert_eq!(rig.leg.poll_rtp(rig.now, &mut buf), None);
}

/// Goal: thousands of idle legs fit. Method: the size of the struct itself; an idle leg's heap is
/// its CNAME.
#[test]
fn an_idle_leg_is_small() {
    assert!(size_of::<Leg>() <= 2048, "{} bytes", size_of::<Leg>());
}

/// One thing the mangled network does.
#[derive(Debug, Clone)]
struct Mangled {
    wait_ms: u64,
    sequence_step: i32,
    timestamp_step: i64,
    payload_type: u8,
    len: usize,
    ssrc: u32,
    flip: Option<(usize, u8)>,
    order: u8,
}

fn mangled() -> impl Strategy<Value = Mangled> {
    let wait = prop_oneof![8 => Just(20_u64), 4 => 0..40_u64, 1 => 100..1500_u64];
    let sequence = prop_oneof![8 => Just(1), 3 => -4..5_i32, 1 => any::<i32>()];
    let timestamp = prop_oneof![8 => Just(160_i64), 3 => -1000..1000_i64, 1 => any::<i64>()];
    let payload_type = prop_oneof![10 => Just(0_u8), 2 => Just(101), 1 => Just(13), 1 => 0..128_u8];
    let len = prop_oneof![8 => Just(160_usize), 2 => 0..1400_usize];
    let ssrc = prop_oneof![12 => Just(1_u32), 1 => Just(2)];
    let flip = proptest::option::weighted(0.1, (0..200_usize, any::<u8>()));
    (wait, sequence, timestamp, payload_type, len, ssrc, flip, 0..100_u8).prop_map(
        |(wait_ms, sequence_step, timestamp_step, payload_type, len, ssrc, flip, order)| Mangled {
            wait_ms,
            sequence_step,
            timestamp_step,
            payload_type,
            len,
            ssrc,
            flip,
            order,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: no network makes a leg panic or a recording longer than real time and 200 ms, and
    /// silence by the clock keeps it from being much shorter when little is sent.
    /// Method: random steps of sequence and timestamp, sizes, types, flipped bytes and orders.
    #[test]
    fn no_mangling_makes_a_recording_longer_than_real_time(steps in prop::collection::vec(mangled(), 1..300)) {
        let mut rig = Rig::recording(media());
        let (mut sequence, mut timestamp, mut at) = (0_u16, 0_u32, Duration::ZERO);
        for step in steps {
            at += ms(step.wait_ms);
            sequence = sequence.wrapping_add(step.sequence_step as u16);
            timestamp = timestamp.wrapping_add(step.timestamp_step as u32);
            let payload = vec![timestamp.to_be_bytes()[3]; step.len];
            let mut packet = with_ssrc(rtp(step.payload_type, sequence, timestamp, &payload), step.ssrc);
            if let Some(byte) = step.flip.and_then(|(at, _)| packet.get_mut(at)) {
                *byte ^= step.flip.unwrap().1;
            }
            rig.arrive(at, &packet);
            match step.order {
                0 => rig.leg.update(rig.now, MediaPlan { receive: false, ..media() }),
                1..4 => rig.leg.update(rig.now, media()),
                4 => rig.leg.set_mode(LegMode::Echo),
                5 => rig.leg.set_mode(LegMode::Voice),
                _ => {}
            }
        }
        let real = rig.at();
        let (duration, voiced, _) = rig.stop();
        prop_assert!(duration <= real + ms(200), "{duration:?} in {real:?}");
        prop_assert!(voiced <= duration);
        prop_assert_eq!(rig.ended.len(), 1);
    }
}

//! Legs whose process dies, and that go on in another one.

use super::*;
use crate::base::config::SrtpSuite;
use crate::media::mark::{LegMark, MARK_WORDS};
use crate::media::order::Adoption;
use crate::rtp::rtcp;
use crate::rtp::srtp::{MasterKey, SrtpPlan, SrtpSession, key_and_salt_bytes};

/// What the memory outside the process holds of a leg.
type Words = [u64; MARK_WORDS];

fn keys(suite: SrtpSuite, ours: u8, theirs: u8) -> SrtpPlan {
    let master = |seed| MasterKey::new(suite, &vec![seed; key_and_salt_bytes(suite)], None).unwrap();
    SrtpPlan { send: master(ours), receive: master(theirs) }
}

impl Rig {
    fn mark(&self) -> Words {
        self.leg.mark(self.now).to_words()
    }

    /// The process dies now, having left `words`; another one goes on `gap` later, with the leg's next
    /// packet some milliseconds after that.
    fn dies(
        &mut self,
        words: &Words,
        gap: Duration,
        play: Option<(PlayId, Playlist)>,
        record: Option<RecordPlan>,
    ) {
        let mark = LegMark::from_words(words).unwrap();
        if let Some(recording) = record.as_ref().and_then(|plan| mark.recording(&plan.meta.id)) {
            // As the mailbox does.
            self.file.resize(usize::try_from(recording.samples).unwrap(), 0);
        }
        self.now += gap;
        self.phase = self.now + ms(3);
        let plan = LegPlan {
            media: self.leg.media.clone(),
            address: addr(PHONE).ip(),
            cname: "voxring@test".into(),
            media_timeout: ms(60_000),
        };
        let adoption = Adoption { rtp_port: 20_000, plan, mark: mark.clone(), play, record, peer: None };
        self.leg = Leg::resume(self.now, UNIX_EPOCH, LegId(2), adoption);
        self.drain();
    }

    fn header(&self, index: usize) -> RtpHeader {
        parse(&self.sent[index].1).unwrap().header
    }
}

/// A prompt of 3 s.
fn prompt() -> Playlist {
    Playlist { items: vec![Audio::from_pcm(&speech(3, 24_000))], repeat: false }
}

/// The phone's ear: opens what comes, with one session all along, and checks its numbers.
struct Ear {
    session: Option<SrtpSession>,
    last: Option<(Duration, RtpHeader)>,
    heard: Vec<(RtpHeader, Vec<u8>)>,
}

impl Ear {
    fn new(suite: Option<SrtpSuite>) -> Self {
        let session = suite.map(|suite| SrtpSession::new(&keys(suite, 2, 1)));
        Self { session, last: None, heard: Vec::new() }
    }

    fn hears(&mut self, at: Duration, packet: &[u8]) {
        let mut packet = packet.to_vec();
        if let Some(session) = &mut self.session {
            let len = session.unprotect_rtp(&mut packet).expect("it authenticates and is new");
            packet.truncate(len);
        }
        let header = parse(&packet).unwrap().header;
        if let Some((before, last)) = self.last {
            assert_eq!(header.ssrc, last.ssrc);
            let steps = header.sequence.since(last.sequence);
            assert!((1..100).contains(&steps), "{steps} numbers on");
            let (samples, ms) = (header.timestamp.since(last.timestamp), (at - before).as_millis());
            assert!(
                samples > 0 && u128::from(samples / 8).abs_diff(ms) <= 40,
                "{samples} samples in {ms} ms"
            );
            assert_eq!(header.marker, steps > 1, "a marker where packets are missing, and only there");
        }
        self.last = Some((at, header));
        self.heard.push((header, packet[12..].to_vec()));
    }
}

/// Goal: killed between any two packets of a prompt a leg goes on with its SSRC, with numbers and
/// indices never used before, timestamps in step with time (but for
/// the place of both processes' packets within a packet time), and the prompt where the mark stood; the
/// end is told. Method: plain and each suite, a mark each 200 ms, just before a packet; a kill after each
/// packet of the first 900 ms, gaps of 1 to 400 ms; the phone has one session all along.
#[test]
fn a_prompt_goes_on_after_a_kill_between_any_two_packets() {
    let bytes = prompt().items[0].pcmu.to_vec();
    let suites = SrtpSuite::ALL.into_iter().map(Some).chain([None]);
    for suite in suites {
        let plan = MediaPlan { srtp: suite.map(|suite| Box::new(keys(suite, 1, 2))), ..media() };
        for cut in 0..45_u64 {
            let mut rig = Rig::new(plan.clone());
            rig.leg.play(PlayId(5), prompt());
            let mut words = rig.mark();
            for step in 0..cut {
                rig.until(ms(6 + 20 * step));
                if step % 10 == 9 {
                    words = rig.mark();
                }
                rig.until(ms(8 + 20 * step));
            }
            let before = rig.sent.len();
            let (_, position) = LegMark::from_words(&words).unwrap().playing.unwrap();
            rig.dies(&words, ms(1 + 9 * cut), Some((PlayId(5), prompt())), None);
            let end = rig.at() + ms(3100);
            rig.until(end);
            let mut ear = Ear::new(suite);
            rig.sent.iter().for_each(|(at, packet)| ear.hears(*at, packet));
            let after: Vec<u8> =
                ear.heard[before..].iter().flat_map(|(_, payload)| payload.clone()).collect();
            let rest = &bytes[usize::try_from(position).unwrap()..];
            assert!(after[..rest.len()] == *rest, "cut {cut}");
            assert!(ear.heard[before].0.marker);
            let played = rig.events.iter().filter(|e| matches!(e, Event::Played { play: PlayId(5), .. }));
            assert_eq!(played.count(), 1, "cut {cut}");
            assert!(rig.events.iter().all(|e| matches!(e, Event::Played { leg: LegId(2), .. })));
        }
    }
}

/// Goal: reports go on under SRTCP with indices never used, and counts never go back. Method: 20 s before
/// and after a kill, with a mark from before the last report; the phone's one session.
#[test]
fn reports_go_on_after_a_kill() {
    for suite in SrtpSuite::ALL {
        let plan = MediaPlan { srtp: Some(Box::new(keys(suite, 1, 2))), ..media() };
        let mut rig = Rig::new(plan);
        let mut session = SrtpSession::new(&keys(suite, 2, 1));
        let mut words = rig.mark();
        let (mut reports, mut buf) = (Vec::new(), [0; 1500]);
        for step in 1..2000_u64 {
            rig.until(ms(20) * u32::try_from(step).unwrap());
            if let Some((len, _)) = rig.leg.poll_rtcp(rig.now, &mut buf) {
                let len = session.unprotect_rtcp(&mut buf[..len]).expect("a fresh index");
                reports.push(rtcp::read(&buf[..len], 0).unwrap().sender.unwrap().packets);
                if reports.len() == 3 {
                    rig.dies(&words, ms(300), None, None);
                }
            } else if step % 10 == 0 && reports.len() < 3 {
                words = rig.mark();
            }
        }
        assert!(reports.len() >= 6 && reports.is_sorted(), "{reports:?}");
    }
}

/// Kills a recording leg: packets up to `kill_ms` were heard, those up to the end of `gap_ms` wait in the
/// socket, the rest comes in time. The mark is of `mark_ms`.
fn recorded_across(signal: &[i16], [mark_ms, kill_ms, gap_ms]: [u64; 3]) -> (Rig, RecordPlan) {
    let mut rig = Rig::recording(media());
    let plan = record_plan(1);
    let packets = stream(signal, 0xFFF0, 0xFFFF_F000);
    let (heard, rest) = packets.split_at(packets.partition_point(|(at, _)| *at <= ms(kill_ms)));
    let marked = heard.partition_point(|(at, _)| *at <= ms(mark_ms));
    rig.arrive_all(&heard[..marked], ms(0));
    rig.until(ms(mark_ms));
    let words = rig.mark();
    rig.arrive_all(&heard[marked..], ms(0));
    rig.until(ms(kill_ms));
    rig.dies(&words, ms(gap_ms), None, Some(plan.clone()));
    for (at, packet) in rest {
        rig.arrive((*at).max(ms(kill_ms + gap_ms)), packet);
    }
    (rig, plan)
}

/// Goal: a recording across a kill has both sides of the gap where they belong and its whole length;
/// what is lost is the block that was being filled and what came after the mark, and it is silence.
/// Method: 6 s of speech; marks, kills and gaps at several distances, through the wrap of both numbers.
#[test]
fn a_recording_has_both_sides_of_the_gap_in_place() {
    let signal = speech(7, 48_000);
    let source = coded(&signal);
    let (_, spoken, _) = {
        let mut rig = Rig::recording(media());
        rig.arrive_all(&stream(&signal, 1, 1), ms(0));
        rig.stop()
    };
    for times in [[2000, 2000, 150], [1990, 2150, 300], [3005, 3199, 500], [500, 510, 2000], [20, 30, 100]] {
        let [mark_ms, kill_ms, _] = times;
        let (mut rig, _) = recorded_across(&signal, times);
        let (duration, voiced, end) = rig.stop();
        assert_eq!((duration, end, rig.begun), (ms(6000), RecordEnd::Stopped, 1), "{times:?}");
        // Blocks of 800 ms reached the file; the mark was made on whole packets of 20 ms.
        let marked = usize::try_from(mark_ms / 20 * 160).unwrap();
        let filed = marked / RECORD_BLOCK_SAMPLES * RECORD_BLOCK_SAMPLES;
        let again = usize::try_from(kill_ms / 20 * 160).unwrap();
        assert!(rig.file[..filed] == source[..filed], "{times:?}");
        assert!(rig.file[filed..again].iter().all(|sample| *sample == 0), "{times:?}");
        assert!(rig.file[again..] == source[again..], "{times:?}");
        assert!(voiced <= spoken + ms(20) && spoken - voiced <= ms(1100), "{voiced:?} of {spoken:?}");
    }
}

/// Goal: limit and silence of a recording count from its true beginning. Method: a limit of 4 s with a
/// kill at 2 s; speech until 1 s and a silence of 3 s that ends it.
#[test]
fn limit_and_silence_count_through_the_gap() {
    let signal = speech(8, 40_000);
    let mut quiet = speech(8, 8000);
    quiet.extend(vec![0; 32_000]);
    let limited = RecordPlan { duration_max: ms(4000), ..record_plan(1) };
    let silenced = RecordPlan { silence_max: ms(3000), ..record_plan(1) };
    let cases = [(signal, limited, RecordEnd::Limit), (quiet, silenced, RecordEnd::Silence)];
    for (signal, plan, end) in cases {
        let mut rig = Rig::new(media());
        rig.leg.record(rig.now, plan.clone());
        for (index, (at, packet)) in stream(&signal, 1, 1).into_iter().enumerate() {
            if index == 100 {
                let words = rig.mark();
                rig.dies(&words, ms(15), None, Some(plan.clone()));
            }
            rig.arrive(at, &packet);
        }
        let (duration, _, ended) = rig.recorded();
        assert_eq!(ended, end);
        let wanted = if end == RecordEnd::Limit { ms(4000) } else { ms(1000) };
        assert_near(duration, wanted, ms(150));
    }
}

/// Goal: a sender who stays silent after the gap leaves silence for as long as it lasts. Method: 1 s of
/// speech, a kill, nothing for 2 s, stop.
#[test]
fn a_recording_without_packets_after_the_gap_keeps_time() {
    let signal = speech(9, 8000);
    let (mut rig, _) = recorded_across(&signal, [1000, 1000, 300]);
    rig.until(ms(3000));
    let (duration, ..) = rig.stop();
    assert_near(duration, ms(3000), ms(20));
    assert!(rig.file[..6400] == coded(&signal)[..6400]);
    assert!(rig.file[6400..].iter().all(|sample| *sample == 0));
}

/// Goal: what the first process ended and may not have told is told again: the end of a playlist, and
/// what a recording came to. Method: ends before the mark, and the leg given what it had been ordered.
#[test]
fn ends_that_may_not_have_been_heard_are_told_again() {
    let mut rig = Rig::recording(media());
    let signal = speech(4, 16_000);
    rig.leg.play(PlayId(3), Playlist { items: vec![Audio::from_pcm(&signal[..800])], repeat: false });
    rig.arrive_all(&stream(&signal, 1, 1), ms(0));
    let (duration, voiced, _) = rig.stop();
    let words = rig.mark();
    rig.events.clear();
    let list = Playlist { items: vec![Audio::from_pcm(&signal[..800])], repeat: false };
    rig.dies(&words, ms(200), Some((PlayId(3), list)), Some(record_plan(1)));
    let next = rig.at() + ms(5);
    rig.until(next);
    assert_eq!(rig.recorded(), (duration, voiced, RecordEnd::Stopped));
    assert!(rig.events.iter().any(|e| matches!(e, Event::Played { play: PlayId(3), .. })));
    assert_eq!((rig.events.len(), rig.begun, rig.ended.len()), (2, 1, 1));
    // Once more, with nothing to record: what the last recording came to is still known.
    let before = LegMark::from_words(&words).unwrap().recording;
    let words = rig.mark();
    rig.dies(&words, ms(200), None, None);
    assert_eq!(LegMark::from_words(&rig.mark()).unwrap().recording, before);
}

/// Goal: orders that the mark knows nothing of begin anew: another playlist from its start, another
/// recording with its own description. Method: a mark from before both.
#[test]
fn orders_after_the_mark_begin_anew() {
    let mut rig = Rig::recording(media());
    rig.leg.play(PlayId(1), prompt());
    rig.until(ms(500));
    let words = rig.mark();
    rig.dies(&words, ms(100), Some((PlayId(2), prompt())), Some(record_plan(2)));
    let before = rig.sent.len();
    let next = rig.at() + ms(20);
    rig.until(next);
    assert_eq!(rig.sent[before].1[12..], prompt().items[0].pcmu[..160]);
    assert_eq!(rig.begun, 2);
}

/// Goal: the peer stays known: no second `Latched`, a stranger stays out, its first packet after the gap
/// is used, and counts go on. Method: 1 s, a kill, 1 s; events and counters.
#[test]
fn the_peer_stays_known_and_counts_go_on() {
    let mut rig = Rig::new(media());
    let packets = stream(&speech(1, 16_000), 1, 1);
    rig.arrive_all(&packets[..50], ms(0));
    rig.leg.handle_rtp(rig.now, addr(STRANGER), &mut packets[0].1.clone());
    rig.arrive(ms(1001), &packets[49].1);
    let words = rig.mark();
    rig.dies(&words, ms(200), None, None);
    rig.leg.handle_rtp(rig.now, addr(BESIDE), &mut packets[50].1.clone());
    for (at, packet) in &packets[50..] {
        rig.arrive((*at).max(ms(1201)), packet);
    }
    let stats = rig.leg.stats();
    assert_eq!((stats.rx_packets, stats.lost, stats.duplicate), (100, 0, 1));
    assert_eq!(stats.source_filtered, 2);
    assert_eq!(rig.leg.latched(), Some(addr(PHONE)));
    let latched = rig.events.iter().filter(|e| matches!(e, Event::Latched { .. })).count();
    assert_eq!(latched, 1);
    // The timeout runs from the last packet, not from a life before.
    rig.until(ms(61_000));
    assert!(!rig.events.iter().any(|e| matches!(e, Event::MediaTimeout { .. })));
    rig.until(ms(63_000));
    assert!(rig.events.iter().any(|e| matches!(e, Event::MediaTimeout { leg: LegId(2) })));
}

/// Goal: keys work after the gap, as events and as tones, and one whose end was told before the kill is
/// not told again by the repeats that waited in the socket. Method: such a key, then two others.
#[test]
fn keys_are_heard_after_the_gap_and_none_twice() {
    let mut rig = Rig::new(media());
    rig.arrive(ms(20), &rtp(0, 1, 160, &[0xFF; 160]));
    rig.arrive(ms(100), &event(2, 800, 7, false, 320));
    rig.arrive(ms(140), &event(3, 800, 7, true, 640));
    assert_eq!(rig.digits(), "7");
    let words = rig.mark();
    rig.dies(&words, ms(250), None, None);
    rig.arrive(ms(390), &event(4, 800, 7, true, 640));
    rig.arrive(ms(390), &event(5, 800, 7, true, 640));
    assert_eq!(rig.digits(), "7");
    rig.arrive(ms(450), &event(6, 3600, 11, false, 160));
    rig.arrive(ms(500), &event(7, 3600, 11, true, 400));
    assert_eq!(rig.digits(), "7#");
    let mut signal = vec![0; 800];
    signal.extend(dual_tone(697.0, 1209.0, (-8.0, -8.0), 960)); // 1
    signal.extend(vec![0; 800]);
    rig.arrive_all(&stream(&signal, 8, 4800), ms(600));
    assert_eq!(rig.digits(), "7#1");
}

/// Goal: echo goes on in the same numbers, plain and protected, with nothing left out of what waited.
/// Method: packets up to the kill, the next one after it, the mode ordered again in between or not.
#[test]
fn echo_goes_on_in_the_same_numbers() {
    for ordered in [false, true] {
        let mut rig = Rig::new(media());
        rig.leg.set_mode(LegMode::Echo);
        let mut back = Vec::new();
        for sequence in 10..20_u16 {
            if sequence == 15 {
                let words = rig.mark();
                rig.dies(&words, ms(300), None, None);
                if ordered {
                    rig.leg.set_mode(LegMode::Echo);
                }
            }
            let mut packet = rtp(0, sequence, u32::from(sequence) * 160, &[1; 160]);
            let verdict = rig.leg.handle_rtp(rig.now, addr(PHONE), &mut packet);
            assert_eq!(verdict, Verdict::Send { len: 172, to: addr(PHONE) });
            back.push(parse(&packet).unwrap().header);
        }
        for pair in back.windows(2) {
            assert_eq!(pair[1].sequence.since(pair[0].sequence), 1);
            assert_eq!(pair[1].timestamp.since(pair[0].timestamp), 160);
            assert!(!pair[1].marker);
        }
    }
}

/// Goal: a bridge goes on both ways in the numbers it had, plain on one side and protected on the other,
/// and the phones open all of it; packets that the mark did not know are no break. Method: two legs
/// killed between packets, joined again, the phones' sessions kept.
#[test]
fn a_bridge_goes_on_both_ways_in_the_same_numbers() {
    for suite in SrtpSuite::ALL {
        let far_plan = MediaPlan { srtp: Some(Box::new(keys(suite, 1, 2))), ..media() };
        let (mut near, mut far) = (Rig::new(media()), Rig::new(far_plan));
        near.leg.bridge();
        far.leg.bridge();
        let mut phone = SrtpSession::new(&keys(suite, 2, 1));
        let (mut to_far, mut to_near) = (Vec::new(), Vec::new());
        let (mut near_words, mut far_words) = (near.mark(), far.mark());
        for sequence in 1000..1040_u16 {
            let plain = rtp(0, sequence, u32::from(sequence) * 160, &[sequence as u8; 160]);
            let mut bytes = [plain.clone(), vec![0; 64]].concat();
            let Verdict::Onward(heard) = near.leg.handle_rtp(near.now, addr(PHONE), &mut bytes[..172]) else {
                panic!("not passed on")
            };
            let (len, _) = far.leg.relay(far.now, &heard, &mut bytes).unwrap();
            let len = phone.unprotect_rtp(&mut bytes[..len]).expect("a fresh index under its key");
            to_far.push(parse(&bytes[..len]).unwrap().header);
            let mut bytes = [plain, vec![0; 64]].concat();
            let len = phone.protect_rtp(&mut bytes, 172).unwrap();
            let Verdict::Onward(heard) = far.leg.handle_rtp(far.now, addr(PHONE), &mut bytes[..len]) else {
                panic!("not passed on")
            };
            let (len, _) = near.leg.relay(near.now, &heard, &mut bytes).unwrap();
            to_near.push(parse(&bytes[..len]).unwrap().header);
            match sequence {
                1015 => (near_words, far_words) = (near.mark(), far.mark()),
                1019 => {
                    near.dies(&near_words, ms(250), None, None);
                    far.dies(&far_words, ms(250), None, None);
                    near.leg.bridge();
                    far.leg.bridge();
                }
                _ => {}
            }
        }
        for headers in [to_far, to_near] {
            assert_eq!(headers.len(), 40);
            for pair in headers.windows(2) {
                assert_eq!(pair[1].sequence.since(pair[0].sequence), 1);
                assert_eq!(pair[1].timestamp.since(pair[0].timestamp), 160);
                assert!(!pair[1].marker && pair[1].ssrc == pair[0].ssrc);
            }
        }
    }
}

/// Goal: a leg that loses its peer with its process uses none of the numbers that it relayed since the
/// mark; a second bridge after the kill begins its numbers where they stand. Method: packets after the
/// mark, a kill, then silence of our own, or another peer with other numbers.
#[test]
fn what_follows_a_bridge_keeps_clear_of_its_numbers() {
    let suite = SrtpSuite::AeadAes128Gcm;
    for other_peer in [false, true] {
        let (mut near, mut far) =
            (Rig::new(media()), Rig::new(MediaPlan { srtp: Some(Box::new(keys(suite, 1, 2))), ..media() }));
        near.leg.bridge();
        far.leg.bridge();
        let mut phone = SrtpSession::new(&keys(suite, 2, 1));
        let mut relay = |near: &mut Rig, far: &mut Rig, sequence: u16| {
            let mut bytes = [rtp(0, sequence, u32::from(sequence) * 160, &[7; 160]), vec![0; 64]].concat();
            let Verdict::Onward(heard) = near.leg.handle_rtp(near.now, addr(PHONE), &mut bytes[..172]) else {
                panic!("not passed on")
            };
            let (len, _) = far.leg.relay(far.now, &heard, &mut bytes).unwrap();
            let len = phone.unprotect_rtp(&mut bytes[..len]).unwrap();
            parse(&bytes[..len]).unwrap().header
        };
        let first = relay(&mut near, &mut far, 50);
        let words = far.mark();
        let last = (51..71).map(|sequence| relay(&mut near, &mut far, sequence)).last().unwrap();
        assert_eq!(last.sequence.since(first.sequence), 20);
        far.now += ms(200);
        far.dies(&words, ms(200), None, None);
        let next = if other_peer {
            far.leg.bridge();
            relay(&mut near, &mut far, 71);
            far.leg.bridge();
            let mut other = Rig::new(media());
            other.leg.bridge();
            relay(&mut other, &mut far, 40_000)
        } else {
            far.leg.set_mode(LegMode::Voice);
            let mut buf = [0; 1500];
            let (len, _) = far.leg.poll_rtp(far.now, &mut buf).unwrap();
            let len = phone.unprotect_rtp(&mut buf[..len]).unwrap();
            parse(&buf[..len]).unwrap().header
        };
        let steps = next.sequence.since(last.sequence);
        assert!((1..200).contains(&steps), "{steps} numbers on");
        assert_eq!(next.ssrc, last.ssrc);
    }
}

/// Goal: protection that rested when the process died comes back under indices never used. Method: SRTP,
/// plain, a kill, SRTP with the same keys; the phone's one session.
#[test]
fn protection_that_rested_over_a_kill_goes_on() {
    let suite = SrtpSuite::AesCm128HmacSha1_80;
    let secure = MediaPlan { srtp: Some(Box::new(keys(suite, 1, 2))), ..media() };
    let mut rig = Rig::new(secure.clone());
    let mut phone = SrtpSession::new(&keys(suite, 2, 1));
    rig.until(ms(100));
    let protected = rig.sent.len();
    rig.leg.update(rig.now, media());
    rig.until(ms(200));
    let words = rig.mark();
    rig.dies(&words, ms(100), None, None);
    let plain = rig.sent.len();
    rig.leg.update(rig.now, secure);
    let next = rig.at() + ms(100);
    rig.until(next);
    assert!(rig.header(protected).sequence.since(rig.header(protected - 1).sequence) == 1);
    for (_, packet) in rig.sent[..protected].iter().chain(&rig.sent[plain..]) {
        phone.unprotect_rtp(&mut packet.clone()).expect("it authenticates and is new");
    }
    assert!(rig.sent.len() > plain + 3);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: no mark that can be read makes a leg panic, and its numbers go on from it. Method: random marks,
    /// with keys or without; a recording that may be the mark's, packets, keys, its end.
    #[test]
    fn no_mark_makes_a_leg_panic(mark in crate::media::mark::tests::mark(), secure: bool, same: bool) {
        let suite = SrtpSuite::AeadAes128Gcm;
        let media = MediaPlan { srtp: secure.then(|| Box::new(keys(suite, 1, 2))), ..media() };
        let mut rig = Rig::new(media);
        let id = mark.recording.map_or(1, |recording| if same { recording.tag } else { !recording.tag });
        let plan = RecordPlan { duration_max: ms(5000), ..record_plan(id) };
        let play = mark.playing.map(|(play, _)| (play, prompt()));
        let plan_of_leg = LegPlan {
            media: rig.leg.media.clone(),
            address: addr(PHONE).ip(),
            cname: "voxring@test".into(),
            media_timeout: ms(60_000),
        };
        let (plan, record) = (plan_of_leg, Some(plan));
        let adoption = Adoption { rtp_port: 20_000, plan, mark: mark.clone(), play, record, peer: None };
        rig.leg = Leg::resume(rig.now, UNIX_EPOCH, LegId(3), adoption);
        let from = rig.at();
        for (at, packet) in stream(&speech(1, 1600), 1, 1) {
            rig.until(from + at);
            rig.leg.handle_rtp(rig.now, mark.latched.unwrap_or(addr(PHONE)), &mut packet.clone());
            while rig.leg.poll_output().is_some() {}
        }
        rig.leg.stop_record(rig.now);
        rig.leg.close(rig.now);
        while rig.leg.poll_output().is_some() {}
        let again = rig.leg.mark(rig.now);
        prop_assert_eq!(again.ssrc, mark.ssrc);
        prop_assert!(again.stats.rx_packets >= mark.stats.rx_packets);
    }
}

//! A call against a world that only takes notes; time jumps.

use super::*;
use crate::clock;
use crate::sip::sdes::Crypto;
use crate::sip::sdp::Direction;

/// Where messages went.
#[derive(Default)]
struct Notes {
    sent: Vec<(usize, String)>,
    neighbours: Vec<SocketAddr>,
}

impl Notes {
    /// The messages sent since the last question, each as connection and first line.
    fn take(&mut self) -> Vec<(usize, String)> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter()
            .map(|(way, message)| (way, message.lines().next().unwrap_or_default().to_owned()))
            .collect()
    }

    fn last(&self) -> &str {
        &self.sent.last().unwrap().1
    }
}

impl Hops for Notes {
    fn resolve(&mut self, uri: &str) -> Result<Rc<Place>> {
        Ok(Rc::new(Place { uri: uri.to_owned(), target: Target::parse(uri)? }))
    }

    fn way(&mut self, target: &Target, _: u32) -> Result<Way> {
        let known = self.neighbours.iter().position(|neighbour| *neighbour == target.address);
        let connection = known.unwrap_or_else(|| {
            self.neighbours.push(target.address);
            self.neighbours.len() - 1
        });
        Ok(Way { connection, local: "127.0.0.1:4000".parse()?, transport: target.transport })
    }

    fn send(&mut self, connection: usize, message: &[u8]) {
        self.sent.push((connection, String::from_utf8(message.to_vec()).unwrap()));
    }
}

/// A call to a server over this transport, and the world it lives in.
struct Rig {
    call: Call,
    notes: Notes,
    now: Instant,
}

impl Rig {
    fn new(transport: &str, hold: Option<Duration>) -> Self {
        let (mut notes, now) = (Notes::default(), clock::now());
        let place = notes.resolve(&format!("sip:9197@127.0.0.1:5060;transport={transport}")).unwrap();
        let local = sdp::Local {
            address: "127.0.0.1".parse().unwrap(),
            port: 40_000,
            codecs: vec![crate::media::g711::Codec::Pcmu],
            dtmf: false,
            direction: Direction::SendRecv,
            version: 1,
            null_address: false,
            crypto: Crypto::default(),
        };
        let (to, patience) = ("<sip:9197@127.0.0.1>".into(), Duration::from_secs(10));
        let (contact, moves) = (None, false);
        let dial = Dial { number: 7, run: 0xABC, place, to, local, patience, hold, contact, moves };
        let call = Call::place(now, dial, &mut notes).unwrap();
        Self { call, notes, now }
    }

    fn after(&mut self, ms: u64) -> Option<Event> {
        self.now += Duration::from_millis(ms);
        self.call.handle_timeout(self.now, &mut self.notes)
    }

    fn gets(&mut self, message: &str) -> Option<Event> {
        let glance = Glance::read(message.as_bytes()).unwrap();
        self.call.handle_message(self.now, 0, &glance, &mut self.notes)
    }

    /// A response to the last request sent, with further header lines and a body.
    fn answered(&mut self, status: &str, extra: &str, body: &str) -> Option<Event> {
        let mut out = Vec::new();
        let request = self.notes.last().to_owned();
        let glance = Glance::read(request.as_bytes()).unwrap();
        let extra: Vec<String> = extra.lines().map(str::to_owned).collect();
        let body = (!body.is_empty()).then_some(body);
        write_response(&mut out, &glance, status, "theirs", &extra, body);
        self.gets(&String::from_utf8(out).unwrap())
    }

    fn brought_up(mut self) -> Self {
        let contact = "Contact: <sip:w@127.0.0.1:5065;transport=tcp>";
        assert!(matches!(self.answered("200 OK", contact, SDP), Some(Event::Answered(_))));
        self
    }

    fn asks(&mut self, method: &str, extra: &str) -> Option<Event> {
        self.gets(&format!(
            "{method} sip:voxperf@127.0.0.1:4000 SIP/2.0\r\nVia: SIP/2.0/TCP a;branch=z9hG4bKq\r\nFrom: <sip:x>;tag=theirs\r\n\
             To: <sip:p7>;tag=ours\r\nCall-ID: 00000abc.7@voxperf\r\nCSeq: 5 {method}\r\n{extra}Content-Length: 0\r\n\r\n"
        ))
    }
}

const SDP: &str =
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 30000 RTP/AVP 0\r\n";

fn lines(notes: &mut Notes) -> Vec<String> {
    notes
        .take()
        .into_iter()
        .map(|(way, line)| format!("{way} {}", line.trim_end_matches(" SIP/2.0")))
        .collect()
}

/// Goal: a call follows two redirects over their own hops and is acknowledged at the last, with one
/// Call-ID, rising CSeq and an ACK for each final response (RFC 3261 §8.1.3.4, §17.1.1.3).
/// Method: 302, 302, 180, 200; then BYE and its answer.
#[test]
fn a_call_follows_redirects_and_ends_by_bye() {
    let mut rig = Rig::new("tcp", None);
    assert_eq!(rig.answered("302 Moved", "Contact: <sip:9197@127.0.0.1:5062;transport=tcp>", ""), None);
    assert_eq!(rig.answered("302 Moved", "m: <sip:9197@127.0.0.1:5065;transport=tcp>", ""), None);
    assert_eq!(rig.answered("180 Ringing", "", ""), None);
    let extra = "Contact: <sip:w1@127.0.0.1:5065;transport=tcp>\r\nServer: voxring/1";
    let Some(Event::Answered(answer)) = rig.answered("200 OK", extra, SDP) else { panic!("not answered") };
    assert_eq!((answer.server.as_str(), answer.remote.rtp), ("voxring/1", "127.0.0.1:30000".parse().ok()));
    let sent: Vec<_> = rig.notes.sent.iter().map(|(_, message)| message.clone()).collect();
    let cseqs: Vec<_> = sent.iter().map(|m| Glance::read(m.as_bytes()).unwrap().cseq().unwrap().0).collect();
    assert_eq!(cseqs, [1, 1, 2, 2, 3, 3]);
    assert!(sent.iter().all(|message| message.contains("Call-ID: 00000abc.7@voxperf\r\n")));
    let branch = |at: usize| sent[at].split("branch=").nth(1).unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(branch(0), branch(1), "the ACK of a refusal is of the INVITE's transaction");
    assert_ne!(branch(4), branch(5), "the ACK of a 200 is not");
    assert_eq!(
        lines(&mut rig.notes),
        [
            "0 INVITE sip:9197@127.0.0.1:5060;transport=tcp",
            "0 ACK sip:9197@127.0.0.1:5060;transport=tcp",
            "1 INVITE sip:9197@127.0.0.1:5062;transport=tcp",
            "1 ACK sip:9197@127.0.0.1:5062;transport=tcp",
            "2 INVITE sip:9197@127.0.0.1:5065;transport=tcp",
            "2 ACK sip:w1@127.0.0.1:5065;transport=tcp",
        ]
    );
    assert_eq!(rig.call.hang_up(rig.now, &mut rig.notes), None);
    assert!(rig.notes.last().contains("To: <sip:9197@127.0.0.1>;tag=theirs\r\n"));
    assert_eq!(rig.answered("200 OK", "", ""), Some(Event::Over(Ending::HungUp)));
    assert!(rig.call.is_over() && rig.call.poll_timeout() == Some(rig.now), "TCP needs no memory of it");
}

/// Goal: over UDP an INVITE leaves again after T1, 2*T1, 4*T1 ... until a provisional response, and
/// BYE with at most T2 between copies (RFC 3261 §17.1.1.2, §17.1.2.2).
/// Method: count copies over 8 s without an answer, over 8 s after a 100, of a BYE over 20 s, and
/// over TCP.
#[test]
fn copies_leave_over_udp_as_the_timers_say() {
    let copies = |rig: &mut Rig, seconds: u32| {
        let before = rig.call.retransmissions;
        (0..10 * seconds).for_each(|_| assert_eq!(rig.after(100), None));
        rig.call.retransmissions - before
    };
    assert_eq!(copies(&mut Rig::new("udp", None), 8), 4, "at 0.5, 1.5, 3.5, 7.5 s");
    let mut rig = Rig::new("udp", None);
    rig.answered("100 Trying", "", "");
    assert_eq!(copies(&mut rig, 8), 0);
    rig.answered("200 OK", "Contact: <sip:w@127.0.0.1:5065>", SDP);
    assert_eq!(rig.call.poll_timeout(), None);
    rig.call.hang_up(rig.now, &mut rig.notes);
    assert_eq!(copies(&mut rig, 20), 7, "at 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5 s");
    assert_eq!(rig.answered("200 OK", "", ""), Some(Event::Over(Ending::HungUp)));
    assert_eq!(rig.call.poll_timeout(), Some(rig.now + Duration::from_secs(32)), "copies may still come");
    assert_eq!(copies(&mut Rig::new("tcp", None), 8), 0);
}

/// Goal: a copy of the 200 gets the ACK again (RFC 3261 §13.2.2.4). Method: the same 200 twice.
#[test]
fn a_copy_of_the_200_gets_the_ack_again() {
    let mut rig = Rig::new("tcp", None).brought_up();
    rig.notes.take();
    assert_eq!(rig.answered_again(), None);
    assert_eq!(lines(&mut rig.notes), ["1 ACK sip:w@127.0.0.1:5065;transport=tcp"]);
}

impl Rig {
    fn broken(&mut self, connection: usize) -> Option<Event> {
        self.call.handle_broken(self.now, connection, "gone", &mut self.notes)
    }

    fn answered_again(&mut self) -> Option<Event> {
        self.gets("SIP/2.0 200 OK\r\nCall-ID: 00000abc.7@voxperf\r\nCSeq: 1 INVITE\r\n\r\n")
    }
}

/// Goal: each way a call can fail is told once, with its reason.
/// Method: a 503, silence, a broken connection, a 200 without SDP, a redirect in a circle.
#[test]
fn each_failure_is_told_with_its_reason() {
    let mut rig = Rig::new("tcp", None);
    let over = rig.answered("503 Busy", "Retry-After: 4\r\nWarning: 399 v \"calls_max\"", "");
    let warning = Some("399 v \"calls_max\"".to_owned());
    assert_eq!(over, Some(Event::Over(Ending::Refused { status: 503, warning, retry_after: true })));
    assert_eq!(lines(&mut rig.notes).last().unwrap(), "0 ACK sip:9197@127.0.0.1:5060;transport=tcp");
    assert_eq!(rig.answered_again(), None, "over is over");

    let failed = |event: Option<Event>, why: &str| match event {
        Some(Event::Over(Ending::Failed(told))) => assert!(told.contains(why), "{told}"),
        other => panic!("{other:?}"),
    };
    let mut rig = Rig::new("tcp", None);
    assert_eq!(rig.after(9_999), None);
    failed(rig.after(1), "no final response to INVITE");
    let mut rig = Rig::new("tcp", None);
    assert_eq!(rig.broken(5), None, "another's connection");
    failed(rig.broken(0), "gone");
    let mut rig = Rig::new("tcp", None);
    failed(rig.answered("200 OK", "Contact: <sip:w@127.0.0.1:5060;transport=tcp>", ""), "audio");
    assert!(rig.notes.last().starts_with("BYE "), "the far side believes in the call");
    let mut rig = Rig::new("tcp", None);
    let circle = "Contact: <sip:9197@127.0.0.1:5060;transport=tcp>";
    (0..8).for_each(|_| assert_eq!(rig.answered("302 Moved", circle, ""), None));
    failed(rig.answered("302 Moved", circle, ""), "more than 8 redirects");
}

/// Goal: the far side's requests are answered: BYE ends the call, a new offer gets our description,
/// a session refresh goes on with the far side as refresher (RFC 4028 §9).
/// Method: each of them on a call that is up; then once more after its end.
#[test]
fn requests_of_the_far_side_are_answered() {
    let mut rig = Rig::new("tcp", None).brought_up();
    for (method, extra, status, wants) in [
        ("OPTIONS", "", "SIP/2.0 200 OK", ""),
        (
            "INVITE",
            "Session-Expires: 90;refresher=uas\r\n",
            "SIP/2.0 200 OK",
            "Session-Expires: 90;refresher=uac\r\n",
        ),
        ("INVITE", "", "SIP/2.0 200 OK", "m=audio 40000 "),
        ("REFER", "", "SIP/2.0 501 Not Implemented", ""),
    ] {
        assert_eq!(rig.asks(method, extra), None);
        assert!(
            rig.notes.last().starts_with(status) && rig.notes.last().contains(wants),
            "{}",
            rig.notes.last()
        );
    }
    let count = rig.notes.sent.len();
    assert_eq!(rig.asks("ACK", ""), None);
    assert_eq!(rig.notes.sent.len(), count);
    let early = rig.asks("BYE", "Reason: Q.850;cause=16\r\n");
    assert_eq!(early, Some(Event::Over(Ending::EndedEarly("Q.850;cause=16".to_owned()))));
    assert_eq!(rig.asks("BYE", ""), None);
    assert!(rig.notes.last().starts_with("SIP/2.0 200 OK"), "a copy of the BYE is answered too");
}

/// Goal: a call with a length of its own hangs up by itself; one that rings is cancelled.
/// Method: 200 ms of hold; CANCEL, 487.
#[test]
fn a_call_hangs_up_when_its_time_is_over() {
    let mut rig = Rig::new("tcp", Some(Duration::from_millis(200))).brought_up();
    assert_eq!(rig.after(199), None);
    assert!(rig.call.is_up());
    assert_eq!(rig.after(1), None);
    assert!(!rig.call.is_up() && rig.notes.last().starts_with("BYE sip:w@"));

    let mut rig = Rig::new("tcp", None);
    let branch =
        |message: &str| message.split("branch=").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let invite = branch(rig.notes.last());
    rig.call.hang_up(rig.now, &mut rig.notes);
    assert!(rig.notes.last().starts_with("CANCEL ") && branch(rig.notes.last()) == invite);
    assert_eq!(rig.answered("200 OK", "", ""), None, "of the CANCEL");
    let refused = rig
        .gets("SIP/2.0 487 Request Terminated\r\nTo: <sip:9197@127.0.0.1>;tag=t\r\nCSeq: 1 INVITE\r\n\r\n");
    assert!(matches!(refused, Some(Event::Over(Ending::Refused { status: 487, .. }))), "{refused:?}");
}

/// Goal: a Call-ID of this run names its call; others do not.
/// Method: ours, another run's, a stranger's.
#[test]
fn a_call_id_names_its_call() {
    assert_eq!(number_of("00000abc.7@voxperf", 0xABC), Some(7));
    assert_eq!(number_of("00000abd.7@voxperf", 0xABC), None);
    assert!(
        ["7@voxperf", "00000abc.x@voxperf", "00000abc.7@other", ""]
            .iter()
            .all(|id| number_of(id, 0xABC).is_none())
    );
}

/// Goal: a re-INVITE puts the call on hold and takes it back, each answer gets its ACK, a refused one
/// changes nothing, and copies of the newest 200 get the newest ACK (RFC 3261 §14.1, §13.2.2.4).
/// Method: inactive, back, a copy; then a 488.
#[test]
fn a_reinvite_changes_the_direction() {
    let mut rig = Rig::new("tcp", None).brought_up();
    for (direction, line) in [(Direction::Inactive, "a=inactive"), (Direction::SendRecv, "a=sendrecv")] {
        rig.call.change(rig.now, direction, &mut rig.notes).unwrap();
        assert!(rig.notes.last().starts_with("INVITE sip:w") && rig.notes.last().contains(line));
        assert!(rig.notes.last().contains("To: <sip:9197@127.0.0.1>;tag=theirs\r\n"));
        assert_eq!(rig.answered("100 Trying", "", ""), None);
        let contact = "Contact: <sip:w2@127.0.0.1:5065;transport=tcp>";
        assert_eq!(rig.answered("200 OK", contact, SDP), Some(Event::Changed(true)));
        assert!(rig.notes.last().starts_with("ACK sip:w2@127.0.0.1:5065;transport=tcp "));
    }
    rig.notes.take();
    assert_eq!(rig.gets("SIP/2.0 200 OK\r\nCSeq: 3 INVITE\r\n\r\n"), None);
    assert_eq!(lines(&mut rig.notes), ["1 ACK sip:w2@127.0.0.1:5065;transport=tcp"]);
    rig.call.change(rig.now, Direction::SendOnly, &mut rig.notes).unwrap();
    assert_eq!(rig.answered("488 Not Acceptable Here", "", ""), Some(Event::Changed(false)));
    assert!(rig.call.is_up() && rig.notes.last().starts_with("ACK "));
    rig.call.change(rig.now, Direction::Inactive, &mut rig.notes).unwrap();
    assert_eq!(rig.answered("481 No Such Call", "", ""), Some(Event::Over(Ending::EndedEarly("481".into()))));
}

/// Goal: a request whose connection breaks leaves once more, the same, over a new one, and then no more.
/// Method: an INVITE, a re-INVITE and a BYE of a call that moves, each broken; the BYE twice.
#[test]
fn a_request_moves_to_a_new_connection_once() {
    let mut rig = Rig::new("tcp", None);
    rig.call.dial.moves = true;
    // What left before the call was told so is not kept.
    rig.call.invite(
        rig.now,
        Way { connection: 0, local: "127.0.0.1:4000".parse().unwrap(), transport: Transport::Tcp },
        &mut rig.notes,
    );
    let again = |rig: &mut Rig, connection: usize| {
        let before = rig.notes.sent.last().unwrap().clone();
        rig.notes.neighbours[connection] = "127.0.0.1:1".parse().unwrap();
        assert_eq!(rig.broken(connection), None);
        let now = rig.notes.sent.last().unwrap();
        assert!(now.1 == before.1 && now.0 != before.0, "{before:?} {now:?}");
    };
    again(&mut rig, 0);
    let mut rig = rig.brought_up();
    assert_eq!(rig.broken(2), None, "a call that is up waits for nothing");
    rig.call.change(rig.now, Direction::Inactive, &mut rig.notes).unwrap();
    again(&mut rig, 2);
    assert_eq!(rig.answered("200 OK", "", SDP), Some(Event::Changed(true)));
    rig.call.hang_up(rig.now, &mut rig.notes);
    again(&mut rig, 3);
    assert!(matches!(rig.broken(4), Some(Event::Over(Ending::Failed(_)))));
    assert_eq!(rig.call.moves, 3);
}

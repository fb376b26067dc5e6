//! Flows that go on in another process.

use super::*;
use crate::media::order::{Playlist, RecordPlan};

/// Calendar time in these calls.
fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123)
}

/// One thing a caller does.
#[derive(Debug, Clone, Copy)]
enum Act {
    Starts,
    Hears,
    Presses(char),
    /// The recording ends with so much sound, ms.
    Recorded(u64, RecordEnd),
    Reviews,
}

/// A call through every state but `Waiting` and those of a node that winds it up.
const CALL: [Act; 18] = [
    Act::Starts,
    Act::Hears,
    Act::Presses('#'),
    Act::Recorded(0, RecordEnd::Stopped),
    Act::Hears,
    Act::Presses('#'),
    Act::Recorded(3000, RecordEnd::Stopped),
    Act::Presses('2'),
    Act::Reviews,
    Act::Presses('3'),
    Act::Hears,
    Act::Presses('#'),
    Act::Recorded(4000, RecordEnd::Stopped),
    Act::Hears,
    Act::Presses('9'),
    Act::Hears,
    Act::Presses('1'),
    Act::Hears,
];

impl Caller {
    fn acts(&mut self, act: Act) -> Vec<Output> {
        let input = match act {
            Act::Starts => Input::Started,
            Act::Hears => Input::Played(PlayId(self.flow.plays)),
            Act::Presses(digit) => Input::Digit(digit),
            Act::Recorded(ms, end) => {
                Input::Recorded { id: self.id(), voiced: Duration::from_millis(ms), end }
            }
            Act::Reviews => Input::Review(Some(audio(REVIEW))),
        };
        self.flow.handle_input(self.now, wall(), input);
        self.raw_outputs()
    }

    fn raw_outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.flow.poll_output()).collect()
    }

    /// Dies, and goes on from what was written of it.
    fn resumes(&mut self) {
        let json = serde_json::to_string(&self.flow.snapshot()).unwrap();
        let state: AnsweringState = serde_json::from_str(&json).unwrap();
        assert_eq!(state.recording(), self.flow.recording());
        let fresh = Self::new().flow;
        let CallAnswering { party, greeting, prompts, limits, .. } = fresh;
        self.flow = CallAnswering::resume(party, greeting, prompts, limits, state);
    }
}

/// What the last orders among `outputs` left the leg doing.
fn ordered(outputs: &[Output]) -> (Option<(PlayId, Playlist)>, Option<RecordPlan>) {
    let (mut play, mut record) = (None, None);
    for output in outputs {
        match output {
            Output::Order(Order::Play(_, id, list)) => (play, record) = (Some((*id, list.clone())), None),
            Output::Order(Order::Record(_, plan)) => (play, record) = (None, Some(plan.clone())),
            Output::Order(Order::StopPlay(_)) => play = None,
            Output::Order(_) | Output::Need(_) | Output::HangUp => {}
        }
    }
    (play, record)
}

/// Goal: from whichever state a flow goes on, the call takes the same course as if nothing had happened,
/// ids of later recordings included, and the leg is to do what it was last ordered to.
/// Method: a call through every state, cut before each act; its outputs beside those of a whole call.
#[test]
fn a_flow_goes_on_from_every_state() {
    for cut in 0..CALL.len() {
        let (mut whole, mut cut_off) = (Caller::new(), Caller::new());
        let mut before = Vec::new();
        for act in &CALL[..cut] {
            whole.acts(*act);
            before.extend(cut_off.acts(*act));
        }
        cut_off.resumes();
        let media = cut_off.flow.resume_media();
        let (play, record) = ordered(&before);
        let menu = matches!(cut_off.flow.state, State::Menu { .. });
        if menu {
            let (_, list) = media.play.unwrap();
            assert_eq!((list.items.len(), list.items[0].pcmu.len()), (1, MENU), "the menu from its start");
        } else {
            assert_eq!(media.play, play, "before {:?}", CALL[cut]);
        }
        let recording = matches!(cut_off.flow.state, State::Recording { .. } | State::Stopping { .. });
        assert_eq!(media.record, record.filter(|_| recording), "before {:?}", CALL[cut]);
        assert_eq!(media.recording.as_ref().map(|meta| &meta.id), cut_off.flow.recording());
        let asked: Vec<_> = cut_off.raw_outputs().into_iter().map(word).collect();
        let again: &[&str] = match whole.flow.state {
            State::Stopping { .. } => &["stop record"],
            State::Fetching { .. } => &["review"],
            _ => &[],
        };
        assert_eq!(asked, again, "before {:?}", CALL[cut]);
        for act in &CALL[cut..] {
            let told = |outputs: Vec<Output>| -> Vec<String> {
                let ids = |output: &Output| match output {
                    Output::Order(Order::Record(_, plan)) => format!("{:?}", plan.meta),
                    _ => String::new(),
                };
                outputs.into_iter().map(|output| ids(&output) + &word(output)).collect()
            };
            let ours = told(cut_off.acts(*act));
            assert_eq!(ours, told(whole.acts(*act)), "{act:?} after a cut before {:?}", CALL[cut]);
        }
    }
}

/// Goal: a recording whose end was told twice, or was told after the kill only, is decided about once.
/// Method: `Recorded` to a resumed flow, twice.
#[test]
fn the_end_of_a_recording_counts_once() {
    let mut caller = Caller::new();
    for act in &CALL[..2] {
        caller.acts(*act);
    }
    let id = caller.id();
    caller.resumes();
    let end = Input::Recorded { id, voiced: Duration::from_secs(3), end: RecordEnd::Silence };
    assert_eq!(caller.gives(end.clone()), ["keep", "play 4"]);
    assert!(caller.gives(end).is_empty());
}

/// Goal: a call that was to begin, to be wound up or to end still does. Method: those three states.
#[test]
fn a_flow_goes_on_waiting_closing_and_ending() {
    let mut caller = Caller::new();
    caller.resumes();
    assert_eq!(caller.flow.resume_media(), crate::um::flow::ResumedMedia::default());
    assert_eq!(caller.gives(Input::Started), ["play 1 2"]);
    caller.hears_all();
    assert_eq!(caller.winds_up(), ["stop record"]);
    caller.resumes();
    assert_eq!(caller.outputs(), ["stop record"]);
    assert!(caller.flow.resume_media().record.is_some());
    assert_eq!(caller.records(3000, RecordEnd::Stopped), ["keep", "play 7"]);
    caller.resumes();
    assert!(caller.outputs().is_empty());
    assert_eq!(caller.flow.resume_media().play.unwrap().1.items[0].pcmu.len(), GOODBYE);
    assert_eq!(caller.hears_all(), ["hang up"]);
    caller.resumes();
    assert_eq!(caller.outputs(), ["hang up"], "never left hanging");
}

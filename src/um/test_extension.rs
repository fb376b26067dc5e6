//! Extensions 9196-9199, for load and interoperability tests: echo, prompt loop, record and throw
//! away, sink.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::id::{MessageId, PlayId};
use crate::base::outputs::Outputs;
use crate::base::random::SplitMix64;
use crate::media::order::{Audio, LegMode, Order, Playlist, RecordPlan, RecordingMeta};
use crate::um::flow::{Input, Output, Party, ResumedMedia};

/// What a test extension does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// 9196: packets go back where they came from.
    Echo,
    /// 9197: a prompt, over and over.
    Loop,
    /// 9198: recorded, counted, thrown away.
    Record,
    /// 9199: packets are counted, silence is sent.
    Sink,
}

impl Kind {
    /// The kind that answers `number`, if any does.
    pub fn of(number: &str) -> Option<Self> {
        match number {
            "9196" => Some(Self::Echo),
            "9197" => Some(Self::Loop),
            "9198" => Some(Self::Record),
            "9199" => Some(Self::Sink),
            _ => None,
        }
    }
}

/// The flow of a test extension: one order at the start, then nothing until the caller hangs up.
#[derive(Debug)]
pub struct TestExtension {
    kind: Kind,
    party: Party,
    prompt: Audio,
    duration_max: Duration,
    progress: Progress,
    outputs: Outputs<Output>,
}

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Progress {
    /// The call is not up yet.
    Waiting,
    /// It does what it does.
    Running,
    /// 9198 records.
    Recording(MessageId),
    /// 9198 has ended.
    Over,
}

/// Where a test extension stands, for [`TestExtension::resume`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestState {
    kind: Kind,
    progress: Progress,
    /// The state of [`Party::random`].
    random: u64,
}

impl TestState {
    /// Which of them it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The recording under way.
    pub fn recording(&self) -> Option<&MessageId> {
        match &self.progress {
            Progress::Recording(id) => Some(id),
            Progress::Waiting | Progress::Running | Progress::Over => None,
        }
    }
}

impl TestExtension {
    /// `prompt` is what 9197 plays, `duration_max` how long 9198 records.
    pub fn new(kind: Kind, party: Party, prompt: Audio, duration_max: Duration) -> Self {
        let (progress, outputs) = (Progress::Waiting, Outputs::default());
        Self { kind, party, prompt, duration_max, progress, outputs }
    }

    /// Goes on where another process left off; the rest as for [`TestExtension::new`].
    pub fn resume(party: Party, prompt: Audio, duration_max: Duration, state: TestState) -> Self {
        let TestState { kind, progress, random } = state;
        let party = Party { random: SplitMix64(random), ..party };
        let mut flow = Self { progress, ..Self::new(kind, party, prompt, duration_max) };
        if flow.progress == Progress::Over {
            flow.outputs.push(Output::HangUp);
        }
        flow
    }

    /// What [`TestExtension::resume`] needs.
    pub fn snapshot(&self) -> TestState {
        TestState { kind: self.kind, progress: self.progress.clone(), random: self.party.random.0 }
    }

    /// What its leg should be doing.
    pub fn resume_media(&self) -> ResumedMedia {
        match (&self.progress, self.kind) {
            (Progress::Running, Kind::Echo) => ResumedMedia { mode: LegMode::Echo, ..Default::default() },
            (Progress::Running, Kind::Sink) => ResumedMedia { mode: LegMode::Sink, ..Default::default() },
            (Progress::Running, Kind::Loop) => {
                ResumedMedia { play: Some((PlayId(0), self.playlist())), ..Default::default() }
            }
            (Progress::Recording(id), _) => {
                let meta = Box::new(self.party.begun_recording(id));
                let record = Some(self.record_plan(meta.clone()));
                ResumedMedia { record, recording: Some(meta), ..Default::default() }
            }
            (Progress::Waiting | Progress::Running | Progress::Over, _) => ResumedMedia::default(),
        }
    }

    /// Takes one input.
    pub fn handle_input(&mut self, wall: SystemTime, input: Input) {
        match input {
            Input::Started => {
                let order = self.first_order(wall);
                self.outputs.push(order);
            }
            // 9198 ends by its limit only; the caller hears that it is over.
            Input::Recorded { .. } if self.progress != Progress::Over => {
                self.progress = Progress::Over;
                self.outputs.push(Output::HangUp);
            }
            Input::Recorded { .. } => {}
            Input::Digit(_) | Input::Played(_) | Input::Review(_) | Input::HungUp => {}
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    /// A word for `voxring calls`.
    pub fn state(&self) -> &'static str {
        match self.kind {
            Kind::Echo => "echo",
            Kind::Loop => "loop",
            Kind::Record => "record",
            Kind::Sink => "sink",
        }
    }

    fn first_order(&mut self, wall: SystemTime) -> Output {
        let leg = self.party.leg;
        self.progress = Progress::Running;
        match self.kind {
            Kind::Echo => Output::Order(Order::Mode(leg, LegMode::Echo)),
            Kind::Sink => Output::Order(Order::Mode(leg, LegMode::Sink)),
            Kind::Loop => Output::Order(Order::Play(leg, PlayId(0), self.playlist())),
            Kind::Record => {
                let meta = self.party.next_recording(wall);
                self.progress = Progress::Recording(meta.id.clone());
                Output::Order(Order::Record(leg, self.record_plan(Box::new(meta))))
            }
        }
    }

    fn playlist(&self) -> Playlist {
        Playlist { items: vec![self.prompt.clone()], repeat: true }
    }

    fn record_plan(&self, meta: Box<RecordingMeta>) -> RecordPlan {
        RecordPlan { meta, duration_max: self.duration_max, silence_max: self.duration_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::LegId;
    use crate::media::order::RecordEnd;
    use crate::um::flow::FlowState;

    fn party() -> Party {
        let meta = RecordingMeta {
            id: MessageId::new(SystemTime::UNIX_EPOCH, 0),
            mailbox: String::new(),
            caller: "2000".into(),
            caller_name: String::new(),
            called: "9198".into(),
            diversion_reason: String::new(),
            call_id: "a@b".into(),
            started_ms: 0,
            keep: false,
        };
        Party { leg: LegId(1), meta, random: SplitMix64(1) }
    }

    fn resumed(flow: &TestExtension) -> TestExtension {
        let json = serde_json::to_string(&FlowState::Test(flow.snapshot())).unwrap();
        let FlowState::Test(state) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
        TestExtension::resume(party(), prompt(), Duration::from_secs(60), state)
    }

    fn prompt() -> Audio {
        Audio { pcmu: vec![0xFF; 800].into(), pcma: vec![0xD5; 800].into() }
    }

    /// Goal: each extension goes on doing what it was ordered to, and one that waits goes on waiting.
    /// Method: each kind cut before and after its start; its media beside the order it gave.
    #[test]
    fn each_extension_goes_on_with_its_one_order() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123);
        for kind in [Kind::Echo, Kind::Loop, Kind::Record, Kind::Sink] {
            let flow = TestExtension::new(kind, party(), prompt(), Duration::from_secs(60));
            let mut flow = resumed(&flow);
            assert_eq!(flow.resume_media(), ResumedMedia::default());
            flow.handle_input(wall, Input::Started);
            let Some(Output::Order(order)) = flow.poll_output() else { panic!("an order") };
            let mut flow = resumed(&flow);
            let media = flow.resume_media();
            match order {
                Order::Mode(_, mode) => assert_eq!(media.mode, mode),
                Order::Play(_, play, list) => assert_eq!(media.play, Some((play, list))),
                Order::Record(_, plan) => {
                    assert_eq!(media.recording, Some(plan.meta.clone()));
                    assert_eq!(flow.snapshot().recording(), Some(&plan.meta.id));
                    assert_eq!(media.record, Some(plan));
                }
                other => panic!("{other:?}"),
            }
            assert!(flow.poll_output().is_none());
        }
    }

    /// Goal: the end of 9198 ends the call, once, also after a kill between the two. Method: `Recorded`
    /// before and after.
    #[test]
    fn a_recording_that_ended_ends_the_call() {
        let mut flow = TestExtension::new(Kind::Record, party(), prompt(), Duration::from_secs(60));
        flow.handle_input(SystemTime::UNIX_EPOCH, Input::Started);
        let mut flow = resumed(&flow);
        let id = flow.resume_media().recording.unwrap().id;
        let end = Input::Recorded { id, voiced: Duration::ZERO, end: RecordEnd::Limit };
        flow.handle_input(SystemTime::UNIX_EPOCH, end.clone());
        assert!(matches!(flow.poll_output(), Some(Output::HangUp)));
        let mut flow = resumed(&flow);
        assert!(matches!(flow.poll_output(), Some(Output::HangUp)));
        flow.handle_input(SystemTime::UNIX_EPOCH, end);
        assert!(flow.poll_output().is_none());
    }
}

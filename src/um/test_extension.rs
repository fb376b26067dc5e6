//! Extensions 9196-9199, for load and interoperability tests: echo, prompt loop, record and throw
//! away, sink.

use std::time::{Duration, SystemTime};

use crate::base::id::PlayId;
use crate::base::outputs::Outputs;
use crate::media::order::{Audio, LegMode, Order, Playlist};
use crate::um::flow::{Input, Output, Party};

/// What a test extension does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    outputs: Outputs<Output>,
}

impl TestExtension {
    /// `prompt` is what 9197 plays, `duration_max` how long 9198 records.
    pub fn new(kind: Kind, party: Party, prompt: Audio, duration_max: Duration) -> Self {
        Self { kind, party, prompt, duration_max, outputs: Outputs::default() }
    }

    /// Takes one input.
    pub fn handle_input(&mut self, wall: SystemTime, input: Input) {
        match input {
            Input::Started => {
                let order = self.first_order(wall);
                self.outputs.push(order);
            }
            // 9198 ends by its limit only; the caller hears that it is over.
            Input::Recorded { .. } => self.outputs.push(Output::HangUp),
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
        match self.kind {
            Kind::Echo => Output::Order(Order::Mode(leg, LegMode::Echo)),
            Kind::Sink => Output::Order(Order::Mode(leg, LegMode::Sink)),
            Kind::Loop => {
                let playlist = Playlist { items: vec![self.prompt.clone()], repeat: true };
                Output::Order(Order::Play(leg, PlayId(0), playlist))
            }
            Kind::Record => {
                let meta = self.party.next_recording(wall);
                self.party.record(meta, self.duration_max, self.duration_max)
            }
        }
    }
}

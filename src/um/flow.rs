//! What goes into a call flow and what comes out of it, whatever the flow.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::clock;
use crate::base::id::{LegId, MessageId, PlayId};
use crate::base::random::SplitMix64;
use crate::media::order::{Audio, LegMode, Order, Playlist, RecordEnd, RecordPlan, RecordingMeta};
use crate::um::answering::{AnsweringState, CallAnswering};
use crate::um::test_extension::{TestExtension, TestState};

/// Something that happened on the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The caller's ACK arrived and media can flow.
    Started,
    /// A key press.
    Digit(char),
    /// A playlist reached its end.
    Played(PlayId),
    /// A recording ended.
    Recorded {
        /// Which.
        id: MessageId,
        /// Sound in it, as opposed to silence.
        voiced: Duration,
        /// Why it ended.
        end: RecordEnd,
    },
    /// The audio that `Need::Review` asked for; `None` when it could not be read.
    Review(Option<Audio>),
    /// The caller hung up, or the leg was lost. A running recording has ended already.
    HungUp,
}

/// Something the worker must fetch or put away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// The recording becomes a message.
    Keep(MessageId),
    /// The recording goes away.
    Discard(MessageId),
    /// The recording's audio, to be heard by the caller; answered by `Input::Review`.
    Review(MessageId),
    /// Note that the caller left no message.
    Missed(Box<RecordingMeta>),
}

/// What a flow wants done.
#[derive(Debug)]
pub enum Output {
    /// For the media shard.
    Order(Order),
    /// For the mailbox.
    Need(Need),
    /// End the call.
    HangUp,
}

/// Where a flow stands, for one of another process to go on from there with the same audio and limits:
/// [`CallAnswering::resume`] and [`TestExtension::resume`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlowState {
    /// A mailbox took the call.
    Answering(AnsweringState),
    /// One of 9196-9199.
    Test(TestState),
}

impl FlowState {
    /// It cannot go on without its mailbox's greeting.
    pub fn wants_greeting(&self) -> bool {
        match self {
            Self::Answering(state) => state.wants_greeting(),
            Self::Test(_) => false,
        }
    }

    /// The recording that is not yet decided about, or counted only; the mailbox must adopt it.
    pub fn recording(&self) -> Option<&MessageId> {
        match self {
            Self::Answering(state) => state.recording(),
            Self::Test(state) => state.recording(),
        }
    }
}

/// What a flow wants its leg and the mailbox to be doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumedMedia {
    /// What happens to received audio. Not for a leg in a bridge.
    pub mode: LegMode,
    /// What plays.
    pub play: Option<(PlayId, Playlist)>,
    /// What is recorded, as far as the flow knows: its end may be on the way.
    pub record: Option<RecordPlan>,
    /// The recording under way or under discussion: the mailbox must go on with it.
    pub recording: Option<Box<RecordingMeta>>,
}

impl Default for ResumedMedia {
    fn default() -> Self {
        Self { mode: LegMode::Voice, play: None, record: None, recording: None }
    }
}

/// The flow of one call.
#[derive(Debug)]
pub enum Flow {
    /// A mailbox takes the call.
    Answering(Box<CallAnswering>),
    /// One of 9196-9199.
    Test(Box<TestExtension>),
    /// One with a fault, for tests.
    #[cfg(test)]
    Faulty,
}

impl Flow {
    /// Takes one input; drain [`Flow::poll_output`] afterwards. `wall` dates recordings.
    pub fn handle_input(&mut self, now: Instant, wall: SystemTime, input: Input) {
        match self {
            Self::Answering(flow) => flow.handle_input(now, wall, input),
            Self::Test(flow) => flow.handle_input(wall, input),
            #[cfg(test)]
            Self::Faulty => panic!("a fault in the flow"),
        }
    }

    /// Runs what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Answering(flow) => flow.handle_timeout(now),
            Self::Test(_) => {}
            #[cfg(test)]
            Self::Faulty => {}
        }
    }

    /// The call is about to be ended by us: what the caller has said is kept, and goodbye said. Test
    /// extensions say nothing.
    pub fn wind_up(&mut self, wall: SystemTime) {
        match self {
            Self::Answering(flow) => flow.wind_up(wall),
            Self::Test(_) => {}
            #[cfg(test)]
            Self::Faulty => {}
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        match self {
            Self::Answering(flow) => flow.poll_output(),
            Self::Test(flow) => flow.poll_output(),
            #[cfg(test)]
            Self::Faulty => None,
        }
    }

    /// When [`Flow::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Answering(flow) => flow.poll_timeout(),
            Self::Test(_) => None,
            #[cfg(test)]
            Self::Faulty => None,
        }
    }

    /// A word for `voxring calls`.
    pub fn state(&self) -> &'static str {
        match self {
            Self::Answering(flow) => flow.state(),
            Self::Test(flow) => flow.state(),
            #[cfg(test)]
            Self::Faulty => "faulty",
        }
    }
}

impl Flow {
    /// Where it stands, once its outputs are taken. `None`: there is nothing to go on with.
    pub fn snapshot(&self) -> Option<FlowState> {
        match self {
            Self::Answering(flow) => Some(FlowState::Answering(flow.snapshot())),
            Self::Test(flow) => Some(FlowState::Test(flow.snapshot())),
            #[cfg(test)]
            Self::Faulty => None,
        }
    }

    /// What its leg should be doing.
    pub fn resume_media(&self) -> ResumedMedia {
        match self {
            Self::Answering(flow) => flow.resume_media(),
            Self::Test(flow) => flow.resume_media(),
            #[cfg(test)]
            Self::Faulty => ResumedMedia::default(),
        }
    }

    /// The recording whose loss the caller must not miss; test extensions keep none.
    pub fn recording(&self) -> Option<&MessageId> {
        match self {
            Self::Answering(flow) => flow.recording(),
            Self::Test(_) => None,
            #[cfg(test)]
            Self::Faulty => None,
        }
    }
}

/// What every flow knows of its call.
#[derive(Debug, Clone)]
pub struct Party {
    /// The leg that orders name.
    pub leg: LegId,
    /// The metadata of this call's recordings; `id` and `started_ms` are set for each.
    pub meta: RecordingMeta,
    /// Tells recordings of one millisecond apart.
    pub random: SplitMix64,
}

impl Party {
    /// The metadata of a recording that begins at `wall`, with an id of its own.
    pub fn next_recording(&mut self, wall: SystemTime) -> RecordingMeta {
        let id = MessageId::new(wall, self.random.bits());
        RecordingMeta { id, started_ms: clock::unix_ms(wall), ..self.meta.clone() }
    }

    /// The metadata that the recording `id` began with.
    pub fn begun_recording(&self, id: &MessageId) -> RecordingMeta {
        RecordingMeta { id: id.clone(), started_ms: id.started_ms(), ..self.meta.clone() }
    }

    /// An order to play `items` once.
    pub fn play(&self, play: PlayId, items: Vec<Audio>) -> Output {
        Output::Order(Order::Play(self.leg, play, Playlist { items, repeat: false }))
    }

    /// An order to record.
    pub fn record(&self, meta: RecordingMeta, duration_max: Duration, silence_max: Duration) -> Output {
        let plan = RecordPlan { meta: Box::new(meta), duration_max, silence_max };
        Output::Order(Order::Record(self.leg, plan))
    }
}

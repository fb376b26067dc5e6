//! What goes into a call flow and what comes out of it, whatever the flow.

use std::time::{Duration, Instant, SystemTime};

use crate::base::clock;
use crate::base::id::{LegId, MessageId, PlayId};
use crate::base::random::SplitMix64;
use crate::media::order::{Audio, Order, Playlist, RecordEnd, RecordPlan, RecordingMeta};
use crate::um::answering::CallAnswering;
use crate::um::test_extension::TestExtension;

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

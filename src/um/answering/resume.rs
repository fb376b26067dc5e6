//! Call answering that goes on in another process.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CallAnswering, LastWords, Limits, Opening, Prompts, State};
use crate::base::id::{MessageId, PlayId};
use crate::base::outputs::Outputs;
use crate::base::random::SplitMix64;
use crate::media::order::{Audio, Order, Playlist, RecordPlan};
use crate::um::flow::{Need, Output, Party, ResumedMedia};

/// Where a flow stands, without its audio and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweringState {
    step: Step,
    plays: u32,
    input_failures: u8,
    left_message: bool,
    /// The state of [`Party::random`].
    random: u64,
}

/// [`State`], without what another process decides anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Waiting,
    Greeting(Opening),
    Recording(MessageId),
    Stopping(MessageId),
    Closing(MessageId),
    Menu(MessageId),
    Fetching(MessageId),
    Leaving(LastWords),
    Over,
}

impl AnsweringState {
    /// The greeting is still to be heard, or may be.
    pub fn wants_greeting(&self) -> bool {
        matches!(self.step, Step::Waiting | Step::Greeting(_))
    }

    /// The recording under way or under discussion.
    pub fn recording(&self) -> Option<&MessageId> {
        match &self.step {
            Step::Recording(id)
            | Step::Stopping(id)
            | Step::Closing(id)
            | Step::Menu(id)
            | Step::Fetching(id) => Some(id),
            Step::Waiting | Step::Greeting(_) | Step::Leaving(_) | Step::Over => None,
        }
    }
}

impl CallAnswering {
    /// What [`CallAnswering::resume`] needs, once the outputs are taken.
    pub fn snapshot(&self) -> AnsweringState {
        let step = match &self.state {
            State::Waiting => Step::Waiting,
            State::Greeting { opening } => Step::Greeting(*opening),
            State::Recording { id } => Step::Recording(id.clone()),
            State::Stopping { id } => Step::Stopping(id.clone()),
            State::Closing { id } => Step::Closing(id.clone()),
            State::Menu { id, .. } => Step::Menu(id.clone()),
            State::Fetching { id } => Step::Fetching(id.clone()),
            State::Leaving { words } => Step::Leaving(*words),
            State::Over => Step::Over,
        };
        AnsweringState {
            step,
            plays: self.plays,
            input_failures: self.input_failures,
            left_message: self.left_message,
            random: self.party.random.0,
        }
    }

    /// Goes on where another process left off; the rest as for [`CallAnswering::new`]. What was asked
    /// for and not answered is asked for again, and the menu begins from its start.
    pub fn resume(
        party: Party,
        greeting: Audio,
        prompts: Arc<Prompts>,
        limits: Limits,
        state: AnsweringState,
    ) -> Self {
        let AnsweringState { step, mut plays, input_failures, left_message, random } = state;
        let party = Party { random: SplitMix64(random), ..party };
        let mut outputs = Outputs::default();
        let state = match step {
            Step::Waiting => State::Waiting,
            Step::Greeting(opening) => State::Greeting { opening },
            Step::Recording(id) => State::Recording { id },
            Step::Stopping(id) => {
                outputs.push(Output::Order(Order::StopRecord(party.leg)));
                State::Stopping { id }
            }
            Step::Closing(id) => {
                outputs.push(Output::Order(Order::StopRecord(party.leg)));
                State::Closing { id }
            }
            Step::Menu(id) => {
                plays += 1;
                State::Menu { id, deadline: None }
            }
            Step::Fetching(id) => {
                outputs.push(Output::Need(Need::Review(id.clone())));
                State::Fetching { id }
            }
            Step::Leaving(words) => State::Leaving { words },
            Step::Over => {
                outputs.push(Output::HangUp);
                State::Over
            }
        };
        let flow = Self::new(party, greeting, prompts, limits);
        Self { state, plays, input_failures, left_message, outputs, ..flow }
    }

    /// What its leg should be doing.
    pub fn resume_media(&self) -> ResumedMedia {
        let items = match &self.state {
            State::Greeting { opening } => self.opening_audio(*opening),
            State::Menu { deadline: None, .. } => vec![self.prompts.after_recording.clone()],
            State::Leaving { words } => vec![self.last_words(*words)],
            State::Menu { deadline: Some(_), .. }
            | State::Waiting
            | State::Recording { .. }
            | State::Stopping { .. }
            | State::Closing { .. }
            | State::Fetching { .. }
            | State::Over => Vec::new(),
        };
        let play = (!items.is_empty()).then_some((PlayId(self.plays), Playlist { items, repeat: false }));
        let recording = self.recording().map(|id| Box::new(self.party.begun_recording(id)));
        let is_recorded =
            matches!(self.state, State::Recording { .. } | State::Stopping { .. } | State::Closing { .. });
        let record = recording.clone().filter(|_| is_recorded).map(|meta| RecordPlan {
            meta,
            duration_max: self.limits.duration_max,
            silence_max: self.limits.silence_max,
        });
        ResumedMedia { play, record, recording, ..ResumedMedia::default() }
    }
}

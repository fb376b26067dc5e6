//! Call answering: greeting, beep, recording, and what to do with it.
//!
//! A recording that holds sound is kept unless the caller says otherwise: hanging up, silence, the
//! limit, and a caller who never decides all keep it. One without sound is a missed call.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::id::{MessageId, PlayId};
use crate::base::outputs::Outputs;
use crate::media::order::{Audio, Order, RecordEnd};
use crate::um::flow::{Input, Need, Output, Party};

mod resume;

pub use resume::AnsweringState;

/// How long the menu waits for a key after its prompt.
pub const MENU_WAIT: Duration = Duration::from_secs(7);

/// What the caller can hear, ready for the wire.
#[derive(Debug, Clone)]
pub struct Prompts {
    /// The greeting of who has none of their own.
    pub greeting: Audio,
    /// The tone after which to speak.
    pub beep: Audio,
    /// "To send your message, press one …"
    pub after_recording: Audio,
    /// "Your message has been sent. Goodbye."
    pub sent: Audio,
    /// Nothing was heard.
    pub nothing_recorded: Audio,
    /// That key does nothing here.
    pub invalid_key: Audio,
    /// "Goodbye."
    pub goodbye: Audio,
}

/// The limits of a recording and of patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest message.
    pub duration_max: Duration,
    /// Silence that ends it.
    pub silence_max: Duration,
    /// Less sound than this is no message.
    pub voiced_min: Duration,
    /// Wrong or missing keys before the call ends.
    pub input_failures_max: u8,
}

/// What comes before the beep that starts a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Opening {
    /// The greeting, which `#` cuts short.
    Greeting,
    /// Nothing more.
    Beep,
    /// That nothing was recorded.
    NothingRecorded,
}

/// What the caller hears last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum LastWords {
    /// The message was sent.
    Sent,
    /// Nothing was recorded.
    NothingRecorded,
    /// Goodbye.
    Goodbye,
}

#[derive(Debug)]
enum State {
    /// The call is not up yet.
    Waiting,
    /// The opening and the beep play.
    Greeting { opening: Opening },
    /// The recorder runs.
    Recording { id: MessageId },
    /// `#` ended the recording and `Recorded` is on its way.
    Stopping { id: MessageId },
    /// The node ends the call and `Recorded` is on its way.
    Closing { id: MessageId },
    /// The menu plays, or waits for a key until `deadline`.
    Menu { id: MessageId, deadline: Option<Instant> },
    /// The mailbox fetches the recording's audio.
    Fetching { id: MessageId },
    /// Last words; the call ends with them.
    Leaving { words: LastWords },
    /// Nothing more to do.
    Over,
}

/// The flow of one answered call.
#[derive(Debug)]
pub struct CallAnswering {
    party: Party,
    greeting: Audio,
    prompts: Arc<Prompts>,
    limits: Limits,
    state: State,
    plays: u32,
    input_failures: u8,
    /// A message was kept on this call: an empty second take is no missed call.
    left_message: bool,
    outputs: Outputs<Output>,
}

impl CallAnswering {
    /// A flow that waits for `Input::Started` and then greets with `greeting`, the mailbox's own or the
    /// built-in one.
    pub fn new(party: Party, greeting: Audio, prompts: Arc<Prompts>, limits: Limits) -> Self {
        Self {
            party,
            greeting,
            prompts,
            limits,
            state: State::Waiting,
            plays: 0,
            input_failures: 0,
            left_message: false,
            outputs: Outputs::default(),
        }
    }

    /// Takes one input; `wall` dates a recording that begins with it.
    pub fn handle_input(&mut self, now: Instant, wall: SystemTime, input: Input) {
        match input {
            Input::Started => self.open(Opening::Greeting),
            Input::Digit(digit) => self.handle_digit(digit),
            Input::Played(play) => self.handle_played(now, wall, play),
            Input::Recorded { id, voiced, end } => self.handle_recorded(wall, &id, voiced, end),
            Input::Review(audio) => self.handle_review(audio),
            Input::HungUp => self.handle_hang_up(wall),
        }
    }

    /// Runs what is due at `now`: the menu's patience.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let State::Menu { id, deadline: Some(deadline), .. } = &self.state
            && *deadline <= now
        {
            let id = id.clone();
            self.fail_input(id, Vec::new());
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    /// When [`CallAnswering::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Menu { deadline, .. } => *deadline,
            State::Waiting
            | State::Greeting { .. }
            | State::Recording { .. }
            | State::Stopping { .. }
            | State::Closing { .. }
            | State::Fetching { .. }
            | State::Leaving { .. }
            | State::Over => None,
        }
    }

    /// The node is about to end the call: what was recorded is kept, and the caller hears goodbye.
    pub fn wind_up(&mut self, wall: SystemTime) {
        match &self.state {
            State::Waiting | State::Closing { .. } | State::Leaving { .. } | State::Over => {}
            State::Greeting { .. } => {
                self.note_missed(wall);
                self.leave(LastWords::Goodbye);
            }
            State::Recording { id } => {
                let id = id.clone();
                self.outputs.push(Output::Order(Order::StopRecord(self.party.leg)));
                self.state = State::Closing { id };
            }
            State::Stopping { id } => self.state = State::Closing { id: id.clone() },
            State::Menu { id, .. } | State::Fetching { id } => {
                self.keep(id.clone());
                self.leave(LastWords::Goodbye);
            }
        }
    }

    /// A word for `voxring calls`.
    pub fn state(&self) -> &'static str {
        match self.state {
            State::Waiting => "waiting",
            State::Greeting { .. } => "greeting",
            State::Recording { .. } | State::Stopping { .. } => "recording",
            State::Menu { .. } | State::Fetching { .. } => "menu",
            State::Closing { .. } | State::Leaving { .. } => "leaving",
            State::Over => "over",
        }
    }

    /// The recording under way or under discussion.
    pub fn recording(&self) -> Option<&MessageId> {
        match &self.state {
            State::Recording { id }
            | State::Stopping { id }
            | State::Closing { id }
            | State::Menu { id, .. }
            | State::Fetching { id } => Some(id),
            State::Waiting | State::Greeting { .. } | State::Leaving { .. } | State::Over => None,
        }
    }

    fn handle_digit(&mut self, digit: char) {
        match (&self.state, digit) {
            (State::Greeting { opening: Opening::Greeting }, '#') => self.open(Opening::Beep),
            (State::Recording { id }, '#') => {
                let id = id.clone();
                self.outputs.push(Output::Order(Order::StopRecord(self.party.leg)));
                self.state = State::Stopping { id };
            }
            (State::Menu { id, .. }, '1') => {
                let id = id.clone();
                self.send(id);
            }
            (State::Menu { id, .. }, '2') => {
                let id = id.clone();
                self.outputs.push(Output::Order(Order::StopPlay(self.party.leg)));
                self.outputs.push(Output::Need(Need::Review(id.clone())));
                self.state = State::Fetching { id };
            }
            (State::Menu { id, .. }, '3') => {
                let id = id.clone();
                self.outputs.push(Output::Need(Need::Discard(id)));
                self.open(Opening::Beep);
            }
            // The `#` that ended the recording, held long or sent twice, is no wrong choice.
            (State::Menu { .. }, '#') => {}
            (State::Menu { id, .. }, _) => {
                let id = id.clone();
                self.fail_input(id, vec![self.prompts.invalid_key.clone()]);
            }
            // Keys mean nothing elsewhere.
            _ => {}
        }
    }

    fn handle_played(&mut self, now: Instant, wall: SystemTime, played: PlayId) {
        // An older id is the end of a playlist that was replaced meanwhile.
        if played != PlayId(self.plays) {
            return;
        }
        match &mut self.state {
            State::Greeting { .. } => self.record(wall),
            State::Menu { deadline, .. } => *deadline = Some(now + MENU_WAIT),
            State::Leaving { .. } => self.hang_up(),
            State::Waiting
            | State::Recording { .. }
            | State::Stopping { .. }
            | State::Closing { .. }
            | State::Fetching { .. }
            | State::Over => {}
        }
    }

    fn handle_recorded(&mut self, wall: SystemTime, id: &MessageId, voiced: Duration, end: RecordEnd) {
        let current = match &self.state {
            State::Recording { id } | State::Stopping { id } | State::Closing { id } => id.clone(),
            State::Waiting
            | State::Greeting { .. }
            | State::Menu { .. }
            | State::Fetching { .. }
            | State::Leaving { .. }
            | State::Over => return,
        };
        if current != *id {
            return;
        }
        let empty = voiced < self.limits.voiced_min;
        let is_closing = matches!(self.state, State::Closing { .. });
        match (end, empty) {
            (_, false) if is_closing && end != RecordEnd::Closed => {
                self.keep(current);
                self.leave(LastWords::Goodbye);
            }
            (_, true) if is_closing && end != RecordEnd::Closed => {
                self.drop_empty(wall, current);
                self.leave(LastWords::Goodbye);
            }
            (RecordEnd::Stopped, false) => self.offer_menu(current, Vec::new()),
            (RecordEnd::Stopped, true) => self.retry_empty(wall, current),
            (RecordEnd::Silence | RecordEnd::Limit, false) => self.send(current),
            (RecordEnd::Silence | RecordEnd::Limit, true) => {
                self.drop_empty(wall, current);
                self.leave(LastWords::NothingRecorded);
            }
            (RecordEnd::Closed, false) => {
                self.keep(current);
                self.state = State::Over;
            }
            (RecordEnd::Closed, true) => {
                self.drop_empty(wall, current);
                self.state = State::Over;
            }
        }
    }

    fn handle_review(&mut self, audio: Option<Audio>) {
        if let State::Fetching { id } = &self.state {
            let id = id.clone();
            // Audio that cannot be read is no reason to lose the message: the menu goes on.
            self.offer_menu(id, audio.into_iter().collect());
        }
    }

    fn handle_hang_up(&mut self, wall: SystemTime) {
        match &self.state {
            State::Waiting | State::Greeting { .. } => self.note_missed(wall),
            // The caller saw the recording end and left it: it stands.
            State::Menu { id, .. } | State::Fetching { id } => self.keep(id.clone()),
            // The leg vanished with its recorder: what reached the spool is kept.
            State::Recording { id } | State::Stopping { id } | State::Closing { id } => {
                self.keep(id.clone());
            }
            State::Leaving { .. } | State::Over => {}
        }
        self.state = State::Over;
    }

    /// Plays what comes before a recording, and the beep.
    fn open(&mut self, opening: Opening) {
        self.play(self.opening_audio(opening));
        self.state = State::Greeting { opening };
    }

    fn opening_audio(&self, opening: Opening) -> Vec<Audio> {
        let before = match opening {
            Opening::Greeting => Some(&self.greeting),
            Opening::Beep => None,
            Opening::NothingRecorded => Some(&self.prompts.nothing_recorded),
        };
        before.into_iter().chain([&self.prompts.beep]).cloned().collect()
    }

    fn record(&mut self, wall: SystemTime) {
        let meta = self.party.next_recording(wall);
        let id = meta.id.clone();
        let output = self.party.record(meta, self.limits.duration_max, self.limits.silence_max);
        self.outputs.push(output);
        self.state = State::Recording { id };
    }

    /// Plays `before`, then the menu.
    fn offer_menu(&mut self, id: MessageId, mut before: Vec<Audio>) {
        before.push(self.prompts.after_recording.clone());
        self.play(before);
        self.state = State::Menu { id, deadline: None };
    }

    /// A wrong or missing key: the menu again after `before`, or the end with the message kept.
    fn fail_input(&mut self, id: MessageId, before: Vec<Audio>) {
        self.input_failures += 1;
        if self.input_failures >= self.limits.input_failures_max {
            self.send(id);
        } else {
            self.offer_menu(id, before);
        }
    }

    /// `#` without a word before it: another try, but not for ever.
    fn retry_empty(&mut self, wall: SystemTime, id: MessageId) {
        self.input_failures += 1;
        if self.input_failures >= self.limits.input_failures_max {
            self.drop_empty(wall, id);
            self.leave(LastWords::Goodbye);
        } else {
            self.outputs.push(Output::Need(Need::Discard(id)));
            self.open(Opening::NothingRecorded);
        }
    }

    fn send(&mut self, id: MessageId) {
        self.keep(id);
        self.leave(LastWords::Sent);
    }

    fn keep(&mut self, id: MessageId) {
        self.left_message = true;
        self.outputs.push(Output::Need(Need::Keep(id)));
    }

    fn drop_empty(&mut self, wall: SystemTime, id: MessageId) {
        self.outputs.push(Output::Need(Need::Discard(id)));
        self.note_missed(wall);
    }

    fn note_missed(&mut self, wall: SystemTime) {
        if !self.left_message {
            let meta = self.party.next_recording(wall);
            self.outputs.push(Output::Need(Need::Missed(Box::new(meta))));
        }
    }

    fn leave(&mut self, words: LastWords) {
        self.play(vec![self.last_words(words)]);
        self.state = State::Leaving { words };
    }

    fn last_words(&self, words: LastWords) -> Audio {
        match words {
            LastWords::Sent => self.prompts.sent.clone(),
            LastWords::NothingRecorded => self.prompts.nothing_recorded.clone(),
            LastWords::Goodbye => self.prompts.goodbye.clone(),
        }
    }

    fn hang_up(&mut self) {
        self.state = State::Over;
        self.outputs.push(Output::HangUp);
    }

    fn play(&mut self, items: Vec<Audio>) {
        self.plays += 1;
        self.outputs.push(self.party.play(PlayId(self.plays), items));
    }
}

#[cfg(test)]
mod tests {
    mod resume;

    use super::*;
    use crate::base::clock;
    use crate::base::id::LegId;
    use crate::base::random::SplitMix64;
    use crate::media::order::RecordingMeta;

    fn audio(samples: usize) -> Audio {
        Audio { pcmu: vec![0xFF; samples].into(), pcma: vec![0xD5; samples].into() }
    }

    /// Drives a flow on a fake clock; each prompt has a length of its own, so that it can be told.
    struct Caller {
        now: Instant,
        flow: CallAnswering,
    }

    const GREETING: usize = 1;
    const BEEP: usize = 2;
    const MENU: usize = 3;
    const SENT: usize = 4;
    const NOTHING: usize = 5;
    const INVALID: usize = 6;
    const GOODBYE: usize = 7;
    const REVIEW: usize = 8;

    impl Caller {
        fn new() -> Self {
            let meta = RecordingMeta {
                id: MessageId::new(SystemTime::UNIX_EPOCH, 0),
                mailbox: "1001".into(),
                caller: "2000".into(),
                caller_name: String::new(),
                called: "1001".into(),
                diversion_reason: String::new(),
                call_id: "a@b".into(),
                started_ms: 0,
                keep: true,
            };
            let prompts = Prompts {
                greeting: audio(GREETING),
                beep: audio(BEEP),
                after_recording: audio(MENU),
                sent: audio(SENT),
                nothing_recorded: audio(NOTHING),
                invalid_key: audio(INVALID),
                goodbye: audio(GOODBYE),
            };
            let limits = Limits {
                duration_max: Duration::from_secs(1200),
                silence_max: Duration::from_secs(5),
                voiced_min: Duration::from_millis(200),
                input_failures_max: 3,
            };
            let party = Party { leg: LegId(1), meta, random: SplitMix64(1) };
            Self {
                now: clock::now(),
                flow: CallAnswering::new(party, prompts.greeting.clone(), Arc::new(prompts), limits),
            }
        }

        /// Gives one input and tells the outputs as words.
        fn gives(&mut self, input: Input) -> Vec<String> {
            self.flow.handle_input(self.now, SystemTime::UNIX_EPOCH, input);
            self.outputs()
        }

        fn outputs(&mut self) -> Vec<String> {
            std::iter::from_fn(|| self.flow.poll_output()).map(word).collect()
        }

        fn id(&self) -> MessageId {
            match &self.flow.state {
                State::Recording { id }
                | State::Stopping { id }
                | State::Closing { id }
                | State::Menu { id, .. } => id.clone(),
                State::Waiting
                | State::Greeting { .. }
                | State::Fetching { .. }
                | State::Leaving { .. }
                | State::Over => panic!("no recording in {:?}", self.flow.state),
            }
        }

        fn winds_up(&mut self) -> Vec<String> {
            self.flow.wind_up(SystemTime::UNIX_EPOCH);
            self.outputs()
        }

        fn hears_all(&mut self) -> Vec<String> {
            let play = PlayId(self.flow.plays);
            self.gives(Input::Played(play))
        }

        fn records(&mut self, voiced_ms: u64, end: RecordEnd) -> Vec<String> {
            let id = self.id();
            self.gives(Input::Recorded { id, voiced: Duration::from_millis(voiced_ms), end })
        }

        /// Up to the menu, with a recording worth keeping.
        fn at_menu() -> Self {
            let mut caller = Self::new();
            caller.gives(Input::Started);
            caller.hears_all();
            caller.gives(Input::Digit('#'));
            assert_eq!(caller.records(3000, RecordEnd::Stopped), ["play 3"]);
            caller
        }
    }

    fn word(output: Output) -> String {
        match output {
            Output::HangUp => "hang up".into(),
            Output::Need(Need::Keep(_)) => "keep".into(),
            Output::Need(Need::Discard(_)) => "discard".into(),
            Output::Need(Need::Review(_)) => "review".into(),
            Output::Need(Need::Missed(_)) => "missed".into(),
            Output::Order(Order::Play(_, _, list)) => {
                let items: Vec<_> = list.items.iter().map(|a| a.pcmu.len().to_string()).collect();
                format!("play {}", items.join(" "))
            }
            Output::Order(Order::Record(..)) => "record".into(),
            Output::Order(Order::StopRecord(_)) => "stop record".into(),
            Output::Order(Order::StopPlay(_)) => "stop play".into(),
            Output::Order(other) => format!("{other:?}"),
        }
    }

    /// Goal: the ordinary call. Method: greeting, beep, speech, hang-up.
    #[test]
    fn a_caller_who_hangs_up_after_speaking_leaves_a_message() {
        let mut caller = Caller::new();
        assert_eq!(caller.gives(Input::Started), ["play 1 2"]);
        assert_eq!(caller.hears_all(), ["record"]);
        assert_eq!(caller.records(3000, RecordEnd::Closed), ["keep"]);
        assert!(caller.gives(Input::HungUp).is_empty());
    }

    /// Goal: no empty message. Method: hang up during the greeting, and right after the beep.
    #[test]
    fn a_caller_who_says_nothing_is_a_missed_call() {
        let mut caller = Caller::new();
        caller.gives(Input::Started);
        assert_eq!(caller.gives(Input::HungUp), ["missed"]);

        let mut caller = Caller::new();
        caller.gives(Input::Started);
        caller.hears_all();
        assert_eq!(caller.records(0, RecordEnd::Closed), ["discard", "missed"]);
        assert!(caller.gives(Input::HungUp).is_empty());
    }

    /// Goal: `#` cuts the greeting, not the beep. Method: press it twice.
    #[test]
    fn pound_skips_the_greeting_to_the_beep() {
        let mut caller = Caller::new();
        caller.gives(Input::Started);
        assert_eq!(caller.gives(Input::Digit('#')), ["play 2"]);
        assert!(caller.gives(Input::Digit('#')).is_empty());
        assert!(caller.gives(Input::Played(PlayId(1))).is_empty(), "the greeting's end is stale");
        assert_eq!(caller.hears_all(), ["record"]);
    }

    /// Goal: silence and limit send the message and say so. Method: both ends.
    #[test]
    fn silence_and_limit_send_what_was_recorded() {
        for end in [RecordEnd::Silence, RecordEnd::Limit] {
            let mut caller = Caller::new();
            caller.gives(Input::Started);
            caller.hears_all();
            assert_eq!(caller.records(3000, end), ["keep", "play 4"]);
            assert_eq!(caller.hears_all(), ["hang up"]);
            assert!(caller.gives(Input::HungUp).is_empty());
        }
    }

    /// Goal: menu keys 1, 2, 3. Method: hear it, record again, send the second take.
    #[test]
    fn menu_hears_records_again_and_sends() {
        let mut caller = Caller::at_menu();
        assert_eq!(caller.gives(Input::Digit('2')), ["stop play", "review"]);
        assert_eq!(caller.gives(Input::Review(Some(audio(REVIEW)))), ["play 8 3"]);
        let first = caller.id();
        assert_eq!(caller.gives(Input::Digit('3')), ["discard", "play 2"]);
        assert_eq!(caller.hears_all(), ["record"]);
        assert_ne!(caller.id(), first, "a new take is a new recording");
        caller.gives(Input::Digit('#'));
        caller.records(3000, RecordEnd::Stopped);
        assert_eq!(caller.gives(Input::Digit('1')), ["keep", "play 4"]);
        assert_eq!(caller.hears_all(), ["hang up"]);
    }

    /// Goal: a caller who hangs up in the menu left a message. Method: from each of its states.
    #[test]
    fn hanging_up_in_the_menu_keeps_the_message() {
        let mut caller = Caller::at_menu();
        assert_eq!(caller.gives(Input::HungUp), ["keep"]);

        let mut caller = Caller::at_menu();
        caller.gives(Input::Digit('2'));
        assert_eq!(caller.gives(Input::HungUp), ["keep"]);
    }

    /// Goal: a node that ends the call keeps what was said, and says goodbye first. Method: in the
    /// greeting, while recording with and without a word, in the menu, and when it is leaving anyway.
    #[test]
    fn a_call_that_we_wind_up_keeps_its_message_and_ends_with_goodbye() {
        let mut caller = Caller::new();
        assert!(caller.winds_up().is_empty(), "there is nothing to say yet");
        caller.gives(Input::Started);
        assert_eq!(caller.winds_up(), ["missed", "play 7"]);
        assert_eq!(caller.hears_all(), ["hang up"]);
        for (voiced_ms, told) in [(3000, vec!["keep", "play 7"]), (0, vec!["discard", "missed", "play 7"])] {
            let mut caller = Caller::new();
            caller.gives(Input::Started);
            caller.hears_all();
            assert_eq!(caller.winds_up(), ["stop record"]);
            assert!(caller.winds_up().is_empty());
            assert_eq!(caller.records(voiced_ms, RecordEnd::Stopped), told);
            assert_eq!(caller.hears_all(), ["hang up"]);
        }
        let mut caller = Caller::at_menu();
        assert_eq!(caller.winds_up(), ["keep", "play 7"]);
        assert!(caller.winds_up().is_empty());
        assert!(caller.gives(Input::HungUp).is_empty(), "kept once");
    }

    /// Goal: three failures end the menu without losing the message (um-behaviour: default 3).
    /// Method: a wrong key, then two waits on a fake clock.
    #[test]
    fn wrong_keys_and_waiting_run_out_into_a_kept_message() {
        let mut caller = Caller::at_menu();
        assert_eq!(caller.gives(Input::Digit('9')), ["play 6 3"]);
        assert!(caller.flow.poll_timeout().is_none(), "no clock while the menu plays");
        caller.hears_all();
        caller.now = caller.flow.poll_timeout().unwrap();
        caller.flow.handle_timeout(caller.now);
        assert_eq!(caller.outputs(), ["play 3"]);
        caller.hears_all();
        caller.now = caller.flow.poll_timeout().unwrap();
        caller.flow.handle_timeout(caller.now);
        assert_eq!(caller.outputs(), ["keep", "play 4"]);
    }

    /// Goal: `#` without a word gives another try, at most three. Method: three empty takes.
    #[test]
    fn empty_takes_run_out_into_a_missed_call() {
        let mut caller = Caller::new();
        caller.gives(Input::Started);
        caller.hears_all();
        for _ in 0..2 {
            caller.gives(Input::Digit('#'));
            assert_eq!(caller.records(0, RecordEnd::Stopped), ["discard", "play 5 2"]);
            caller.hears_all();
        }
        caller.gives(Input::Digit('#'));
        assert_eq!(caller.records(0, RecordEnd::Stopped), ["discard", "missed", "play 7"]);
        assert_eq!(caller.hears_all(), ["hang up"]);
    }
}

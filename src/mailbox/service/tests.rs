//! The whole service behind its handle, on real threads and files.

use std::time::UNIX_EPOCH;

use super::*;
use crate::base::clock;
use crate::mailbox::audio;
use crate::mailbox::store::{MessageKind, NewMailbox, Store};
use crate::media::order::{Codec, CodedBlock};

/// A service with one shard's queue, on a store that has mailbox 1001.
struct Rig {
    data: tempfile::TempDir,
    shard: Arc<ArrayQueue<FileItem>>,
    handle: Option<MailboxHandle>,
    store: Store,
}

fn id(number: u64) -> MessageId {
    MessageId::new(UNIX_EPOCH + Duration::from_secs(1_800_000_000 + number), number)
}

fn meta(number: u64) -> RecordingMeta {
    RecordingMeta {
        id: id(number),
        mailbox: "1001".into(),
        caller: "2002".into(),
        caller_name: String::new(),
        called: "1001".into(),
        diversion_reason: String::new(),
        call_id: format!("{number}@example.com"),
        started_ms: 1_800_000_000_000,
        keep: true,
    }
}

/// Samples of one level.
fn loud(level: i16, samples: usize) -> CodedBlock {
    CodedBlock::from_pcm(Codec::Pcmu, &vec![level; samples])
}

impl Rig {
    fn new() -> Self {
        let data = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut store = Store::open(data.path()).unwrap();
        let new = NewMailbox { number: "1001".into(), name: "Ada".into(), pin: "135790".into() };
        store.add_mailbox(&new).unwrap();
        let shard = Arc::new(ArrayQueue::new(20_000));
        let config = ServiceConfig {
            data: data.path().to_owned(),
            voiced_min: Duration::from_millis(200),
            free_min: 0,
            files: vec![Arc::clone(&shard)],
            adopting: HashSet::new(),
        };
        let (handle, recovered) = spawn(config).unwrap();
        assert_eq!(recovered, Recovered::default());
        Self { data, shard, handle: Some(handle), store }
    }

    fn handle(&self) -> &MailboxHandle {
        self.handle.as_ref().unwrap()
    }

    fn push(&self, item: FileItem) {
        self.shard.push(item).unwrap();
    }

    /// A recording of `blocks` blocks of 800 samples at level 5000, without its end.
    fn begin(&self, number: u64, blocks: usize) {
        self.push(FileItem::Begin(Box::new(meta(number))));
        for _ in 0..blocks {
            self.push(FileItem::Block(id(number), loud(5000, 800)));
        }
    }

    fn end(&self, number: u64, samples: u64) {
        self.push(FileItem::End { id: id(number), samples });
    }

    fn request(&self, request: MailboxRequest) {
        self.handle().request(request).unwrap();
    }

    /// Waits for `count` replies.
    fn replies(&self, count: usize) -> Vec<MailboxReply> {
        let end = clock::now() + Duration::from_secs(20);
        let mut replies = Vec::new();
        while replies.len() < count {
            assert!(clock::now() < end, "only {replies:?}");
            match self.handle().try_reply() {
                Some(reply) => replies.push(reply),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        replies
    }

    fn reply(&self) -> MailboxReply {
        self.replies(1).remove(0)
    }

    /// Nothing is answered for 50 ms.
    fn assert_quiet(&self) {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.handle().try_reply(), None);
    }
}

/// Goal: a flow learns who is called and hears no from an unknown number. Method: look both up.
#[test]
fn a_lookup_finds_the_mailbox_or_says_there_is_none() {
    let rig = Rig::new();
    rig.request(MailboxRequest::Lookup { token: 7, number: "1001".into() });
    let info = MailboxInfo { number: "1001".into(), name: "Ada".into(), has_greeting: false };
    assert_eq!(rig.reply(), MailboxReply::Lookup { token: 7, mailbox: Ok(Some(info)) });
    rig.request(MailboxRequest::Lookup { token: 8, number: "9".into() });
    assert_eq!(rig.reply(), MailboxReply::Lookup { token: 8, mailbox: Ok(None) });
}

/// Goal: `Keep` before the recording ended waits for it, and the message is cut to what `End`
/// says. Method: keep, nothing; end with 1200 of 1600 samples; 1200 / 8000 s is 150 ms.
#[test]
fn keep_waits_for_the_end_and_the_message_has_its_length() {
    let rig = Rig::new();
    rig.begin(1, 2);
    rig.request(MailboxRequest::Keep { id: id(1) });
    rig.assert_quiet();
    rig.end(1, 1200);
    assert_eq!(rig.reply(), MailboxReply::Kept { id: id(1), duration: Duration::from_millis(150) });
    let message = rig.store.message(&id(1)).unwrap().unwrap();
    assert_eq!((message.kind, message.duration_ms), (MessageKind::Voice, 150));
    let path = rig.data.path().join(format!("messages/1001/{}.wav", id(1)));
    assert_eq!(audio::read(&path).unwrap(), loud(5000, 1200).to_pcm());
    assert_eq!(rig.handle().snapshot().kept, 1);
}

/// Goal: a caller hears the recording, then it is kept or thrown away. Method: review, discard;
/// nothing is stored and the spool is empty.
#[test]
fn a_recording_is_reviewed_and_then_thrown_away() {
    let rig = Rig::new();
    rig.begin(1, 1);
    rig.end(1, 800);
    rig.request(MailboxRequest::Review { token: 3, id: id(1) });
    let samples = Ok(loud(5000, 800).to_pcm().into());
    assert_eq!(rig.reply(), MailboxReply::Review { token: 3, id: id(1), samples });
    rig.request(MailboxRequest::Discard { id: id(1) });
    assert_eq!(rig.reply(), MailboxReply::Discarded { id: id(1) });
    assert!(rig.store.messages("1001").unwrap().is_empty());
    assert_eq!(std::fs::read_dir(rig.data.path().join("spool/0")).unwrap().count(), 1);
}

/// Goal: a missed call is noted, with or without a recording, which goes. Method: both.
#[test]
fn a_missed_call_is_noted_and_its_recording_goes() {
    let rig = Rig::new();
    rig.request(MailboxRequest::Missed(Box::new(meta(1))));
    rig.begin(2, 1);
    rig.end(2, 0);
    rig.request(MailboxRequest::Missed(Box::new(meta(2))));
    let replies = rig.replies(2);
    for number in [1, 2] {
        assert!(replies.contains(&MailboxReply::Missed { id: id(number) }), "{replies:?}");
    }
    let kinds: Vec<_> = rig.store.messages("1001").unwrap().iter().map(|m| m.kind).collect();
    assert_eq!(kinds, [MessageKind::Missed, MessageKind::Missed]);
    assert_eq!(std::fs::read_dir(rig.data.path().join("spool/0")).unwrap().count(), 1);
}

/// Goal: a greeting is read once and again when its file changes; a file of a wrong format is an
/// error that names it. Method: load, load, replace, load; then a text file.
#[test]
fn a_greeting_is_cached_until_its_file_changes() {
    let mut rig = Rig::new();
    let ask = |rig: &Rig| {
        rig.request(MailboxRequest::LoadGreeting { token: 1, number: "1001".into() });
        let MailboxReply::Greeting { token: 1, samples } = rig.reply() else { panic!("no greeting") };
        samples
    };
    assert_eq!(ask(&rig), Ok(None));
    let path = rig.store.greeting_path("ada.wav");
    audio::write(&path, &[1; 100]).unwrap();
    rig.store.set_greeting("1001", Some("ada.wav")).unwrap();
    let first = ask(&rig).unwrap().unwrap();
    assert_eq!(first[..], [1; 100]);
    assert!(Arc::ptr_eq(&first, &ask(&rig).unwrap().unwrap()));
    audio::write(&path, &[2; 200]).unwrap();
    assert_eq!(ask(&rig).unwrap().unwrap()[..], [2; 200]);
    std::fs::write(&path, b"hello").unwrap();
    assert!(ask(&rig).unwrap_err().contains("not a WAV file"));
}

/// Goal: callers who come together share one reading, so that it is coded for the wire once.
/// Method: ask five times before the first answer; all give the same `Arc`.
#[test]
fn a_greeting_asked_for_by_many_at_once_is_read_once() {
    let mut rig = Rig::new();
    rig.store.replace_greeting("1001", &[1; 80_000]).unwrap();
    for token in 0..5 {
        rig.request(MailboxRequest::LoadGreeting { token, number: "1001".into() });
    }
    let loaded: Vec<_> = rig
        .replies(5)
        .into_iter()
        .map(|reply| match reply {
            MailboxReply::Greeting { samples: Ok(Some(samples)), .. } => samples,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(loaded.iter().all(|samples| Arc::ptr_eq(samples, &loaded[0])));
}

/// Goal: a greeting replaced at once by one as long, of the same time, is noticed.
/// Method: set, load, set another, give its file the first one's time of change, load.
#[test]
fn a_greeting_replaced_within_a_tick_is_noticed() {
    let mut rig = Rig::new();
    let ask = |rig: &Rig| {
        rig.request(MailboxRequest::LoadGreeting { token: 1, number: "1001".into() });
        let MailboxReply::Greeting { samples: Ok(Some(samples)), .. } = rig.reply() else { panic!() };
        samples
    };
    let path = rig.store.greeting_path("1001.wav");
    rig.store.replace_greeting("1001", &[1; 100]).unwrap();
    assert_eq!(ask(&rig)[..], [1; 100]);
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    rig.store.replace_greeting("1001", &[2; 100]).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert_eq!(ask(&rig)[..], [2; 100]);
    rig.store.remove_greeting("1001").unwrap();
    rig.request(MailboxRequest::LoadGreeting { token: 2, number: "1001".into() });
    assert_eq!(rig.reply(), MailboxReply::Greeting { token: 2, samples: Ok(None) });
}

/// Goal: recordings of the test extension leave no trace but a count. Method: record and end one.
#[test]
fn a_recording_not_to_be_kept_is_counted_and_leaves_no_file() {
    let rig = Rig::new();
    rig.push(FileItem::Begin(Box::new(RecordingMeta { keep: false, mailbox: String::new(), ..meta(1) })));
    rig.push(FileItem::Block(id(1), loud(5000, 800)));
    rig.end(1, 800);
    rig.request(MailboxRequest::Discard { id: id(1) });
    assert_eq!(rig.reply(), MailboxReply::Discarded { id: id(1) });
    assert_eq!(rig.handle().snapshot().thrown_away_samples, 800);
    assert_eq!(std::fs::read_dir(rig.data.path().join("spool/0")).unwrap().count(), 1);
}

/// Goal: requests that contradict each other get one reply each. Method: review and keep before
/// the end, then discard.
#[test]
fn every_request_has_exactly_one_reply() {
    let rig = Rig::new();
    rig.begin(1, 1);
    rig.request(MailboxRequest::Review { token: 1, id: id(1) });
    rig.request(MailboxRequest::Keep { id: id(1) });
    rig.request(MailboxRequest::Keep { id: id(1) });
    rig.request(MailboxRequest::Discard { id: id(1) });
    let replies = rig.replies(4);
    assert!(replies.contains(&MailboxReply::Discarded { id: id(1) }));
    let failed = |r: &&MailboxReply| matches!(r, MailboxReply::Failed { .. });
    assert_eq!(replies.iter().filter(failed).count(), 2, "{replies:?}");
    rig.assert_quiet();
    assert_eq!(rig.handle().outstanding.load(Ordering::Relaxed), 0);
}

/// Goal: a worker that ends takes what the shards still hold and keeps what was spoken, though
/// nobody decided. Method: one ended, one not, one silent, then join.
#[test]
fn join_keeps_what_was_spoken_and_notes_the_rest_as_missed() {
    let mut rig = Rig::new();
    rig.begin(1, 4);
    rig.end(1, 3200);
    rig.begin(2, 4);
    rig.begin(3, 0);
    rig.handle.take().unwrap().join();
    let found: Vec<_> =
        rig.store.messages("1001").unwrap().iter().map(|m| (m.id.clone(), m.duration_ms)).collect();
    assert_eq!(found, [(id(1), 400), (id(2), 400), (id(3), 0)]);
}

/// Goal: 500 recordings at once all become messages, each whole. Method: interleave their blocks,
/// end and keep all together.
#[test]
fn five_hundred_recordings_at_once_become_five_hundred_messages() {
    let rig = Rig::new();
    for number in 0..500 {
        rig.begin(number, 0);
    }
    for _ in 0..10 {
        for number in 0..500 {
            rig.push(FileItem::Block(id(number), loud(5000, 800)));
        }
    }
    for number in 0..500 {
        rig.end(number, 8000);
        rig.request(MailboxRequest::Keep { id: id(number) });
    }
    let replies = rig.replies(500);
    assert!(replies.iter().all(|r| matches!(r, MailboxReply::Kept { .. })));
    let messages = rig.store.messages("1001").unwrap();
    assert_eq!(messages.len(), 500);
    for message in messages {
        let file = rig.store.audio(&message.id).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 44 + 16_000);
    }
    assert_eq!(rig.handle().snapshot().open, 0);
}

/// Goal: a message too long for one piece reaches the audio store whole. Method: 6 min of audio is
/// 5.76 MB, more than the 5 MiB of a piece.
#[test]
fn a_long_message_is_stored_in_pieces_and_whole() {
    let rig = Rig::new();
    rig.push(FileItem::Begin(Box::new(meta(1))));
    for minute in 1..=6 {
        rig.push(FileItem::Block(id(1), loud(minute * 100, 480_000)));
    }
    rig.end(1, 2_880_000);
    rig.request(MailboxRequest::Keep { id: id(1) });
    assert_eq!(rig.reply(), MailboxReply::Kept { id: id(1), duration: Duration::from_secs(360) });
    let path = rig.data.path().join(format!("messages/1001/{}.wav", id(1)));
    let samples = audio::read(&path).unwrap();
    assert_eq!(samples.len(), 2_880_000);
    let all_there = |minute: i16, part: &[i16]| part == loud(minute * 100, 480_000).to_pcm();
    assert!((1..).zip(samples.chunks(480_000)).all(|(minute, part)| all_there(minute, part)));
}

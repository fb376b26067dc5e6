//! Crashes: the power is cut before every single step, and spools of every kind are found.

use std::time::UNIX_EPOCH;

use super::*;
use crate::mailbox::store::{Message, MessageKind, Store};
use crate::mailbox::store_thread;
use crate::media::order::Codec;

const BLOCK: usize = 1600;

/// Runs each of these tests with either kind of file operations.
macro_rules! on_every_file_system {
    ($($name:ident,)*) => {
        mod ring {
            $(#[test] fn $name() { super::$name(super::Fs::Ring); })*
        }
        mod blocking {
            $(#[test] fn $name() { super::$name(super::Fs::Blocking); })*
        }
    };
}

mod adopt;

on_every_file_system! {
    power_cut_before_any_step_loses_nothing_and_doubles_nothing,
    power_cut_during_recovery_loses_nothing_and_doubles_nothing,
    power_cut_while_discarding_never_brings_half_a_recording_back,
    a_part_file_with_a_stale_header_gets_its_length_from_its_size,
    quiet_part_files_become_missed_calls_and_kept_ones_messages,
    unreadable_descriptions_are_set_aside_and_the_rest_goes_on,
    spool_files_of_a_known_message_are_only_removed,
    a_spool_of_a_hundred_recordings_is_finished_once_each,
    a_living_workers_lane_is_left_alone_and_a_dead_ones_is_taken,
    a_cut_off_upload_is_removed,
    a_recording_the_disk_refused_is_kept_as_far_as_it_got,
}

/// The runtime that `fs` needs.
fn runtime(fs: Fs) -> Runtime {
    match fs {
        Fs::Ring => Runtime::new(RING_ENTRIES).unwrap(),
        Fs::Blocking => Runtime::plain().unwrap(),
    }
}

fn id(number: u64) -> MessageId {
    MessageId::new(UNIX_EPOCH + Duration::from_secs(1_800_000_000 + number), number)
}

fn meta(number: u64) -> RecordingMeta {
    RecordingMeta {
        id: id(number),
        mailbox: "1001".into(),
        caller: "+4930123".into(),
        caller_name: "Ada".into(),
        called: "1001".into(),
        diversion_reason: "no-answer".into(),
        call_id: format!("{number}@example.com"),
        started_ms: 1_800_000_000_000,
        keep: true,
    }
}

/// A data folder in memory if there is such a place: the tests cut power between writes and do not
/// depend on what a flush costs.
fn data_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A recognisable block of loud samples.
fn block(number: usize) -> CodedBlock {
    let samples: Vec<i16> = (0..BLOCK).map(|n| i16::try_from(1000 + number * 2000 + n).unwrap()).collect();
    CodedBlock::from_pcm(Codec::Pcma, &samples)
}

fn blocks(count: usize) -> Vec<i16> {
    (0..count).flat_map(|number| block(number).to_pcm()).collect()
}

/// Begin, three blocks, end, then the given request.
fn recording(number: u64) -> Vec<FileItem> {
    let mut items = vec![FileItem::Begin(Box::new(meta(number)))];
    items.extend((0..3).map(|n| FileItem::Block(id(number), block(n))));
    items.push(FileItem::End { id: id(number), samples: 3 * BLOCK as u64 });
    items
}

/// How one life of a process went.
struct Life {
    recovered: Recovered,
    replies: Vec<MailboxReply>,
    was_cut: bool,
    thrown_away_samples: u64,
}

/// One life of a worker's file thread on `data`: recovery, then `items` and `requests`, until every
/// request is answered. After `steps` changes on disk the power is cut. Ends like `kill -9`: no
/// task is waited for.
fn live(
    fs: Fs,
    data: &Path,
    steps: Option<u32>,
    items: Vec<FileItem>,
    requests: Vec<MailboxRequest>,
) -> Life {
    let (reply_sender, reply_queue) = crossbeam::channel::unbounded();
    let (store, store_thread) = store_thread::spawn(data, reply_sender.clone(), Arc::default()).unwrap();
    let queue = Arc::new(ArrayQueue::new(1000));
    let request_queue = Arc::new(ArrayQueue::new(1000));
    let expected = requests.len();
    let adopting = adopted(&requests);
    for item in items {
        queue.push(item).unwrap();
    }
    for request in requests {
        request_queue.push(request).unwrap();
    }
    let ends = Ends {
        config: ServiceConfig {
            data: data.to_owned(),
            voiced_min: Duration::from_millis(200),
            free_min: 0,
            files: vec![queue],
            adopting,
        },
        requests: request_queue,
        replies: reply_sender,
        store,
        counters: Arc::default(),
        disk: Arc::default(),
        stop: Arc::default(),
    };
    let life = runtime(fs).block_on(async move {
        let desk = open(ends, fs).unwrap();
        desk.mover.fault.steps_left.set(steps);
        let recovered = desk.sweep(true).await.unwrap();
        let mut replies = Vec::new();
        let end = clock::now() + Duration::from_secs(10);
        while replies.len() < expected {
            desk.turn(clock::now());
            replies.extend(reply_queue.try_iter());
            assert!(clock::now() < end, "{replies:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let was_cut = desk.mover.fault.is_cut.get();
        let thrown_away_samples = desk.ends.counters.thrown_away_samples.load(Ordering::Relaxed);
        Life { recovered, replies, was_cut, thrown_away_samples }
    });
    store_thread.join().unwrap();
    life
}

/// The recordings that `requests` will go on with.
fn adopted(requests: &[MailboxRequest]) -> HashSet<MessageId> {
    let ids = requests.iter().filter_map(|request| match request {
        MailboxRequest::Adopt { meta, .. } => Some(meta.id.clone()),
        _ => None,
    });
    ids.collect()
}

/// Messages with their audio, as a listener would find them. Checks that nothing else lies about.
fn listen(data: &Path) -> Vec<(Message, Vec<i16>)> {
    let store = Store::open(data).unwrap();
    // Past the store: hashing a PIN takes longer than everything else in these tests.
    let database = rusqlite::Connection::open(data.join("voxring.db")).unwrap();
    database.execute("INSERT OR IGNORE INTO mailboxes VALUES ('1001', 'Ada', '', NULL, 0)", []).unwrap();
    let messages = store.messages("1001").unwrap();
    let voice = messages.iter().filter(|m| m.kind == MessageKind::Voice).count();
    let mut files = files_in(&data.join("messages/1001"));
    files.retain(|name| !name.starts_with('.'));
    assert_eq!(files.len(), voice, "audio files match voice messages: {files:?}");
    let play = |m: Message| match m.kind {
        MessageKind::Missed => (m, Vec::new()),
        MessageKind::Voice => {
            let path = data.join("messages/1001").join(format!("{}.wav", m.id));
            let samples = audio::read(&path).unwrap();
            assert_eq!(m.duration_ms, samples.len() as u64 / 8);
            (m, samples)
        }
    };
    messages.into_iter().map(play).collect()
}

fn files_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Asserts that the first lane of the spool is empty.
fn assert_spool_is_empty(data: &Path) {
    assert_eq!(files_in(&data.join("spool/0")), [".lock"]);
}

/// Makes the first lane by hand, as a process that died left it.
fn leave(data: &Path, name: &str, content: &[u8]) {
    std::fs::create_dir_all(data.join("spool/0")).unwrap();
    std::fs::write(data.join("spool/0").join(name), content).unwrap();
}

fn keep(number: u64) -> Vec<MailboxRequest> {
    vec![MailboxRequest::Keep { id: id(number) }]
}

/// Goal: whatever step a crash comes before, nothing is lost and nothing is there twice.
/// Method: cut the power before step 0, 1, 2 ... of a kept recording until none is left to cut;
/// after each cut start again twice. What must be there follows from the order of the steps: 4
/// begin a recording, 3 write a block each, the rest finish it.
fn power_cut_before_any_step_loses_nothing_and_doubles_nothing(fs: Fs) {
    for step in 0.. {
        let data = data_folder();
        let life = live(fs, data.path(), Some(step), recording(1), keep(1));
        let acknowledged = matches!(life.replies[0], MailboxReply::Kept { .. });
        let again = live(fs, data.path(), None, vec![], vec![]);
        assert_eq!(again.recovered.failed, 0, "step {step}");
        let third = live(fs, data.path(), None, vec![], vec![]);
        assert_eq!(third.recovered, Recovered::default(), "step {step}");
        let found = listen(data.path());
        assert_spool_is_empty(data.path());
        match step {
            0 => assert!(found.is_empty()),
            // Only a half-written description: no mailbox to put it in, so it is set aside.
            1 => assert_eq!((found.len(), again.recovered.broken), (0, 1)),
            2..=4 => assert_eq!(found[0].0.kind, MessageKind::Missed, "step {step}"),
            _ => {
                let count = usize::try_from(step - 4).unwrap().min(3);
                assert_eq!(found[0].0.kind, MessageKind::Voice, "step {step}");
                assert!(found[0].1 == blocks(count), "step {step}");
                assert_eq!(found[0].0.call_id, "1@example.com");
            }
        }
        assert!(found.len() <= 1, "step {step}");
        if acknowledged {
            assert!(found.len() == 1 && found[0].1.len() == 3 * BLOCK, "step {step}");
        }
        if !life.was_cut {
            assert!(acknowledged && step >= 18, "{step} steps");
            return;
        }
    }
}

/// Goal: a crash during recovery from a crash changes nothing either. Method: cut before the
/// seal, the rename, the copy and the row; then cut each recovery before every step of its own.
fn power_cut_during_recovery_loses_nothing_and_doubles_nothing(fs: Fs) {
    for first in [7, 9, 11, 12, 14] {
        for second in 0.. {
            let data = data_folder();
            assert!(live(fs, data.path(), Some(first), recording(1), keep(1)).was_cut);
            let life = live(fs, data.path(), Some(second), vec![], vec![]);
            live(fs, data.path(), None, vec![], vec![]);
            let found = listen(data.path());
            assert_spool_is_empty(data.path());
            assert_eq!(found.len(), 1, "steps {first}, {second}");
            assert!(found[0].1 == blocks(3), "steps {first}, {second}");
            if !life.was_cut {
                break;
            }
        }
    }
}

/// Goal: a discarded recording does not come back once its first file was renamed, and is not lost
/// before. Method: cut before every step; 9 steps record it, the tenth is the rename.
fn power_cut_while_discarding_never_brings_half_a_recording_back(fs: Fs) {
    for step in 9.. {
        let data = data_folder();
        let discard = vec![MailboxRequest::Discard { id: id(1) }];
        let life = live(fs, data.path(), Some(step), recording(1), discard);
        live(fs, data.path(), None, vec![], vec![]);
        let found = listen(data.path());
        assert_spool_is_empty(data.path());
        assert!(files_in(&data.path().join("spool/broken")).is_empty());
        assert_eq!(found.len(), usize::from(step == 9), "step {step}");
        if !life.was_cut {
            return;
        }
    }
}

/// Goal: a recording that never got its length plays as far as it was written. Method: a part
/// file with header length 0, 8000.5 samples of data, as a crash leaves it; another with a length
/// beyond its end; another with a true length and more data after it.
fn a_part_file_with_a_stale_header_gets_its_length_from_its_size(fs: Fs) {
    let samples = blocks(5);
    let data = data_folder();
    for (number, promised) in [(1, 0), (2, 1_000_000), (3, 1600)] {
        let mut wav = audio::header(promised).to_vec();
        wav.extend(audio::to_bytes(&samples));
        wav.push(0x55);
        leave(data.path(), &format!("{}.json", id(number)), &serde_json::to_vec(&meta(number)).unwrap());
        leave(data.path(), &format!("{}.wav.part", id(number)), &wav);
    }
    let life = live(fs, data.path(), None, vec![], vec![]);
    assert_eq!(life.recovered, Recovered { messages: 3, ..Default::default() });
    let found = listen(data.path());
    assert!(found[0].1 == samples && found[1].1 == samples && found[2].1 == samples[..1600]);
    assert_spool_is_empty(data.path());
}

/// Goal: an empty recording is a missed call, one that somebody had decided to keep is a message
/// however quiet. Method: files shorter than a header, of silence, and of silence but renamed.
fn quiet_part_files_become_missed_calls_and_kept_ones_messages(fs: Fs) {
    let data = data_folder();
    let mut silence = audio::header(0).to_vec();
    silence.extend([1, 0].repeat(8000));
    for (number, content) in [(1, &b""[..]), (2, b"RIFF"), (3, &silence[..44]), (4, &silence), (5, &silence)]
    {
        let extension = if number == 5 { "wav" } else { "wav.part" };
        leave(data.path(), &format!("{}.json", id(number)), &serde_json::to_vec(&meta(number)).unwrap());
        leave(data.path(), &format!("{}.{extension}", id(number)), content);
    }
    let life = live(fs, data.path(), None, vec![], vec![]);
    assert_eq!(life.recovered, Recovered { messages: 1, missed: 4, ..Default::default() });
    let kinds: Vec<_> = listen(data.path()).iter().map(|(m, _)| m.kind).collect();
    let missed = MessageKind::Missed;
    assert_eq!(kinds, [missed, missed, missed, missed, MessageKind::Voice]);
    assert_spool_is_empty(data.path());
}

/// Goal: what cannot be understood is set aside with its audio and holds up nothing else.
/// Method: garbage, half and foreign descriptions, a mailbox that is a path; one good recording.
fn unreadable_descriptions_are_set_aside_and_the_rest_goes_on(fs: Fs) {
    let data = data_folder();
    let mut wav = audio::header(0).to_vec();
    wav.extend(audio::to_bytes(&blocks(1)));
    let whole = serde_json::to_vec(&meta(2)).unwrap();
    let path = serde_json::to_vec(&RecordingMeta { mailbox: "../../etc".into(), ..meta(4) }).unwrap();
    let descriptions: [&[u8]; 4] = [b"\0\xFFgarbage", &whole[..whole.len() / 2], &whole, &path];
    for (number, json) in (1..).zip(descriptions) {
        leave(data.path(), &format!("{}.json", id(number)), json);
        leave(data.path(), &format!("{}.wav.part", id(number)), &wav);
    }
    leave(data.path(), &format!("{}.wav.part", id(5)), &wav);
    leave(data.path(), &format!("{}.json", id(6)), &serde_json::to_vec(&meta(6)).unwrap());
    leave(data.path(), &format!("{}.wav.part", id(6)), &wav);
    leave(data.path(), "notes.txt", b"none of ours");
    let life = live(fs, data.path(), None, vec![], vec![]);
    assert_eq!(life.recovered, Recovered { messages: 1, broken: 5, ..Default::default() });
    assert_eq!(files_in(&data.path().join("spool/broken")).len(), 9);
    assert_eq!(listen(data.path()).len(), 1);
    let mut left = files_in(&data.path().join("spool/0"));
    left.sort();
    assert_eq!(left, [".lock", "notes.txt"]);
}

/// Goal: a message that is in the store, or was deleted there, is only cleaned up. Method: keep
/// two, delete one, put the spool files of both back.
fn spool_files_of_a_known_message_are_only_removed(fs: Fs) {
    let data = data_folder();
    let items = recording(1).into_iter().chain(recording(2)).collect();
    live(fs, data.path(), None, items, [keep(1), keep(2)].concat());
    Store::open(data.path()).unwrap().delete(&id(2)).unwrap();
    for number in [1, 2] {
        leave(data.path(), &format!("{}.json", id(number)), &serde_json::to_vec(&meta(number)).unwrap());
        leave(data.path(), &format!("{}.wav", id(number)), &audio::header(0));
    }
    let life = live(fs, data.path(), None, vec![], vec![]);
    assert_eq!(life.recovered, Recovered { cleaned: 2, ..Default::default() });
    let found = listen(data.path());
    assert!(found.len() == 1 && found[0].1 == blocks(3));
    assert_spool_is_empty(data.path());
}

/// Goal: a full spool is finished whole. Method: 100 recordings of 1 to 5 blocks, cut off.
fn a_spool_of_a_hundred_recordings_is_finished_once_each(fs: Fs) {
    let data = data_folder();
    for number in 0..100 {
        let mut wav = audio::header(0).to_vec();
        wav.extend(audio::to_bytes(&blocks(1 + number % 5)));
        let number = number as u64;
        leave(data.path(), &format!("{}.json", id(number)), &serde_json::to_vec(&meta(number)).unwrap());
        leave(data.path(), &format!("{}.wav.part", id(number)), &wav);
    }
    let life = live(fs, data.path(), None, vec![], vec![]);
    assert_eq!(life.recovered, Recovered { messages: 100, ..Default::default() });
    let found = listen(data.path());
    assert_eq!(found.len(), 100);
    for (number, (message, samples)) in found.iter().enumerate() {
        assert_eq!(message.id, id(number as u64));
        assert!(*samples == blocks(1 + number % 5), "{number}");
    }
    assert_spool_is_empty(data.path());
}

/// Goal: a worker never takes the recordings of one that lives, and takes those of one that died.
/// Method: recordings in two lanes; hold the lock of one while a worker starts, then free it.
fn a_living_workers_lane_is_left_alone_and_a_dead_ones_is_taken(fs: Fs) {
    let data = data_folder();
    let spool = data.path().join("spool");
    let living = Lane::claim(&spool).unwrap();
    let dead = Lane::claim(&spool).unwrap();
    for (number, lane) in [(1, &living), (2, &dead)] {
        let mut wav = audio::header(0).to_vec();
        wav.extend(audio::to_bytes(&blocks(2)));
        std::fs::write(lane.path(&id(number), "json"), serde_json::to_vec(&meta(number)).unwrap()).unwrap();
        std::fs::write(lane.path(&id(number), "wav.part"), &wav).unwrap();
    }
    drop(dead);
    let life = live(fs, data.path(), None, recording(3), keep(3));
    assert_eq!(life.recovered.messages, 1);
    let ids = |data: &Path| listen(data).into_iter().map(|(m, _)| m.id).collect::<Vec<_>>();
    assert_eq!(ids(data.path()), [id(2), id(3)]);
    drop(living);
    std::fs::rename(spool.join("0"), spool.join("7")).unwrap();
    // Lane 7: far from the one the next worker claims for itself.
    let life = live(fs, data.path(), None, vec![], vec![]);
    assert_eq!(life.recovered.messages, 1);
    assert_eq!(ids(data.path()), [id(1), id(2), id(3)]);
    assert_eq!(files_in(&spool.join("7")), [".lock"]);
}

/// Goal: an upload that was cut off leaves no rubbish beside the audio. Method: the staged file of
/// `object_store` as a crash leaves it, and its recording in the spool.
fn a_cut_off_upload_is_removed(fs: Fs) {
    let data = data_folder();
    live(fs, data.path(), Some(12), recording(1), keep(1));
    let folder = data.path().join("messages/1001");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{}.wav#1", id(1))), b"half").unwrap();
    live(fs, data.path(), None, vec![], vec![]);
    assert_eq!(files_in(&folder), [format!("{}.wav", id(1))]);
    assert!(listen(data.path())[0].1 == blocks(3));
}

/// Goal: when the disk refuses a block the recording is kept up to there, without a gap, and a
/// later one is whole. Method: refuse from the third block on, then allow again before the end.
fn a_recording_the_disk_refused_is_kept_as_far_as_it_got(fs: Fs) {
    let data = data_folder();
    let (reply_sender, reply_queue) = crossbeam::channel::unbounded();
    let (store, store_thread) =
        store_thread::spawn(data.path(), reply_sender.clone(), Arc::default()).unwrap();
    let queue = Arc::new(ArrayQueue::new(100));
    let config = ServiceConfig {
        data: data.path().to_owned(),
        voiced_min: Duration::from_millis(200),
        free_min: 0,
        files: vec![Arc::clone(&queue)],
        adopting: HashSet::new(),
    };
    let requests = Arc::new(ArrayQueue::new(10));
    let counters = Arc::new(Counters::default());
    let ends = Ends {
        config,
        requests: Arc::clone(&requests),
        replies: reply_sender,
        store,
        counters: Arc::clone(&counters),
        disk: Arc::default(),
        stop: Arc::default(),
    };
    let reply = runtime(fs).block_on(async move {
        let desk = open(ends, fs).unwrap();
        desk.mover.fault.steps_left.set(Some(6));
        let mut items = recording(1);
        let end = items.pop().unwrap();
        for item in items {
            queue.push(item).unwrap();
        }
        while !desk.mover.fault.is_cut.get() {
            desk.turn(clock::now());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        desk.mover.fault.steps_left.set(None);
        queue.push(FileItem::Block(id(1), block(3))).unwrap();
        queue.push(end).unwrap();
        requests.push(MailboxRequest::Keep { id: id(1) }).unwrap();
        loop {
            desk.turn(clock::now());
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Ok(reply) = reply_queue.try_recv() {
                break reply;
            }
        }
    });
    store_thread.join().unwrap();
    assert_eq!(reply, MailboxReply::Kept { id: id(1), duration: Duration::from_millis(400) });
    assert!(listen(data.path())[0].1 == blocks(2));
    assert_eq!(counters.write_errors.load(Ordering::Relaxed), 1);
    assert_spool_is_empty(data.path());
}

//! Recordings of a worker that died and that go on here.

use super::*;

on_every_file_system! {
    a_recording_cut_before_any_step_goes_on_where_it_was,
    a_second_crash_during_the_adoption_loses_nothing,
    a_recording_is_taken_from_the_lane_it_lies_in,
    an_ended_recording_is_fitted_heard_and_decided_about,
    what_is_decided_about_cannot_go_on,
    a_recording_that_begins_again_has_nothing_of_the_old_one,
    what_is_thrown_away_is_counted_on,
    what_nobody_goes_on_with_is_finished_in_the_end,
}

const SAMPLES: u64 = 3 * BLOCK as u64;

fn adopt(number: u64, samples: u64, ended: bool) -> MailboxRequest {
    MailboxRequest::Adopt { meta: Box::new(meta(number)), samples, ended }
}

/// One more block behind `SAMPLES`, and the end.
fn going_on(number: u64) -> Vec<FileItem> {
    let samples = SAMPLES + BLOCK as u64;
    vec![FileItem::Block(id(number), block(9)), FileItem::End { id: id(number), samples }]
}

fn silence(samples: usize) -> Vec<i16> {
    vec![0; samples]
}

/// Leaves a recording of `count` blocks in `spool/<lane>`, as a worker that was killed does.
fn leave_recording(data: &Path, lane: &str, number: u64, count: usize) {
    let folder = data.join("spool").join(lane);
    std::fs::create_dir_all(&folder).unwrap();
    let mut wav = audio::header(0).to_vec();
    wav.extend(audio::to_bytes(&blocks(count)));
    std::fs::write(folder.join(format!("{}.wav.part", id(number))), wav).unwrap();
    let json = serde_json::to_vec(&meta(number)).unwrap();
    std::fs::write(folder.join(format!("{}.json", id(number))), json).unwrap();
}

/// Goal: whatever step the kill comes before, seal and store among them, the recording goes on with what
/// was on disk in its place and silence for the rest, or is told to be decided about; it becomes one
/// message, and its blocks may come before the request. Method: cut before step 0, 1, 2 ... of a kept
/// recording of 3 blocks; adopt it with a fourth block and its end already waiting; keep it.
fn a_recording_cut_before_any_step_goes_on_where_it_was(fs: Fs) {
    for step in 0.. {
        let data = data_folder();
        let was_cut = live(fs, data.path(), Some(step), recording(1), keep(1)).was_cut;
        let requests = [vec![adopt(1, SAMPLES, false)], keep(1)].concat();
        let life = live(fs, data.path(), None, going_on(1), requests);
        assert_eq!(life.recovered, Recovered::default(), "step {step}: left alone");
        let third = live(fs, data.path(), None, vec![], vec![]);
        assert_eq!(third.recovered, Recovered::default(), "step {step}");
        let found = listen(data.path());
        assert_spool_is_empty(data.path());
        assert_eq!(found.len(), 1, "step {step}");
        let there = usize::try_from(step.saturating_sub(4)).unwrap().min(3);
        match &life.replies[0] {
            MailboxReply::Adopted { found: samples, .. } => {
                assert_eq!(*samples, (there * BLOCK) as u64, "step {step}");
                let wanted = [blocks(there), silence((3 - there) * BLOCK), block(9).to_pcm()].concat();
                assert!(found[0].1 == wanted, "step {step}");
                assert!(matches!(life.replies[1], MailboxReply::Kept { .. }), "step {step}");
            }
            MailboxReply::Failed { .. } => {
                assert!(step > 9 && found[0].1 == blocks(3), "step {step}: {:?}", life.replies);
                assert!(matches!(life.replies[1], MailboxReply::Failed { .. }));
            }
            other => panic!("step {step}: {other:?}"),
        }
        if !was_cut {
            return;
        }
    }
}

/// Goal: the replacement may die as well. Method: three blocks left; cut the adoption and what follows
/// before each of its steps; the next life recovers without going on.
fn a_second_crash_during_the_adoption_loses_nothing(fs: Fs) {
    for step in 0.. {
        let data = data_folder();
        leave_recording(data.path(), "0", 1, 3);
        let requests = [vec![adopt(1, SAMPLES, false)], keep(1)].concat();
        let life = live(fs, data.path(), Some(step), going_on(1), requests);
        live(fs, data.path(), None, vec![], vec![]);
        let found = listen(data.path());
        assert_spool_is_empty(data.path());
        assert_eq!(found.len(), 1, "step {step}");
        assert!(found[0].1[..3 * BLOCK] == blocks(3), "step {step}");
        let rest = &found[0].1[3 * BLOCK..];
        assert!(rest.is_empty() || *rest == block(9).to_pcm(), "step {step}");
        if !life.was_cut {
            assert_eq!(rest, block(9).to_pcm());
            return;
        }
    }
}

/// Goal: a recording goes on in whichever lane it lies, its neighbours there are finished, and the lane is
/// free again afterwards. Method: two recordings far from the lane the worker takes, one of them adopted.
fn a_recording_is_taken_from_the_lane_it_lies_in(fs: Fs) {
    let data = data_folder();
    leave_recording(data.path(), "7", 1, 3);
    leave_recording(data.path(), "7", 2, 2);
    let requests = [vec![adopt(1, SAMPLES, false)], keep(1)].concat();
    let life = live(fs, data.path(), None, going_on(1), requests);
    assert_eq!(life.recovered, Recovered { messages: 1, ..Default::default() });
    let found = listen(data.path());
    assert!(found[0].1 == [blocks(3), block(9).to_pcm()].concat() && found[1].1 == blocks(2));
    assert_eq!(files_in(&data.path().join("spool/7")), [".lock"]);
}

/// Goal: a recording that had ended is cut or filled to its length and can be heard, kept or thrown away;
/// one of which nothing is left is a missed call. Method: three of different lengths on disk, one that
/// never reached it.
fn an_ended_recording_is_fitted_heard_and_decided_about(fs: Fs) {
    let data = data_folder();
    leave_recording(data.path(), "0", 1, 2);
    leave_recording(data.path(), "0", 2, 3);
    leave_recording(data.path(), "0", 3, 3);
    let shorter = 3 * BLOCK as u64 - 100;
    let requests = vec![
        adopt(1, SAMPLES, true),
        adopt(2, shorter, true),
        adopt(3, SAMPLES, true),
        adopt(4, SAMPLES, true),
        MailboxRequest::Review { token: 5, id: id(1) },
        MailboxRequest::Keep { id: id(1) },
        MailboxRequest::Keep { id: id(2) },
        MailboxRequest::Discard { id: id(3) },
        MailboxRequest::Keep { id: id(4) },
    ];
    let life = live(fs, data.path(), None, vec![], requests);
    let filled = [blocks(2), silence(BLOCK)].concat();
    for (number, there) in [(1, 2 * BLOCK as u64), (2, shorter), (3, SAMPLES), (4, 0)] {
        let adopted = MailboxReply::Adopted { id: id(number), found: there };
        assert!(life.replies.contains(&adopted), "{number}: {:?}", life.replies);
    }
    let heard = life.replies.iter().find_map(|reply| match reply {
        MailboxReply::Review { token: 5, samples, .. } => samples.clone().ok(),
        _ => None,
    });
    assert!(heard.is_some_and(|samples| *samples == filled[..]));
    assert!(life.replies.contains(&MailboxReply::Discarded { id: id(3) }));
    assert!(life.replies.contains(&MailboxReply::Missed { id: id(4) }));
    let found = listen(data.path());
    assert_eq!(found.iter().map(|(m, _)| m.id.clone()).collect::<Vec<_>>(), [id(1), id(2), id(4)]);
    assert!(found[0].1 == filled && found[1].1 == blocks(3)[..3 * BLOCK - 100]);
    assert_eq!(found[2].0.kind, MessageKind::Missed);
    assert_spool_is_empty(data.path());
}

/// Goal: what was thrown away, kept or stored before the kill does not come back, nor does what is being
/// recorded, and the asker is told. Method: each of them.
fn what_is_decided_about_cannot_go_on(fs: Fs) {
    let data = data_folder();
    live(fs, data.path(), None, recording(1), keep(1));
    leave_recording(data.path(), "0", 1, 3);
    for (number, extension) in [(2, "discard"), (3, "wav")] {
        leave_recording(data.path(), "0", number, 3);
        let lane = data.path().join("spool/0");
        let part = lane.join(format!("{}.wav.part", id(number)));
        std::fs::rename(part, lane.join(format!("{}.{extension}", id(number)))).unwrap();
    }
    let requests = (1..5).map(|number| adopt(number, SAMPLES, false)).chain(keep(4)).collect();
    let life = live(fs, data.path(), None, recording(4), requests);
    let failed = |reply: &MailboxReply| matches!(reply, MailboxReply::Failed { .. });
    assert_eq!(life.replies.iter().filter(|reply| failed(reply)).count(), 4, "{:?}", life.replies);
    live(fs, data.path(), None, vec![], vec![]);
    let found = listen(data.path());
    assert_eq!(found.iter().map(|(m, _)| m.id.clone()).collect::<Vec<_>>(), [id(1), id(3), id(4)]);
    assert!(found[0].1 == blocks(3) && found[1].1 == blocks(3));
    assert_spool_is_empty(data.path());
}

/// Goal: a recording that the new worker begins, since the dead one had only just begun it, has the old
/// one's samples nowhere. Method: the id is awaited; its `Begin` comes and one block.
fn a_recording_that_begins_again_has_nothing_of_the_old_one(fs: Fs) {
    let data = data_folder();
    leave_recording(data.path(), "7", 1, 3);
    let items = vec![
        FileItem::Begin(Box::new(meta(1))),
        FileItem::Block(id(1), block(5)),
        FileItem::End { id: id(1), samples: BLOCK as u64 },
    ];
    let requests = [keep(1), vec![adopt(1, SAMPLES, false)]].concat();
    let life = live(fs, data.path(), None, items, requests);
    assert!(matches!(life.replies[0], MailboxReply::Failed { .. }), "it is being recorded");
    assert!(matches!(life.replies[1], MailboxReply::Kept { .. }));
    assert_eq!(life.recovered, Recovered::default());
    let found = listen(data.path());
    assert!(found.len() == 1 && found[0].1 == block(5).to_pcm());
    assert_eq!(files_in(&data.path().join("spool/7")), [".lock"]);
}

/// Goal: a recording that is only counted goes on counting. Method: one with a block and its end waiting,
/// one that had ended.
fn what_is_thrown_away_is_counted_on(fs: Fs) {
    let data = data_folder();
    let request = |number, ended| {
        let meta = Box::new(RecordingMeta { keep: false, ..meta(number) });
        MailboxRequest::Adopt { meta, samples: 1000, ended }
    };
    let life = live(fs, data.path(), None, going_on(1), vec![request(1, false), request(2, true)]);
    let adopted = |number| MailboxReply::Adopted { id: id(number), found: 1000 };
    assert_eq!(life.replies, [adopted(1), adopted(2)]);
    assert_eq!(life.thrown_away_samples, 2000 + BLOCK as u64);
    assert_spool_is_empty(data.path());
}

/// Goal: a recording that was to go on and was never asked for is a message in the end, and a lane that has
/// just lost its owner is left for a new worker until the sweep after the next. Method: both, on a desk
/// that is told the time.
fn what_nobody_goes_on_with_is_finished_in_the_end(fs: Fs) {
    let data = data_folder();
    leave_recording(data.path(), "0", 1, 3);
    let (reply_sender, _replies) = crossbeam::channel::unbounded();
    let (store, store_thread) =
        store_thread::spawn(data.path(), reply_sender.clone(), Arc::default()).unwrap();
    let queue = Arc::new(ArrayQueue::new(10));
    queue.push(FileItem::Block(id(1), block(9))).unwrap();
    let ends = Ends {
        config: ServiceConfig {
            data: data.path().to_owned(),
            voiced_min: Duration::from_millis(200),
            free_min: 0,
            files: vec![queue],
            adopting: HashSet::from([id(1)]),
        },
        requests: Arc::new(ArrayQueue::new(10)),
        replies: reply_sender,
        store,
        counters: Arc::default(),
        disk: Arc::default(),
        stop: Arc::default(),
    };
    let recovered = runtime(fs).block_on(async {
        let desk = open(ends, fs).unwrap();
        let mut recovered = vec![desk.sweep(true).await.unwrap().messages];
        leave_recording(data.path(), "7", 2, 3);
        desk.turn(clock::now());
        assert_eq!(desk.blocks_waiting.get(), 1);
        recovered.push(desk.sweep(false).await.unwrap().messages);
        desk.turn(clock::now() + super::super::adopt::AWAITED_MAX);
        assert_eq!(desk.blocks_waiting.get(), 0);
        recovered.push(desk.sweep(false).await.unwrap().messages);
        assert!(desk.held.borrow().is_empty());
        recovered
    });
    store_thread.join().unwrap();
    assert_eq!(recovered, [0, 0, 2]);
    let found = listen(data.path());
    assert!(found[0].1 == blocks(3) && found[1].1 == blocks(3));
}

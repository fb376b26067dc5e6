//! Tests of the store on a real database in a folder of its own.

use super::*;
use crate::mailbox::audio;
use std::time::UNIX_EPOCH;

fn id(number: u64) -> MessageId {
    MessageId::new(UNIX_EPOCH + Duration::from_secs(1_800_000_000 + number), number)
}

fn message(number: u64, mailbox: &str, kind: MessageKind) -> Message {
    Message {
        id: id(number),
        mailbox: mailbox.into(),
        kind,
        caller: "+4930123".into(),
        caller_name: "Ada \"the\" Caller".into(),
        called: "1001".into(),
        diversion_reason: "no-answer".into(),
        call_id: format!("{number}@example.com"),
        started_ms: 1_800_000_000_000 + number * 1000,
        duration_ms: 1500,
        read: false,
    }
}

fn open_with_mailbox() -> (tempfile::TempDir, Store) {
    let data = tempfile::tempdir().unwrap();
    let mut store = Store::open(data.path()).unwrap();
    let new = NewMailbox { number: "1001".into(), name: "Ada".into(), pin: "135790".into() };
    store.add_mailbox(&new).unwrap();
    (data, store)
}

/// Goal: a mailbox survives a restart with its PIN unreadable and verifiable. Method: add, reopen.
#[test]
fn a_mailbox_is_found_again_and_its_pin_verifies() {
    let (data, store) = open_with_mailbox();
    drop(store);
    let store = Store::open(data.path()).unwrap();
    let mailbox = store.mailbox("1001").unwrap().unwrap();
    assert_eq!(mailbox.name, "Ada");
    assert!(pin::verify("135790", &mailbox.pin_hash));
    assert!(!serde_json::to_string(&mailbox).unwrap().contains("argon2"));
    assert_eq!(store.mailbox("1002").unwrap(), None);
}

/// Goal: bad numbers, bad PINs and taken numbers are refused by name. Method: one of each.
#[test]
fn a_mailbox_that_cannot_be_is_refused_with_its_reason() {
    let (_data, mut store) = open_with_mailbox();
    let mut add = |number: &str, pin: &str| {
        let new = NewMailbox { number: number.into(), name: String::new(), pin: pin.into() };
        store.add_mailbox(&new).unwrap_err()
    };
    assert!(matches!(add("../etc", "135790"), StoreError::BadNumber(_)));
    assert!(matches!(add("", "135790"), StoreError::BadNumber(_)));
    assert!(matches!(add("..", "135790"), StoreError::BadNumber(_)));
    assert!(matches!(add("1002", "123456"), StoreError::BadPin(PinError::Sequential)));
    assert!(matches!(add("1001", "135790"), StoreError::MailboxExists(_)));
}

/// Goal: the same message twice is one message. Method: insert it twice, alone and in a batch.
#[test]
fn inserting_a_message_again_changes_nothing() {
    let (_data, mut store) = open_with_mailbox();
    let first = message(1, "1001", MessageKind::Voice);
    assert!(store.insert(&first).unwrap());
    store.mark_read(&first.id, true).unwrap();
    assert!(!store.insert(&first).unwrap());
    let batch = [first.clone(), message(2, "1001", MessageKind::Missed)];
    assert_eq!(store.insert_all(&batch).unwrap(), [false, true]);
    let listed = store.messages("1001").unwrap();
    assert_eq!(listed, [Message { read: true, ..first }, batch[1].clone()]);
}

/// Goal: counts tell voice, unread and missed apart. Method: two voice, one read, one missed.
#[test]
fn counts_tell_voice_unread_and_missed_apart() {
    let (_data, mut store) = open_with_mailbox();
    for (number, kind) in [(1, MessageKind::Voice), (2, MessageKind::Voice), (3, MessageKind::Missed)] {
        store.insert(&message(number, "1001", kind)).unwrap();
    }
    store.mark_read(&id(2), true).unwrap();
    let counts = Counts { voice: 2, unread: 1, missed: 1 };
    assert_eq!(store.counts("1001").unwrap(), counts);
    let all = store.mailboxes().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].0.number.as_str(), all[0].1), ("1001", counts));
}

/// Goal: a deleted message is gone with its audio and cannot come back from a spool. Method:
/// delete, insert again; then a deletion that was cut off between row and audio.
#[test]
fn a_deleted_message_stays_deleted_and_its_audio_goes() {
    let (data, mut store) = open_with_mailbox();
    let folder = data.path().join("messages/1001");
    std::fs::create_dir(&folder).unwrap();
    let first = message(1, "1001", MessageKind::Voice);
    let file = folder.join(format!("{}.wav", first.id));
    std::fs::write(&file, b"audio").unwrap();
    store.insert(&first).unwrap();
    assert!(store.audio(&first.id).is_ok());
    store.delete(&first.id).unwrap();
    assert!(!file.exists());
    assert!(!store.insert(&first).unwrap());
    assert!(store.is_settled(&first.id).unwrap());
    assert!(matches!(store.delete(&first.id), Err(StoreError::NoMessage(_))));
    assert!(matches!(store.audio(&first.id), Err(StoreError::NoMessage(_))));

    std::fs::write(&file, b"audio").unwrap();
    store.connection.execute("UPDATE deleted SET audio_gone = 0", []).unwrap();
    store.sweep().unwrap();
    assert!(!file.exists());
}

/// Goal: tombstones do not pile up. Method: age one beyond 30 days, sweep.
#[test]
fn an_old_tombstone_is_forgotten() {
    let (_data, mut store) = open_with_mailbox();
    store.insert(&message(1, "1001", MessageKind::Missed)).unwrap();
    store.delete(&id(1)).unwrap();
    store.sweep().unwrap();
    assert!(store.is_settled(&id(1)).unwrap());
    store.connection.execute("UPDATE deleted SET deleted_ms = deleted_ms - 31 * 86400000", []).unwrap();
    store.sweep().unwrap();
    assert!(!store.is_settled(&id(1)).unwrap());
}

/// Goal: worker and supervisor may start on an empty folder at once and write side by side.
/// Method: six threads, each with its own connection, open together and insert 20 messages.
#[test]
fn several_openers_migrate_once_and_write_side_by_side() {
    let data = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let path = data.path();
            scope.spawn(move || {
                let mut store = Store::open(path).unwrap();
                for number in 0..20 {
                    let new = message(writer * 100 + number, "1001", MessageKind::Voice);
                    assert!(store.insert(&new).unwrap());
                }
            });
        }
    });
    assert_eq!(Store::open(data.path()).unwrap().counts("1001").unwrap().voice, 120);
}

/// Goal: a store of a newer version is left alone. Method: raise its version by one.
#[test]
fn a_store_of_a_newer_version_is_refused() {
    let (data, store) = open_with_mailbox();
    store.connection.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(store);
    assert!(matches!(Store::open(data.path()), Err(StoreError::Newer { found: 2, known: 1 })));
}

/// Goal: commits are flushed to disk, in WAL mode. Method: ask SQLite; FULL is 2.
#[test]
fn commits_are_synchronous_and_in_wal_mode() {
    let (_data, store) = open_with_mailbox();
    let ask = |sql: &str| -> String {
        let value = store.connection.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0));
        format!("{:?}", value.unwrap())
    };
    assert_eq!(ask("PRAGMA journal_mode"), "Text(\"wal\")");
    assert_eq!(ask("PRAGMA synchronous"), "Integer(2)");
}

/// Goal: demo mailboxes appear once, in an empty store alone. Method: add twice.
#[test]
fn demo_mailboxes_are_added_to_an_empty_store_alone() {
    let data = tempfile::tempdir().unwrap();
    let mut store = Store::open(data.path()).unwrap();
    let added = store.add_demo_mailboxes(&["1001", "1002"]).unwrap();
    assert_eq!(added.len(), 2);
    for (number, pin) in &added {
        assert!(pin::verify(pin, &store.mailbox(number).unwrap().unwrap().pin_hash));
    }
    assert!(store.add_demo_mailboxes(&["1003"]).unwrap().is_empty());
}

/// Goal: a greeting replaces the one before, removing it leaves nothing, and no mailbox means no file.
/// Method: set, set over what a crash left, remove twice; the folder's content after each.
#[test]
fn a_greeting_is_replaced_and_removed_without_a_trace() {
    let (data, mut store) = open_with_mailbox();
    let folder = data.path().join("greetings");
    let files = || std::fs::read_dir(&folder).unwrap().count();
    let greeting = |store: &Store| store.mailbox("1001").unwrap().unwrap().greeting;
    store.replace_greeting("1001", &[1; 10]).unwrap();
    assert_eq!(greeting(&store).as_deref(), Some("1001.wav"));
    std::fs::write(folder.join(".1001.wav.part"), vec![7; 1000]).unwrap();
    store.replace_greeting("1001", &[2; 20]).unwrap();
    assert_eq!(audio::read(&store.greeting_path("1001.wav")).unwrap(), [2; 20]);
    assert_eq!(files(), 1);
    assert!(matches!(store.replace_greeting("9", &[1]), Err(StoreError::NoMailbox(_))));
    assert!(matches!(store.remove_greeting("9"), Err(StoreError::NoMailbox(_))));
    assert_eq!(files(), 1);
    store.remove_greeting("1001").unwrap();
    store.remove_greeting("1001").unwrap();
    assert_eq!((greeting(&store), files()), (None, 0));
}

/// Goal: a greeting that cannot be written leaves the old one as it was.
/// Method: a folder stands where the new file is to be written.
#[test]
fn a_greeting_that_cannot_be_written_leaves_the_old_one() {
    let (data, mut store) = open_with_mailbox();
    store.replace_greeting("1001", &[1; 10]).unwrap();
    std::fs::create_dir(data.path().join("greetings/.1001.wav.part")).unwrap();
    assert!(matches!(store.replace_greeting("1001", &[2; 20]), Err(StoreError::Io(_))));
    assert_eq!(store.mailbox("1001").unwrap().unwrap().greeting.as_deref(), Some("1001.wav"));
    assert_eq!(audio::read(&store.greeting_path("1001.wav")).unwrap(), [1; 10]);
}

/// Goal: a greeting names a file of its folder and nothing outside. Method: good and bad names.
#[test]
fn a_greeting_is_a_file_name_and_no_path() {
    let (_data, mut store) = open_with_mailbox();
    store.set_greeting("1001", Some("ada.wav")).unwrap();
    assert_eq!(store.mailbox("1001").unwrap().unwrap().greeting.as_deref(), Some("ada.wav"));
    for bad in ["../x.wav", "/etc/passwd", "", ".."] {
        assert!(store.set_greeting("1001", Some(bad)).is_err(), "{bad}");
    }
    assert!(matches!(store.set_greeting("9", None), Err(StoreError::NoMailbox(_))));
}

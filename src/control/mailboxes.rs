//! What the control socket asks about mailboxes and messages, done on the store.

use std::io::Read as _;
use std::path::Path;

use super::protocol::{ErrorKind, MailboxInfo, Reply, Request};
use crate::base::id::MessageId;
use crate::base::limits::SAMPLE_RATE_HZ;
use crate::mailbox::audio::{self, WavError};
use crate::mailbox::store::{Counts, Mailbox, NewMailbox};
use crate::mailbox::{Store, StoreError, pin};

/// Carries out a request about mailboxes or messages; `None` when it is about something else.
///
/// Blocks for as long as the disk (and, for a new PIN, the hash) takes.
pub fn execute(store: &mut Store, request: Request) -> Option<Reply> {
    let done = match request {
        Request::Status
        | Request::Calls
        | Request::Reload
        | Request::Recycle
        | Request::Upgrade { .. }
        | Request::Change { .. }
        | Request::Drain { .. }
        | Request::CallRouterGet
        | Request::CallRouterSet { .. } => return None,
        Request::MailboxAdd { number, name, pin } => add(store, number, name, pin),
        Request::MailboxList => list(store),
        Request::MailboxShow { number } => show_mailbox(store, &number),
        Request::MailboxGreeting { number, file } => greet(store, &number, file.as_deref()),
        Request::MessageList { mailbox } => {
            store.messages(&mailbox).map(|messages| Reply::Messages { messages })
        }
        Request::MessageExport { id } => export(store, &id),
        Request::MessageDelete { id } => store.delete(&id).map(|()| Reply::MessageDeleted { id }),
    };
    Some(done.unwrap_or_else(|error| Reply::error(kind(&error), error.to_string())))
}

/// What all mailboxes hold together, for `Status`.
///
/// # Errors
/// Those of [`Store::mailboxes`].
pub fn totals(store: &Store) -> Result<Counts, StoreError> {
    let mut totals = Counts::default();
    for (_, counts) in store.mailboxes()? {
        totals.voice += counts.voice;
        totals.unread += counts.unread;
        totals.missed += counts.missed;
    }
    Ok(totals)
}

fn add(store: &mut Store, number: String, name: String, given: Option<String>) -> Result<Reply, StoreError> {
    let (pin, drawn) = match given {
        Some(pin) => (pin, None),
        None => {
            let pin = pin::random(&number)?;
            (pin.clone(), Some(pin))
        }
    };
    let mailbox = store.add_mailbox(&NewMailbox { number, name, pin })?;
    Ok(Reply::MailboxAdded { mailbox: info(mailbox, Counts::default()), pin: drawn })
}

fn list(store: &Store) -> Result<Reply, StoreError> {
    let mailboxes = store.mailboxes()?;
    let mailboxes = mailboxes.into_iter().map(|(mailbox, counts)| info(mailbox, counts)).collect();
    Ok(Reply::Mailboxes { mailboxes })
}

fn show_mailbox(store: &Store, number: &str) -> Result<Reply, StoreError> {
    mailbox(store, number).map(Reply::Mailbox)
}

/// Gives a mailbox the greeting in `file`, or takes its own away.
fn greet(store: &mut Store, number: &str, file: Option<&str>) -> Result<Reply, StoreError> {
    let duration_ms = match file {
        Some(file) => {
            mailbox(store, number)?;
            let path = Path::new(file);
            // Relative to what? The client's folder is not the node's.
            if !path.is_absolute() {
                return Ok(Reply::error(ErrorKind::BadRequest, format!("{file}: not an absolute path")));
            }
            let samples = match audio::read_greeting(path) {
                Ok(samples) => samples,
                Err(error) => return Ok(unusable(file, &error)),
            };
            store.replace_greeting(number, &samples)?;
            Some(samples.len() as u64 * 1000 / u64::from(SAMPLE_RATE_HZ))
        }
        None => {
            store.remove_greeting(number)?;
            None
        }
    };
    Ok(Reply::MailboxGreeting { mailbox: mailbox(store, number)?, duration_ms })
}

/// A file that is no greeting, or that the asker can read and the node cannot.
fn unusable(file: &str, error: &WavError) -> Reply {
    let hint = match error {
        WavError::Io(_) => {
            "; the node runs as another user or in a sandbox: put the file where it can read it, \
             in its data folder for one"
        }
        WavError::NotWav(_)
        | WavError::NotPcm
        | WavError::Channels(_)
        | WavError::Rate(_)
        | WavError::Bits(_)
        | WavError::Truncated { .. }
        | WavError::TooLong(_)
        | WavError::LongGreeting
        | WavError::Empty
        | WavError::NotFile => "",
    };
    Reply::error(ErrorKind::BadRequest, format!("{file}: {error}{hint}"))
}

fn mailbox(store: &Store, number: &str) -> Result<MailboxInfo, StoreError> {
    let mailbox = store.mailbox(number)?.ok_or_else(|| StoreError::NoMailbox(number.to_owned()))?;
    let counts = store.counts(number)?;
    Ok(info(mailbox, counts))
}

fn export(store: &Store, id: &MessageId) -> Result<Reply, StoreError> {
    let message = store.message(id)?.ok_or_else(|| StoreError::NoMessage(id.clone()))?;
    let mut audio = Vec::new();
    store.audio(id)?.read_to_end(&mut audio)?;
    Ok(Reply::Audio { message, bytes: audio.len() as u64, audio: audio.into() })
}

fn info(mailbox: Mailbox, counts: Counts) -> MailboxInfo {
    MailboxInfo {
        number: mailbox.number,
        name: mailbox.name,
        unread: counts.unread,
        messages: counts.voice,
        missed: counts.missed,
        greeting: mailbox.greeting.is_some(),
    }
}

/// Whose doing an error of the store is.
fn kind(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::BadNumber(_) | StoreError::BadName | StoreError::BadPin(_) => ErrorKind::BadRequest,
        StoreError::NoMailbox { .. } | StoreError::NoMessage { .. } | StoreError::NoAudio { .. } => {
            ErrorKind::NotFound
        }
        StoreError::MailboxExists { .. } => ErrorKind::Exists,
        StoreError::Sqlite { .. }
        | StoreError::Io { .. }
        | StoreError::Damaged { .. }
        | StoreError::Newer { .. } => ErrorKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::store::audio_key;
    use crate::mailbox::{Message, MessageKind};

    fn store() -> (tempfile::TempDir, Store) {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        (data, store)
    }

    fn add_1003(store: &mut Store, pin: Option<&str>) -> Reply {
        let pin = pin.map(str::to_owned);
        execute(store, Request::MailboxAdd { number: "1003".into(), name: "Jo".into(), pin }).unwrap()
    }

    fn refusal(reply: Reply) -> ErrorKind {
        let Reply::Error { kind, .. } = reply else { panic!("{reply:?}") };
        kind
    }

    /// Goal: a drawn PIN is told, a given one is not repeated, a bad one and a taken number are refused.
    /// Method: add mailboxes.
    #[test]
    fn a_mailbox_is_added_with_a_drawn_or_a_given_pin() {
        let (_data, mut store) = store();
        let Reply::MailboxAdded { mailbox, pin: Some(pin) } = add_1003(&mut store, None) else { panic!() };
        assert_eq!((mailbox.number.as_str(), mailbox.messages, pin.len()), ("1003", 0, 6));
        assert_eq!(refusal(add_1003(&mut store, Some("271828"))), ErrorKind::Exists);
        let bad = Request::MailboxAdd { number: "1004".into(), name: "x".into(), pin: Some("1111".into()) };
        assert_eq!(refusal(execute(&mut store, bad).unwrap()), ErrorKind::BadRequest);
        let Some(Reply::Mailboxes { mailboxes }) = execute(&mut store, Request::MailboxList) else {
            panic!()
        };
        assert_eq!(mailboxes.len(), 1);
        assert_eq!(
            refusal(execute(&mut store, Request::MailboxShow { number: "9".into() }).unwrap()),
            ErrorKind::NotFound
        );
    }

    /// Goal: a greeting is set, shown, replaced and removed; what is none is refused by the file's name
    /// and leaves the old one. Method: good files, each refusal, and the listing after them.
    #[test]
    fn a_greeting_is_set_shown_and_removed() {
        let (data, mut store) = store();
        add_1003(&mut store, Some("271828"));
        let file = data.path().join("jo.wav");
        let mut greet = |number: &str, file: Option<&Path>| {
            let file = file.map(|file| file.to_str().unwrap().to_owned());
            execute(&mut store, Request::MailboxGreeting { number: number.into(), file }).unwrap()
        };
        audio::write(&file, &[5; 12_000]).unwrap();
        let Reply::MailboxGreeting { mailbox, duration_ms } = greet("1003", Some(&file)) else { panic!() };
        assert_eq!((mailbox.greeting, duration_ms), (true, Some(1500)));
        assert_eq!(refusal(greet("9", Some(&file))), ErrorKind::NotFound);
        assert_eq!(refusal(greet("9", None)), ErrorKind::NotFound);
        std::fs::write(&file, b"no audio").unwrap();
        for (path, what) in [
            (Path::new("jo.wav"), "not an absolute path"),
            (&file, "not a WAV file"),
            (&data.path().join("none.wav"), "put the file where it can read it"),
        ] {
            let Reply::Error { kind: ErrorKind::BadRequest, message } = greet("1003", Some(path)) else {
                panic!("{}", path.display())
            };
            assert!(message.starts_with(path.to_str().unwrap()) && message.contains(what), "{message}");
        }
        let kept = data.path().join("greetings/1003.wav");
        assert_eq!(audio::read(&kept).unwrap(), [5; 12_000]);
        let Reply::MailboxGreeting { mailbox, duration_ms: None } = greet("1003", None) else { panic!() };
        assert!(!mailbox.greeting && !kept.exists());
    }

    /// Goal: a message is listed, exported byte for byte, deleted, and then unknown. Method: put one
    /// with made-up audio into the store and ask for all of it.
    #[test]
    fn a_message_is_listed_exported_and_deleted() {
        let (data, mut store) = store();
        add_1003(&mut store, Some("271828"));
        let id = MessageId::new(std::time::UNIX_EPOCH, 5);
        let message = Message {
            id: id.clone(),
            mailbox: "1003".into(),
            kind: MessageKind::Voice,
            caller: "2001".into(),
            caller_name: "Bo".into(),
            called: "1003".into(),
            diversion_reason: String::new(),
            call_id: "a@b".into(),
            started_ms: 1,
            duration_ms: 2,
            read: false,
        };
        let file = data.path().join("messages").join(audio_key("1003", &id));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, b"RIFF audio").unwrap();
        store.insert(&message).unwrap();
        assert_eq!(totals(&store).unwrap().voice, 1);
        assert_eq!(
            execute(&mut store, Request::MessageList { mailbox: "1003".into() }),
            Some(Reply::Messages { messages: vec![message.clone()] })
        );
        assert_eq!(
            execute(&mut store, Request::MessageExport { id: id.clone() }),
            Some(Reply::Audio { message, bytes: 10, audio: (&b"RIFF audio"[..]).into() })
        );
        assert_eq!(
            execute(&mut store, Request::MessageDelete { id: id.clone() }),
            Some(Reply::MessageDeleted { id: id.clone() })
        );
        assert_eq!(refusal(execute(&mut store, Request::MessageExport { id }).unwrap()), ErrorKind::NotFound);
        assert_eq!(execute(&mut store, Request::Status), None);
    }
}

//! What the control socket asks about mailboxes and messages, done on the store.

use std::io::Read as _;

use super::protocol::{ErrorKind, MailboxInfo, Reply, Request};
use crate::base::id::MessageId;
use crate::mailbox::store::{Counts, NewMailbox};
use crate::mailbox::{Store, StoreError, pin};

/// Carries out a request about mailboxes or messages; `None` when it is about something else.
///
/// Blocks for as long as the disk (and, for a new PIN, the hash) takes.
pub fn execute(store: &mut Store, request: Request) -> Option<Reply> {
    let done = match request {
        Request::Status | Request::Calls => return None,
        Request::MailboxAdd { number, name, pin } => add(store, number, name, pin),
        Request::MailboxList => list(store),
        Request::MailboxShow { number } => show_mailbox(store, &number),
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
    Ok(Reply::MailboxAdded { mailbox: info(mailbox.number, mailbox.name, Counts::default()), pin: drawn })
}

fn list(store: &Store) -> Result<Reply, StoreError> {
    let mailboxes = store.mailboxes()?;
    let mailboxes =
        mailboxes.into_iter().map(|(mailbox, counts)| info(mailbox.number, mailbox.name, counts)).collect();
    Ok(Reply::Mailboxes { mailboxes })
}

fn show_mailbox(store: &Store, number: &str) -> Result<Reply, StoreError> {
    let mailbox = store.mailbox(number)?.ok_or_else(|| StoreError::NoMailbox(number.to_owned()))?;
    let counts = store.counts(number)?;
    Ok(Reply::Mailbox(info(mailbox.number, mailbox.name, counts)))
}

fn export(store: &Store, id: &MessageId) -> Result<Reply, StoreError> {
    let message = store.message(id)?.ok_or_else(|| StoreError::NoMessage(id.clone()))?;
    let mut audio = Vec::new();
    store.audio(id)?.read_to_end(&mut audio)?;
    Ok(Reply::Audio { message, bytes: audio.len() as u64, audio: audio.into() })
}

fn info(number: String, name: String, counts: Counts) -> MailboxInfo {
    MailboxInfo { number, name, unread: counts.unread, messages: counts.voice, missed: counts.missed }
}

/// Whose doing an error of the store is.
fn kind(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::BadNumber { .. } | StoreError::BadPin { .. } => ErrorKind::BadRequest,
        StoreError::NoMailbox { .. } | StoreError::NoMessage { .. } | StoreError::NoAudio { .. } => {
            ErrorKind::NotFound
        }
        StoreError::MailboxExists { .. } => ErrorKind::Exists,
        StoreError::Sqlite { .. } | StoreError::Io { .. } | StoreError::Newer { .. } => ErrorKind::Failed,
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

//! Mailboxes and messages in SQLite, and the audio beside them.
//!
//! `<data>/voxring.db` holds the rows, `<data>/messages/<mailbox>/<id>.wav` the audio of messages,
//! `<data>/greetings` that of mailboxes. Every process of a node opens its own [`Store`]: WAL mode
//! and a busy timeout keep them apart. A message is in the store when [`Store::insert`] returned:
//! commits are synchronous (`synchronous = FULL`).
//!
//! Deleting leaves a tombstone for [`TOMBSTONE_DAYS`], so that a spool found after a crash does
//! not bring a deleted message back, and so that audio whose removal was interrupted still goes.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

use crate::base::clock;
use crate::base::id::MessageId;
use crate::mailbox::pin::{self, PinError};

mod greeting;
mod health;
mod schema;

pub use health::examine;

/// Days a deleted message's id is remembered.
pub const TOMBSTONE_DAYS: u64 = 30;
/// Longest mailbox number, characters.
pub const NUMBER_CHARS_MAX: usize = 64;
/// Longest mailbox name, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// What went wrong with the store, and whose doing it is.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Ours: the database cannot be read or written (disk full, damaged, locked for 5 s).
    #[error("message store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Ours: the audio cannot be read or removed, or the data folder not made.
    #[error("message store: {0}")]
    Io(#[from] std::io::Error),
    /// Ours, and for an operator to mend: the database is no database, or not whole.
    #[error(
        "{} is damaged: {what}. Stop the node, put a backup in its place, or save what can be read \
         (sqlite3 {} .recover | sqlite3 new.db) and put new.db there, remove {}-wal and -shm, start; \
         recordings wait in the spool", .file.display(), .file.display(), .file.display()
    )]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What SQLite found.
        what: String,
    },
    /// A newer voxring made this store.
    #[error("the message store has version {found}; this voxring knows versions up to {known}")]
    Newer {
        /// Version of the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// The asker's: not a mailbox number.
    #[error("{0:?} is no mailbox number: 1 to 64 letters, digits, + - _ or ., the first no .")]
    BadNumber(String),
    /// The asker's: not a name.
    #[error("a mailbox name has at most {NAME_CHARS_MAX} characters and no control characters")]
    BadName,
    /// The asker's: this PIN is not allowed.
    #[error(transparent)]
    BadPin(#[from] PinError),
    /// The asker's: the number is taken.
    #[error("mailbox {0} exists")]
    MailboxExists(String),
    /// The asker's: no such mailbox.
    #[error("no mailbox {0}")]
    NoMailbox(String),
    /// The asker's: no such message.
    #[error("no message {0}")]
    NoMessage(MessageId),
    /// The asker's: a missed call has no audio.
    #[error("message {0} is a missed call and has no audio")]
    NoAudio(MessageId),
}

/// A mailbox to be added.
#[derive(Debug, Clone)]
pub struct NewMailbox {
    /// Its number: the extension.
    pub number: String,
    /// The person's or department's name.
    pub name: String,
    /// The PIN as dialled; only its hash is kept.
    pub pin: String,
}

/// A mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mailbox {
    /// Its number: the extension.
    pub number: String,
    /// The person's or department's name.
    pub name: String,
    /// The PIN, argon2id, as a PHC string. Never leaves the process.
    #[serde(skip)]
    pub pin_hash: String,
    /// File name of its own greeting in `<data>/greetings`, if it has one.
    pub greeting: Option<String>,
    /// When it was added, Unix milliseconds.
    pub created_ms: u64,
}

/// How many messages a mailbox holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Voice messages, read or not.
    pub voice: u64,
    /// Voice messages not read.
    pub unread: u64,
    /// Missed calls.
    pub missed: u64,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// Somebody spoke; there is audio.
    Voice,
    /// A call without a message.
    Missed,
}

impl MessageKind {
    /// The word used in the store and in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Voice => "voice",
            Self::Missed => "missed",
        }
    }
}

/// One message of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Sorts by time.
    pub id: MessageId,
    /// Number of the mailbox it is in.
    pub mailbox: String,
    /// Voice or missed call.
    pub kind: MessageKind,
    /// The caller's number or user part, empty when anonymous.
    pub caller: String,
    /// The caller's display name, or empty.
    pub caller_name: String,
    /// The number that was called.
    pub called: String,
    /// The reason of the diversion (RFC 5806) or empty.
    pub diversion_reason: String,
    /// The SIP Call-ID.
    pub call_id: String,
    /// When the recording began, Unix milliseconds.
    pub started_ms: u64,
    /// Length of the audio, milliseconds; 0 for a missed call.
    pub duration_ms: u64,
    /// Somebody listened to it.
    pub read: bool,
}

/// One process's access to mailboxes and messages. Calls block for as long as the disk takes.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    data: PathBuf,
}

impl Store {
    /// Opens the store in the folder `data`, which is made if missing, and brings its schema up to
    /// date.
    ///
    /// # Errors
    /// `Io` and `Sqlite` when the folder or database cannot be used, `Newer` when it was made by a
    /// newer version.
    pub fn open(data: &Path) -> Result<Self, StoreError> {
        // Voice mail is private: folders made here are open to nobody else.
        let mut folders = std::fs::DirBuilder::new();
        folders.recursive(true).mode(0o700);
        folders.create(data.join("messages"))?;
        folders.create(data.join("greetings"))?;
        let connection = schema::open(&database(data))?;
        Ok(Self { connection, data: data.to_owned() })
    }

    /// The same for a start: the database is read as a whole first.
    ///
    /// # Errors
    /// As [`Store::open`]; `Damaged`.
    pub fn open_checked(data: &Path) -> Result<Self, StoreError> {
        let store = Self::open(data)?;
        schema::check(&store.connection, &database(data))?;
        Ok(store)
    }

    /// Adds a mailbox.
    ///
    /// # Errors
    /// `BadNumber`, `BadPin`, `MailboxExists`; `Sqlite`.
    pub fn add_mailbox(&mut self, new: &NewMailbox) -> Result<Mailbox, StoreError> {
        check_number(&new.number)?;
        if new.name.chars().count() > NAME_CHARS_MAX || new.name.chars().any(char::is_control) {
            return Err(StoreError::BadName);
        }
        pin::check(&new.pin, &new.number)?;
        let mailbox = Mailbox {
            number: new.number.clone(),
            name: new.name.clone(),
            pin_hash: pin::hash(&new.pin)?,
            greeting: None,
            created_ms: clock::unix_ms(clock::calendar()),
        };
        if !insert_mailbox(&self.connection, &mailbox)? {
            return Err(StoreError::MailboxExists(mailbox.number));
        }
        Ok(mailbox)
    }

    /// Adds mailboxes `numbers` with made-up PINs if the store has none at all; gives number and
    /// PIN of each that was added. The PINs are not recoverable later.
    ///
    /// # Errors
    /// As [`Store::add_mailbox`].
    pub fn add_demo_mailboxes(&mut self, numbers: &[&str]) -> Result<Vec<(String, String)>, StoreError> {
        if !self.is_empty()? {
            return Ok(Vec::new());
        }
        let mut added = Vec::new();
        for number in numbers {
            check_number(number)?;
            let pin = pin::random(number)?;
            let mailbox = Mailbox {
                number: (*number).to_owned(),
                name: format!("Demo {number}"),
                pin_hash: pin::hash(&pin)?,
                greeting: None,
                created_ms: clock::unix_ms(clock::calendar()),
            };
            added.push((mailbox, pin));
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let taken: bool =
            transaction.query_row("SELECT EXISTS (SELECT 1 FROM mailboxes)", [], |row| row.get(0))?;
        if taken {
            return Ok(Vec::new());
        }
        for (mailbox, _) in &added {
            insert_mailbox(&transaction, mailbox)?;
        }
        transaction.commit()?;
        Ok(added.into_iter().map(|(mailbox, pin)| (mailbox.number, pin)).collect())
    }

    /// Says whether there is no mailbox at all.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        let sql = "SELECT NOT EXISTS (SELECT 1 FROM mailboxes)";
        Ok(self.connection.query_row(sql, [], |row| row.get(0))?)
    }

    /// The mailbox with this number.
    ///
    /// # Errors
    /// `Sqlite`. An unknown number is `Ok(None)`.
    pub fn mailbox(&self, number: &str) -> Result<Option<Mailbox>, StoreError> {
        let sql = "SELECT number, name, pin_hash, greeting, created_ms FROM mailboxes WHERE number = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([number], read_mailbox).optional()?)
    }

    /// Every mailbox with its counts, by number.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn mailboxes(&self) -> Result<Vec<(Mailbox, Counts)>, StoreError> {
        let sql = "
            SELECT b.number, b.name, b.pin_hash, b.greeting, b.created_ms,
                   count(*) FILTER (WHERE m.kind = 'voice'),
                   count(*) FILTER (WHERE m.kind = 'voice' AND m.read = 0),
                   count(*) FILTER (WHERE m.kind = 'missed')
            FROM mailboxes b LEFT JOIN messages m ON m.mailbox = b.number
            GROUP BY b.number ORDER BY b.number";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| Ok((read_mailbox(row)?, read_counts(row, 5)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What the mailbox `number` holds; all 0 for an unknown one.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn counts(&self, number: &str) -> Result<Counts, StoreError> {
        let sql = "
            SELECT count(*) FILTER (WHERE kind = 'voice'),
                   count(*) FILTER (WHERE kind = 'voice' AND read = 0),
                   count(*) FILTER (WHERE kind = 'missed')
            FROM messages WHERE mailbox = ?1";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([number], |row| read_counts(row, 0))?)
    }

    /// Names the file in `<data>/greetings` that callers of `number` hear; `None`: the built-in one.
    ///
    /// # Errors
    /// `NoMailbox`, `Sqlite`; `Io` for a name that is more than a file name.
    pub fn set_greeting(&mut self, number: &str, file: Option<&str>) -> Result<(), StoreError> {
        if file.is_some_and(|file| file.is_empty() || file.starts_with('.') || file.contains('/')) {
            return Err(std::io::Error::from(std::io::ErrorKind::InvalidFilename).into());
        }
        let sql = "UPDATE mailboxes SET greeting = ?2 WHERE number = ?1";
        match self.connection.execute(sql, params![number, file])? {
            0 => Err(StoreError::NoMailbox(number.to_owned())),
            _ => Ok(()),
        }
    }

    /// Where a greeting's file is.
    pub fn greeting_path(&self, file: &str) -> PathBuf {
        self.data.join("greetings").join(file)
    }

    /// Adds messages in one transaction. One that is there, or was deleted, is left as it is.
    ///
    /// When this returns `Ok` the messages are on disk. `true` stands for each that is new.
    ///
    /// # Errors
    /// `BadNumber` and `Sqlite`; then none was added.
    pub fn insert_all(&mut self, messages: &[Message]) -> Result<Vec<bool>, StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut new = Vec::with_capacity(messages.len());
        {
            let mut statement = transaction.prepare_cached(
                "INSERT OR IGNORE INTO messages
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
                 WHERE NOT EXISTS (SELECT 1 FROM deleted WHERE id = ?1)",
            )?;
            for m in messages {
                check_number(&m.mailbox)?;
                let rows = statement.execute(params![
                    m.id.as_str(),
                    m.mailbox,
                    m.kind.as_str(),
                    m.caller,
                    m.caller_name,
                    m.called,
                    m.diversion_reason,
                    m.call_id,
                    to_sql(m.started_ms),
                    to_sql(m.duration_ms),
                    m.read,
                ])?;
                new.push(rows == 1);
            }
        }
        transaction.commit()?;
        Ok(new)
    }

    /// Adds one message, as [`Store::insert_all`].
    ///
    /// # Errors
    /// As [`Store::insert_all`].
    pub fn insert(&mut self, message: &Message) -> Result<bool, StoreError> {
        Ok(self.insert_all(std::slice::from_ref(message))?.first().copied().unwrap_or_default())
    }

    /// Says whether `id` is a message, or was one and is deleted: its spool files can go.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn is_settled(&self, id: &MessageId) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM messages WHERE id = ?1)
                       OR EXISTS (SELECT 1 FROM deleted WHERE id = ?1)";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row([id.as_str()], |row| row.get(0))?)
    }

    /// The message with this id.
    ///
    /// # Errors
    /// `Sqlite`. An unknown id is `Ok(None)`.
    pub fn message(&self, id: &MessageId) -> Result<Option<Message>, StoreError> {
        let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = ?1");
        let mut statement = self.connection.prepare_cached(&sql)?;
        Ok(statement.query_row([id.as_str()], read_message).optional()?)
    }

    /// The messages of a mailbox, oldest first.
    ///
    /// # Errors
    /// `NoMailbox`, `Sqlite`.
    pub fn messages(&self, number: &str) -> Result<Vec<Message>, StoreError> {
        if self.mailbox(number)?.is_none() {
            return Err(StoreError::NoMailbox(number.to_owned()));
        }
        let sql = format!("SELECT {MESSAGE_COLUMNS} FROM messages WHERE mailbox = ?1 ORDER BY id");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map([number], read_message)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Opens the audio of a message: a WAV file, 16-bit linear, 8000 Hz, mono.
    ///
    /// # Errors
    /// `NoMessage`, `NoAudio` for a missed call, `Io` when the file cannot be opened.
    pub fn audio(&self, id: &MessageId) -> Result<std::fs::File, StoreError> {
        let message = self.message(id)?.ok_or_else(|| StoreError::NoMessage(id.clone()))?;
        match message.kind {
            MessageKind::Voice => Ok(std::fs::File::open(self.audio_path(&message.mailbox, id))?),
            MessageKind::Missed => Err(StoreError::NoAudio(id.clone())),
        }
    }

    /// Marks a message as read or unread.
    ///
    /// # Errors
    /// `NoMessage`, `Sqlite`.
    pub fn mark_read(&mut self, id: &MessageId, read: bool) -> Result<(), StoreError> {
        let sql = "UPDATE messages SET read = ?2 WHERE id = ?1";
        match self.connection.execute(sql, params![id.as_str(), read])? {
            0 => Err(StoreError::NoMessage(id.clone())),
            _ => Ok(()),
        }
    }

    /// Deletes a message: first the row, then the audio.
    ///
    /// # Errors
    /// `NoMessage`, `Sqlite`; `Io` when the audio could not be removed, which [`Store::sweep`]
    /// tries again.
    pub fn delete(&mut self, id: &MessageId) -> Result<(), StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "DELETE FROM messages WHERE id = ?1 RETURNING mailbox";
        let mailbox: Option<String> =
            transaction.query_row(sql, [id.as_str()], |row| row.get(0)).optional()?;
        let mailbox = mailbox.ok_or_else(|| StoreError::NoMessage(id.clone()))?;
        let deleted_ms = to_sql(clock::unix_ms(clock::calendar()));
        let sql = "INSERT OR REPLACE INTO deleted VALUES (?1, ?2, ?3, 0)";
        transaction.execute(sql, params![id.as_str(), mailbox, deleted_ms])?;
        transaction.commit()?;
        self.remove_audio(&mailbox, id)
    }

    /// Finishes interrupted deletions and forgets old ones. Run once at start.
    ///
    /// # Errors
    /// `Sqlite`; `Io` when audio still cannot be removed.
    pub fn sweep(&mut self) -> Result<(), StoreError> {
        let sql = "SELECT id, mailbox FROM deleted WHERE audio_gone = 0";
        let half_deleted: Vec<(String, String)> = self
            .connection
            .prepare(sql)?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        for (id, mailbox) in half_deleted {
            if let Ok(id) = MessageId::parse(&id) {
                self.remove_audio(&mailbox, &id)?;
            }
        }
        let kept = Duration::from_secs(TOMBSTONE_DAYS * 86_400);
        let oldest_ms = clock::unix_ms(clock::calendar()).saturating_sub(kept.as_secs() * 1000);
        let sql = "DELETE FROM deleted WHERE audio_gone = 1 AND deleted_ms < ?1";
        self.connection.execute(sql, [to_sql(oldest_ms)])?;
        Ok(())
    }

    fn remove_audio(&mut self, mailbox: &str, id: &MessageId) -> Result<(), StoreError> {
        match std::fs::remove_file(self.audio_path(mailbox, id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.connection.execute("UPDATE deleted SET audio_gone = 1 WHERE id = ?1", [id.as_str()])?;
        Ok(())
    }

    fn audio_path(&self, mailbox: &str, id: &MessageId) -> PathBuf {
        self.data.join("messages").join(audio_key(mailbox, id))
    }
}

/// The database in the folder `data`.
pub fn database(data: &Path) -> PathBuf {
    data.join("voxring.db")
}

/// Where a message's audio is among all audio: `<mailbox>/<id>.wav`.
pub fn audio_key(mailbox: &str, id: &MessageId) -> String {
    format!("{mailbox}/{id}.wav")
}

/// Says whether `number` can name a mailbox, and with that a folder.
///
/// # Errors
/// `BadNumber`.
pub fn check_number(number: &str) -> Result<(), StoreError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-_.".contains(&b);
    let length = 1..=NUMBER_CHARS_MAX;
    if length.contains(&number.len()) && number.bytes().all(allowed) && !number.starts_with('.') {
        Ok(())
    } else {
        Err(StoreError::BadNumber(number.chars().take(NUMBER_CHARS_MAX + 1).collect()))
    }
}

const MESSAGE_COLUMNS: &str = "id, mailbox, kind, caller, caller_name, called, diversion_reason, \
                               call_id, started_ms, duration_ms, read";

/// Adds a row unless the number is taken; says whether it did.
fn insert_mailbox(connection: &Connection, mailbox: &Mailbox) -> Result<bool, rusqlite::Error> {
    let rows = connection.execute(
        "INSERT OR IGNORE INTO mailboxes VALUES (?1, ?2, ?3, ?4, ?5)",
        params![mailbox.number, mailbox.name, mailbox.pin_hash, mailbox.greeting, to_sql(mailbox.created_ms)],
    )?;
    Ok(rows == 1)
}

fn read_mailbox(row: &Row<'_>) -> rusqlite::Result<Mailbox> {
    Ok(Mailbox {
        number: row.get(0)?,
        name: row.get(1)?,
        pin_hash: row.get(2)?,
        greeting: row.get(3)?,
        created_ms: from_sql(row.get(4)?),
    })
}

fn read_counts(row: &Row<'_>, first: usize) -> rusqlite::Result<Counts> {
    Ok(Counts {
        voice: from_sql(row.get(first)?),
        unread: from_sql(row.get(first + 1)?),
        missed: from_sql(row.get(first + 2)?),
    })
}

fn read_message(row: &Row<'_>) -> rusqlite::Result<Message> {
    let id: String = row.get(0)?;
    let id = MessageId::parse(&id).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })?;
    let kind: String = row.get(2)?;
    Ok(Message {
        id,
        mailbox: row.get(1)?,
        // The table's CHECK leaves these two words.
        kind: if kind == "voice" { MessageKind::Voice } else { MessageKind::Missed },
        caller: row.get(3)?,
        caller_name: row.get(4)?,
        called: row.get(5)?,
        diversion_reason: row.get(6)?,
        call_id: row.get(7)?,
        started_ms: from_sql(row.get(8)?),
        duration_ms: from_sql(row.get(9)?),
        read: row.get(10)?,
    })
}

/// SQLite's integers are signed; times before the year 292 million fit.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests;

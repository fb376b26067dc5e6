//! The database file: how it is opened, its tables, and how older ones are brought up to date.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::StoreError;

/// How long a process waits for another one's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The schema, one step a version. Steps are never changed once released, only added.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE mailboxes (
        number     TEXT PRIMARY KEY,
        name       TEXT NOT NULL,
        pin_hash   TEXT NOT NULL,
        greeting   TEXT,
        created_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE messages (
        id               TEXT PRIMARY KEY,
        mailbox          TEXT NOT NULL,
        kind             TEXT NOT NULL CHECK (kind IN ('voice', 'missed')),
        caller           TEXT NOT NULL,
        caller_name      TEXT NOT NULL,
        called           TEXT NOT NULL,
        diversion_reason TEXT NOT NULL,
        call_id          TEXT NOT NULL,
        started_ms       INTEGER NOT NULL,
        duration_ms      INTEGER NOT NULL,
        read             INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX messages_by_mailbox ON messages (mailbox, id);
    CREATE TABLE deleted (
        id         TEXT PRIMARY KEY,
        mailbox    TEXT NOT NULL,
        deleted_ms INTEGER NOT NULL,
        audio_gone INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
"];

/// The schema's present version, SQLite's `user_version`.
#[expect(clippy::cast_possible_truncation, reason = "a handful of migrations")]
pub(super) const VERSION: u32 = MIGRATIONS.len() as u32;

/// Opens the database, made if missing, in the mode every process of the node uses.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let open = || {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        enter_wal(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        migrate(&mut connection)?;
        Ok(connection)
    };
    open().map_err(|error| named(path, error))
}

/// Opens the database that is there, to read only.
pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Reads every page and looks whether they fit together; takes as long as reading the file.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match found.map_err(|error| named(path, error.into()))? {
        found if found == "ok" => Ok(()),
        found => Err(StoreError::Damaged { file: path.to_owned(), what: found.replace('\n', " ") }),
    }
}

/// An error with the file that it says is damaged, if it says so.
fn named(path: &Path, error: StoreError) -> StoreError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match &error {
        StoreError::Sqlite(sqlite)
            if matches!(sqlite.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)) =>
        {
            StoreError::Damaged { file: path.to_owned(), what: sqlite.to_string() }
        }
        _ => error,
    }
}

/// Applies the missing migrations, all in one transaction. Where none is missing nothing is locked: a
/// worker can start while another program holds the database.
fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    if version(connection)? == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    let missing = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..));
    let missing = missing.ok_or(StoreError::Newer { found, known: VERSION })?;
    for step in missing {
        transaction.execute_batch(step)?;
    }
    if !missing.is_empty() {
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> Result<u32, rusqlite::Error> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Switches to write-ahead logging. Two processes doing so at once make SQLite refuse without
/// asking its busy handler, hence the retries.
fn enter_wal(connection: &Connection) -> Result<(), rusqlite::Error> {
    let mut attempt = 0;
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())) {
            Err(rusqlite::Error::SqliteFailure(error, _))
                if error.code == rusqlite::ErrorCode::DatabaseBusy && attempt < 100 =>
            {
                attempt += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

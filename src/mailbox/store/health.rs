//! Whether the database is whole and can be written.

use std::path::Path;
use std::time::Duration;

use super::{Store, StoreError, database, schema};

/// Looks at the database in `data` without changing it; false where there is none.
///
/// # Errors
/// `Damaged`; `Sqlite` when it cannot be read.
pub fn examine(data: &Path) -> Result<bool, StoreError> {
    let file = database(data);
    if !file.exists() {
        return Ok(false);
    }
    schema::check(&schema::open_to_read(&file)?, &file)?;
    Ok(true)
}

impl Store {
    /// How long a call waits while another process writes.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn set_patience(&self, patience: Duration) -> Result<(), StoreError> {
        Ok(self.connection.busy_timeout(patience)?)
    }

    /// Writes to the database, and to disk, without changing anything.
    ///
    /// # Errors
    /// `Sqlite`: what an insertion would say now.
    pub fn try_write(&self) -> Result<(), StoreError> {
        // The version is written even where it stays what it is.
        Ok(self.connection.pragma_update(None, "user_version", schema::VERSION)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use rusqlite::{Connection, ErrorCode};

    use super::*;

    /// Goal: a trial writes, and tells that another program holds the database. Method: a second
    /// connection in a transaction; the file's change is seen by its write-ahead log.
    #[test]
    fn a_trial_tells_whether_the_database_can_be_written() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        let log = data.path().join("voxring.db-wal");
        let before = std::fs::metadata(&log).unwrap().len();
        store.try_write().unwrap();
        assert!(std::fs::metadata(&log).unwrap().len() > before);
        let other = Connection::open(database(data.path())).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        store.set_patience(Duration::ZERO).unwrap();
        let Err(StoreError::Sqlite(error)) = store.try_write() else { panic!("it is locked") };
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
        // It can be opened all the same.
        Store::open(data.path()).unwrap();
        other.execute_batch("ROLLBACK").unwrap();
        store.try_write().unwrap();
    }

    /// Goal: a damaged database is told by name at the start and by a check, and a check makes none.
    /// Method: no database; a sound one; one with a page overwritten; one that is none at all.
    #[test]
    fn a_damaged_database_is_named() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(examine(data.path()), Ok(false)));
        drop(Store::open(data.path()).unwrap());
        assert!(matches!(examine(data.path()), Ok(true)));
        let file = database(data.path());
        let bytes = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
        bytes.write_all_at(&[0xA5; 4096], 4096).unwrap();
        let told = examine(data.path()).unwrap_err().to_string();
        assert!(told.starts_with(&format!("{} is damaged", file.display())), "{told}");
        assert!(matches!(Store::open_checked(data.path()), Err(StoreError::Damaged { .. })));
        bytes.write_all_at(&[0xA5; 4096], 0).unwrap();
        assert!(matches!(examine(data.path()), Err(StoreError::Damaged { .. })));
        assert!(matches!(Store::open(data.path()), Err(StoreError::Damaged { .. })));
    }
}

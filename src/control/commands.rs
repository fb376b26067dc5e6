//! Client commands: ask the running node, print its reply.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::cli::{CallRouterCommand, MailboxCommand, MessageCommand, Output, Switch};
use super::client::{self, ClientError};
use super::print;
use super::protocol::{ChangeState, Reply, Request};
use crate::mailbox::audio::{self, WavError};

/// How often a command that waits asks how far it is.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
/// Questions that may remain without an answer meanwhile.
const MISSES_MAX: u32 = 50;

/// Why a client command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No reply.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The node refused.
    #[error("{0}")]
    Refused(String),
    /// A reply to another question: node and command are of different versions.
    #[error("the node gave an unexpected reply; does it have another version than this command?")]
    Unexpected,
    /// The exported file exists.
    #[error("{} exists; --force replaces it", .0.display())]
    FileExists(PathBuf),
    /// The exported file cannot be written.
    #[error("{}: {error}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The file is no greeting.
    #[error("{}: {error}", .file.display())]
    Greeting {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        error: WavError,
    },
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// `voxring status`.
///
/// # Errors
/// No reply, or no output.
pub fn status(socket: &Path, output: Output) -> Result<(), CommandError> {
    let Reply::Status(status) = ask(socket, &Request::Status)? else { return Err(CommandError::Unexpected) };
    show(output, &status, || print::status(&status))
}

/// `voxring calls`.
///
/// # Errors
/// No reply, or no output.
pub fn calls(socket: &Path, output: Output) -> Result<(), CommandError> {
    let Reply::Calls { calls } = ask(socket, &Request::Calls)? else { return Err(CommandError::Unexpected) };
    show(output, &calls, || print::calls(&calls))
}

/// `voxring reload`. False when nothing was reloaded because something is wrong.
///
/// # Errors
/// No reply, or no output.
pub fn reload(socket: &Path, output: Output) -> Result<bool, CommandError> {
    let Reply::Reload(report) = ask(socket, &Request::Reload)? else { return Err(CommandError::Unexpected) };
    show(output, &report, || print::reload(&report))?;
    Ok(report.problems.is_empty())
}

/// `voxring recycle`. False when the old worker goes on.
///
/// # Errors
/// No reply, a refusal, or no output.
pub fn recycle(socket: &Path, output: Output) -> Result<bool, CommandError> {
    follow(socket, &Request::Recycle, output)
}

/// `voxring upgrade`. False when the old program goes on.
///
/// # Errors
/// No such file, no reply, a refusal, or no output.
pub fn upgrade(socket: &Path, binary: Option<&Path>, output: Output) -> Result<bool, CommandError> {
    let absolute = |file: &Path| {
        std::fs::canonicalize(file).map_err(|error| CommandError::File { file: file.into(), error })
    };
    follow(socket, &Request::Upgrade { binary: binary.map(absolute).transpose()? }, output)
}

/// Begins a change of worker and waits for its end.
fn follow(socket: &Path, request: &Request, output: Output) -> Result<bool, CommandError> {
    let Reply::Change(mut change) = ask(socket, request)? else { return Err(CommandError::Unexpected) };
    let mut misses = 0;
    while !change.state.is_over() {
        std::thread::sleep(FOLLOW_INTERVAL);
        // A supervisor that replaces its program drops whom it was about to answer.
        change = match ask(socket, &Request::Change { number: change.number }) {
            Ok(Reply::Change(change)) => change,
            Ok(_) => return Err(CommandError::Unexpected),
            Err(CommandError::Client(_)) if misses < MISSES_MAX => {
                misses += 1;
                change
            }
            Err(error) => return Err(error),
        };
    }
    show(output, &change, || print::change(&change))?;
    Ok(change.state == ChangeState::Done)
}

/// `voxring drain`.
///
/// # Errors
/// No reply, or no output.
pub fn drain(socket: &Path, switch: Switch, output: Output) -> Result<(), CommandError> {
    let reply = ask(socket, &Request::Drain { on: switch.is_on() })?;
    let Reply::Drain { on, calls } = reply else { return Err(CommandError::Unexpected) };
    show(output, &Drained { draining: on, calls }, || match on {
        true => format!("new calls are refused; {calls} are up\n"),
        false => "new calls are taken\n".to_owned(),
    })
}

/// `voxring call-router …`.
///
/// # Errors
/// No reply, a refusal, or no output.
pub fn call_router(socket: &Path, command: CallRouterCommand) -> Result<(), CommandError> {
    let (request, output) = match command {
        CallRouterCommand::Get(output) => (Request::CallRouterGet, output),
        CallRouterCommand::Set { settings, output } => (settings.request(), output),
    };
    let Reply::CallRouter(report) = ask(socket, &request)? else { return Err(CommandError::Unexpected) };
    show(output, &report, || print::call_router(&report))
}

/// `voxring mailbox …`.
///
/// # Errors
/// No reply, a refusal, or no output.
pub fn mailbox(socket: &Path, command: MailboxCommand) -> Result<(), CommandError> {
    match command {
        MailboxCommand::Add { number, name, pin, output } => {
            let name = name.unwrap_or_else(|| number.clone());
            let reply = ask(socket, &Request::MailboxAdd { number, name, pin })?;
            let Reply::MailboxAdded { mailbox, pin } = reply else { return Err(CommandError::Unexpected) };
            let added = Added { mailbox: &mailbox, pin: pin.as_deref() };
            show(output, &added, || match &pin {
                Some(pin) => format!("mailbox {} added, PIN {pin} (shown only this once)\n", mailbox.number),
                None => format!("mailbox {} added\n", mailbox.number),
            })
        }
        MailboxCommand::List(output) => {
            let reply = ask(socket, &Request::MailboxList)?;
            let Reply::Mailboxes { mailboxes } = reply else { return Err(CommandError::Unexpected) };
            show(output, &mailboxes, || print::mailboxes(&mailboxes))
        }
        MailboxCommand::Show { number, output } => {
            let reply = ask(socket, &Request::MailboxShow { number })?;
            let Reply::Mailbox(mailbox) = reply else { return Err(CommandError::Unexpected) };
            show(output, &mailbox, || print::mailboxes(std::slice::from_ref(&mailbox)))
        }
        // `remove` has no file: the command line allows one of the two.
        MailboxCommand::Greeting { number, file, remove: _, output } => {
            let file = file.as_deref().map(greeting_file).transpose()?;
            let reply = ask(socket, &Request::MailboxGreeting { number, file })?;
            let Reply::MailboxGreeting { mailbox, duration_ms } = reply else {
                return Err(CommandError::Unexpected);
            };
            show(output, &Greeted { mailbox: &mailbox, duration_ms }, || match duration_ms {
                Some(ms) => {
                    let seconds = ms as f64 / 1000.0;
                    format!("mailbox {} has its own greeting, {seconds:.1} s\n", mailbox.number)
                }
                None => format!("mailbox {} has the built-in greeting\n", mailbox.number),
            })
        }
    }
}

/// `voxring message …`.
///
/// # Errors
/// No reply, a refusal, a file that cannot be written, or no output.
pub fn message(socket: &Path, command: MessageCommand) -> Result<(), CommandError> {
    match command {
        MessageCommand::List { mailbox, output } => {
            let reply = ask(socket, &Request::MessageList { mailbox })?;
            let Reply::Messages { messages } = reply else { return Err(CommandError::Unexpected) };
            show(output, &messages, || print::messages(&messages))
        }
        MessageCommand::Export { id, file, force, output } => {
            // Look before asking: the audio may be long.
            if !force && file.exists() {
                return Err(CommandError::FileExists(file));
            }
            let reply = ask(socket, &Request::MessageExport { id })?;
            let Reply::Audio { message, bytes, audio } = reply else { return Err(CommandError::Unexpected) };
            save(&file, &audio, force)?;
            show(output, &Exported { message: &message, file: &file, bytes }, || {
                let seconds = message.duration_ms as f64 / 1000.0;
                format!("{}: {bytes} bytes, {seconds:.1} s\n", file.display())
            })
        }
        MessageCommand::Delete { id, output } => {
            let reply = ask(socket, &Request::MessageDelete { id })?;
            let Reply::MessageDeleted { id } = reply else { return Err(CommandError::Unexpected) };
            show(output, &Deleted { id: id.as_str() }, || format!("message {id} deleted\n"))
        }
    }
}

#[derive(Serialize)]
struct Drained {
    draining: bool,
    calls: u64,
}

#[derive(Serialize)]
struct Added<'a> {
    mailbox: &'a super::protocol::MailboxInfo,
    pin: Option<&'a str>,
}

#[derive(Serialize)]
struct Greeted<'a> {
    mailbox: &'a super::protocol::MailboxInfo,
    duration_ms: Option<u64>,
}

#[derive(Serialize)]
struct Exported<'a> {
    message: &'a crate::mailbox::Message,
    file: &'a Path,
    bytes: u64,
}

#[derive(Serialize)]
struct Deleted<'a> {
    id: &'a str,
}

/// The absolute path of a file that is a greeting; one that is none never reaches the node.
fn greeting_file(file: &Path) -> Result<String, CommandError> {
    let wrong = |error| CommandError::Greeting { file: file.into(), error };
    audio::read_greeting(file).map_err(wrong)?;
    let path = std::fs::canonicalize(file).map_err(|error| wrong(error.into()))?;
    let not_text = || wrong(io::Error::other("its path is not UTF-8; rename it").into());
    Ok(path.to_str().ok_or_else(not_text)?.to_owned())
}

/// Asks; a refusal becomes an error.
fn ask(socket: &Path, request: &Request) -> Result<Reply, CommandError> {
    let reply = client::request(socket, request)?;
    if let Reply::Error { message, .. } = reply { Err(CommandError::Refused(message)) } else { Ok(reply) }
}

/// Prints JSON or text.
fn show<T: Serialize>(output: Output, value: &T, text: impl FnOnce() -> String) -> Result<(), CommandError> {
    let text = if output.json {
        let json = serde_json::to_string_pretty(value).expect("replies are plain data");
        json + "\n"
    } else {
        text()
    };
    print::emit(&text).map_err(CommandError::Output)
}

/// Writes a file whole or not at all: beside its place first, then moved there.
fn save(file: &Path, bytes: &[u8], force: bool) -> Result<(), CommandError> {
    let failed = |error| CommandError::File { file: file.into(), error };
    let name = file.file_name().ok_or_else(|| failed(io::Error::other("does not name a file")))?;
    let mut part_name = std::ffi::OsString::from(".");
    part_name.push(name);
    part_name.push(format!(".{}.part", std::process::id()));
    let part = file.with_file_name(part_name);
    let write = || {
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).open(&part)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        if force {
            std::fs::rename(&part, file)
        } else {
            // A link, unlike a move, never replaces what somebody put there meanwhile.
            std::fs::hard_link(&part, file).and_then(|()| std::fs::remove_file(&part))
        }
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            CommandError::FileExists(file.into())
        } else {
            failed(error)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an export is whole, never replaces a file unasked, and leaves nothing else behind.
    /// Method: save twice, then with force, and look at the folder.
    #[test]
    fn an_export_replaces_nothing_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.wav");
        save(&file, b"one", false).unwrap();
        assert!(matches!(save(&file, b"two", false), Err(CommandError::FileExists(_))));
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        save(&file, b"three", true).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Goal: a place that cannot be written is an error that names the file. Method: a missing folder
    /// and no file name at all.
    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for file in [folder.path().join("no/a.wav"), PathBuf::from("/")] {
            let error = save(&file, b"x", true).unwrap_err().to_string();
            assert!(error.starts_with(&file.display().to_string()), "{error}");
        }
    }
}

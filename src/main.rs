//! The `voxring` command.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use nix::sys::stat::{Mode, umask};
use voxring::control::cli::{Cli, Command, Serve};
use voxring::control::{cert, check, commands, explain, firewall, sysctl};
use voxring::role::supervisor::{self, Handover};
use voxring::role::worker::start;

fn main() -> ExitCode {
    // Before anything else opens a descriptor.
    let handover = Handover::receive();
    match handover.map_err(Into::into).and_then(|handover| run(Cli::parse(), handover)) {
        Ok(code) => code,
        Err(error) => {
            // Each cause once: some errors repeat their source in their own text.
            let mut told = String::new();
            for cause in error.chain().map(ToString::to_string) {
                if !told.contains(&cause) {
                    let lead = if told.is_empty() { "voxring: " } else { "  because: " };
                    let _ = writeln!(std::io::stderr(), "{lead}{}", cause.replace('\n', "\n  "));
                    told.push_str(&cause);
                }
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, handover: Option<Handover>) -> Result<ExitCode> {
    let mut place = cli.place;
    match cli.command.unwrap_or_else(|| Command::Serve(Serve::default())) {
        Command::Serve(Serve { io_backend }) => {
            place.io_backend = io_backend;
            if let Some(handover) = handover {
                start_log();
                supervisor::resume(place, handover)?;
                return Ok(ExitCode::SUCCESS);
            }
            let file = place.load_file()?;
            start_log();
            // Workers inherit it. Without it the node serves fewer calls, and `check` told so.
            if let Err(error) = check::raise_descriptor_limit() {
                tracing::warn!(%error, "cannot raise the limit of open files");
            }
            // What callers said, and to whom, is for the node's user alone, whatever mode the data
            // folder has. The worker inherits it.
            umask(Mode::from_bits_truncate(0o077));
            supervisor::serve(place, file)?;
        }
        Command::HandoverForm => writeln!(std::io::stdout(), "{}", supervisor::FORM)?,
        Command::Worker { slot: _ } => {
            start_log();
            start::run()?;
        }
        Command::Check(output) => return Ok(check::run(&place, output)?),
        Command::Firewall(args) => {
            let (config, source) = place.load()?;
            return Ok(firewall::run(&config, &source, &args)?);
        }
        Command::Sysctl(output) => sysctl::run(&place.load()?.0, output)?,
        Command::Cert(command) => cert::run(&command)?,
        Command::Status(output) => commands::status(&place.socket()?, output)?,
        Command::Calls(output) => commands::calls(&place.socket()?, output)?,
        Command::Reload(output) => {
            let is_done = commands::reload(&place.socket()?, output)?;
            return Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Recycle(output) => {
            let is_done = commands::recycle(&place.socket()?, output)?;
            return Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Upgrade { binary, output } => {
            let is_done = commands::upgrade(&place.socket()?, binary.as_deref(), output)?;
            return Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Drain { switch, output } => commands::drain(&place.socket()?, switch, output)?,
        Command::CallRouter(command) => commands::call_router(&place.socket()?, command)?,
        Command::ExplainCall(call) => {
            let admitted = explain::run(&place, &call)?;
            return Ok(if admitted { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Mailbox(command) => commands::mailbox(&place.socket()?, command)?,
        Command::Message(command) => commands::message(&place.socket()?, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Logs go to standard error; `RUST_LOG` chooses what, by default everything of note.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_writer(std::io::stderr)
        // It would tell of a standard error that cannot be written on that standard error, and panic.
        .log_internal_errors(false)
        .init();
}

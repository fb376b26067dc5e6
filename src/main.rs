//! The `voxring` command.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use voxring::control::cli::{Cli, Command};
use voxring::control::{check, commands};

fn main() -> ExitCode {
    match run(Cli::parse()) {
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

fn run(cli: Cli) -> Result<ExitCode> {
    let place = cli.place;
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => {
            let (_config, _source) = place.load()?;
        }
        Command::Worker { slot: _ } => {}
        Command::Check(output) => return Ok(check::run(&place, output)?),
        Command::Status(output) => commands::status(&place.socket()?, output)?,
        Command::Calls(output) => commands::calls(&place.socket()?, output)?,
        Command::Mailbox(command) => commands::mailbox(&place.socket()?, command)?,
        Command::Message(command) => commands::message(&place.socket()?, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

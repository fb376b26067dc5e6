//! The order of the checks, and the command.

use std::process::ExitCode;

use super::machine::Machine;
use super::report::{Problem, Report};
use super::{admission, limits, live, ports, routes, tls};
use crate::base::clock;
use crate::base::config::{Config, IoBackend, Source};
use crate::control::cli::{Output, Place};
use crate::control::commands::CommandError;
use crate::control::print;

/// `voxring check`: exit code 1 when there is an error.
///
/// # Errors
/// No output. What is wrong with configuration or machine is the report, not an error.
pub fn run(place: &Place, output: Output) -> Result<ExitCode, CommandError> {
    let report = examine(place, &Machine::read());
    let text = if output.json {
        serde_json::to_string_pretty(&report).expect("reports are plain data") + "\n"
    } else {
        report.render()
    };
    print::emit(&text).map_err(CommandError::Output)?;
    Ok(if report.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks configuration and machine. A configuration that cannot be read still leaves the machine
/// to be looked at, against the defaults.
pub fn examine(place: &Place, machine: &Machine) -> Report {
    let mut report = Report::default();
    let mut wanted = IoBackend::default();
    match place.load() {
        Ok((config, source)) => {
            wanted = config.worker.io_backend;
            match &source.file {
                Some(file) => report.pass(format!("{}: every key is known and in range", file.display())),
                None => report.pass("configuration: built in"),
            }
            ports::examine(&mut report, &config, &source, machine);
            limits::examine(&mut report, &config, &source, machine);
            admission::examine(&mut report, &config, &source);
            routes::examine(&mut report, &config, &source);
            tls::examine(&mut report, &config, &source, clock::calendar());
            live::bindable(&mut report, &config, &source);
            live::data_folder(&mut report, &config, &source);
            live::store(&mut report, &config, &source);
        }
        Err(error) => {
            for problem in error.problems {
                let line = problem.line.map_or_else(String::new, |line| format!(":{line}"));
                let place = format!("{}{line} {}", problem.file.display(), problem.key);
                let fix = "correct the file; config/voxring.toml documents every key";
                report.error(place.trim_end(), problem.message, fix);
            }
            limits::examine(&mut report, &Config::default(), &Source::default(), machine);
        }
    }
    live::io_uring(&mut report, wanted);
    report
}

/// What conflicts among the ports of `config` itself, whatever the machine.
pub fn conflicts(config: &Config, source: &Source) -> Vec<Problem> {
    let mut report = Report::default();
    ports::conflicts(&mut report, config, source);
    report.problems
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is wrong with a file is in the report with file, line and key, beside the machine's
    /// own problems. Method: a file with an unknown key and a value out of range.
    #[test]
    fn a_broken_file_is_reported_with_file_line_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("v.toml");
        std::fs::write(&file, "[calls]\ncals_max = 3\nduration_max_min = 5\n").unwrap();
        let report = examine(&Place { config: Some(file.clone()), ..Place::default() }, &Machine::default());
        let places: Vec<_> = report.problems.iter().map(|problem| problem.place.clone()).collect();
        let file = file.display();
        assert_eq!(
            places[..2],
            [format!("{file}:2 calls.cals_max"), format!("{file}:3 calls.duration_max_min")]
        );
        assert!(report.render().contains("2 errors"), "{}", report.render());
    }
}

//! Mounts of a process's own, so that a test can fill a disk or make it read-only.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

/// A program with mounts of its own, which root of a user namespace may have too.
fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
}

/// Whether the kernel lets us; says so if it does not.
pub(crate) fn are_allowed() -> bool {
    let is_allowed = unshare().arg("true").status().is_ok_and(|status| status.success());
    if !is_allowed {
        eprintln!("skipped: mounts of its own are not allowed here");
    }
    is_allowed
}

/// `program` over a folder that is a file system of so many MiB in memory; its arguments are to follow. The
/// shell becomes the program: the process id is its own.
pub(crate) fn on_disk_of(mib: u32, folder: &Path, program: &Path) -> Command {
    std::fs::create_dir_all(folder).expect("a folder can be made");
    let mut command = unshare();
    command.args(["sh", "-c", "mount -t tmpfs -o size=$0m tmpfs \"$1\" && shift && exec \"$@\""]);
    command.arg(mib.to_string()).arg(folder).arg(program);
    command
}

/// What a process sees at a path.
pub(crate) fn seen_by(pid: u32, path: &Path) -> PathBuf {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    root.join(path.strip_prefix("/").expect("an absolute path"))
}

/// Runs `mount` where a process's mounts are.
pub(crate) fn mount_in(pid: u32, args: &[&str]) {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--mount"]);
    if !geteuid().is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    let status = command.arg("mount").args(args).status().expect("nsenter runs");
    assert!(status.success(), "mount {args:?}: {status}");
}

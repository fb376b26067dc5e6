//! What only trying tells: a ring, binding the listeners, writing the data folder.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::report::Report;
use crate::base::config::{Config, IoBackend, Source};
use crate::control::client;
use crate::control::listeners::{planned, try_bind};
use crate::control::protocol::{ListenerStatus, Reply, Request, SOCKET_NAME};
use crate::mailbox::store::{StoreError, database, examine};
use crate::sip::flow::Transport;
use crate::uring;

/// Free space below which recordings are in danger: 16 h of them.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Creates a ring and receives through it, if one is wanted.
pub(super) fn io_uring(report: &mut Report, wanted: IoBackend) {
    if wanted == IoBackend::Epoll {
        report.pass("media: by epoll, as configured");
        return;
    }
    if wanted == IoBackend::Steered {
        match uring::probe_steered() {
            Ok(()) => report.pass("media: one socket for all calls, as configured; it received and sent"),
            Err(error) => report.error("worker.io_backend", error.reason, error.fix),
        }
        return;
    }
    match (uring::probe(), wanted) {
        (Ok(probe), _) => {
            report.pass(format!("io_uring: a ring received datagrams on kernel {}", probe.kernel));
        }
        (Err(error), IoBackend::Uring) => report.error("io_uring", error.reason, error.fix),
        (Err(error), IoBackend::Auto | IoBackend::Epoll | IoBackend::Steered) => {
            let what = format!("{}; epoll serves instead, at more cost for each packet", error.reason);
            report.warning("io_uring", what, error.fix);
        }
    }
}

/// Binds every listener for a moment, and the media address.
pub(super) fn bindable(report: &mut Report, config: &Config, source: &Source) {
    let ours = running_listeners(&config.node.data);
    let mut bound = 0;
    for listener in planned(config) {
        let (transport, address) = (listener.transport, listener.address);
        let name = format!("{} {}", transport.name(), address);
        match try_bind(transport, address) {
            Ok(()) => bound += 1,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if ours.iter().any(|own| own.transport == transport && own.address == address) {
                    report.pass(format!("{name}: held by the running voxring"));
                } else {
                    report.error(
                        source.locate(listener.key),
                        format!("{name} is in use by another program"),
                        format!("find it: ss -lnp 'sport = :{}'; or change {}", address.port(), listener.key),
                    );
                }
            }
            Err(error) => {
                let fix = bind_fix(&error, address, listener.key);
                report.error(source.locate(listener.key), format!("{name} cannot be bound: {error}"), fix);
            }
        }
    }
    if bound > 0 {
        report.pass(format!("{bound} listeners can be bound"));
    }
    for address in config.rtp.address.iter() {
        let media = SocketAddr::new(address, 0);
        match try_bind(Transport::Udp, media) {
            Ok(()) => report.pass(format!("media can be bound to {address}")),
            Err(error) => {
                let fix = bind_fix(&error, media, "rtp.address");
                report.error(
                    source.locate("rtp.address"),
                    format!("{address} cannot be bound: {error}"),
                    fix,
                );
            }
        }
    }
}

fn bind_fix(error: &io::Error, address: SocketAddr, key: &str) -> String {
    if error.kind() == io::ErrorKind::AddrNotAvailable {
        format!("{} is no address of this machine: see ip address, then change {key}'s table", address.ip())
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        format!("sysctl -w net.ipv4.ip_unprivileged_port_start={}; or change {key}", address.port())
    } else {
        format!("change {key}")
    }
}

/// The sockets of the node that runs on this data folder; none when none runs.
fn running_listeners(data: &Path) -> Vec<ListenerStatus> {
    match client::request(&data.join(SOCKET_NAME), &Request::Status) {
        Ok(Reply::Status(status)) => status.listeners,
        _ => Vec::new(),
    }
}

/// Looks whether the data folder, or the folder it would be created in, can be written.
pub(super) fn data_folder(report: &mut Report, config: &Config, source: &Source) {
    let data = &config.node.data;
    let place = source.locate("node.data");
    let existing = nearest_existing(data);
    if existing == *data && !data.is_dir() {
        report.error(place, format!("{} is not a folder", data.display()), "name a folder in node.data");
        return;
    }
    if let Err(error) = access(&existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        report.error(
            place,
            format!("{} cannot be written: {}", existing.display(), error.desc()),
            format!("chown it to the user that runs voxring: chown USER {}", existing.display()),
        );
        return;
    }
    let free = statvfs(&existing).map(|stat| stat.blocks_available() * stat.fragment_size());
    let free_min = u64::from(config.recording.free_mib_min) << 20;
    match free {
        Ok(free) if free < free_min => report.error(
            source.locate("recording.free_mib_min"),
            format!(
                "{} MiB are free in {}, fewer than {}: calls for mailboxes are refused",
                free >> 20,
                existing.display(),
                config.recording.free_mib_min
            ),
            "delete messages, or name a folder on a larger disk in node.data",
        ),
        Ok(free) if free < FREE_BYTES_MIN => report.warning(
            place,
            format!("{} MiB are free; an hour of messages takes 55 MiB", free >> 20),
            "delete messages, or name a folder on a larger disk in node.data",
        ),
        _ => report.pass(format!("data folder {} can be written", data.display())),
    }
    let socket = data.join(SOCKET_NAME);
    if socket.as_os_str().len() > 106 {
        report.error(
            source.locate("node.data"),
            format!("{} is too long for a Unix socket (106 bytes at most)", socket.display()),
            "name a shorter folder in node.data",
        );
    }
}

/// Reads the database, if there is one, and looks whether it is whole.
pub(super) fn store(report: &mut Report, config: &Config, source: &Source) {
    let file = database(&config.node.data);
    match examine(&config.node.data) {
        Ok(true) => report.pass(format!("message store {} is whole", file.display())),
        Ok(false) => {}
        Err(StoreError::Damaged { file, what }) => {
            let file = file.display();
            report.error(
                source.locate("node.data"),
                format!("the message store {file} is damaged: {what}"),
                format!(
                    "stop the node; put a backup in its place, or what can be read: sqlite3 {file} .recover | \
                     sqlite3 new.db; remove {file}-wal and {file}-shm; start: the spool is delivered then"
                ),
            );
        }
        Err(error) => report.error(
            source.locate("node.data"),
            format!("the message store {} cannot be read: {error}", file.display()),
            "see who holds it or who owns it: lsof, ls -l",
        ),
    }
}

/// The path itself or the first folder above it that exists.
fn nearest_existing(path: &Path) -> PathBuf {
    let mut path = path;
    while !path.exists() {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => path = parent,
            _ => return PathBuf::from("."),
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Goal: a port somebody else holds is an error that names it; a free one passes. Method: hold one.
    #[test]
    fn a_port_in_use_is_an_error() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data = data.path().to_owned();
        config.router.port = held.local_addr().unwrap().port();
        let mut report = Report::default();
        bindable(&mut report, &config, &Source::default());
        let name = format!("tcp 127.0.0.1:{} is in use", config.router.port);
        assert!(report.problems.iter().any(|problem| problem.what.starts_with(&name)), "{report:?}");
    }

    /// Goal: an address of another machine is told. Method: one reserved for documentation (RFC 5737).
    #[test]
    fn an_address_of_another_machine_is_an_error() {
        let data = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data = data.path().to_owned();
        config.rtp.address = "192.0.2.1".parse().unwrap();
        let mut report = Report::default();
        bindable(&mut report, &config, &Source::default());
        let problem = report.problems.iter().find(|problem| problem.place.contains("rtp.address")).unwrap();
        assert!(problem.fix.contains("no address of this machine"), "{problem:?}");
    }

    /// Goal: a data folder that exists, one to be created and a file in its place are told apart.
    /// Method: one of each.
    #[test]
    fn the_data_folder_is_looked_at_without_creating_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        for (path, errors) in [(folder.path().to_owned(), 0), (folder.path().join("a/b"), 0)] {
            let mut report = Report::default();
            config.node.data = path;
            data_folder(&mut report, &config, &Source::default());
            assert_eq!(report.errors(), errors, "{report:?}");
        }
        assert!(!folder.path().join("a").exists());
        config.node.data = folder.path().join("file");
        std::fs::write(&config.node.data, "").unwrap();
        let mut report = Report::default();
        data_folder(&mut report, &config, &Source::default());
        assert_eq!(report.errors(), 1);
    }

    /// Goal: a disk on which calls would be refused is an error. Method: ask for more room than there is.
    #[test]
    fn a_disk_with_too_little_room_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.data = folder.path().to_owned();
        config.recording.free_mib_min = u32::MAX;
        let mut report = Report::default();
        data_folder(&mut report, &config, &Source::default());
        let problem = report.problems.first().unwrap();
        assert!(problem.what.ends_with("calls for mailboxes are refused"), "{problem:?}");
    }
}

//! A node under test: its configuration, process, clients and end.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use toml::{Table, toml};
use voxring::mailbox::Store;

use crate::common::confined::without_io_uring;
use crate::common::{audio, mounts, now, peers, raw, wait_for};

/// Blocks of ports below the kernel's ephemeral range.
const BLOCKS: u16 = 12;
/// RTP ports of a block: two worker slots, 600 ports each.
const RTP_PORTS: u16 = 1200;
/// A debug build starts within this, also on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A block of ports nobody else uses while this lives.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Bound only to keep others away.
    _lock: TcpListener,
    block: u16,
}

impl Ports {
    /// Takes a free block, waiting for one if need be.
    pub(crate) fn take() -> Self {
        wait_for("a free block of ports", Duration::from_secs(600), || {
            (0..BLOCKS).find_map(|block| {
                let lock = TcpListener::bind((Ipv4Addr::LOCALHOST, 11_019 + 20 * block)).ok()?;
                Some(Self { _lock: lock, block })
            })
        })
    }

    /// Call router.
    pub(crate) fn router(&self) -> u16 {
        11_000 + 20 * self.block
    }

    /// UM service.
    pub(crate) fn service(&self) -> u16 {
        self.router() + 2
    }

    /// Worker slot A.
    pub(crate) fn worker_a(&self) -> u16 {
        self.router() + 5
    }

    /// Worker slot B.
    pub(crate) fn worker_b(&self) -> u16 {
        self.router() + 7
    }

    /// Call router's TLS.
    pub(crate) fn router_tls(&self) -> u16 {
        self.router() + 1
    }

    /// UM service's TLS.
    pub(crate) fn service_tls(&self) -> u16 {
        self.router() + 3
    }

    /// Worker slot A's TLS.
    pub(crate) fn worker_a_tls(&self) -> u16 {
        self.router() + 6
    }

    /// Worker slot B's TLS.
    pub(crate) fn worker_b_tls(&self) -> u16 {
        self.router() + 8
    }

    /// For a peer's own SIP listener; the next port too.
    pub(crate) fn peer(&self) -> u16 {
        self.router() + 11
    }

    /// For a peer's control connection.
    pub(crate) fn peer_control(&self) -> u16 {
        self.router() + 13
    }

    /// First of 200 ports for a peer's media.
    pub(crate) fn peer_media(&self) -> u16 {
        12_000 + 200 * self.block
    }

    /// First and last RTP port of the node.
    pub(crate) fn rtp(&self) -> (u16, u16) {
        let first = 16_384 + RTP_PORTS * self.block;
        (first, first + RTP_PORTS - 1)
    }
}

/// A running node. Ends with its owner.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its ports.
    pub(crate) ports: Ports,
    folder: TempDir,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
    program: PathBuf,
    surroundings: Surroundings,
}

/// Where node and clients run.
#[derive(Debug)]
enum Surroundings {
    /// Where the test does.
    Plain,
    /// In this network namespace.
    Namespace(String),
    /// Where io_uring is forbidden.
    NoIoUring,
    /// Where mounts are its own, its data on a file system of so many MiB.
    Mounts(u32),
}

impl Node {
    /// Starts a node with the laptop configuration (UDP on, test extensions, mailboxes 1001 and
    /// 1002) on ports of its own, after `change` had its say.
    pub(crate) fn start(change: impl FnOnce(&mut Table)) -> Self {
        Self::run(env!("CARGO_BIN_EXE_voxring").into(), Surroundings::Plain, change)
    }

    /// The same where io_uring is forbidden; its clients run there too.
    pub(crate) fn start_without_io_uring(change: impl FnOnce(&mut Table)) -> Self {
        Self::run(env!("CARGO_BIN_EXE_voxring").into(), Surroundings::NoIoUring, change)
    }

    /// The same within a network namespace; its clients run there too.
    pub(crate) fn start_inside(namespace: &str, change: impl FnOnce(&mut Table)) -> Self {
        Self::run(env!("CARGO_BIN_EXE_voxring").into(), Surroundings::Namespace(namespace.to_owned()), change)
    }

    /// The same with mounts of its own, its data on a file system of so many MiB in memory; `None`, and
    /// a word about it, where the kernel does not allow that.
    pub(crate) fn start_on_disk_of(mib: u32, change: impl FnOnce(&mut Table)) -> Option<Self> {
        mounts::are_allowed()
            .then(|| Self::run(env!("CARGO_BIN_EXE_voxring").into(), Surroundings::Mounts(mib), change))
    }

    /// The same for tests that load the machine: the release build, if there is one.
    pub(crate) fn start_for_load() -> Self {
        Self::start_changed_for_load(|_| {})
    }

    /// The same after `change` had its say.
    pub(crate) fn start_changed_for_load(change: impl FnOnce(&mut Table)) -> Self {
        let program = peers::release("voxring").unwrap_or_else(|| env!("CARGO_BIN_EXE_voxring").into());
        Self::run(program, Surroundings::Plain, change)
    }

    fn run(program: PathBuf, surroundings: Surroundings, change: impl FnOnce(&mut Table)) -> Self {
        let ports = Ports::take();
        let folder = TempDir::with_prefix("voxring-test-").expect("a folder can be made");
        let mut config = configuration(&ports);
        change(&mut config);
        std::fs::write(folder.path().join("voxring.toml"), config.to_string())
            .expect("the config is written");
        let mut node = Self { ports, folder, child: None, log: Arc::default(), program, surroundings };
        node.start_again();
        node
    }

    /// A node whose mailboxes 1001 and 1002 greet with half a second of tone, then beep.
    pub(crate) fn with_short_greeting(change: impl FnOnce(&mut Table)) -> Self {
        Self::start(change).greeting_shortly()
    }

    /// Gives mailboxes 1001 and 1002 the short greeting.
    pub(crate) fn greeting_shortly(self) -> Self {
        let sound = audio::tone(440.0, 4000.0, 4000);
        if matches!(self.surroundings, Surroundings::Mounts(_)) {
            // SQLite would follow the path out of the node's mounts.
            let file = self.file("short.wav");
            audio::write(&file, &sound);
            for number in ["1001", "1002"] {
                self.json(&["mailbox", "greeting", number, &file.to_string_lossy()]);
            }
            return self;
        }
        let mut store = Store::open(&self.data()).expect("the store opens beside the node");
        audio::write(&store.greeting_path("short.wav"), &sound);
        for number in ["1001", "1002"] {
            store.set_greeting(number, Some("short.wav")).expect("the greeting is set");
        }
        self
    }

    /// Starts the process over the same folder and ports, and waits until it is ready.
    pub(crate) fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let mut command = self.command();
        command.arg("serve").env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.surroundings.enter(|| command.spawn()).expect("voxring starts");
        let ready = Arc::new(Mutex::new(false));
        follow(child.stdout.take().expect("piped"), Arc::clone(&self.log), Some(Arc::clone(&ready)));
        follow(child.stderr.take().expect("piped"), Arc::clone(&self.log), None);
        self.child = Some(child);
        let start = now();
        while !*ready.lock().unwrap_or_else(PoisonError::into_inner) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || start.elapsed() > START_LIMIT {
                std::thread::sleep(Duration::from_millis(200));
                panic!("voxring did not get ready ({ended:?}); it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The data folder, as others see it.
    pub(crate) fn data(&self) -> PathBuf {
        match (&self.surroundings, &self.child) {
            (Surroundings::Mounts(_), Some(child)) => mounts::seen_by(child.id(), &self.own_data()),
            (_, _) => self.own_data(),
        }
    }

    /// The data folder, as the node sees it.
    pub(crate) fn own_data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Runs `mount` where the node's mounts are.
    pub(crate) fn mount(&self, args: &[&str]) {
        mounts::mount_in(self.supervisor_pid(), args);
    }

    /// A file in the node's temporary folder, for the test's own use.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the node wrote so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `sip:USER@` router, by `tcp`, `udp` or `tls`.
    pub(crate) fn uri(&self, user: &str, transport: &str) -> String {
        let port = if transport == "tls" { self.ports.router_tls() } else { self.ports.router() };
        format!("sip:{user}@127.0.0.1:{port};transport={transport}")
    }

    fn command(&self) -> Command {
        let mut command = match &self.surroundings {
            // ip becomes the program: the process id is the node's.
            Surroundings::Namespace(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.program);
                command
            }
            // So does the shell; clients need no mounts.
            Surroundings::Mounts(mib) if self.child.is_none() => {
                mounts::on_disk_of(*mib, &self.own_data(), &self.program)
            }
            Surroundings::Plain | Surroundings::NoIoUring | Surroundings::Mounts(_) => {
                Command::new(&self.program)
            }
        };
        command.arg("--config").arg(self.file("voxring.toml")).arg("--data").arg(self.data());
        command
    }

    /// Runs a client command.
    pub(crate) fn client(&self, args: &[&str]) -> Output {
        let mut command = self.command();
        command.args(args);
        self.surroundings.enter(|| command.output()).expect("the client runs")
    }

    /// Runs a client command with `--json` and reads what it prints.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.client(&[args, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "voxring {args:?} failed: {text}{}\nthe node said:\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error} in {text}"))
    }

    /// A counter of the front and all workers (`sip_…`), summed; 0 where nobody has it.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.front_counter(name) + self.worker_counter(name)
    }

    /// A counter of router and service.
    pub(crate) fn front_counter(&self, name: &str) -> u64 {
        self.status()["front_counters"][name].as_u64().unwrap_or(0)
    }

    /// A counter of the workers, summed.
    pub(crate) fn worker_counter(&self, name: &str) -> u64 {
        let status = self.status();
        let workers = status["workers"].as_array().expect("a list of workers");
        workers.iter().filter_map(|worker| worker["counters"][name].as_u64()).sum()
    }

    /// Waits until a counter is this high; workers report theirs now and then.
    pub(crate) fn wait_counter(&self, name: &str, least: u64) {
        wait_for(&format!("{name} to reach {least}"), Duration::from_secs(8), || {
            (self.counter(name) >= least).then_some(())
        });
    }

    /// How many calls were refused for a reason.
    pub(crate) fn refused(&self, rule: &str) -> u64 {
        self.status()["refused_total"][rule].as_u64().unwrap_or(0)
    }

    /// Waits until this many calls were refused for a reason; front and workers report now and then.
    pub(crate) fn wait_refused(&self, rule: &str, count: u64) {
        wait_for(&format!("{count} calls refused for {rule}"), Duration::from_secs(8), || {
            (self.refused(rule) == count).then_some(())
        });
    }

    /// What `voxring status` tells.
    pub(crate) fn status(&self) -> Value {
        let status = self.json(&["status"]);
        status.get("status").unwrap_or(&status).clone()
    }

    /// Waits until the log has a line with all of these words.
    pub(crate) fn wait_log(&self, words: &[&str]) -> String {
        wait_for(&format!("a log line with {words:?}"), Duration::from_secs(5), || {
            let log = self.log();
            let mut lines = log.lines();
            lines.find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    /// SIGHUP: read the configuration and the certificates anew.
    pub(crate) fn reload(&self) {
        signal("-HUP", &self.supervisor_pid().to_string());
    }

    /// Voice messages of a mailbox, oldest first. Missed calls are left out.
    pub(crate) fn messages(&self, mailbox: &str) -> Vec<Message> {
        let value = self.json(&["message", "list", "--mailbox", mailbox]);
        let list = value.get("messages").unwrap_or(&value).as_array().expect("a list of messages").clone();
        list.iter().filter(|message| message["kind"] == "voice").map(Message::read).collect()
    }

    /// Waits until a mailbox holds `count` voice messages and gives them.
    pub(crate) fn wait_messages(&self, mailbox: &str, count: usize, limit: Duration) -> Vec<Message> {
        let start = now();
        loop {
            let messages = self.messages(mailbox);
            if messages.len() >= count {
                assert_eq!(messages.len(), count, "{messages:?}");
                return messages;
            }
            assert!(
                start.elapsed() < limit,
                "{} of {count} messages after {limit:?}; the node said:\n{}",
                messages.len(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A message's sound, by `voxring message export`.
    pub(crate) fn export(&self, id: &str) -> Vec<i16> {
        let path = self.file(&format!("{id}-{}.wav", raw::unique()));
        let output = self.client(&["message", "export", id, &path.to_string_lossy()]);
        assert!(output.status.success(), "export of {id}: {}", String::from_utf8_lossy(&output.stderr));
        audio::read(&path)
    }

    /// The supervisor's process id.
    pub(crate) fn supervisor_pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// Process id of the worker that is ready now, if any.
    pub(crate) fn worker_pid(&self) -> Option<u32> {
        let status = self.status();
        let worker = status["workers"].as_array()?.iter().find(|worker| worker["state"] == "ready")?.clone();
        u32::try_from(worker["pid"].as_u64()?).ok()
    }

    /// Calls that are up.
    pub(crate) fn calls(&self) -> usize {
        let value = self.json(&["calls"]);
        value.get("calls").unwrap_or(&value).as_array().expect("a list of calls").len()
    }

    /// Resident memory of supervisor and worker, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        [Some(self.supervisor_pid()), self.worker_pid()].into_iter().flatten().map(resident_kib).sum()
    }

    /// `kill -9` of the worker.
    pub(crate) fn kill_worker(&self) -> u32 {
        let pid = self.worker_pid().expect("a worker is ready");
        signal("-KILL", &pid.to_string());
        pid
    }

    /// `kill -9` of the supervisor, and waits until its worker noticed and ended.
    pub(crate) fn kill_supervisor(&mut self) {
        let worker = self.worker_pid().expect("a worker is ready");
        signal("-KILL", &self.supervisor_pid().to_string());
        self.child.take().expect("it ran").wait().expect("it ended");
        wait_for("the worker to end after its supervisor", Duration::from_secs(10), || {
            (!is_alive(worker)).then_some(())
        });
    }

    /// SIGTERM, and waits for an orderly end.
    pub(crate) fn stop(&mut self) {
        if let Some(child) = &self.child {
            signal("-TERM", &child.id().to_string());
            self.wait_end();
        }
    }

    /// Waits until it is gone after `kill -9`.
    pub(crate) fn wait_killed(&mut self) {
        self.child.take().expect("it ran").wait().expect("it ended");
    }

    /// Waits for an orderly end.
    pub(crate) fn wait_end(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let status =
            wait_for("the node to stop", Duration::from_secs(20), || child.try_wait().ok().flatten());
        assert!(status.success(), "voxring ended with {status}:\n{}", self.log());
    }
}

impl Surroundings {
    /// Does what starts a process.
    fn enter<T: Send>(&self, start: impl FnOnce() -> T + Send) -> T {
        match self {
            Self::Plain | Self::Namespace(_) | Self::Mounts(_) => start(),
            Self::NoIoUring => without_io_uring(start),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let worker = self.child.as_ref().and_then(|child| first_child(child.id()));
        if let Some(mut child) = self.child.take() {
            signal("-TERM", &child.id().to_string());
            let start = now();
            while child.try_wait().ok().flatten().is_none() && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(20));
            }
            // Both are ours; after an orderly end neither is there any more.
            let _ = child.kill();
            let _ = child.wait();
            worker.filter(|&pid| is_alive(pid)).iter().for_each(|pid| signal("-KILL", &pid.to_string()));
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("the node's last lines:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// One line of `voxring message list`.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// Its id.
    pub(crate) id: String,
    /// The SIP Call-ID that left it.
    pub(crate) call_id: String,
    /// The caller's number.
    pub(crate) caller: String,
    /// When the recording began, Unix milliseconds.
    pub(crate) started_ms: u64,
    /// Its length in milliseconds.
    pub(crate) duration_ms: u64,
    /// The diversion's reason.
    pub(crate) diversion_reason: String,
}

impl Message {
    fn read(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"));
        Self {
            id: text("id"),
            call_id: text("call_id"),
            caller: text("caller"),
            started_ms: number("started_ms"),
            duration_ms: number("duration_ms"),
            diversion_reason: text("diversion_reason"),
        }
    }
}

fn configuration(ports: &Ports) -> Table {
    let (first, last) = ports.rtp();
    let (router, service) = (i64::from(ports.router()), i64::from(ports.service()));
    let (worker_a, worker_b) = (i64::from(ports.worker_a()), i64::from(ports.worker_b()));
    let (router_tls, service_tls) = (i64::from(ports.router_tls()), i64::from(ports.service_tls()));
    let (tls_a, tls_b) = (i64::from(ports.worker_a_tls()), i64::from(ports.worker_b_tls()));
    let rtp = format!("{first}-{last}");
    toml! {
        [node]
        demo_mailboxes = true
        stop_timeout_s = 0
        [router]
        port = router
        tls_port = router_tls
        udp = true
        [service]
        port = service
        tls_port = service_tls
        udp = true
        [worker]
        port_a = worker_a
        port_b = worker_b
        tls_port_a = tls_a
        tls_port_b = tls_b
        udp = true
        media_shards = 1
        [rtp]
        ports = rtp
        quarantine_s = 1
        [test_extensions]
        enabled = true
    }
}

/// Collects a stream's lines; `ready` turns true at the line that says so.
fn follow(stream: impl Read + Send + 'static, log: Arc<Mutex<String>>, ready: Option<Arc<Mutex<bool>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some(ready) = ready.as_ref().filter(|_| line.trim().ends_with("ready")) {
                *ready.lock().unwrap_or_else(PoisonError::into_inner) = true;
            }
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&line);
            log.push('\n');
        }
    });
}

/// Sends a signal to a process.
pub(crate) fn signal(name: &str, pid: &str) {
    // It may have ended already: then there is nobody to tell.
    let _ = Command::new("kill").args([name, pid]).stderr(Stdio::null()).status();
}

/// Resident set size of a process in KiB; 0 when it is gone.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// True while a process runs; a zombie does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().next());
    state.is_some_and(|state| state != "Z")
}

/// A process's first child.
fn first_child(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

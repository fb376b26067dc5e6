//! Decisions on a fake clock.

use super::*;
use crate::base::clock;
use crate::base::config::Config;

const A: Slot = Slot::A;
const B: Slot = Slot::B;

/// A node with a fake clock.
struct Node {
    now: Instant,
    life: Life,
}

impl Node {
    /// Slot A takes calls.
    fn ready() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let now = clock::now();
        let mut node = Self { now, life: Life::new(now, Rules::of(&config)) };
        assert_eq!(node.pass(0), ["start A"]);
        node.start(A);
        assert_eq!(node.said(), ["front"]);
        assert_eq!(node.life.takes(), Some(A));
        node
    }

    /// Lets time pass without a heartbeat.
    fn pass(&mut self, ms: u64) -> Vec<String> {
        self.now += Duration::from_millis(ms);
        self.life.handle_timeout(self.now);
        self.said()
    }

    /// Lets time pass in steps of a second, in which both workers speak.
    fn live(&mut self, seconds: u64) -> Vec<String> {
        let mut said = Vec::new();
        for _ in 0..seconds {
            for slot in Slot::BOTH {
                self.life.handle_heartbeat(self.now, slot, 0);
            }
            said.extend(self.pass(1000));
        }
        said
    }

    /// The slot's process starts and becomes ready at once.
    fn start(&mut self, slot: Slot) {
        self.life.handle_started(self.now, slot);
        self.life.handle_ready(self.now, slot);
    }

    fn exit(&mut self, slot: Slot) -> Vec<String> {
        self.life.handle_exited(self.now, slot, "killed");
        self.said()
    }

    /// It has ended its calls first.
    fn leave(&mut self, slot: Slot) -> Vec<String> {
        self.life.handle_over(slot);
        assert!(self.life.is_leaving(slot));
        self.exit(slot)
    }

    /// Recycles until the other slot takes calls.
    fn recycled() -> Self {
        let mut node = Self::ready();
        assert_eq!(node.life.recycle(node.now, "test".into()), Ok(1));
        assert_eq!(node.said(), ["start B"]);
        node.start(B);
        assert_eq!(node.said(), ["prove B"]);
        assert_eq!(node.life.takes(), Some(A), "not before it has proved itself");
        node.life.handle_proof(node.now, B, Ok(()));
        assert_eq!(node.said(), ["front", "changed", "retire A 3600"]);
        node
    }

    fn said(&mut self) -> Vec<String> {
        let word = |wanted| match wanted {
            Do::Start(slot) => format!("start {}", slot.name()),
            Do::Prove(slot) => format!("prove {}", slot.name()),
            Do::Retire(slot, within) => format!("retire {} {}", slot.name(), within.as_secs()),
            Do::Stop(slot) => format!("stop {}", slot.name()),
            Do::Kill(slot, why) => format!("kill {}: {why}", slot.name()),
            Do::Front => "front".to_owned(),
            Do::Changed => "changed".to_owned(),
            Do::Replace => "replace".to_owned(),
        };
        std::iter::from_fn(|| self.life.poll()).map(word).collect()
    }

    fn change(&self) -> (ChangeState, Option<&str>) {
        let change = self.life.change().expect("one was asked for");
        (change.state, change.error.as_deref())
    }
}

/// Goal: the new worker takes calls only once it has proved itself, the old one then drains, and its end
/// is no death. Method: a recycle from A to B, then from B to A.
#[test]
fn a_recycle_goes_from_slot_to_slot_and_back() {
    let mut node = Node::recycled();
    assert_eq!(node.life.takes(), Some(B));
    assert!(matches!(node.life.phase(A), Phase::Draining { .. }));
    assert_eq!(node.change(), (ChangeState::Done, None));
    let refused = node.life.recycle(node.now, "again".into()).unwrap_err();
    assert_eq!(refused, "slot A still drains, for 3600 s at most");
    assert!(node.leave(A).is_empty(), "nobody is restarted");
    assert_eq!(node.life.recycle(node.now, "again".into()), Ok(2));
    assert_eq!(node.said(), ["start A"]);
    node.start(A);
    node.life.handle_proof(node.now, A, Ok(()));
    assert_eq!(node.said(), ["prove A", "front", "changed", "retire B 3600"]);
    assert_eq!((node.life.restarts(A), node.life.restarts(B)), (0, 0));
}

/// Goal: a new worker that fails its test, dies or hangs leaves the old one alone, and the change says
/// why. Method: each of them.
#[test]
fn a_successor_that_fails_leaves_the_old_worker_alone() {
    type Fault = fn(&mut Node) -> Vec<String>;
    let faults: [(Fault, &str); 4] = [
        (
            |node| {
                node.start(B);
                node.life.handle_proof(node.now, B, Err("no RTP".into()));
                node.said()
            },
            "its self-test failed: no RTP",
        ),
        (|node| node.exit(B), "it ended: killed"),
        (
            |node| {
                node.life.handle_started(node.now, B);
                node.live(61)
            },
            "it did not become ready in time",
        ),
        (
            |node| {
                node.start(B);
                node.said();
                node.live(16)
            },
            "it did not finish its self-test in time",
        ),
    ];
    for (fault, told) in faults {
        let mut node = Node::ready();
        node.life.recycle(node.now, "test".into()).unwrap();
        assert_eq!(node.said(), ["start B"]);
        let said = fault(&mut node);
        assert!(said.contains(&"changed".to_owned()), "{said:?}");
        assert_eq!(node.change(), (ChangeState::Failed, Some(told)));
        assert_eq!(node.life.takes(), Some(A));
        node.exit(B);
        assert_eq!(node.life.phase(B), Phase::Down);
        assert!(node.life.recycle(node.now, "again".into()).is_ok());
    }
}

/// Goal: age, memory and calls are reasons to recycle, each alone; after a failure the next try waits.
/// Method: a fake clock, and what a worker says of itself.
#[test]
fn age_memory_and_calls_are_reasons_to_recycle() {
    let mut node = Node::ready();
    assert_eq!(node.live(10), Vec::<String>::new());
    node.now += Duration::from_secs(7 * 86_400);
    node.life.postpone(Duration::from_secs(7 * 86_400));
    assert_eq!(node.live(1), ["start B"]);
    assert_eq!(node.life.change().unwrap().why, "age: it has run for 168 h");
    node.exit(B);
    assert_eq!(node.live(599), Vec::<String>::new(), "it failed: not at once again");
    assert_eq!(node.live(2), ["start B"]);

    let mut node = Node::with(|config| config.worker.recycle_memory_mib = 100);
    node.life.handle_memory(A, 102_399);
    assert_eq!(node.live(1), Vec::<String>::new());
    node.life.handle_memory(A, 102_400);
    assert_eq!(node.live(1), ["start B"]);
    assert_eq!(node.life.change().unwrap().why, "memory: 100 MiB are resident");

    let mut node = Node::with(|config| config.worker.recycle_calls = 5);
    node.life.handle_heartbeat(node.now, A, 4);
    assert_eq!(node.pass(100), Vec::<String>::new());
    node.life.handle_heartbeat(node.now, A, 5);
    assert_eq!(node.pass(100), ["start B"]);
}

/// Goal: a worker that is silent for three seconds is killed once and replaced; a draining one too.
/// Method: no heartbeat from one of them.
#[test]
fn a_silent_worker_is_killed_and_replaced() {
    let mut node = Node::ready();
    assert_eq!(node.pass(2_999), Vec::<String>::new());
    assert_eq!(node.pass(1), ["kill A: sent no heartbeat"]);
    assert_eq!(node.pass(1_000), Vec::<String>::new());
    assert_eq!(node.exit(A), ["front"]);
    assert_eq!(node.life.takes(), None);
    assert_eq!(node.pass(0), ["start A"], "at once: its calls wait");
    node.start(A);
    assert_eq!(node.said(), ["front"], "no test: nobody else takes calls");
    assert_eq!(node.life.restarts(A), 1);

    let mut node = Node::recycled();
    for _ in 0..3 {
        node.life.handle_heartbeat(node.now, B, 0);
        node.now += Duration::from_secs(1);
    }
    node.life.handle_heartbeat(node.now, B, 0);
    assert_eq!(node.pass(0), ["kill A: sent no heartbeat"]);
    assert_eq!(node.exit(A), Vec::<String>::new());
    assert_eq!(node.life.takes(), Some(B));
    assert_eq!(node.pass(0), ["start A"]);
}

/// Goal: a worker that dies while it drains is replaced by one that goes on with its calls, takes no new
/// ones, and has what was left of the time; one that has ended its calls, or has no time left, is not, and
/// one that keeps dying is given up without harm to the other. Method: each of them on a fake clock.
#[test]
fn calls_of_a_draining_worker_outlast_it() {
    let mut node = Node::recycled();
    assert_eq!(node.live(100), Vec::<String>::new());
    assert_eq!(node.exit(A), Vec::<String>::new());
    assert!(node.life.has_heir(A) && !node.life.is_leaving(A));
    assert_eq!(node.pass(0), ["start A"]);
    node.start(A);
    assert_eq!(node.said(), ["retire A 3500"]);
    assert_eq!((node.life.takes(), node.life.restarts(A)), (Some(B), 1));
    assert!(node.leave(A).is_empty());
    assert!(!node.life.has_heir(A));
    assert_eq!(node.live(10), Vec::<String>::new());

    let mut node = Node::recycled();
    node.live(3_601);
    node.exit(A);
    assert!(!node.life.has_heir(A), "its time is over");

    let mut node = Node::recycled();
    for _ in 0..5 {
        node.exit(A);
        node.live(9);
        node.start(A);
        node.said();
    }
    assert!(!node.life.has_heir(A) && node.life.gave_up().is_none());
    assert_eq!(node.life.takes(), Some(B));
}

/// Goal: a supervisor that was stopped for a while kills nobody for what it could not read. Method: a
/// minute's pause, told.
#[test]
fn a_pause_of_the_supervisor_is_not_the_workers_silence() {
    let mut node = Node::recycled();
    node.life.postpone(Duration::from_secs(60));
    assert_eq!(node.pass(60_000), Vec::<String>::new());
    assert_eq!(node.pass(3_000).len(), 2, "both are silent now");
}

/// Goal: after five deaths in a minute no worker is started any more until an operator says so; deaths
/// further apart do not add up. Method: workers that die at once, then such that live 16 s.
#[test]
fn a_crash_loop_stops_until_an_operator_recycles() {
    let mut node = Node::ready();
    for death in 1..=5 {
        let said = node.exit(A);
        assert_eq!(said[0], "front");
        if death < 5 {
            assert_eq!(node.pass(8_000), ["start A"]);
            node.start(A);
            node.said();
        }
    }
    let told = "gave up: worker died 5 times in 60 s; `voxring recycle` tries again";
    assert_eq!(node.life.gave_up(), Some(told));
    assert_eq!(node.live(3_600), Vec::<String>::new());
    assert_eq!(node.life.recycle(node.now, "voxring recycle".into()), Ok(1));
    assert_eq!(node.said(), ["start A"]);
    node.start(A);
    assert_eq!(node.said(), ["front", "changed"]);
    assert_eq!((node.life.gave_up(), node.change()), (None, (ChangeState::Done, None)));

    let mut node = Node::ready();
    for _ in 0..20 {
        node.live(16);
        assert_eq!(node.exit(A), ["front"]);
        assert_eq!(node.pass(0), ["start A"], "one that lived long is replaced at once");
        node.start(A);
        node.said();
    }
    assert_eq!(node.life.gave_up(), None);
}

/// Goal: a machine that has no process to give for a while is asked again and again, less and less often,
/// and that is no crash loop; a successor that cannot be started leaves the old worker alone. Method: starts
/// that fail for minutes.
#[test]
fn a_worker_that_cannot_be_started_is_tried_for_as_long_as_it_takes() {
    let mut node = Node::ready();
    node.exit(A);
    for _ in 0..30 {
        assert_eq!(node.pass(8_000), ["start A"]);
        node.life.handle_start_failed(node.now, A, "no process");
        assert!(node.life.has_heir(A) && node.pass(200).is_empty());
    }
    assert_eq!((node.life.gave_up(), node.life.restarts(A)), (None, 1));
    let mut node = Node::ready();
    node.life.recycle(node.now, "test".into()).unwrap();
    assert_eq!(node.said(), ["start B"]);
    node.life.handle_start_failed(node.now, B, "no process");
    assert_eq!(node.said(), ["changed"]);
    assert_eq!(node.change(), (ChangeState::Failed, Some("it ended: no process")));
}

/// Goal: when a worker dies while its successor is on its way, the successor takes calls as soon as it
/// can, and the dead one's calls go on in its own slot. Method: a death while the successor starts, and
/// while it proves itself.
#[test]
fn a_successor_on_its_way_replaces_a_worker_that_dies() {
    for is_ready in [false, true] {
        let mut node = Node::ready();
        node.life.recycle(node.now, "test".into()).unwrap();
        node.life.handle_started(node.now, B);
        if is_ready {
            node.life.handle_ready(node.now, B);
        }
        node.said();
        let said = node.exit(A);
        assert!(said.contains(&"front".to_owned()));
        assert_eq!(node.pass(0), ["start A"]);
        node.life.handle_ready(node.now, B);
        assert_eq!(node.life.takes(), Some(B));
        assert_eq!(node.said(), ["front", "changed"][..if is_ready { 0 } else { 2 }]);
        node.start(A);
        assert_eq!(node.said(), ["retire A 3600"]);
        assert_eq!(node.leave(A), Vec::<String>::new());
        assert_eq!(node.life.phase(A), Phase::Down);
        assert_eq!(node.change().0, ChangeState::Done);
    }
}

/// Goal: SIGTERM gives calls their time, a second one none, a third not even a word; a node without time
/// to give ends calls at once. Method: one, two and three of them with a worker that drains already.
#[test]
fn a_stop_gives_time_once() {
    let mut node = Node::recycled();
    node.life.stop(node.now);
    assert_eq!(node.said(), ["retire A 30", "retire B 30", "front"]);
    assert_eq!(node.life.takes(), None);
    assert_eq!(node.exit(A), Vec::<String>::new());
    assert!(!node.life.is_over());
    node.life.stop(node.now);
    assert_eq!(node.said(), ["stop B", "front"]);
    node.life.stop(node.now);
    assert_eq!(node.said(), ["kill B: is to stop at once", "front"]);
    assert_eq!(node.exit(B), Vec::<String>::new());
    assert!(node.life.is_over());

    let mut node = Node::with(|config| config.node.stop_timeout_s = 0);
    node.life.stop(node.now);
    assert_eq!(node.said(), ["stop A", "front"]);
    assert_eq!(node.live(16)[0], "kill A: did not stop in time");
}

/// Goal: a signalling loop that hangs costs its worker at once, a media shard gets a successor first; while
/// another worker drains there is no slot for one. Method: each report.
#[test]
fn a_stalled_loop_costs_its_worker() {
    let mut node = Node::ready();
    node.life.handle_stalled(node.now, A, "signalling", true);
    assert_eq!(node.said(), ["kill A: has a thread that does not turn"]);
    let mut node = Node::ready();
    node.life.handle_stalled(node.now, A, "media-0", false);
    assert_eq!(node.said(), ["start B"]);
    assert_eq!(node.life.change().unwrap().why, "media-0 does not turn");
    let mut node = Node::recycled();
    node.life.handle_stalled(node.now, B, "media-0", false);
    assert!(node.said()[0].starts_with("kill B: has a media shard that does not turn"));
}

/// Goal: an upgrade looks at the program first, replaces the supervisor only once a worker of the program
/// takes calls, and goes on in the next program with the same workers. Method: a program that does not fit,
/// one that does; the state taken over.
#[test]
fn an_upgrade_replaces_the_supervisor_last() {
    let mut node = Node::ready();
    assert_eq!(node.life.prepare_upgrade(node.now, "upgrade".into()), Ok(1));
    assert_eq!(node.change(), (ChangeState::Checking, None));
    assert!(node.life.recycle(node.now, "other".into()).unwrap_err().contains("under way: upgrade"));
    node.life.upgrade(node.now, Err("it is no voxring".into()));
    assert_eq!(node.said(), ["changed"]);
    assert_eq!(node.change(), (ChangeState::Failed, Some("it is no voxring")));

    assert_eq!(node.life.prepare_upgrade(node.now, "upgrade".into()), Ok(2));
    node.life.upgrade(node.now, Ok(()));
    assert_eq!(node.said(), ["start B"]);
    node.start(B);
    node.life.handle_proof(node.now, B, Ok(()));
    assert_eq!(node.said(), ["prove B", "front", "replace", "retire A 3600"]);
    assert_eq!(node.change(), (ChangeState::Replacing, None));
    let state = serde_json::to_string(&node.life.state(node.now)).unwrap();
    let state = serde_json::from_str(&state).unwrap();
    let rules = Rules::of(&Config::default());
    node.life = Life::resume(node.now, rules, state, [true, true]);
    assert_eq!(node.said(), ["front", "changed"]);
    assert_eq!(node.change(), (ChangeState::Done, None));
    assert_eq!(node.life.takes(), Some(B));
    let left = |life: &Life| match life.phase(A) {
        Phase::Draining { until } => until,
        other => panic!("{other:?}"),
    };
    assert_eq!(left(&node.life), node.now + Duration::from_secs(3600));
    assert_eq!(node.live(10), Vec::<String>::new());
}

//! Made-up runs and searches of a server whose media thread is full at 2,400 calls.

use crate::compare::contestant::{Identity, Round};
use crate::compare::report::{CompareReport, Level, Pair};
use crate::find::bound::{Bound, Kind};
use crate::find::report::{FindReport, Step, recommended};
use crate::find::search::{End, Purpose};
use crate::find::slo::Slo;
use crate::load::life::{Life, PartCount};
use crate::load::result::{
    Asked, Calls, Continuity, Distribution, Fingerprint, Generator, Packets, RunReport, Scenario, Server,
    ServerThread, StreamGap, count,
};

/// A run with so many calls in which all went well.
pub(crate) fn run_of(load: u64) -> RunReport {
    let (calls, seconds) = (count(load), 10.0);
    let packets = load * 500;
    let media_percent = 2.0 + calls / 24.5;
    RunReport {
        fingerprint: Fingerprint {
            processor: "Example processor".to_owned(),
            processors: 2,
            memory_bytes: 8 << 30,
            kernel: "6.18.44".to_owned(),
            voxperf: "0.1.0".to_owned(),
            server: "voxring/0.1.0".to_owned(),
            began_unix_s: 1_795_903_200,
            ..Fingerprint::default()
        },
        command: ["voxperf", "run", "--calls", &load.to_string()].map(str::to_owned).to_vec(),
        asked: Asked {
            scenario: Scenario::Echo,
            target: "sip:9196@127.0.0.1:5060;transport=tcp".to_owned(),
            calls: usize::try_from(load).unwrap(),
            cps: 100.0,
            duration_s: seconds,
            seed: 1,
            srtp: None,
            rtcp: false,
        },
        measured_s: seconds,
        calls: Calls {
            attempted: load,
            answered: load,
            peak: load,
            outcomes: [("200".to_owned(), load)].into(),
            per_s: 100.0,
            ..Calls::default()
        },
        setup: distribution(1500.0 + calls, 2.0),
        first_audio: distribution(21_000.0, 1.1),
        packets: Packets { sent: packets, expected: packets, received: packets, ..Packets::default() },
        continuity: continuity(),
        life: Some(life()),
        jitter: distribution(200.0, 1.2),
        spacing: distribution(20_000.0, 1.01),
        added: distribution(400.0 + calls / 10.0, 1.4),
        generator: Generator {
            cpu_percent: [("media".to_owned(), calls / 60.0), ("signalling".to_owned(), 4.0)].into(),
            busiest_percent: calls / 60.0,
            send_lateness: distribution(60.0, 1.5),
            ..Generator::default()
        },
        server: Some(Server {
            threads: vec![
                ServerThread {
                    pid: 100,
                    name: "media-0".to_owned(),
                    cpu_percent: media_percent,
                    ..ServerThread::default()
                },
                ServerThread {
                    pid: 100,
                    name: "sip-worker".to_owned(),
                    cpu_percent: 6.0,
                    ..ServerThread::default()
                },
            ],
            cpu_percent: media_percent + 6.0,
            media_us_per_packet: media_percent * 100.0 * seconds * 1e2 / count(packets.max(1)),
            resident_bytes: (30 << 20) + load * 12_000,
            resident_before_bytes: 30 << 20,
            ..Server::default()
        }),
    }
}

/// Three streams, one of which began anew after a long gap.
fn continuity() -> Continuity {
    Continuity {
        streams: 3,
        longest_gap: distribution(22_000.0, 1.5),
        histogram_ms: vec![(Some(30), 2), (Some(500), 0), (None, 1)],
        restarts: 1,
        worst: vec![StreamGap { stream: 9, longest_gap_us: 6_000_000, ssrc_changes: 0, restarts: 1 }],
        ..Continuity::default()
    }
}

/// Held calls, one of which ended early.
fn life() -> Life {
    let held = PartCount { begun: 5, answered: 5, ended_by_us: 4, early: 1, ..PartCount::default() };
    Life {
        parts: [("held".to_owned(), held)].into(),
        early: [("BYE: Q.850;cause=16".to_owned(), 1)].into(),
        changes: 9,
        changes_taken: 8,
        ..Life::default()
    }
}

/// A distribution that grows by `factor` from one reported quantile to the next.
fn distribution(median: f64, factor: f64) -> Distribution {
    let value = |index: i32| {
        let value = median * factor.powi(index);
        std::time::Duration::from_secs_f64(value / 1e6).as_micros().try_into().unwrap()
    };
    let quantiles = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];
    let quantiles = quantiles.into_iter().zip(-2..).map(|(quantile, index)| (quantile, value(index)));
    Distribution { count: 10_000, quantiles: quantiles.collect(), mean: median }
}

/// That run as a step of a search with these limits.
pub(crate) fn step_of(run: RunReport, slo: &str) -> Step {
    let judged = slo.parse::<Slo>().unwrap().judge(&run);
    let kept = judged.iter().all(|judged| judged.kept);
    Step { load: run.asked.calls as u64, purpose: Purpose::Bracket, kept, counted: true, judged, run }
}

/// A finished search with this knee.
pub(crate) fn find_of(scenario: Scenario, knee: u64) -> FindReport {
    let slo = "loss<1e-4, spacing_p999<25ms, cpu<95%";
    let loads = [50, 100, 200, 400, 800, 1600, knee, knee + knee / 20];
    let mut steps: Vec<Step> = loads.into_iter().map(|load| step_of(run_of(load), slo)).collect();
    for step in &mut steps {
        step.run.asked.scenario = scenario;
        step.kept = step.load <= knee;
    }
    FindReport {
        fingerprint: steps[0].run.fingerprint.clone(),
        command: ["voxperf", "find"].map(str::to_owned).to_vec(),
        scenario,
        target: steps[0].run.asked.target.clone(),
        slo: slo.parse::<Slo>().unwrap().to_string(),
        tolerance: 0.05,
        took_s: 301.0,
        end: End::Converged,
        trouble: None,
        knee: Some(knee),
        missed: Some(knee + knee / 20),
        confirmed: true,
        recommended: Some(recommended(knee)),
        kind: Kind::Ceiling,
        bound: Bound::Server { thread: "media-0".to_owned(), percent: 97.0 },
        steps,
    }
}

/// A comparison in which the far side loses packets at the highest load.
pub(crate) fn comparison_of() -> CompareReport {
    let round = |calls: usize, index: u64, us_per_packet: u64, lost: u64| {
        let run = run_of(calls as u64);
        let handled = run.packets.received - lost;
        let media_us = handled * us_per_packet + handled * index / 5;
        Round {
            cpu_us: media_us + 120_000,
            media_us,
            handled,
            refused: 0,
            packets: Packets { received: handled, lost, ..run.packets },
            added: run.added,
            spacing: run.spacing,
            generator: run.generator,
        }
    };
    let level = |calls: usize, lost: u64| {
        let pair = |index| Pair { ours: round(calls, index, 3, 0), theirs: round(calls, index % 3, 6, lost) };
        Level { calls, pairs: (0..5).map(pair).collect(), trouble: None }
    };
    let named = |name: &str, version: &str| Identity {
        name: name.to_owned(),
        version: version.to_owned(),
        command: format!("{name} --as-it-was-started"),
        counted: "all of its threads".to_owned(),
    };
    CompareReport {
        fingerprint: run_of(1).fingerprint,
        command: ["voxperf", "compare", "rtpengine"].map(str::to_owned).to_vec(),
        what: "anchored calls".to_owned(),
        window_s: 10.0,
        ours: named("voxring", "0.1.0"),
        theirs: named("rtpengine", "10.5.3.5"),
        levels: vec![level(250, 0), level(500, 0), level(1000, 0), level(2000, 312)],
    }
}

//! Whether the generator itself was what limited a result.

use std::fmt::Write as _;

use crate::load::result::{Generator, count};

/// Share of a processor above which a thread of ours may be late.
const BUSY_PERCENT: f64 = 90.0;
/// Lateness that 99 of 100 frames must stay below, microseconds.
const LATENESS_US_MAX: u64 = 5_000;
/// Share of frames that may leave a packet time late.
const LATE_FRAMES_MAX: f64 = 0.001;
/// Share of calls that may begin late.
const LATE_CALLS_MAX: f64 = 0.01;

/// What a run of ours came to, beside [`Generator`] itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Frames sent.
    pub frames: u64,
    /// Calls begun.
    pub calls: u64,
    /// Datagrams our own sockets dropped.
    pub dropped: u64,
    /// Sends our own kernel refused.
    pub refused: u64,
}

/// Why the result is only a floor, each reason with its measure; `None`: nothing held us back.
pub fn bottleneck(generator: &Generator, load: Load) -> Option<String> {
    let mut why = String::new();
    let mut tell = |reason: std::fmt::Arguments<'_>| {
        let _ = write!(why, "{}{reason}", if why.is_empty() { "" } else { "; " });
    };
    for (name, &percent) in &generator.cpu_percent {
        if percent > BUSY_PERCENT {
            tell(format_args!(
                "its thread {name} used {percent:.0} % of a processor (limit {BUSY_PERCENT:.0} %)"
            ));
        }
    }
    if let Some(lateness) = generator.send_lateness.at(0.99).filter(|&lateness| lateness > LATENESS_US_MAX) {
        let (ms, limit) = (count(lateness) / 1000.0, LATENESS_US_MAX / 1000);
        tell(format_args!("1 % of its frames left {ms:.1} ms late or later (limit {limit} ms)"));
    }
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { count(part) / count(whole) };
    let late = share(generator.late_frames, load.frames);
    if late > LATE_FRAMES_MAX {
        tell(format_args!(
            "{:.2} % of its frames left more than 20 ms late (limit {} %)",
            100.0 * late,
            100.0 * LATE_FRAMES_MAX
        ));
    }
    let late = share(generator.late_calls, load.calls);
    if late > LATE_CALLS_MAX {
        tell(format_args!(
            "{:.1} % of its calls began more than 10 ms late (limit {} %)",
            100.0 * late,
            100.0 * LATE_CALLS_MAX
        ));
    }
    if load.dropped > 0 {
        tell(format_args!("its own sockets dropped {} datagrams", load.dropped));
    }
    if load.refused > 0 {
        tell(format_args!("its kernel refused {} sends", load.refused));
    }
    (!why.is_empty()).then(|| format!("the generator: {why}"))
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::load::result::Distribution;

    fn generator(media: f64, lateness_us: u64, late_frames: u64, late_calls: u64) -> Generator {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).unwrap();
        histogram.record_n(lateness_us, 1000).unwrap();
        Generator {
            cpu_percent: [("vx-media".to_owned(), media), ("vx-signal".to_owned(), 12.0)].into(),
            busiest_percent: media,
            send_lateness: Distribution::of(&histogram),
            late_frames,
            late_calls,
            bottleneck: None,
        }
    }

    /// Goal: a generator within its limits is believed; beyond any of them it says which, and by how
    /// much.
    /// Method: numbers at each limit, and one step beyond each of them.
    #[test]
    fn an_overloaded_generator_says_so() {
        let load = Load { frames: 100_000, calls: 1000, dropped: 0, refused: 0 };
        assert_eq!(bottleneck(&generator(90.0, 4_999, 100, 10), load), None);
        assert_eq!(bottleneck(&Generator::default(), Load::default()), None, "nothing done, nothing late");
        let busy = bottleneck(&generator(97.4, 100, 0, 0), load).unwrap();
        assert_eq!(busy, "the generator: its thread vx-media used 97 % of a processor (limit 90 %)");
        let late = bottleneck(&generator(50.0, 7_000, 101, 11), load).unwrap();
        for part in ["7.0 ms late", "0.10 % of its frames", "1.1 % of its calls"] {
            assert!(late.contains(part), "{late}");
        }
        let dropped =
            bottleneck(&generator(50.0, 100, 0, 0), Load { dropped: 3, refused: 2, ..load }).unwrap();
        assert!(dropped.contains("dropped 3") && dropped.contains("refused 2"), "{dropped}");
    }
}

//! When calls begin: an open loop on absolute time, which waits for no answer.

use std::time::Duration;

use crate::rng::Rng;

/// How arrivals are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Spread {
    /// One every 1/rate seconds.
    #[default]
    Even,
    /// Independent of each other: exponential times between them (Poisson arrivals).
    Poisson,
}

/// Arrival times from the start of a run, without end.
#[derive(Debug, Clone)]
pub struct Arrivals {
    spread: Spread,
    rate: f64,
    rng: Rng,
    count: u32,
    sum_s: f64,
}

impl Arrivals {
    /// `rate` arrivals a second, above 0. The same seed gives the same times.
    pub fn new(spread: Spread, rate: f64, seed: u64) -> Self {
        Self { spread, rate, rng: Rng::new(seed), count: 0, sum_s: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at = match self.spread {
            Spread::Even => f64::from(self.count) / self.rate,
            Spread::Poisson => {
                // Never 0, whose logarithm has no end.
                let unit = (f64::from(self.rng.word()) + 1.0) / 4_294_967_296.0;
                self.sum_s -= unit.ln() / self.rate;
                self.sum_s
            }
        };
        self.count += 1;
        Some(Duration::from_secs_f64(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: even arrivals never drift. Method: the 100,001st at 300 a second is due after 333.3 s.
    #[test]
    fn even_arrivals_never_drift() {
        let mut arrivals = Arrivals::new(Spread::Even, 300.0, 1);
        assert_eq!(arrivals.next(), Some(Duration::ZERO));
        assert_eq!(arrivals.nth(99_999), Some(Duration::from_secs_f64(100_000.0 / 300.0)));
    }

    /// Goal: Poisson arrivals keep the rate, repeat with their seed, and have the spread of the
    /// exponential distribution: its standard deviation is its mean.
    /// Method: 20,000 of them at 50 a second; three per cent allowed, more than four standard errors.
    #[test]
    fn poisson_arrivals_keep_the_rate_and_the_spread() {
        let times: Vec<f64> =
            Arrivals::new(Spread::Poisson, 50.0, 7).take(20_000).map(|at| at.as_secs_f64()).collect();
        let again = Arrivals::new(Spread::Poisson, 50.0, 7).nth(19_999).unwrap().as_secs_f64();
        assert!((times[19_999] - again).abs() < 1e-9);
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / 19_999.0;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 19_999.0).sqrt();
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        assert!((deviation / mean - 1.0).abs() < 0.03, "{deviation}");
    }
}

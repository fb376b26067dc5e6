//! Axes: from values to places, and where ticks stand.

use crate::figures;

/// How values spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By their logarithm. Zero and what is below `floor` stand at the foot, marked 0, if there is any.
    Log {
        /// The smallest value told from zero.
        floor: f64,
    },
    /// Quantiles from 0 to 1, each further nine as wide as the one before.
    Quantile,
}

/// What the numbers at an axis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bare numbers.
    Count,
    /// Hundredths.
    Percent,
    /// Shares from 0 to 1, shown as per cent.
    Share,
    /// Microseconds.
    Time,
    /// Bytes.
    Bytes,
}

/// One axis of a chart.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows.
    pub label: String,
    /// How.
    pub scale: Scale,
    /// Of what.
    pub unit: Unit,
}

/// An axis fitted to its values.
#[derive(Debug, Clone)]
pub(super) struct Fitted {
    scale: Scale,
    unit: Unit,
    /// Ends, on the scale.
    from: f64,
    to: f64,
    /// Values that ticks stand at.
    pub(super) ticks: Vec<f64>,
}

impl Unit {
    /// A value as a person reads it.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Count if value.abs() >= 1000.0 => figures::rounded(value),
            Self::Count => figures::trimmed(value, 2),
            Self::Percent => format!("{} %", figures::trimmed(value, 1)),
            Self::Share => figures::share(value),
            Self::Time => figures::time(value),
            Self::Bytes => figures::bytes(value),
        }
    }
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: &str, unit: Unit) -> Self {
        Self { label: label.to_owned(), scale: Scale::Linear, unit }
    }

    /// A logarithmic axis whose zero is whatever is below `floor`.
    pub fn log(label: &str, unit: Unit, floor: f64) -> Self {
        Self { label: label.to_owned(), scale: Scale::Log { floor }, unit }
    }

    /// The axis of percentiles.
    pub fn quantiles() -> Self {
        Self { label: "percentile".to_owned(), scale: Scale::Quantile, unit: Unit::Share }
    }

    /// Fits the axis to values; without any it still has a length.
    pub(super) fn fit(&self, values: impl Iterator<Item = f64> + Clone) -> Fitted {
        let finite = values.filter(|value| value.is_finite());
        let (scale, unit) = (self.scale, self.unit);
        match scale {
            Scale::Linear => {
                let (least, most) = (least(finite.clone()).min(0.0), most(finite).max(f64::MIN_POSITIVE));
                let step = nice_step(most - least, unit);
                let (first, last) = ((least / step).floor(), (most / step).ceil().max(1.0));
                let ticks: Vec<f64> = steps(first, last).map(|index| index * step).collect();
                Fitted { scale, unit, from: first * step, to: last * step, ticks }
            }
            Scale::Log { floor } => {
                let has_zero = finite.clone().any(|value| value <= floor);
                let above = finite.filter(|value| *value > floor);
                let (least, most) = (least(above.clone()), most(above));
                let (least, most) = if most > 0.0 { (least, most) } else { (floor, floor * 100.0) };
                let from = if has_zero { floor } else { below(least) };
                let ticks = log_ticks(from, most);
                let to = ticks.last().copied().unwrap_or(most).max(most);
                Fitted { scale, unit, from: from.log10(), to: to.log10(), ticks }
            }
            Scale::Quantile => {
                let ticks = vec![0.5, 0.9, 0.99, 0.999, 0.9999];
                Fitted { scale, unit, from: 0.0, to: 4.0, ticks }
            }
        }
    }
}

impl Fitted {
    /// Where a value stands, 0 at the axis' begin and 1 at its end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let scaled = match self.scale {
            Scale::Linear => value,
            Scale::Log { floor } => value.max(floor).log10(),
            Scale::Quantile => -(1.0 - value.min(0.999_999)).log10(),
        };
        ((scaled - self.from) / (self.to - self.from).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
    }

    /// What stands beside a tick.
    pub(super) fn tick(&self, value: f64) -> String {
        match self.scale {
            Scale::Log { floor } if value <= floor => "0".to_owned(),
            _ => self.unit.show(value),
        }
    }
}

fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.reduce(f64::min).unwrap_or(0.0)
}

fn most(values: impl Iterator<Item = f64>) -> f64 {
    values.reduce(f64::max).unwrap_or(0.0)
}

/// Whole numbers from one to another; never very many.
fn steps(first: f64, last: f64) -> impl Iterator<Item = f64> {
    (0..64).map(move |index| first + f64::from(index)).take_while(move |index| *index <= last)
}

/// 1, 2 or 5 times a power of ten, so that about five fit; for times a step in their unit.
fn nice_step(span: f64, unit: Unit) -> f64 {
    let rough = (span / 5.0).max(f64::MIN_POSITIVE);
    let decade = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * decade >= rough * 0.999);
    let step = factor.unwrap_or(10.0) * decade;
    // Binary units want binary steps.
    if unit == Unit::Bytes && step >= 1024.0 { 2f64.powf(rough.log2().ceil()) } else { step }
}

/// The 1, 2 or 5 of a decade at or below a value above zero.
fn below(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    let factor = [5.0, 2.0].into_iter().find(|factor| factor * decade <= value * 1.001).unwrap_or(1.0);
    factor * decade
}

/// Decades between two values; with 2 and 5 in between where there are few.
fn log_ticks(from: f64, to: f64) -> Vec<f64> {
    let (first, last) = (from.log10().floor(), to.log10().ceil().max(from.log10().floor() + 1.0));
    let factors: &[f64] = if last - first <= 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = ((last - first) / 6.0).ceil().max(1.0);
    let decades = steps(0.0, (last - first) / every).map(|index| 10f64.powf(first + index * every));
    let all = decades.flat_map(|decade| factors.iter().map(move |factor| factor * decade));
    let mut ticks: Vec<f64> = all.filter(|tick| *tick >= from * 0.999).collect();
    // One tick above the highest value ends the axis.
    let end = ticks.iter().position(|tick| *tick >= to * 0.999).map_or(ticks.len(), |at| at + 1);
    ticks.truncate(end.max(2));
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 1e-9
    }

    /// Goal: a linear axis begins at zero and ends at a round number. Method: values up to 2,340.
    #[test]
    fn a_linear_axis_is_round() {
        let fitted = Axis::linear("calls", Unit::Count).fit([50.0, 2340.0].into_iter());
        assert_eq!(fitted.ticks, [0.0, 500.0, 1000.0, 1500.0, 2000.0, 2500.0]);
        assert!(close(fitted.place(1250.0), 0.5) && close(fitted.place(0.0), 0.0));
        assert_eq!(fitted.tick(2500.0), "2,500");
    }

    /// Goal: a logarithmic axis shows zeros at its foot. Method: losses of 0, 1e-4 and 2 %.
    #[test]
    fn a_logarithmic_axis_has_a_place_for_zero() {
        let fitted = Axis::log("loss", Unit::Share, 1e-6).fit([0.0, 1e-4, 0.02].into_iter());
        assert!(close(fitted.place(0.0), 0.0) && close(fitted.place(1e-9), 0.0));
        assert!(fitted.place(1e-4) > 0.3 && fitted.place(0.02) < 1.0);
        assert_eq!(fitted.tick(1e-6), "0");
        let plain = Axis::log("time", Unit::Time, 1.0).fit([300.0, 700.0].into_iter());
        assert_eq!(plain.ticks, [200.0, 500.0, 1000.0], "few decades get more ticks");
    }

    /// Goal: each further nine takes the same width. Method: 50, 90, 99 and 99.9 %.
    #[test]
    fn nines_are_evenly_wide() {
        let fitted = Axis::quantiles().fit(std::iter::empty());
        let places = [0.9, 0.99, 0.999, 0.9999].map(|quantile| fitted.place(quantile));
        for (place, expected) in places.into_iter().zip([0.25, 0.5, 0.75, 1.0]) {
            assert!((place - expected).abs() < 1e-6, "{place}");
        }
        assert_eq!(fitted.tick(0.9999), "99.99 %");
    }

    /// Goal: no values, wild values and equal values still make an axis.
    /// Method: each scale with each; ticks exist and places are between 0 and 1.
    #[test]
    fn an_axis_of_nothing_still_has_a_length() {
        for axis in [
            Axis::linear("x", Unit::Count),
            Axis::log("x", Unit::Time, 1.0),
            Axis::log("x", Unit::Share, 1e-6),
            Axis::quantiles(),
            Axis::linear("x", Unit::Bytes),
        ] {
            for values in [vec![], vec![0.0], vec![f64::NAN, f64::INFINITY], vec![7.0, 7.0], vec![-5.0, 1e18]]
            {
                let fitted = axis.fit(values.iter().copied());
                assert!((2..=64).contains(&fitted.ticks.len()), "{axis:?} {values:?} {fitted:?}");
                for value in values.into_iter().filter(|value| value.is_finite()) {
                    assert!((0.0..=1.0).contains(&fitted.place(value)), "{axis:?} {value}");
                }
            }
        }
    }
}

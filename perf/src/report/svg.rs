//! Drawings as SVG, with no script: charts of lines and points, and charts of bars.
//!
//! Colours come from the page's style sheet by class, so that one drawing serves light, dark and
//! print. Each point carries its values as a title, which browsers show under the pointer.

use std::fmt::Write as _;

use super::html::escape;
use super::scale::{Axis, Fitted, Unit};

/// Size of a drawing, in its own units.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;

/// Edges of the plot within it.
const LEFT: f64 = 66.0;
const RIGHT: f64 = 528.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 268.0;

/// Colours the style sheet has; further series begin again.
const COLOURS: usize = 5;

/// Width of a letter of the legend, about.
const LETTER: f64 = 6.4;

/// A line with its points.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it is called in the legend.
    pub name: String,
    /// Where the line goes, from left to right.
    pub line: Vec<(f64, f64)>,
    /// Points, and whether each is filled.
    pub points: Vec<(f64, f64, bool)>,
}

/// A straight line across the plot at a value, with a word.
#[derive(Debug, Clone)]
pub struct Mark {
    /// The value.
    pub at: f64,
    /// What it is.
    pub text: String,
}

/// A chart of lines.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Left to right.
    pub x: Axis,
    /// Bottom to top.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
    /// Upright lines, at values of `x`.
    pub uprights: Vec<Mark>,
    /// Level lines, at values of `y`.
    pub levels: Vec<Mark>,
}

/// One bar with its spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// Its height.
    pub value: f64,
    /// Least and most, drawn as a whisker.
    pub spread: (f64, f64),
}

/// A chart of bars in groups.
#[derive(Debug, Clone)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// Names of the groups, left to right, and what they are.
    pub groups: (String, Vec<String>),
    /// Bottom to top.
    pub y: Axis,
    /// Name of each bar of a group, and its bars, group by group.
    pub series: Vec<(String, Vec<Option<Bar>>)>,
    /// Level lines.
    pub levels: Vec<Mark>,
}

impl Chart {
    /// The drawing.
    pub fn draw(&self) -> String {
        let lines = self.series.iter().flat_map(|series| &series.line).copied();
        let points = self.series.iter().flat_map(|series| &series.points).map(|&(x, y, _)| (x, y));
        let all = lines.chain(points);
        let marks = |marks: &[Mark]| marks.iter().map(|mark| mark.at).collect::<Vec<_>>();
        let x = self.x.fit(all.clone().map(|(x, _)| x).chain(marks(&self.uprights)));
        let y = self.y.fit(all.clone().map(|(_, y)| y).chain(marks(&self.levels)));
        let mut svg = open(&self.title);
        legend(&mut svg, self.series.iter().map(|series| series.name.as_str()));
        grid(&mut svg, &y, &self.y.label);
        for tick in &x.ticks {
            text(&mut svg, "tick", (across(&x, *tick), BOTTOM + 18.0), "middle", &x.tick(*tick));
        }
        text(&mut svg, "label", (f64::midpoint(LEFT, RIGHT), HEIGHT - 10.0), "middle", &self.x.label);
        for mark in &self.uprights {
            let at = across(&x, mark.at);
            let _ = write!(svg, r#"<path class="mark" d="M{at:.1} {TOP}V{BOTTOM}"/>"#);
            let (side, anchor) = if at > f64::midpoint(LEFT, RIGHT) { (-5.0, "end") } else { (5.0, "start") };
            text(&mut svg, "note", (at + side, TOP - 5.0), anchor, &mark.text);
        }
        levels(&mut svg, &y, &self.levels);
        for (index, series) in self.series.iter().enumerate() {
            self.draw_series(&mut svg, (&x, &y), index % COLOURS, series);
        }
        if all.count() == 0 {
            nothing(&mut svg);
        }
        svg.push_str("</svg>");
        svg
    }

    fn draw_series(&self, svg: &mut String, (x, y): (&Fitted, &Fitted), colour: usize, series: &Series) {
        let mut path = String::new();
        for (index, (at_x, at_y)) in series.line.iter().enumerate() {
            let letter = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{:.1} {:.1}", across(x, *at_x), up(y, *at_y));
        }
        let _ = write!(svg, r#"<path class="line c{colour}" d="{path}"/>"#);
        for (at_x, at_y, is_filled) in &series.points {
            let class = if *is_filled { "point" } else { "point hollow" };
            let told = format!("{}: {} at {}", series.name, self.y.unit.show(*at_y), self.x.unit.show(*at_x));
            let _ = write!(
                svg,
                r#"<circle class="{class} c{colour}" cx="{:.1}" cy="{:.1}" r="4"><title>{}</title></circle>"#,
                across(x, *at_x),
                up(y, *at_y),
                escape(&told)
            );
        }
    }
}

impl Bars {
    /// The drawing.
    pub fn draw(&self) -> String {
        let bars = self.series.iter().flat_map(|(_, bars)| bars).flatten();
        let tops = bars.clone().map(|bar| bar.spread.1.max(bar.value));
        let y = self.y.fit(tops.chain(self.levels.iter().map(|mark| mark.at).collect::<Vec<_>>()));
        let mut svg = open(&self.title);
        legend(&mut svg, self.series.iter().map(|(name, _)| name.as_str()));
        grid(&mut svg, &y, &self.y.label);
        let (label, groups) = &self.groups;
        let group_width = (RIGHT - LEFT) / units(groups.len().max(1));
        let bar_width = (group_width * 0.7 / units(self.series.len().max(1))).min(46.0);
        for (group, name) in groups.iter().enumerate() {
            let middle = LEFT + group_width * (units(group) + 0.5);
            text(&mut svg, "tick", (middle, BOTTOM + 18.0), "middle", name);
            let first = middle - bar_width * units(self.series.len()) / 2.0;
            for (index, (series, bars)) in self.series.iter().enumerate() {
                let Some(Some(bar)) = bars.get(group) else { continue };
                let told = format!("{series}, {name}: {}", show_bar(*bar, self.y.unit));
                let left = first + bar_width * units(index);
                draw_bar(&mut svg, &y, (left, bar_width - 2.0), index % COLOURS, (*bar, &told));
            }
        }
        text(&mut svg, "label", (f64::midpoint(LEFT, RIGHT), HEIGHT - 10.0), "middle", label);
        levels(&mut svg, &y, &self.levels);
        if bars.count() == 0 {
            nothing(&mut svg);
        }
        svg.push_str("</svg>");
        svg
    }
}

fn show_bar(bar: Bar, unit: Unit) -> String {
    format!("{} ({} to {})", unit.show(bar.value), unit.show(bar.spread.0), unit.show(bar.spread.1))
}

fn draw_bar(
    svg: &mut String,
    y: &Fitted,
    (left, width): (f64, f64),
    colour: usize,
    (bar, told): (Bar, &str),
) {
    let top = up(y, bar.value);
    let (middle, least, most) = (left + width / 2.0, up(y, bar.spread.0), up(y, bar.spread.1));
    let _ = write!(
        svg,
        r#"<g><title>{}</title><rect class="bar c{colour}" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{:.1}"/><path class="whisker" d="M{middle:.1} {least:.1}V{most:.1}m-4 0h8M{:.1} {least:.1}h8"/></g>"#,
        escape(told),
        (BOTTOM - top).max(0.0),
        middle - 4.0
    );
}

fn open(title: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><text class="title" x="0" y="14">{title}</text>"#,
        title = escape(title)
    )
}

/// Level lines at the ticks, and the axis' name above them.
fn grid(svg: &mut String, y: &Fitted, label: &str) {
    for tick in &y.ticks {
        let at = up(y, *tick);
        let class = if at >= BOTTOM - 0.5 { "axis" } else { "grid" };
        let _ = write!(svg, r#"<path class="{class}" d="M{LEFT} {at:.1}H{RIGHT}"/>"#);
        text(svg, "tick", (LEFT - 8.0, at + 4.0), "end", &y.tick(*tick));
    }
    let _ = write!(svg, r#"<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>"#);
    text(svg, "label", (RIGHT, 14.0), "end", label);
}

/// Names beside their colours, under the title; one series needs none.
fn legend<'a>(svg: &mut String, names: impl Iterator<Item = &'a str> + Clone) {
    if names.clone().count() < 2 {
        return;
    }
    let mut at = 0.0;
    for (index, name) in names.enumerate() {
        let colour = index % COLOURS;
        let _ =
            write!(svg, r#"<rect class="bar c{colour}" x="{at:.1}" y="25" width="10" height="10" rx="2"/>"#);
        text(svg, "note", (at + 15.0, 34.0), "start", name);
        at += 15.0 + LETTER * units(name.chars().count()) + 16.0;
    }
}

fn levels(svg: &mut String, y: &Fitted, marks: &[Mark]) {
    for mark in marks {
        let at = up(y, mark.at);
        let _ = write!(svg, r#"<path class="mark" d="M{LEFT} {at:.1}H{RIGHT}"/>"#);
        text(svg, "note", (LEFT + 6.0, at - 5.0), "start", &mark.text);
    }
}

fn nothing(svg: &mut String) {
    let middle = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
    text(svg, "label", middle, "middle", "nothing measured");
}

fn text(svg: &mut String, class: &str, (x, y): (f64, f64), anchor: &str, words: &str) {
    let words = escape(words);
    let _ =
        write!(svg, r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#);
}

fn across(x: &Fitted, value: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * x.place(value)
}

fn up(y: &Fitted, value: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * y.place(value)
}

/// A small count for arithmetic.
fn units(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(series: Vec<Series>) -> Chart {
        Chart {
            title: "CPU <against> \"calls\"".to_owned(),
            x: Axis::linear("calls", Unit::Count),
            y: Axis::linear("CPU", Unit::Percent),
            series,
            uprights: vec![Mark { at: 200.0, text: "knee & more".to_owned() }],
            levels: vec![],
        }
    }

    /// Goal: no name gets out of its place in a drawing. Method: names full of markup.
    #[test]
    fn names_in_a_drawing_are_escaped() {
        let hostile = "<script>alert('x')</script>\"&".to_owned();
        let points = vec![(100.0, 50.0, true), (300.0, 90.0, false)];
        let line = vec![(100.0, 50.0), (300.0, 90.0)];
        let series = Series { name: hostile.clone(), line, points };
        let svg = chart(vec![series.clone(), series]).draw();
        assert!(!svg.contains("<script") && svg.contains("&lt;script&gt;"), "{svg}");
        assert!(svg.contains("CPU &lt;against&gt; &quot;calls&quot;") && svg.contains("knee &amp; more"));
        let bar = Some(Bar { value: 2.0, spread: (1.0, 3.0) });
        let bars = Bars {
            title: hostile.clone(),
            groups: (hostile.clone(), vec![hostile.clone()]),
            y: Axis::linear(&hostile, Unit::Time),
            series: vec![(hostile.clone(), vec![bar, None]), (hostile.clone(), vec![])],
            levels: vec![Mark { at: 1.0, text: hostile }],
        };
        assert!(!bars.draw().contains("<script"));
    }

    /// Goal: points stand where their values say. Method: a point in the middle of round axes.
    #[test]
    fn points_stand_where_their_values_say() {
        let series = Series {
            name: "a".to_owned(),
            line: vec![],
            points: vec![(0.0, 0.0, true), (500.0, 100.0, true)],
        };
        let svg = chart(vec![series]).draw();
        assert!(svg.contains(r#"cx="66.0" cy="268.0""#), "{svg}");
        assert!(svg.contains(r#"cx="528.0" cy="58.0""#), "{svg}");
        assert!(svg.contains("<title>a: 100 % at 500</title>"), "{svg}");
    }

    /// Goal: a chart of nothing says so. Method: no series, and a series without points.
    #[test]
    fn a_chart_of_nothing_says_so() {
        assert!(chart(vec![]).draw().contains("nothing measured"));
        let empty = Series { name: "a".to_owned(), line: vec![], points: vec![] };
        assert!(chart(vec![empty]).draw().contains("nothing measured"));
    }
}

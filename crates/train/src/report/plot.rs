//! Pictures that need no script: points on two axes, each with its name.

use std::fmt::Write as _;

use super::format::{escape, significant};

/// A point, and what is said of it.
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    /// 95 % interval of `y`.
    pub interval: Option<[f64; 2]>,
    pub name: String,
    /// What a pointer on it shows.
    pub about: String,
}

/// An axis: what it is of, and how its values lie on it.
pub(super) struct Axis {
    pub label: String,
    pub is_log: bool,
    /// No tick is above this.
    pub most: f64,
}

/// Size of the picture, which the page scales, and the room around the points.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 290.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 38.0;

/// About the width of a letter of a name, and the height of a line, on a phone, whose letters are
/// larger.
const LETTER: f64 = 7.4;
const LINE: f64 = 14.0;
/// Longest name that is written whole.
const MAX_LETTERS: usize = 24;

/// A part of the picture: left, top, right, bottom.
type Area = [f64; 4];

/// The picture; empty without points. A logarithmic axis takes positive values only.
pub(super) fn scatter(title: &str, points: &[Point], [x_axis, y_axis]: [&Axis; 2]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let bounds = points.iter().flat_map(|point| point.interval.into_iter().flatten());
    let bounds = bounds.filter(|y| y.is_finite() && (*y > 0.0 || !y_axis.is_log));
    let xs = Span::of(x_axis, points.iter().map(|point| point.x), 0.12);
    let ys = Span::of(y_axis, points.iter().map(|point| point.y).chain(bounds), 0.09);
    let px = |x: f64| LEFT + xs.share(x) * (WIDTH - LEFT - RIGHT);
    let py = |y: f64| HEIGHT - BOTTOM - ys.share(y) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    );
    for (y, label) in ys.ticks(6) {
        let (y, end) = (py(y), WIDTH - RIGHT);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 7.0,
            y + 4.0
        );
    }
    let bottom = HEIGHT - BOTTOM;
    for (x, label) in xs.ticks(6) {
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            px(x),
            bottom + 15.0
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        WIDTH - RIGHT,
        HEIGHT - 5.0,
        escape(&x_axis.label)
    );
    let places: Vec<[f64; 2]> = points.iter().map(|point| [px(point.x), py(point.y)]).collect();
    for (point, [x, _]) in points.iter().zip(&places) {
        if let Some(interval) = point.interval {
            let [low, high] = interval.map(|bound| py(bound).clamp(TOP, bottom));
            let _ = write!(
                svg,
                "<line class=\"interval\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" \
                 y2=\"{high:.1}\"/>"
            );
        }
    }
    for (point, [x, y]) in points.iter().zip(&places) {
        let about = escape(&point.about);
        let _ = write!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{about}</title></circle>"
        );
    }
    let names: Vec<String> = points.iter().map(|point| shortened(&point.name)).collect();
    svg += &labels(&names, &places);
    svg + "</svg>"
}

/// Names beside points, where they cover least of each other and of the points.
fn labels(names: &[String], places: &[[f64; 2]]) -> String {
    let of_point = |[x, y]: &[f64; 2]| [x - 6.0, y - 6.0, x + 6.0, y + 6.0];
    let mut taken: Vec<Area> = places.iter().map(of_point).collect();
    let mut svg = String::new();
    for (name, [x, y]) in names.iter().zip(places) {
        let width = LETTER * name.chars().count() as f64;
        // Beside the point, above and below it, then a line further.
        let at = |dx: f64, dy: f64, share: f64| {
            let left = x + dx - share * width;
            [left, y + dy - LINE + 3.0, left + width, y + dy + 3.0]
        };
        let tried = [
            at(9.0, 4.0, 0.0),
            at(-9.0, 4.0, 1.0),
            at(0.0, -10.0, 0.5),
            at(0.0, 19.0, 0.5),
            at(7.0, -8.0, 0.0),
            at(-7.0, -8.0, 1.0),
            at(7.0, 17.0, 0.0),
            at(-7.0, 17.0, 1.0),
            at(0.0, -24.0, 0.5),
            at(0.0, 33.0, 0.5),
        ];
        let cost = |area: &Area| {
            let inside = [LEFT, TOP - 8.0, WIDTH - 2.0, HEIGHT - BOTTOM + 2.0];
            let outside = width * LINE - overlap(area, &inside);
            4.0 * outside + taken.iter().map(|other| overlap(area, other)).sum::<f64>()
        };
        let best = tried.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
        let Some(area) = best else { continue };
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            area[0],
            area[3] - 3.0,
            escape(name)
        );
        taken.push(area);
    }
    svg
}

fn overlap(a: &Area, b: &Area) -> f64 {
    let width = a[2].min(b[2]) - a[0].max(b[0]);
    let height = a[3].min(b[3]) - a[1].max(b[1]);
    width.max(0.0) * height.max(0.0)
}

/// A long name without its middle: names of a model's files differ at their ends.
fn shortened(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= MAX_LETTERS {
        return name.to_owned();
    }
    let end = MAX_LETTERS - 1 - MAX_LETTERS / 3;
    let (start, end) = (&letters[..MAX_LETTERS / 3], &letters[letters.len() - end..]);
    start.iter().chain(&['…']).chain(end).collect()
}

/// What an axis shows.
struct Span {
    low: f64,
    high: f64,
    is_log: bool,
    most: f64,
}

impl Span {
    /// All `values`, at least one, with room of a share of their range on both sides.
    fn of(axis: &Axis, values: impl Iterator<Item = f64>, room: f64) -> Self {
        let on_axis = |x: f64| if axis.is_log { x.ln() } else { x };
        let (low, high) = values
            .map(on_axis)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        let range = high - low;
        // A value alone stands in the middle.
        let pad = match range > 1e-9 * high.abs() {
            true => room * range,
            false if axis.is_log => 0.7,
            false => (0.1 * high.abs()).max(1e-9),
        };
        let (low, high) = (low - pad, high + pad);
        let (low, high) = if axis.is_log { (low.exp(), high.exp()) } else { (low, high) };
        Self { low, high, is_log: axis.is_log, most: axis.most }
    }

    /// Where a value lies between the ends, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let on_axis = |x: f64| if self.is_log { x.ln() } else { x };
        // A bound of an interval may be no positive number.
        let value = if self.is_log { value.max(f64::MIN_POSITIVE) } else { value };
        (on_axis(value) - on_axis(self.low)) / (on_axis(self.high) - on_axis(self.low))
    }

    /// Round values, at most about `most_ticks` of them, with their labels.
    fn ticks(&self, most_ticks: usize) -> Vec<(f64, String)> {
        let mut found = Vec::new();
        if self.is_log {
            let every = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
            let powers = self.in_decades(&[1.0]);
            let step = powers.len().div_ceil(most_ticks).max(1);
            let powers = powers.into_iter().step_by(step).collect();
            let sets = [self.in_decades(&every), self.in_decades(&[1.0, 2.0, 5.0]), powers];
            let set = sets.into_iter().find(|set| set.len() <= most_ticks).unwrap_or_default();
            found = set.into_iter().map(|x| (x, label(x))).collect();
        }
        if found.len() < 2 {
            found = linear_ticks([self.low, self.high], most_ticks);
        }
        found.retain(|(x, _)| *x <= self.most);
        found
    }

    /// Multiples of powers of ten that lie on the axis.
    fn in_decades(&self, mantissas: &[f64]) -> Vec<f64> {
        let decade = |x: f64| x.max(1e-300).log10().floor() as i32;
        let decades = decade(self.low)..=decade(self.high);
        let values =
            decades.flat_map(|decade| mantissas.iter().map(move |m| m * 10f64.powi(decade)));
        values.filter(|x| (self.low..=self.high).contains(x)).collect()
    }
}

/// Multiples of 1, 2, 2.5 or 5 times a power of ten, with as many digits as tell them apart.
fn linear_ticks([low, high]: [f64; 2], most_ticks: usize) -> Vec<(f64, String)> {
    let least = (high - low) / most_ticks as f64;
    let power = least.log10().floor();
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let at = |factor: f64| factor * 10f64.powf(power);
    let factor = factors.into_iter().find(|factor| at(*factor) >= least * 0.999).unwrap_or(10.0);
    let digits = -power + if factor == 2.5 { 1.0 } else { 0.0 };
    let digits = digits.clamp(0.0, 12.0) as usize;
    let first = (low / at(factor)).ceil() as i64;
    let ticks = (first..).map(|i| i as f64 * at(factor)).take(most_ticks + 1);
    ticks.take_while(|x| *x <= high).map(|x| (x, format!("{x:.digits$}"))).collect()
}

/// Of a power of ten or a multiple of one.
fn label(x: f64) -> String {
    let text = significant(x, 3);
    match text.split_once(".00e") {
        Some((mantissa, exponent)) => format!("{mantissa}e{exponent}"),
        None if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels_of(values: &[f64], is_log: bool) -> Vec<String> {
        let axis = Axis { label: String::new(), is_log, most: f64::INFINITY };
        let span = Span::of(&axis, values.iter().copied(), 0.1);
        span.ticks(6).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels_of(&[62.0, 148.0], false), ["60", "80", "100", "120", "140"]);
        assert_eq!(
            labels_of(&[0.0021, 0.11], true),
            ["0.002", "0.005", "0.01", "0.02", "0.05", "0.1"]
        );
        assert_eq!(labels_of(&[1e-6, 0.5], true), ["1e-6", "0.0001", "0.01", "1"]);
        // Narrower than from one round power to the next.
        assert_eq!(labels_of(&[0.0112, 0.0118], true), ["0.0112", "0.0114", "0.0116", "0.0118"]);
        assert_eq!(
            labels_of(&[99.81, 99.93], false),
            ["99.800", "99.825", "99.850", "99.875", "99.900", "99.925"]
        );
        assert!(labels_of(&[5.0], false).len() >= 3 && labels_of(&[5.0], true).len() >= 2);
        assert!(labels_of(&[1e-30, 1e30], true).len() <= 7);
    }

    /// Names of points that lie together do not lie over each other.
    #[test]
    fn names_keep_apart() {
        let places = [[200.0, 100.0], [203.0, 102.0], [206.0, 99.0], [430.0, 100.0], [60.0, 100.0]];
        let names = ["first-of-all", "second-of-all", "third-of-all", "the last on the right", "z"];
        let svg = labels(&names.map(str::to_owned), &places);
        let number = |text: &str, key: &str| -> f64 {
            let (_, rest) = text.split_once(&format!("{key}=\"")).unwrap();
            rest.split_once('"').unwrap().0.parse().unwrap()
        };
        let areas: Vec<Area> = svg
            .split("<text")
            .skip(1)
            .zip(names)
            .map(|(text, name)| {
                let (x, y) = (number(text, " x"), number(text, " y"));
                [x, y + 3.0 - LINE, x + LETTER * name.len() as f64, y + 3.0]
            })
            .collect();
        assert_eq!(areas.len(), names.len());
        for (i, area) in areas.iter().enumerate() {
            assert!(area[0] >= 0.0 && area[2] <= WIDTH, "{area:?}");
            for other in &areas[..i] {
                assert_eq!(overlap(area, other), 0.0, "{svg}");
            }
        }
    }

    #[test]
    fn long_names_lose_their_middle() {
        let short = shortened("SmolLM2-135M-Instruct-calibrated-3.5bpw");
        assert_eq!(short.chars().count(), MAX_LETTERS);
        assert!(short.starts_with("SmolLM2-…") && short.ends_with("ted-3.5bpw"), "{short}");
        assert_eq!(shortened("q4_k_m"), "q4_k_m");
    }

    #[test]
    fn a_name_is_no_markup() {
        let point = |x: f64, interval| Point {
            x,
            y: 0.01 * x,
            interval,
            name: "<b>&".to_owned(),
            about: "\"<i>".to_owned(),
        };
        let axis = |is_log| Axis { label: "MB".to_owned(), is_log, most: f64::INFINITY };
        let points = [point(1.0, None), point(2.0, Some([-1.0, 0.03]))];
        let svg = scatter("a \"b\"", &points, [&axis(false), &axis(true)]);
        assert!(svg.contains("&lt;b&gt;&amp;</text>") && svg.contains("&quot;&lt;i&gt;"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(scatter("", &[], [&axis(false), &axis(true)]), "");
    }
}

//! The picture: mean KL over bits per weight, a panel for each model.

use super::models::ALL;
use super::ours::{bits_per_weight, kl};
use serde_json::Value;
use std::fmt::Write as _;

/// Sizes of a panel, and where its axes are in it.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 54.0;
const BOTTOM: f64 = 44.0;

/// A line of the picture: who made the files, with or without an importance matrix.
struct Line {
    name: &'static str,
    colour: &'static str,
    maker: &'static str,
    imatrix: bool,
}

const LINES: [Line; 4] = [
    Line { name: "llama.cpp", colour: "#b8b8b8", maker: "llama.cpp", imatrix: false },
    Line { name: "llama.cpp, imatrix", colour: "#c7792b", maker: "llama.cpp", imatrix: true },
    Line { name: "AutoRound", colour: "#7a5ba6", maker: "AutoRound", imatrix: true },
    Line { name: "Hone", colour: "#1f6f8b", maker: "Hone", imatrix: true },
];

/// Least and greatest value of an axis, and where they lie.
struct Axis {
    from: f64,
    to: f64,
    at: (f64, f64),
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let share = (value - self.from) / (self.to - self.from);
        self.at.0 + share * (self.at.1 - self.at.0)
    }
}

pub fn picture(kept: &Value) -> String {
    let shown: Vec<_> = ALL.iter().filter(|model| kept.get(model.name).is_some()).collect();
    let width = WIDTH * shown.len().max(1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for (i, model) in shown.into_iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate({} 0)\">", WIDTH * i as f64);
        panel(&mut svg, model.title, &kept[model.name]);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, title: &str, of_model: &Value) {
    let rows = of_model["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let parameters = of_model["parameters"].as_u64().unwrap_or(1);
    let of_line = |line: &Line| -> Vec<(f64, f64)> {
        let is_of = |row: &&Value| row["maker"] == line.maker && row["imatrix"] == line.imatrix;
        let point = |row: &Value| (bits_per_weight(row, parameters), kl(row, "own").log10());
        let mut points: Vec<_> = rows.iter().filter(is_of).map(point).collect();
        points.retain(|(bits, log)| bits.is_finite() && log.is_finite());
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    };
    let lines: Vec<_> = LINES.iter().map(|line| (line, of_line(line))).collect();
    let points = || lines.iter().flat_map(|(_, points)| points);
    let ends = |of: fn(&(f64, f64)) -> f64| {
        let values = points().map(of);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
    };
    let (bits, logs) = (ends(|point| point.0), ends(|point| point.1));
    if !bits.0.is_finite() {
        return;
    }
    let x = Axis { from: bits.0.floor(), to: bits.1.ceil(), at: (LEFT, WIDTH - RIGHT) };
    let y = Axis { from: logs.0.floor(), to: logs.1.ceil(), at: (HEIGHT - BOTTOM, TOP) };
    axes(svg, title, &x, &y);
    for (i, (line, points)) in lines.iter().filter(|(_, points)| !points.is_empty()).enumerate() {
        let name_x = LEFT + 98.0 * i as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{name_x}\" y=\"40\"><tspan fill=\"{}\">●</tspan> {}</text>",
            line.colour, line.name
        );
        let front: Vec<String> = front(points)
            .iter()
            .map(|(bits, log)| format!("{:.1},{:.1}", x.place(*bits), y.place(*log)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>",
            front.join(" "),
            line.colour
        );
        for (bits, log) in points {
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{}\"/>",
                x.place(*bits),
                y.place(*log),
                line.colour
            );
        }
    }
}

/// Points that none of no more bits is better than, of points by their bits.
pub fn front(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut found: Vec<(f64, f64)> = Vec::new();
    for &(bits, log) in points {
        if found.last().is_none_or(|last| log < last.1) {
            found.push((bits, log));
        }
    }
    found
}

fn axes(svg: &mut String, title: &str, x: &Axis, y: &Axis) {
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"20\" font-weight=\"bold\">{title}</text>");
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for bits in x.from as i64..=x.to as i64 {
        let at = x.place(bits as f64);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" \
             stroke=\"#eeeeee\"/>\n\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{bits}</text>",
            bottom + 16.0
        );
    }
    for power in y.from as i32..=y.to as i32 {
        let at = y.place(f64::from(power));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" \
             stroke=\"#dddddd\"/>\n\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            10f64.powi(power)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">bits per weight, whole file</text>\n\
         <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">mean KL, nats \
         per token, own text</text>",
        (LEFT + right) / 2.0,
        bottom + 36.0,
        (TOP + bottom) / 2.0
    );
}

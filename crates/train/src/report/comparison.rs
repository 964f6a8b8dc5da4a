//! Models beside each other on one page: size against quality as pictures, what each lost against
//! the one that it was made of, text by text and task by task, and where a smaller file's bytes
//! went. It is given the figures; where they come from is not its concern.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::format::{bytes_decimal, escape, number, significant};
use super::plot::{Axis, Point, scatter};
use super::{STYLE, fill};

#[cfg(test)]
mod tests;

const TEMPLATE: &str = include_str!("comparison.html");

/// All that the page shows. Models are named by their place in `models`.
#[derive(Debug, Default)]
pub struct Comparison {
    /// The models.
    pub models: Vec<Model>,
    /// What was found on texts.
    pub texts: Vec<Text>,
    /// What was found on tasks.
    pub tasks: Vec<Task>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A model, as a directory or file.
#[derive(Debug, Default)]
pub struct Model {
    /// What it is called.
    pub name: String,
    /// Bytes of its weight files.
    pub bytes: Option<f64>,
    /// Bits of them per weight.
    pub bits_per_weight: Option<f64>,
    /// The model that it was made of, if that is known and on the page.
    pub base: Option<usize>,
    /// What was measured when it was written, in words.
    pub written: Option<String>,
    /// Its tensors by kind; none if that is not known.
    pub kinds: Vec<Kind>,
}

/// Tensors of one kind, in all blocks.
#[derive(Debug)]
pub struct Kind {
    /// Such as `ffn_down`.
    pub name: String,
    /// Types with the number of tensors in each.
    pub types: Vec<(String, usize)>,
    /// Bytes of all.
    pub bytes: f64,
    /// Predicted share of the divergence.
    pub kl_share: Option<f64>,
}

/// A number, and how far it may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figure {
    /// The number.
    pub value: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<[f64; 2]>,
}

/// A text that models were evaluated on.
#[derive(Debug, Default)]
pub struct Text {
    /// What it is.
    pub name: String,
    /// Of each model compared with its base on it.
    pub rows: Vec<Measured>,
    /// Models with their mean nats per token.
    pub losses: Vec<(usize, f64)>,
}

/// What a model lost on a text.
#[derive(Debug)]
pub struct Measured {
    /// Which model.
    pub model: usize,
    /// The model that it was compared with, if that is known.
    pub base: Option<usize>,
    /// Mean KL divergence from the base, in nats per token.
    pub kl: Figure,
    /// What 99 % and 99.9 % of its tokens are not above.
    pub quantiles: Option<[f64; 2]>,
    /// Share of tokens at which both hold the same for the most likely.
    pub same_top: Figure,
    /// Tokens predicted by the base alone and by the model alone, and how likely so uneven a split
    /// is by chance.
    pub flips: Option<(u64, u64, f64)>,
}

/// A metric of a task or a group.
#[derive(Debug)]
pub struct Task {
    /// The task.
    pub name: String,
    /// The metric.
    pub metric: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Documents.
    pub num_items: usize,
    /// Of each model evaluated.
    pub rows: Vec<Scored>,
}

/// What a model scored.
#[derive(Debug)]
pub struct Scored {
    /// Which model.
    pub model: usize,
    /// The value.
    pub value: Figure,
    /// That less its base's, of the same documents.
    pub difference: Option<Figure>,
}

/// The page.
pub fn build(comparison: &Comparison) -> String {
    fill(TEMPLATE, |name| match name {
        "style" => STYLE.to_owned(),
        "title" => escape(&format!("{} – Hone", comparison.title())),
        "heading" => comparison.heading(),
        "facts" => escape(&comparison.facts()),
        "notice" => comparison.notices(),
        "sections" => comparison.sections(),
        "footer" => format!("Made by Hone {}", env!("CARGO_PKG_VERSION")),
        other => unreachable!("the template asks for {other}"),
    })
}

impl Comparison {
    /// The only model that others were made of.
    fn base(&self) -> Option<&Model> {
        let of_rows = self.texts.iter().flat_map(|text| &text.rows).map(|row| row.base);
        let bases = self.models.iter().map(|model| model.base).chain(of_rows);
        let bases: BTreeSet<usize> = bases.flatten().collect();
        match bases.len() {
            1 => self.models.get(*bases.first()?),
            _ => None,
        }
    }

    fn title(&self) -> String {
        match self.base() {
            Some(base) => format!("What was kept of {}", base.name),
            None => "Models compared".to_owned(),
        }
    }

    fn heading(&self) -> String {
        match self.base() {
            Some(base) => format!("<i>What was kept of</i> {}", escape(&base.name)),
            None => "Models compared".to_owned(),
        }
    }

    fn facts(&self) -> String {
        let of = |count: usize, one: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {one}s"),
        };
        let tasks: BTreeSet<&str> = self.tasks.iter().map(|task| task.name.as_str()).collect();
        let mut parts = vec![of(self.models.len(), "model")];
        parts.extend((!self.texts.is_empty()).then(|| of(self.texts.len(), "text")));
        parts.extend((!tasks.is_empty()).then(|| of(tasks.len(), "task")));
        parts.join(" · ")
    }

    fn notices(&self) -> String {
        let boxed = |note: &String| format!("<p class=\"notice\">{}</p>", escape(note));
        self.notes.iter().map(boxed).collect()
    }

    fn sections(&self) -> String {
        let mut out = String::new();
        let is_of = |text: &Text, model: usize| {
            let is_in = |row: &Measured| row.model == model || row.base == Some(model);
            text.rows.iter().any(is_in) || text.losses.iter().any(|(of, _)| *of == model)
        };
        let is_on_text = |model: &usize| self.texts.iter().any(|text| is_of(text, *model));
        let sizes = self.by_size().filter(|model| !is_on_text(model));
        let cells =
            |model: usize| self.size_cells(self.name_cell(model), (model, self.models[model].base));
        let sizes: String = sizes.map(|model| row(&cells(model))).collect();
        out.extend(self.texts.iter().map(|text| self.text(text)));
        if !sizes.is_empty() {
            let title = if self.texts.is_empty() { "Size" } else { "Others" };
            let _ = write!(out, "<h2>{title}</h2>{}", table(&SIZE, &sizes));
        }
        if !self.tasks.is_empty() {
            let tasks: String = self.tasks.iter().map(|task| self.task(task)).collect();
            let _ = write!(out, "<h2>Tasks</h2><section class=\"grid\">{tasks}</section>");
        }
        let kinds: String = self.models.iter().map(kinds).collect();
        if !kinds.is_empty() {
            let _ =
                write!(out, "<h2>Tensors by kind</h2><section class=\"grid\">{kinds}</section>");
        }
        out
    }

    /// From the largest model to the smallest; those of unknown size last.
    fn by_size(&self) -> impl Iterator<Item = usize> {
        let mut order: Vec<usize> = (0..self.models.len()).collect();
        let bytes = |i: &usize| self.models[*i].bytes.unwrap_or(0.0);
        order.sort_by(|a, b| bytes(b).total_cmp(&bytes(a)));
        order.into_iter()
    }

    fn name_cell(&self, model: usize) -> String {
        self.tagged(model, self.models.iter().any(|other| other.base == Some(model)))
    }

    fn tagged(&self, model: usize, is_base: bool) -> String {
        let tag = if is_base { " <span class=\"tag\">base</span>" } else { "" };
        escape(&self.models[model].name) + tag
    }

    /// Name, size, bits per weight, how many times smaller than a base.
    fn size_cells(&self, name: String, (model, base): (usize, Option<usize>)) -> Vec<String> {
        let found = &self.models[model];
        let base = base.filter(|base| *base != model).and_then(|base| self.models[base].bytes);
        let ratio = found.bytes.zip(base).map(|(bytes, base)| format!("{:.2} ×", base / bytes));
        let bits = found.bits_per_weight.map(|bits| format!("{bits:.2}"));
        vec![name, shown(found.bytes.map(bytes_decimal)), shown(bits), shown(ratio)]
    }

    /// Pictures and table of a text, for each base by itself: divergences from unlike models are on
    /// unlike scales.
    fn text(&self, text: &Text) -> String {
        let mut bases: BTreeSet<Option<usize>> = text.rows.iter().map(|row| row.base).collect();
        if bases.is_empty() {
            bases.insert(None);
        }
        let of_base = |base: &Option<usize>| {
            let against = base.filter(|_| bases.len() > 1).map(|base| &self.models[base].name);
            let against = against.map_or(String::new(), |name| format!(", against {name}"));
            let rows: Vec<&Measured> = text.rows.iter().filter(|row| row.base == *base).collect();
            let (pictures, table) = (self.pictures(&rows), self.evaluated(text, &rows, *base));
            format!("<h2>On {}{}</h2>{pictures}{table}", escape(&text.name), escape(&against))
        };
        bases.iter().map(of_base).collect()
    }

    /// The table of models that were compared with a base on a text, of that, and of those that
    /// were compared with none, from the largest to the smallest.
    fn evaluated(&self, text: &Text, rows: &[&Measured], base: Option<usize>) -> String {
        let measured = |model: usize| rows.iter().find(|row| row.model == model).copied();
        let loss = |model: usize| text.losses.iter().find(|(of, _)| *of == model);
        let is_there = |model: &usize| {
            let is_alone = |row: &Measured| row.model != *model && row.base != Some(*model);
            let is_of = base == Some(*model) || measured(*model).is_some();
            is_of || (loss(*model).is_some() && text.rows.iter().all(is_alone))
        };
        let cells = |model: usize| {
            let is_base = base == Some(model);
            let (name, than) = match measured(model) {
                Some(_) => (self.tagged(model, is_base), base),
                None if is_base => (self.tagged(model, true), None),
                None => (self.name_cell(model), self.models[model].base),
            };
            let mut cells = self.size_cells(name, (model, than));
            if !text.losses.is_empty() {
                cells.push(shown(loss(model).map(|(_, loss)| four_digits(*loss))));
            }
            if !rows.is_empty() {
                cells.extend(lost(measured(model)));
            }
            row(&cells)
        };
        let found: String = self.by_size().filter(is_there).map(cells).collect();
        let loss = if text.losses.is_empty() { &[][..] } else { &["loss"] };
        let lost = if rows.is_empty() { &[][..] } else { &LOST };
        table(&[&SIZE[..], loss, lost].concat(), &found)
    }

    /// Size against divergence and against agreement; nothing where no size is known.
    fn pictures(&self, rows: &[&Measured]) -> String {
        let sizes = rows.iter().filter_map(|row| self.models[row.model].bytes);
        let largest = sizes.fold(0.0, f64::max);
        let (unit, name) = match largest {
            most if most >= 2e9 => (1e9, "GB"),
            most if most >= 2e6 => (1e6, "MB"),
            _ => (1e3, "kB"),
        };
        let points = |value: fn(&Measured) -> Figure, scale: f64, show: fn(f64) -> String| {
            let point = |row: &&Measured| {
                let (model, Figure { value, interval, .. }) = (&self.models[row.model], value(row));
                let bytes = model.bytes?;
                Some(Point {
                    x: bytes / unit,
                    y: value * scale,
                    interval: interval.map(|bounds| bounds.map(|bound| bound * scale)),
                    name: model.name.clone(),
                    about: format!("{}: {}, {}", model.name, bytes_decimal(bytes), show(value)),
                })
            };
            rows.iter().filter_map(point).collect::<Vec<_>>()
        };
        let mut diverging = points(|row| row.kl, 1.0, |kl| format!("{} nats", significant(kl, 3)));
        let agreeing = points(|row| row.same_top, 100.0, percent);
        let same: Vec<String> =
            diverging.extract_if(.., |point| point.y <= 0.0).map(|point| point.name).collect();
        let size = Axis { label: format!("size, {name}"), is_log: false, most: f64::INFINITY };
        let kl = Axis { label: String::new(), is_log: true, most: f64::INFINITY };
        let agreement = Axis { label: String::new(), is_log: false, most: 100.0 };
        let note = match same.is_empty() {
            true => String::new(),
            false => format!(
                "<p class=\"note\">Without {}, which diverges nowhere.</p>",
                escape(&same.join(", "))
            ),
        };
        let card = |title: &str, points: &[Point], axis: &Axis, note: &str| match points.is_empty()
        {
            true => String::new(),
            false => format!(
                "<div class=\"card\"><h3>{title}</h3>{}{note}</div>",
                scatter(title, points, [&size, axis])
            ),
        };
        let kl = card("Mean KL divergence, nats per token", &diverging, &kl, &note);
        let agreement = card("Same most likely token, % of tokens", &agreeing, &agreement, "");
        match kl.is_empty() && agreement.is_empty() {
            true => String::new(),
            false => format!("<section class=\"grid\">{kl}{agreement}</section>"),
        }
    }

    /// A card with a metric of all models.
    fn task(&self, task: &Task) -> String {
        let scored = |model: usize| task.rows.iter().find(|row| row.model == model);
        let cells = |model: usize| {
            let row_of = scored(model)?;
            let Figure { value, stderr, .. } = row_of.value;
            let stderr = stderr.map_or(String::new(), |stderr| {
                format!(" <small>± {}</small>", four_digits(stderr))
            });
            let difference =
                row_of.difference.map(|found| difference(found, task.higher_is_better));
            let value = four_digits(value) + &stderr;
            Some(row(&[self.name_cell(model), value, shown(difference)]))
        };
        let rows: String = self.by_size().filter_map(cells).collect();
        let arrow = if task.higher_is_better { "↑" } else { "↓" };
        format!(
            "<div class=\"card scroll\"><div class=\"head\"><h3>{}: {} {arrow}</h3>\
             <span class=\"legend\">{} items</span></div>{}</div>",
            escape(&task.name),
            escape(&task.metric),
            task.num_items,
            bare_table(&["model", "value", "against the base <small>(95 %)</small>"], &rows)
        )
    }
}

/// Columns of every model.
const SIZE: [&str; 4] = ["model", "size", "bits per<br>weight", "smaller"];
/// Columns of what was lost on a text.
const LOST: [&str; 5] = [
    "KL divergence,<br>mean",
    "99 % of<br>tokens",
    "99.9 %",
    "same most<br>likely token",
    "predictions lost<br>and gained",
];

/// The cells of [`LOST`].
fn lost(row: Option<&Measured>) -> [String; 5] {
    let kl = row.map(|row| {
        let stderr = row.kl.stderr.map_or(String::new(), |stderr| {
            format!(" <small>± {}</small>", significant(stderr, 2))
        });
        significant(row.kl.value, 3) + &stderr
    });
    let quantiles = row.and_then(|row| row.quantiles);
    let [p99, p999] = [0, 1].map(|i| shown(quantiles.map(|found| significant(found[i], 3))));
    let same_top = shown(row.map(|row| percent(row.same_top.value)));
    let flips = row.and_then(|row| row.flips).map(|(lost, gained, p_value)| {
        let (lost, gained) = (number_of(lost), number_of(gained));
        format!("{lost} · {gained} <small>p = {p_value:.3}</small>")
    });
    [shown(kl), p99, p999, same_top, shown(flips)]
}

/// With its interval, coloured where that lies on one side of nothing.
fn difference(found: Figure, higher_is_better: bool) -> String {
    let Figure { value, interval, .. } = found;
    let Some([low, high]) = interval else { return format!("{value:+.4}") };
    let class = match (low > 0.0, high < 0.0) {
        (false, false) => "",
        (is_more, _) if is_more == higher_is_better => "good",
        _ => "warn",
    };
    format!("<span class=\"{class}\">{value:+.4}</span> <small>{low:+.4} to {high:+.4}</small>")
}

/// The card of a model's tensors, and what was measured when it was written.
fn kinds(model: &Model) -> String {
    if model.kinds.is_empty() {
        return String::new();
    }
    let all: f64 = model.kinds.iter().map(|kind| kind.bytes).sum();
    let has_shares = model.kinds.iter().any(|kind| kind.kl_share.is_some());
    let cells = |kind: &Kind| {
        let types: Vec<String> = kind
            .types
            .iter()
            .map(|(name, count)| format!("{count}\u{a0}×\u{a0}{}", escape(name)))
            .collect();
        let size = bytes_decimal(kind.bytes);
        let mut cells = vec![
            escape(&kind.name),
            format!("<span class=\"types\">{}</span>", types.join(", ")),
            format!("{size} <small>{}</small>", percent(kind.bytes / all.max(1.0))),
        ];
        cells.extend(has_shares.then(|| shown(kind.kl_share.map(percent))));
        row(&cells)
    };
    let rows: String = model.kinds.iter().map(cells).collect();
    let head = ["kind", "tensors", "size", "share of the<br>divergence"];
    let head = &head[..if has_shares { 4 } else { 3 }];
    let written = model
        .written
        .as_ref()
        .map_or(String::new(), |written| format!("<p class=\"note\">{}</p>", escape(written)));
    format!(
        "<div class=\"card scroll\"><h3>{}</h3>{}{written}</div>",
        escape(&model.name),
        bare_table(head, &rows)
    )
}

fn row(cells: &[String]) -> String {
    let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    format!("<tr>{cells}</tr>")
}

/// A table in a card of its own.
fn table(head: &[&str], rows: &str) -> String {
    format!("<div class=\"card scroll\">{}</div>", bare_table(head, rows))
}

fn bare_table(head: &[&str], rows: &str) -> String {
    let head: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
    format!("<table><tr>{head}</tr>{rows}</table>")
}

fn shown(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "–".to_owned())
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// As tables of tasks have values: four digits after the point, unless it is large.
fn four_digits(x: f64) -> String {
    if x.abs() < 100.0 { format!("{x:.4}") } else { number(x) }
}

fn number_of(count: u64) -> String {
    super::format::count(count as f64)
}

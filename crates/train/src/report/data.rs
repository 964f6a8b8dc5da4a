//! What was learnt from and evaluated on: sizes, the mixture, and what loading had to say.

use super::format::{count, escape, tenths};
use super::sources::{Data, DataFile, DataSet, Sources};

/// The section's body; empty where the manifest says nothing of data.
pub(super) fn section(run: &Sources) -> String {
    let data = &run.manifest.data;
    let notes = notes("training data", &data.train) + &notes("evaluation data", &data.eval);
    table(data) + &mixture(data) + &notes
}

/// A column for each set, since a phone has room for few.
fn table(data: &Data) -> String {
    let sets = [("training", &data.train), ("evaluation", &data.eval)];
    let sets: Vec<(&str, &DataSet)> =
        sets.into_iter().filter_map(|(name, set)| Some((name, set.as_ref()?))).collect();
    if sets.is_empty() {
        return String::new();
    }
    let head: String = sets.iter().map(|(name, _)| format!("<th>{name}</th>")).collect();
    let row = |name: &str, cell: &dyn Fn(&DataSet) -> String| {
        let cells: String = sets.iter().map(|(_, set)| format!("<td>{}</td>", cell(set))).collect();
        format!("<tr><td>{name}</td>{cells}</tr>")
    };
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), count);
    let rows = [
        row("files", &|set| set.files.len().to_string()),
        row("rows", &|set| shown(set.rows)),
        row("tokens", &|set| shown(set.tokens)),
        row("target tokens", &|set| shown(set.target_tokens) + &target_share(set)),
        row("truncated rows", &|set| shown(set.truncated)),
        row("skipped records", &|set| shown(set.skipped)),
    ];
    let rows = rows.concat();
    format!("<div class=\"card scroll\"><table><tr><th></th>{head}</tr>{rows}</table></div>")
}

fn target_share(set: &DataSet) -> String {
    let share = set.target_tokens.zip(set.tokens).filter(|(_, all)| *all > 0.0);
    share.map_or_else(String::new, |(some, all)| format!(" ({:.0} %)", 100.0 * some / all))
}

/// The training files with their weights, if they have any.
fn mixture(data: &Data) -> String {
    let Some(set) = &data.train else { return String::new() };
    let files = &set.files;
    if files.iter().all(|file| file.weight.is_none_or(|weight| weight == 1.0)) {
        return String::new();
    }
    let are_rows = files.iter().all(|file| file.groups.is_none_or(|all| Some(all) == file.rows));
    let what = if are_rows { "rows" } else { "pairs" };
    let unknown = || "–".to_owned();
    let row = |file: &DataFile| {
        let (name, weight) = (escape(&file.file), file.weight.unwrap_or(1.0));
        let groups = file.groups.or(file.rows).map_or_else(unknown, count);
        let seen = file.groups_per_epoch;
        let of_all = seen.zip(set.groups_per_epoch).filter(|(_, all)| *all > 0.0);
        let share =
            of_all.map_or_else(unknown, |(seen, all)| format!("{:.1} %", 100.0 * seen / all));
        let seen = seen.map_or_else(unknown, tenths);
        format!(
            "<tr><td>{name}</td><td>{groups}</td><td>{weight}</td><td>{seen}</td>\
             <td>{share}</td></tr>"
        )
    };
    let rows: String = files.iter().map(row).collect();
    format!(
        "<div class=\"card scroll notes\"><h3>Mixture</h3><table><tr>\
         <th>file</th><th>{what}</th><th>weight</th><th>in an epoch</th><th>share</th></tr>\
         {rows}</table></div>"
    )
}

fn notes(set_name: &str, set: &Option<DataSet>) -> String {
    let notes = set.iter().flat_map(|set| &set.warnings);
    let items: String = notes.map(|note| format!("<li>{}</li>", escape(note))).collect();
    match items.is_empty() {
        true => items,
        false => format!(
            "<div class=\"card notes\"><h3>Notes on the {set_name}</h3><ul>{items}</ul></div>"
        ),
    }
}

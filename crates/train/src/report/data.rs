//! What was learnt from and evaluated on: sizes, the mixture, and what loading had to say.

use super::format::{count, escape};
use super::sources::{Data, DataSet, Sources};

/// The section's body; empty where the manifest says nothing of data.
pub(super) fn section(run: &Sources) -> String {
    let data = &run.manifest.data;
    let notes = notes("training data", &data.train) + &notes("evaluation data", &data.eval);
    table(data) + &mixture(data) + &notes
}

fn table(data: &Data) -> String {
    let row = |name: &str, set: &Option<DataSet>| match set {
        Some(set) => row_of(name, set),
        None => String::new(),
    };
    let rows = row("Training", &data.train) + &row("Evaluation", &data.eval);
    match rows.is_empty() {
        true => rows,
        false => format!(
            "<div class=\"card scroll\"><table><tr><th></th><th>files</th><th>rows</th>\
             <th>tokens</th><th>target tokens</th><th>truncated</th><th>skipped</th></tr>{rows}\
             </table></div>"
        ),
    }
}

fn row_of(name: &str, set: &DataSet) -> String {
    let cell = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), count);
    let share = set.target_tokens.zip(set.tokens).filter(|(_, all)| *all > 0.0);
    let share = share.map(|(some, all)| format!(" ({:.0} %)", 100.0 * some / all));
    format!(
        "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}{}</td><td>{}</td><td>{}</td>\
         </tr>",
        set.files.len(),
        cell(set.rows),
        cell(set.tokens),
        cell(set.target_tokens),
        share.unwrap_or_default(),
        cell(set.truncated),
        cell(set.skipped),
    )
}

/// The training files with their weights, if they have any.
fn mixture(data: &Data) -> String {
    let files = data.train.iter().flat_map(|set| &set.files);
    if files.clone().all(|file| file.weight.is_none_or(|weight| weight == 1.0)) {
        return String::new();
    }
    let rows: String = files
        .map(|file| {
            let rows = file.rows.map_or_else(|| "–".to_owned(), count);
            let (name, weight) = (escape(&file.file), file.weight.unwrap_or(1.0));
            format!("<tr><td>{name}</td><td>{rows}</td><td>{weight}</td></tr>")
        })
        .collect();
    format!(
        "<div class=\"card scroll notes\"><h3>Mixture</h3><table><tr>\
         <th>file</th><th>rows</th><th>weight</th></tr>{rows}</table></div>"
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

//! What commands print.

use serde_json::Value;

/// Prints one JSON object on standard output.
pub fn json(value: &Value) {
    println!("{}", serde_json::to_string(value).expect("a JSON value can be written"));
}

/// Prints a table of names and values, names aligned.
pub fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in rows {
        println!("  {name:<width$}  {value}");
    }
}

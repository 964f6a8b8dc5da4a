//! Digests as they were recorded, and comparisons with them.

use super::super::Place;
use super::{Cell, Parts, RUNS, Run};
use serde_json::{Map, Value, json};

const FILE: &str = "isa.json";

/// What `isa.json` holds: a digest of each part of each run, which is that of all cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The version of Hone's rounding that the digests are of.
    pub numerics: u64,
    /// When, and where.
    pub recorded: String,
    /// Those of the machine that recorded.
    pub instruction_sets: Vec<String>,
    /// In the order of [`RUNS`].
    runs: Vec<Parts>,
}

impl Record {
    /// Of cells that are all equal.
    pub fn of(rows: &[Vec<Cell>], numerics: u64, machine: &str) -> Self {
        let mut sets: Vec<String> = rows[0].iter().map(|cell| cell.set.to_owned()).collect();
        sets.dedup();
        Self {
            numerics,
            recorded: machine.to_owned(),
            instruction_sets: sets,
            runs: rows.iter().map(|row| row[0].parts.clone()).collect(),
        }
    }

    /// What was recorded before, if anything.
    pub fn read(place: &Place) -> Result<Option<Self>, String> {
        let path = place.page(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(|error| format!("{FILE}: {error}"))?;
        let value = serde_json::from_slice(&text).map_err(|error| format!("{FILE}: {error}"))?;
        let record = Self::from_json(&value);
        record.map(Some).ok_or_else(|| format!("{FILE} is broken; --record writes it anew"))
    }

    pub fn write(&self, place: &Place) -> Result<(), String> {
        let text = serde_json::to_string_pretty(&self.to_json()).map_err(|e| e.to_string())?;
        place.write_page(FILE, &format!("{text}\n"))
    }

    pub fn to_json(&self) -> Value {
        let parts = |run: &Run, parts: &Parts| {
            let named = names(run).into_iter().zip(parts);
            named.map(|(name, digest)| (name.to_owned(), json!(digest))).collect::<Map<_, _>>()
        };
        let runs = RUNS.iter().zip(&self.runs);
        let runs = runs.map(|(run, of)| (run.key.to_owned(), Value::from(parts(run, of))));
        json!({
            "numerics": self.numerics,
            "recorded": self.recorded,
            "instruction_sets": self.instruction_sets,
            "runs": runs.collect::<Map<_, _>>(),
        })
    }

    /// `None` where something is missing.
    pub fn from_json(value: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let parts = |run: &Run| {
            let [a, b, c] = names(run).map(|name| text(&value["runs"][run.key][name]));
            Some([a?, b?, c?])
        };
        Some(Self {
            numerics: value["numerics"].as_u64()?,
            recorded: text(&value["recorded"])?,
            instruction_sets: value["instruction_sets"]
                .as_array()?
                .iter()
                .map(text)
                .collect::<Option<_>>()?,
            runs: RUNS.iter().map(parts).collect::<Option<_>>()?,
        })
    }

    /// An error, which names the first, where a digest is not as recorded.
    pub fn check_against(&self, kept: &Self) -> Result<(), String> {
        for ((run, found), recorded) in RUNS.iter().zip(&self.runs).zip(&kept.runs) {
            if let Some(part) = (0..found.len()).find(|&i| found[i] != recorded[i]) {
                return Err(format!(
                    "{}, {}: {} here, and {} recorded ({}) under the same numerics",
                    run.key,
                    names(run)[part],
                    found[part],
                    recorded[part],
                    kept.recorded
                ));
            }
        }
        Ok(())
    }
}

/// How the parts of a run are called.
pub fn names(run: &Run) -> [&'static str; 3] {
    [run.result, "moments", "losses"]
}

/// An error, which names the first cell that differs from the first of its row.
pub fn all_equal(rows: &[Vec<Cell>]) -> Result<(), String> {
    for (run, row) in RUNS.iter().zip(rows) {
        let first = &row[0];
        for cell in row {
            if let Some(part) = (0..cell.parts.len()).find(|&i| cell.parts[i] != first.parts[i]) {
                return Err(format!(
                    "{}, {}: {} under {} with threads: {}, and {} under {} with threads: {}",
                    run.key,
                    names(run)[part],
                    cell.parts[part],
                    cell.set,
                    cell.threads,
                    first.parts[part],
                    first.set,
                    first.threads
                ));
            }
        }
    }
    Ok(())
}

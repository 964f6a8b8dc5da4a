//! The page.

use super::killed::Killed;
use super::record::{Record, names};
use super::{Cell, RUNS, SETS, THREADS};
use std::fmt::Write as _;

const HEAD: &str = "\
# The same bits under every instruction set

<!-- Written by `cargo xtask bench isa`; do not edit. -->

stories260k (a real model of 260,000 parameters, rows of 64 and 172, heads of 8), 20 steps of two
micro-batches with 47 tokens a row, evaluated before, half-way and after; adapters of rank 6 with
dropout. Every run under each instruction set (`HONE_ISA`), with one thread and with two: the first
digits of the SHA-256 of what was trained, of Adam's moments, and of all losses and gradient norms.
Cells of a row must be equal, on this machine and on others: whole digests are in
[isa.json](isa.json). NEON is tested under an emulator.

";

/// Digits of a digest that are shown.
const NUM_DIGITS: usize = 16;
const NOT_HERE: &str = "not here";

/// A row for each part of each run, a column for each instruction set and number of threads.
pub fn table(rows: &[Vec<Cell>]) -> String {
    let columns = || SETS.into_iter().flat_map(|set| THREADS.map(|threads| (set, threads)));
    let mut text = "| run |  |".to_owned();
    for (set, threads) in columns() {
        let unit = if threads == 1 { "thread" } else { "threads" };
        let _ = write!(text, " {set}, {threads} {unit} |");
    }
    let _ = writeln!(text, "\n| --- | --- |{}", " --- |".repeat(columns().count()));
    for (run, row) in RUNS.iter().zip(rows) {
        for (part, name) in names(run).into_iter().enumerate() {
            let _ = write!(text, "| {} | {name} |", run.title);
            for (set, threads) in columns() {
                let cell = row.iter().find(|cell| (cell.set, cell.threads) == (set, threads));
                let _ = match cell {
                    Some(cell) => write!(text, " `{}` |", &cell.parts[part][..NUM_DIGITS]),
                    None => write!(text, " {NOT_HERE} |"),
                };
            }
            text.push('\n');
        }
    }
    text
}

/// The whole page of a machine on which all is equal.
pub fn page(table: &str, killed: &[Killed], machine: &str, kept: &Record) -> String {
    let mut text = format!("{HEAD}{table}\n");
    let title = RUNS[0].title;
    let _ = writeln!(
        text,
        "The first run ({title}) with two threads, ended by SIGKILL once a checkpoint was written \
         and resumed under\nanother instruction set, against the one that nothing happened to:\n\n\
         | killed under | resumed under | adapter, moments, losses |\n| --- | --- | --- |"
    );
    for Killed { first, then } in killed {
        let _ = writeln!(text, "| {first} | {then} | equal |");
    }
    if killed.is_empty() {
        let _ = writeln!(text, "| {NOT_HERE} | {NOT_HERE} | – |");
    }
    let sets = kept.instruction_sets.join(", ");
    let _ = writeln!(
        text,
        "\nMachine: {machine}.\n\nEqual to the digests of numerics {} recorded on {} \
         (with {sets}).",
        kept.numerics, kept.recorded
    );
    text
}

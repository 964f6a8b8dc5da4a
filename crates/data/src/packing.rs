//! Rows into units of fixed size, and units into micro-batches. Which row comes when is `order`'s.

use crate::dataset::Dataset;
use crate::error::DataError;

/// The target of a position that predicts nothing.
pub const IGNORE: u32 = u32::MAX;

/// Rows are packed among this many at a time, so that the order stays nearly random and the cost
/// of packing linear.
const WINDOW_ROWS: usize = 4096;

/// Rows that share `unit_tokens` slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unit {
    /// Row ids.
    pub rows: Vec<u32>,
    /// Slots used.
    pub num_tokens: usize,
}

/// First-fit-decreasing within windows of `order`; ties keep that order. `lengths[row]` is at
/// most `unit_tokens`.
pub(crate) fn pack_decreasing(order: &[u32], lengths: &[u32], unit_tokens: usize) -> Vec<Unit> {
    let windows = order.chunks(WINDOW_ROWS).map(|window| {
        let mut rows = window.to_vec();
        rows.sort_by_key(|row| std::cmp::Reverse(lengths[*row as usize]));
        first_fit(&rows, lengths, unit_tokens)
    });
    windows.flatten().collect()
}

/// First-fit in the rows' own order, for evaluation. Refuses rows longer than `unit_tokens`.
pub fn pack_in_order(dataset: &Dataset, unit_tokens: usize) -> Result<Vec<Unit>, DataError> {
    let lengths = row_lengths(dataset, unit_tokens)?;
    let order = (0..lengths.len() as u32).collect::<Vec<_>>();
    let windows = order.chunks(WINDOW_ROWS);
    Ok(windows.flat_map(|window| first_fit(window, &lengths, unit_tokens)).collect())
}

/// Lengths of all rows, each checked to fit a unit.
pub(crate) fn row_lengths(dataset: &Dataset, unit_tokens: usize) -> Result<Vec<u32>, DataError> {
    let lengths = (0..dataset.len()).map(|i| dataset.row_len(i) as u32).collect::<Vec<_>>();
    match lengths.iter().position(|len| *len as usize > unit_tokens) {
        None => Ok(lengths),
        Some(row) => {
            let source = dataset.row(row).source;
            Err(DataError::setup(
                format!(
                    "the row of {}:{} has {} tokens, more than the {unit_tokens} of a unit",
                    source.file, source.line, lengths[row]
                ),
                "load the data with the same max_seq_len",
            ))
        }
    }
}

fn first_fit(rows: &[u32], lengths: &[u32], unit_tokens: usize) -> Vec<Unit> {
    let smallest = rows.iter().map(|row| lengths[*row as usize] as usize).min().unwrap_or(0);
    let mut units: Vec<Unit> = Vec::new();
    // Units before this one are too full for any row.
    let mut first_open = 0;
    for row in rows {
        let len = lengths[*row as usize] as usize;
        while units.get(first_open).is_some_and(|u| u.num_tokens + smallest > unit_tokens) {
            first_open += 1;
        }
        let fits = |u: &Unit| u.num_tokens + len <= unit_tokens;
        let at = units[first_open..].iter().position(fits).map_or(units.len(), |i| first_open + i);
        if at == units.len() {
            units.push(Unit::default());
        }
        units[at].rows.push(*row);
        units[at].num_tokens += len;
    }
    units
}

/// A fixed number of token slots, filled with whole sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids, `[num_tokens]`; 0 in padding.
    pub tokens: Vec<u32>,
    /// The token to predict at each slot, `[num_tokens]`, or `IGNORE`.
    pub targets: Vec<u32>,
    /// Place of each token in its sequence, from 0, `[num_tokens]`.
    pub positions: Vec<u32>,
    /// Boundaries of the sequences, `[num_sequences + 1]`: from 0 to the number of used slots.
    /// Padding comes after the last one and belongs to no sequence.
    pub cu_seqlens: Vec<u32>,
    /// Row ids of the sequences, in order.
    pub rows: Vec<u32>,
    /// Slots that predict something.
    pub num_target_tokens: usize,
}

impl MicroBatch {
    /// Lines up all sequences of `units`, then padding up to `num_tokens`.
    ///
    /// # Panics
    /// If the units hold more than `num_tokens` tokens.
    pub fn assemble(dataset: &Dataset, units: &[Unit], num_tokens: usize) -> Self {
        let mut batch = Self {
            tokens: Vec::with_capacity(num_tokens),
            targets: Vec::with_capacity(num_tokens),
            positions: Vec::with_capacity(num_tokens),
            cu_seqlens: vec![0],
            rows: Vec::new(),
            num_target_tokens: 0,
        };
        for row in units.iter().flat_map(|unit| &unit.rows) {
            batch.push(dataset, *row);
        }
        assert!(batch.tokens.len() <= num_tokens, "units do not fit {num_tokens} tokens");
        batch.tokens.resize(num_tokens, 0);
        batch.targets.resize(num_tokens, IGNORE);
        batch.positions.resize(num_tokens, 0);
        batch
    }

    fn push(&mut self, dataset: &Dataset, row_id: u32) {
        let row = dataset.row(row_id as usize);
        self.tokens.extend_from_slice(row.tokens);
        self.positions.extend(0..row.tokens.len() as u32);
        // The target of a slot is the next token of the same sequence.
        let next = row.tokens.iter().zip(row.is_target).skip(1);
        self.targets.extend(next.map(|(token, is)| if *is { *token } else { IGNORE }));
        self.targets.push(IGNORE);
        self.num_target_tokens += row.is_target.iter().filter(|is| **is).count();
        self.cu_seqlens.push(self.tokens.len() as u32);
        self.rows.push(row_id);
    }
}

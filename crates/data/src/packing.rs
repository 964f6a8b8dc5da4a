//! Groups of rows into units of fixed size, and units into micro-batches. Which row comes when is
//! `order`'s.

use crate::dataset::{Dataset, Label};
use crate::error::DataError;
use std::ops::Range;

/// The target of a position that predicts nothing.
pub const IGNORE: u32 = u32::MAX;

/// Groups are packed among this many at a time, so that the order stays nearly random and the cost
/// of packing linear.
const WINDOW_GROUPS: usize = 4096;

/// Rows that share `unit_tokens` slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unit {
    /// Row ids.
    pub rows: Vec<u32>,
    /// Slots used.
    pub num_tokens: usize,
}

/// Rows that must share a unit, and their length together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    rows: Range<u32>,
    num_tokens: u32,
}

/// First-fit-decreasing within windows of `order`, which lists groups; ties keep that order. Each
/// group is at most `unit_tokens` long.
pub(crate) fn pack_decreasing(order: &[u32], groups: &[Group], unit_tokens: usize) -> Vec<Unit> {
    let mut after_last = vec![0; groups.len()];
    let windows = order.chunks(WINDOW_GROUPS).map(|window| {
        let mut order = window.to_vec();
        order.sort_by_key(|group| std::cmp::Reverse(groups[*group as usize].num_tokens));
        first_fit(&order, groups, unit_tokens, &mut after_last)
    });
    windows.flatten().collect()
}

/// First-fit in the groups' own order, for evaluation. Refuses groups longer than `unit_tokens`.
pub fn pack_in_order(dataset: &Dataset, unit_tokens: usize) -> Result<Vec<Unit>, DataError> {
    let groups = groups(dataset, unit_tokens)?;
    let order = (0..groups.len() as u32).collect::<Vec<_>>();
    let mut after_last = vec![0; groups.len()];
    let mut fitted = |window| first_fit(window, &groups, unit_tokens, &mut after_last);
    Ok(order.chunks(WINDOW_GROUPS).flat_map(&mut fitted).collect())
}

/// All groups, each checked to fit a unit.
pub(crate) fn groups(dataset: &Dataset, unit_tokens: usize) -> Result<Vec<Group>, DataError> {
    let group = |i| {
        let rows = dataset.group(i);
        let num_tokens = rows.clone().map(|row| dataset.row_len(row as usize) as u32).sum();
        Group { rows, num_tokens }
    };
    let groups = (0..dataset.num_groups()).map(group).collect::<Vec<_>>();
    match groups.iter().find(|group| group.num_tokens as usize > unit_tokens) {
        None => Ok(groups),
        Some(group) => {
            let source = dataset.row(group.rows.start as usize).source;
            Err(DataError::setup(
                format!(
                    "the row of {}:{} has {} tokens, more than the {unit_tokens} of a unit",
                    source.file, source.line, group.num_tokens
                ),
                "load the data with the same max_seq_len",
            ))
        }
    }
}

/// First-fit. A group that comes again in `order` goes to a unit after the one that it went to
/// last, unless that would open more units than the tokens need. `after_last` is zero for each
/// group, here and afterwards.
fn first_fit(
    order: &[u32],
    groups: &[Group],
    unit_tokens: usize,
    after_last: &mut [u32],
) -> Vec<Unit> {
    let len_of = |index: u32| groups[index as usize].num_tokens as usize;
    let lengths = order.iter().map(|&index| len_of(index));
    let smallest = lengths.clone().min().unwrap_or(0);
    let least_units = lengths.sum::<usize>().div_ceil(unit_tokens);
    let mut units: Vec<Unit> = Vec::new();
    // Units before this one are too full for any group.
    let mut first_open = 0;
    for &index in order {
        let (len, after_last) = (len_of(index), &mut after_last[index as usize]);
        while units.get(first_open).is_some_and(|u| u.num_tokens + smallest > unit_tokens) {
            first_open += 1;
        }
        let fits = |at: &usize| units[*at].num_tokens + len <= unit_tokens;
        let start = first_open.max(*after_last as usize);
        let at = (start..units.len()).find(fits).or_else(|| {
            let may_open = units.len() < least_units;
            if may_open { None } else { (first_open..start).find(fits) }
        });
        let at = at.unwrap_or(units.len());
        if at == units.len() {
            units.push(Unit::default());
        }
        units[at].rows.extend(groups[index as usize].rows.clone());
        units[at].num_tokens += len;
        *after_last = at as u32 + 1;
    }
    order.iter().for_each(|&index| after_last[index as usize] = 0);
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
    /// What each of them is to its objective.
    pub labels: Vec<Label>,
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
            labels: Vec::new(),
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
        self.labels.push(row.label);
    }
}

//! Windows of text that a model is calibrated or measured on.

use hone_model::{Batch, DecoderConfig};
use std::collections::HashSet;

/// The target of a position that predicts nothing.
const IGNORE: u32 = u32::MAX;

/// Rows of tokens that pass through a model together, each a sequence of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Token ids.
    pub rows: Vec<Vec<u32>>,
}

impl Window {
    /// Number of tokens.
    pub fn num_tokens(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// The batch, in which nothing is predicted.
    pub fn batch(&self, config: &DecoderConfig) -> Batch {
        self.labelled(config, &vec![IGNORE; self.num_tokens()])
    }

    /// The batch in which each token predicts its label.
    ///
    /// # Panics
    /// If there are not as many labels as tokens.
    pub fn labelled(&self, config: &DecoderConfig, labels: &[u32]) -> Batch {
        let tokens: Vec<u32> = self.rows.concat();
        let positions: Vec<u32> = self.rows.iter().flat_map(|row| 0..row.len() as u32).collect();
        let mut ends = vec![0];
        for row in &self.rows {
            ends.push(ends[ends.len() - 1] + row.len() as u32);
        }
        Batch::new(config, &tokens, &positions, &ends, labels, IGNORE)
    }
}

/// Text that a model is calibrated on, and other text that it is measured on.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// For calibration.
    pub calibration: Vec<Window>,
    /// For choices among what calibration gives; empty if there are fewer than three windows.
    pub choosing: Vec<Window>,
    /// For measuring what was chosen; empty if there is only one window.
    pub held_out: Vec<Window>,
    /// Rows that were to be held out, or to choose on, and are the same as others.
    pub num_repeated: usize,
}

impl Corpus {
    /// About `num_tokens` of the windows for calibration, from all over the text, and of the rest
    /// an eighth as many to choose and to measure on, half of them for each. No row of one part is
    /// also in another.
    pub fn of(windows: Vec<Window>, num_tokens: usize) -> Self {
        let all = windows.len();
        let of_window = windows.iter().map(Window::num_tokens).max().unwrap_or(1).max(1);
        let wanted = num_tokens.div_ceil(of_window).max(1);
        let wanted = wanted + wanted.div_ceil(EIGHTH);
        let taken = wanted.min(all);
        // The last of every eight; of few the last two, but not the first one.
        let is_few = taken < 2 * EIGHTH;
        let is_held_out = |i: usize| match is_few {
            true => i > 0 && i + 2 >= taken,
            false => i % EIGHTH == EIGHTH - 1,
        };
        let mut corpus = Self::default();
        for (i, window) in windows.into_iter().enumerate() {
            // Which of those that are taken this is, if they are spread evenly.
            let (first, next) = (i * taken / all, (i + 1) * taken / all);
            match (first < next, is_held_out(first)) {
                (false, _) => {}
                (true, true) => corpus.held_out.push(window),
                (true, false) => corpus.calibration.push(window),
            }
        }
        corpus.num_repeated += remove_rows(&mut corpus.held_out, &corpus.calibration);
        // Every second one, but not the only one.
        let all = std::mem::take(&mut corpus.held_out);
        for (i, window) in all.into_iter().enumerate() {
            let part = if i % 2 == 0 { &mut corpus.held_out } else { &mut corpus.choosing };
            part.push(window);
        }
        corpus.num_repeated += remove_rows(&mut corpus.choosing, &corpus.held_out);
        corpus
    }
}

/// Removes what is also among `known`; how many rows.
fn remove_rows(windows: &mut Vec<Window>, known: &[Window]) -> usize {
    let known: HashSet<&Vec<u32>> = known.iter().flat_map(|window| &window.rows).collect();
    let mut count = 0;
    for window in &mut *windows {
        let before = window.rows.len();
        window.rows.retain(|row| !known.contains(row));
        count += before - window.rows.len();
    }
    windows.retain(|window| !window.rows.is_empty());
    count
}

impl Corpus {
    /// At most `count` windows of the calibration, from all over it.
    pub fn some(&self, count: usize) -> Vec<Window> {
        let all = self.calibration.len();
        let taken = count.min(all);
        (0..taken).map(|i| self.calibration[i * all / taken].clone()).collect()
    }
}

/// One window of so many is held out.
const EIGHTH: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(count: u32) -> Vec<Window> {
        (0..count).map(|i| Window { rows: vec![vec![i; 6], vec![1000 + i; 4]] }).collect()
    }

    #[test]
    fn nothing_is_measured_that_was_calibrated_on() {
        for (count, num_tokens, expected) in [
            (1, 100, [1, 0, 0]),
            (2, 100, [1, 0, 1]),
            (40, 160, [16, 1, 1]),
            (40, 10_000, [35, 2, 3]),
        ] {
            let corpus = Corpus::of(windows(count), num_tokens);
            let parts = [&corpus.calibration, &corpus.choosing, &corpus.held_out];
            assert_eq!(parts.map(Vec::len), expected);
            let mut rows: Vec<_> = parts.into_iter().flatten().flat_map(|of| &of.rows).collect();
            let all = rows.len();
            rows.sort();
            rows.dedup();
            assert_eq!(rows.len(), all);
        }
        // A text that is there twice is calibrated on alone.
        let mut twice = windows(2);
        twice[1].rows[0] = twice[0].rows[1].clone();
        let corpus = Corpus::of(twice, 100);
        assert_eq!(corpus.held_out, [Window { rows: vec![vec![1001; 4]] }]);
        let same = Corpus::of(vec![windows(1)[0].clone(); 2], 100);
        assert_eq!((same.calibration.len(), same.held_out.len()), (1, 0));
    }
}

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
    /// For measuring; empty if there is only one window.
    pub held_out: Vec<Window>,
}

impl Corpus {
    /// About `num_tokens` of the windows for calibration, from all over the text, and of the rest
    /// an eighth as many to measure on. No row of the latter is also among the former.
    pub fn of(windows: Vec<Window>, num_tokens: usize) -> Self {
        let all = windows.len();
        let of_window = windows.iter().map(Window::num_tokens).max().unwrap_or(1).max(1);
        let wanted = num_tokens.div_ceil(of_window).max(1);
        let wanted = wanted + wanted.div_ceil(EIGHTH);
        let taken = wanted.min(all);
        // The last of every eight; of fewer the last one, but not the only one.
        let is_held_out =
            |i: usize| i % EIGHTH == EIGHTH - 1 || 1 < taken && taken < EIGHTH && i + 1 == taken;
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
        let known: HashSet<&Vec<u32>> =
            corpus.calibration.iter().flat_map(|window| &window.rows).collect();
        for window in &mut corpus.held_out {
            window.rows.retain(|row| !known.contains(row));
        }
        corpus.held_out.retain(|window| !window.rows.is_empty());
        corpus
    }
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
        for (count, num_tokens, expected) in
            [(1, 100, (1, 0)), (2, 100, (1, 1)), (40, 160, (16, 2)), (40, 10_000, (35, 5))]
        {
            let corpus = Corpus::of(windows(count), num_tokens);
            assert_eq!((corpus.calibration.len(), corpus.held_out.len()), expected);
            let of_held_out = corpus.held_out.iter().flat_map(|window| &window.rows);
            for row in of_held_out {
                assert!(!corpus.calibration.iter().any(|window| window.rows.contains(row)));
            }
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

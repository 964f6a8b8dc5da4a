//! Log-probabilities of the ends of texts, each given what goes before.
//!
//! What several texts begin with is computed once: the answers to a question share the question,
//! the questions of a test their examples. The texts of a batch form a tree of pieces; one pass
//! computes all pieces of a depth, whose keys and values go on those of their parents. By the
//! contract of bits a row is what it is in a pass of its text alone.

use crate::batch::Batch;
use crate::cache::LayerCache;
use crate::decoder::Recompute;
use crate::divergence::argmax;
use crate::generate;
use crate::pass::Pass;
use hone_tensor::ops::{self, PAGE_ROWS, PagedRows};
use hone_tensor::{DeviceError, Tape, Var};

/// Tokens whose last ones are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// The first that is scored; at least 1.
    pub first: usize,
}

/// What the model makes of the scored tokens of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// Log-probability of each, given all before it.
    pub log_probs: Vec<f32>,
    /// Whether each is the most likely one; `None` if that was not asked for.
    pub is_greedy: Option<bool>,
}

impl Scored {
    /// Log-probability of all of them.
    pub fn sum(&self) -> f64 {
        self.log_probs.iter().map(|&x| f64::from(x)).sum()
    }
}

/// New rows of a batch, and pages of keys and values that it takes.
const BATCH_ROWS: usize = 2048;
const BATCH_PAGES: usize = 96;

/// Shortest piece that is shared, the least that sharing it must save, in rows, and the most
/// passes of a batch: each reads all weights.
const MIN_SHARED: usize = 3;
const MIN_SAVED: usize = 16;
const MAX_DEPTH: usize = 5;

/// Rows whose logits exist at the same time.
const LOGIT_ROWS: usize = 64;

/// A token is certainly the most likely one above this log-probability, of a half and some more.
const CERTAINLY_GREEDY: f32 = -0.68;

/// Scores all `texts`, in their order; `done` is told of the number of each batch. Whether tokens
/// are the most likely ones takes more products with the head, so it is asked for with `greedy`.
///
/// # Errors
/// If the device failed.
///
/// # Panics
/// If a text has no scored token, or nothing before it, or the model looks ahead.
pub fn score(
    pass: Pass<'_>,
    texts: &[Text],
    greedy: bool,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Scored>, DeviceError> {
    assert!(texts.iter().all(|text| 0 < text.first && text.first < text.tokens.len()));
    assert!(pass.model.decoder.config.looks_ahead().is_none(), "tokens that see later ones");
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by(|&a, &b| texts[a].tokens.cmp(&texts[b].tokens));
    let empty = |text: &Text| Scored {
        log_probs: vec![0.0; text.tokens.len() - text.first],
        is_greedy: greedy.then_some(true),
    };
    let mut scores = Scores { texts, scored: texts.iter().map(empty).collect() };
    let mut caches = Vec::new();
    pass.device.reusing_memory(|| {
        let mut rest = &order[..];
        while !rest.is_empty() {
            let mut count = batch_len(texts, rest, common);
            if shares_keys(pass, texts, &rest[..count]) {
                in_pieces(pass, &rest[..count], &mut caches, &mut scores)?;
            } else {
                count = batch_len(texts, rest, |_, _| 0);
                as_wholes(pass, &rest[..count], &mut scores)?;
            }
            done(count);
            rest = &rest[count..];
        }
        Ok(())
    })?;
    Ok(scores.scored)
}

/// Whether keys of a text's beginning are those of the whole, and nothing else goes on.
fn shares_keys(pass: Pass<'_>, texts: &[Text], batch: &[usize]) -> bool {
    let config = &pass.model.decoder.config;
    let longest = batch.iter().map(|&i| texts[i].tokens.len()).max().unwrap_or(0);
    config.deltas().next().is_none() && !config.changes_angles(1, longest)
}

/// How many of these texts are scored together, of which each shares so many tokens with the one
/// before.
fn batch_len(texts: &[Text], order: &[usize], shared: fn(&[u32], &[u32]) -> usize) -> usize {
    let (mut rows, mut pages) = (0, 0);
    for (n, &i) in order.iter().enumerate() {
        let (inputs, before) = (inputs(&texts[i]), n.checked_sub(1).map(|n| &texts[order[n]]));
        let shared = before.map_or(0, |before| shared(inputs, self::inputs(before)));
        rows += inputs.len() - shared;
        pages += 1 + inputs.len().div_ceil(PAGE_ROWS) - shared / PAGE_ROWS;
        if n > 0 && (rows > BATCH_ROWS || pages > BATCH_PAGES) {
            return n;
        }
    }
    order.len()
}

/// All tokens but the last, after which nothing is predicted.
fn inputs(text: &Text) -> &[u32] {
    &text.tokens[..text.tokens.len() - 1]
}

/// Length of what both begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Tokens `from..to` of a text, and of all others that begin alike.
struct Piece {
    parent: Option<usize>,
    depth: usize,
    text: usize,
    from: usize,
    to: usize,
    /// Texts, and rows of theirs among these tokens, after which a token is scored.
    wanted: Vec<(usize, usize)>,
    /// Pages of all tokens up to here.
    pages: Vec<u32>,
}

/// The pieces of a batch, parents first.
#[derive(Default)]
struct Tree {
    pieces: Vec<Piece>,
    num_pages: u32,
}

impl Tree {
    /// Of texts that are sorted.
    fn new(texts: &[Text], batch: &[usize]) -> Self {
        let mut tree = Self::default();
        tree.add(texts, batch, 0, None);
        tree
    }

    /// Adds what follows the first `from` tokens of these texts, which `parent` has.
    fn add(&mut self, texts: &[Text], mut batch: &[usize], from: usize, parent: Option<usize>) {
        let depth = parent.map_or(0, |parent| self.pieces[parent].depth + 1);
        while let Some(&first) = batch.first() {
            let shared = |&i: &usize| common(inputs(&texts[first]), inputs(&texts[i]));
            let alike = batch.iter().take_while(|i| shared(i) >= from + MIN_SHARED).count().max(1);
            let to = shared(&batch[alike - 1]);
            let is_worth_it = (alike - 1) * to.saturating_sub(from) >= MIN_SAVED;
            let (now, rest) = batch.split_at(alike);
            if alike > 1 && is_worth_it && depth + 1 < MAX_DEPTH {
                let piece = self.push(texts, now, from..to, (parent, depth));
                self.add(texts, now, to, Some(piece));
            } else {
                for text in now.chunks(1) {
                    let to = inputs(&texts[text[0]]).len();
                    if from < to {
                        self.push(texts, text, from..to, (parent, depth));
                    }
                }
            }
            batch = rest;
        }
    }

    fn push(
        &mut self,
        texts: &[Text],
        of: &[usize],
        range: std::ops::Range<usize>,
        (parent, depth): (Option<usize>, usize),
    ) -> usize {
        let (from, to) = (range.start, range.end);
        let rows = |&i: &usize| {
            let text = &texts[i];
            let scored = (text.first - 1).max(from)..inputs(text).len().min(to);
            scored.map(move |row| (i, row))
        };
        let wanted = of.iter().flat_map(rows).collect();
        let kept = from / PAGE_ROWS;
        let mut pages = parent.map_or(Vec::new(), |p| self.pieces[p].pages[..kept].to_vec());
        let num_new = (to.div_ceil(PAGE_ROWS) - kept) as u32;
        pages.extend(self.num_pages..self.num_pages + num_new);
        self.num_pages += num_new;
        self.pieces.push(Piece { parent, depth, text: of[0], from, to, wanted, pages });
        self.pieces.len() - 1
    }

    /// Rows of the page that a piece shares with its parent in part: where they are, and where the
    /// piece wants them.
    fn copies(&self, depth: usize) -> [Vec<u32>; 2] {
        let mut copies = [Vec::new(), Vec::new()];
        for piece in self.pieces.iter().filter(|piece| piece.depth == depth) {
            let Some(parent) = piece.parent.map(|parent| &self.pieces[parent]) else { continue };
            let page = piece.from / PAGE_ROWS;
            for row in 0..(piece.from % PAGE_ROWS) as u32 {
                let row_of = |pages: &[u32]| pages[page] * PAGE_ROWS as u32 + row;
                copies[0].push(row_of(&parent.pages));
                copies[1].push(row_of(&piece.pages));
            }
        }
        copies
    }
}

/// Scores a batch piece by piece.
fn in_pieces(
    pass: Pass<'_>,
    batch: &[usize],
    caches: &mut Vec<LayerCache>,
    scores: &mut Scores<'_>,
) -> Result<(), DeviceError> {
    let texts = scores.texts;
    let tree = Tree::new(texts, batch);
    let num_pages = tree.num_pages as usize;
    if caches.is_empty() {
        *caches = generate::caches(pass, num_pages, 0)?;
    }
    let pages = (num_pages, num_pages);
    caches.iter_mut().try_for_each(|cache| cache.reserve(pass.device, pages, 0))?;
    let depths = tree.pieces.iter().map(|piece| piece.depth + 1).max().unwrap_or(0);
    for depth in 0..depths {
        let [from, to] = tree.copies(depth);
        for cache in caches.iter_mut() {
            if let LayerCache::Pages(pages) = cache {
                pages.copy_rows(pass.device, &from, &to);
            }
        }
        let mut rows = PagedRows::default();
        let (mut tokens, mut positions, mut bounds) = (Vec::new(), Vec::new(), vec![0]);
        let mut wanted = Vec::new();
        for piece in tree.pieces.iter().filter(|piece| piece.depth == depth) {
            let first_row = tokens.len();
            rows.push(&piece.pages, piece.from, piece.to - piece.from);
            tokens.extend(&texts[piece.text].tokens[piece.from..piece.to]);
            positions.extend((piece.from..piece.to).map(|position| position as u32));
            bounds.push(tokens.len() as u32);
            let wanted_of = |&(text, row): &(usize, usize)| Wanted {
                row: (first_row + row - piece.from) as u32,
                text,
                target: row + 1,
            };
            wanted.extend(piece.wanted.iter().map(wanted_of));
        }
        let decoder = &pass.model.decoder;
        let angles = decoder.config.angles(&positions, &bounds);
        let mut tape = pass.inference_tape();
        let hidden = decoder.hidden_paged(&mut tape, &tokens, &angles, (&rows, &[]), caches);
        scores.add(pass, &mut tape, hidden, &wanted)?;
    }
    Ok(())
}

/// Scores a batch, each text by itself.
fn as_wholes(pass: Pass<'_>, batch: &[usize], scores: &mut Scores<'_>) -> Result<(), DeviceError> {
    let (mut tokens, mut positions, mut bounds) = (Vec::new(), Vec::new(), vec![0]);
    let mut wanted = Vec::new();
    for &i in batch {
        let text = &scores.texts[i];
        let rows = (text.first - 1)..inputs(text).len();
        let first_row = tokens.len();
        let wanted_of =
            |row: usize| Wanted { row: (first_row + row) as u32, text: i, target: row + 1 };
        wanted.extend(rows.map(wanted_of));
        tokens.extend(inputs(text));
        positions.extend(0..inputs(text).len() as u32);
        bounds.push(tokens.len() as u32);
    }
    let decoder = &pass.model.decoder;
    let no_targets = vec![u32::MAX; tokens.len()];
    let batch = Batch::new(&decoder.config, &tokens, &positions, &bounds, &no_targets, u32::MAX);
    let mut tape = pass.inference_tape();
    let hidden = decoder.hidden(&mut tape, &batch, Recompute::None);
    scores.add(pass, &mut tape, hidden, &wanted)
}

/// A token of a text, by its index, and the row of a pass that predicts it.
struct Wanted {
    row: u32,
    text: usize,
    target: usize,
}

struct Scores<'t> {
    texts: &'t [Text],
    scored: Vec<Scored>,
}

impl Scores<'_> {
    /// Reads the wanted tokens' scores off hidden states, which ends the pass.
    fn add(
        &mut self,
        pass: Pass<'_>,
        tape: &mut Tape<'_>,
        hidden: Var,
        wanted: &[Wanted],
    ) -> Result<(), DeviceError> {
        let token = |wanted: &Wanted| self.texts[wanted.text].tokens[wanted.target];
        for wanted in wanted.chunks(BATCH_ROWS) {
            let rows: Vec<u32> = wanted.iter().map(|wanted| wanted.row).collect();
            let targets: Vec<u32> = wanted.iter().map(token).collect();
            let found = log_probs(pass, tape, &hidden, &rows, &targets)?;
            for (wanted, &log_prob) in wanted.iter().zip(&found) {
                let first = self.texts[wanted.text].first;
                self.scored[wanted.text].log_probs[wanted.target - first] = log_prob;
            }
            let is_open = |&i: &usize| {
                let is_asked = self.scored[wanted[i].text].is_greedy == Some(true);
                is_asked && (found[i] <= CERTAINLY_GREEDY || found[i].is_nan())
            };
            let open: Vec<usize> = (0..found.len()).filter(is_open).collect();
            for open in open.chunks(LOGIT_ROWS) {
                let rows: Vec<u32> = open.iter().map(|&i| rows[i]).collect();
                for (&i, best) in open.iter().zip(most_likely(pass, tape, &hidden, &rows)?) {
                    if best != targets[i] {
                        self.scored[wanted[i].text].is_greedy = Some(false);
                    }
                }
            }
        }
        pass.device.settle()
    }
}

/// Log-probability of `targets[i]` after row `rows[i]`, which may come more than once.
fn log_probs(
    pass: Pass<'_>,
    tape: &mut Tape<'_>,
    hidden: &Var,
    rows: &[u32],
    targets: &[u32],
) -> Result<Vec<f32>, DeviceError> {
    let x = ops::take_rows(tape, hidden.clone(), rows);
    let all: Vec<u32> = (0..rows.len() as u32).collect();
    let mut tape = Tape::inference(pass.device, tape.params(), pass.compute);
    let found = ops::log_probs(&mut tape, x, pass.model.decoder.output_head(), &all, targets);
    found.value().try_to_vec_f32()
}

/// The token that is most likely after each row, the lowest id of several.
fn most_likely(
    pass: Pass<'_>,
    tape: &mut Tape<'_>,
    hidden: &Var,
    rows: &[u32],
) -> Result<Vec<u32>, DeviceError> {
    let x = ops::take_rows(tape, hidden.clone(), rows);
    let logits = pass.model.decoder.logits_of(tape, x.value()).try_to_vec_f32()?;
    Ok(logits.chunks_exact(pass.model.decoder.config.vocab_size).map(argmax).collect())
}

#[cfg(test)]
mod tests;

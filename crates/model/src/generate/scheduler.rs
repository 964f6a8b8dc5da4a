//! Which sequences a pass continues: one that ends leaves, one that waits enters.

use super::memory::{Memory, Rows};
use super::{Draw, Finish, GenerateError, Request};
use crate::pass::Pass;
use hone_tensor::ops::PAGE_ROWS;
use std::collections::VecDeque;

/// What a scheduler may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences in one pass.
    pub max_sequences: usize,
    /// Rows of prompts that enter in one pass; a longer prompt enters alone.
    pub max_prompt_rows: usize,
    /// Pages of keys and values in each layer. A request enters only when there are pages for the
    /// longest answer that it allows, so that none has to be sent away again.
    pub max_pages: usize,
}

impl Default for Limits {
    /// As many pages as the requests ask for.
    fn default() -> Self {
        Self { max_sequences: 16, max_prompt_rows: 512, max_pages: usize::MAX }
    }
}

/// What a pass did for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next token of its answer.
    Token {
        /// The request.
        id: u64,
        /// The token.
        token: u32,
    },
    /// Its answer ends; its pages are free.
    Finished {
        /// The request.
        id: u64,
        /// Why.
        finish: Finish,
    },
}

/// A request, and how far it is.
struct Sequence {
    request: Request,
    /// Tokens that may be generated.
    limit: usize,
    /// Tokens generated.
    num_new: usize,
    /// Tokens that the pages do not hold yet: the prompt, then the last token generated.
    pending: Vec<u32>,
    /// Tokens whose keys and values the pages hold.
    num_kept: usize,
    pages: Vec<u32>,
}

impl Sequence {
    /// Pages for the longest answer that is allowed. Keys of the last token are never needed.
    fn most_pages(&self) -> usize {
        (self.request.prompt.len() + self.limit.saturating_sub(1)).div_ceil(PAGE_ROWS)
    }

    fn finish_at_limit(&self) -> Finish {
        if self.limit < self.request.max_new_tokens { Finish::Context } else { Finish::Length }
    }
}

/// Requests that wait, and sequences that passes continue.
pub struct Scheduler<'a> {
    pass: Pass<'a>,
    limits: Limits,
    memory: Memory<'a>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// Pages that sequences gave back.
    free: Vec<u32>,
    /// Pages that were ever given out.
    num_pages: usize,
}

impl<'a> Scheduler<'a> {
    /// A scheduler without requests; memory is taken as they need it.
    pub fn new(pass: Pass<'a>, limits: Limits) -> Self {
        let (waiting, running, free) = Default::default();
        Self { pass, limits, memory: Memory::new(pass), waiting, running, free, num_pages: 0 }
    }

    /// Adds a request behind those that wait.
    ///
    /// # Errors
    /// If it needs more pages than there may be.
    ///
    /// # Panics
    /// If the prompt is empty or longer than the model's `max_position_embeddings`; callers check
    /// both to say it in their own words.
    pub fn submit(&mut self, request: Request) -> Result<(), GenerateError> {
        let longest = self.pass.model.decoder.config.max_position_embeddings;
        assert!(!request.prompt.is_empty());
        let room = longest.checked_sub(request.prompt.len()).expect("a prompt that fits");
        let (limit, pending) = (request.max_new_tokens.min(room), request.prompt.clone());
        let sequence =
            Sequence { request, limit, num_new: 0, pending, num_kept: 0, pages: Vec::new() };
        let (needed, max_pages) = (sequence.most_pages(), self.limits.max_pages);
        if needed > max_pages {
            let (prompt_len, max_new_tokens) = (sequence.request.prompt.len(), limit);
            return Err(GenerateError::TooLong { prompt_len, max_new_tokens, needed, max_pages });
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Forgets a request, wherever it is.
    pub fn cancel(&mut self, id: u64) {
        self.waiting.retain(|sequence| sequence.request.id != id);
        self.release(|sequence| sequence.request.id == id);
    }

    /// Whether no request is left.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Runs one pass: the prompts that enter, and the next token of every other sequence. Says what
    /// became of each.
    ///
    /// # Errors
    /// If a token cannot be chosen; the scheduler is of no use afterwards.
    pub fn step(&mut self) -> Result<Vec<Progress>, GenerateError> {
        self.admit();
        let mut progress = self.finish_full();
        if self.running.is_empty() {
            return Ok(progress);
        }
        let rows = self.rows();
        let logits = self.memory.logits(rows);
        let vocab_size = self.pass.model.decoder.config.vocab_size;
        let mut ended = Vec::new();
        for (sequence, logits) in self.running.iter_mut().zip(logits.chunks_exact(vocab_size)) {
            let id = sequence.request.id;
            let draw = Draw { request: id, position: sequence.num_new as u64 };
            let compute = self.pass.compute.name();
            let token = sequence.request.sampling.choose(logits, draw);
            let token = token.map_err(|logit| GenerateError::NotFinite { draw, logit, compute })?;
            if sequence.request.stop_ids.contains(&token) {
                progress.push(Progress::Finished { id, finish: Finish::Stop });
                ended.push(id);
                continue;
            }
            sequence.num_kept += std::mem::replace(&mut sequence.pending, vec![token]).len();
            sequence.num_new += 1;
            progress.push(Progress::Token { id, token });
        }
        self.release(|sequence| ended.contains(&sequence.request.id));
        progress.extend(self.finish_full());
        Ok(progress)
    }

    /// Lets sequences enter, in the order in which they came, as far as the limits allow.
    fn admit(&mut self) {
        let mut reserved: usize = self.running.iter().map(Sequence::most_pages).sum();
        let mut prompt_rows = 0;
        while let Some(next) = self.waiting.front() {
            prompt_rows += next.request.prompt.len();
            reserved = reserved.saturating_add(next.most_pages());
            let is_alone = prompt_rows == next.request.prompt.len();
            let fits = self.running.len() < self.limits.max_sequences
                && reserved <= self.limits.max_pages
                && (is_alone || prompt_rows <= self.limits.max_prompt_rows);
            if !fits {
                break;
            }
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Ends the sequences that may have no further token.
    fn finish_full(&mut self) -> Vec<Progress> {
        let is_full = |sequence: &Sequence| sequence.num_new == sequence.limit;
        let full = self.running.iter().filter(|sequence| is_full(sequence));
        let finished = full.map(|sequence| Progress::Finished {
            id: sequence.request.id,
            finish: sequence.finish_at_limit(),
        });
        let finished = finished.collect();
        self.release(is_full);
        finished
    }

    /// The tokens of the next pass, each sequence with pages for its own.
    fn rows(&mut self) -> Rows {
        let mut rows = Rows::default();
        for sequence in &mut self.running {
            let len = sequence.num_kept + sequence.pending.len();
            while sequence.pages.len() < len.div_ceil(PAGE_ROWS) {
                let page = self.free.pop().unwrap_or_else(|| {
                    self.num_pages += 1;
                    self.num_pages as u32 - 1
                });
                sequence.pages.push(page);
            }
            rows.push(&sequence.pending, &sequence.pages, sequence.num_kept);
        }
        self.memory.reserve(self.num_pages, self.limits.max_pages);
        rows
    }

    /// Takes sequences out and their pages back.
    fn release(&mut self, leaves: impl Fn(&Sequence) -> bool) {
        let (left, stay) = self.running.drain(..).partition(|sequence| leaves(sequence));
        self.running = stay;
        self.free.extend(Vec::<Sequence>::into_iter(left).flat_map(|sequence| sequence.pages));
    }
}

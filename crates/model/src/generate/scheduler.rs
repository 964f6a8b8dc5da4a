//! Continuous batching: sequences join a pass when there is room and leave when they end.

use super::memory::{Memory, Rows};
use super::{Draw, Finish, GenerateError, Request};
use crate::pass::Pass;
use hone_tensor::DeviceError;
use hone_tensor::ops::PAGE_ROWS;
use std::collections::VecDeque;

/// Limits of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences in one pass.
    pub max_sequences: usize,
    /// Prompt tokens admitted per pass; a longer prompt is admitted alone.
    pub max_prompt_rows: usize,
    /// Pages of the KV cache in each layer. A request is admitted only when there are pages for the
    /// longest answer it allows, so none is ever preempted.
    pub max_pages: usize,
}

impl Default for Limits {
    /// Limits that allow as many pages as the requests need.
    fn default() -> Self {
        Self { max_sequences: 16, max_prompt_rows: 512, max_pages: usize::MAX }
    }
}

/// What a pass produced for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next token of its answer.
    Token {
        /// The request.
        id: u64,
        /// The token.
        token: u32,
    },
    /// The end of its answer; its pages are free again.
    Finished {
        /// The request.
        id: u64,
        /// Why it ended.
        finish: Finish,
    },
}

/// A request and its progress.
struct Sequence {
    request: Request,
    /// Tokens that may be generated.
    limit: usize,
    /// The prompt, and what was generated.
    tokens: Vec<u32>,
    /// How many of them are in the KV cache.
    num_cached: usize,
    pages: Vec<u32>,
    /// Where its states are, once it runs.
    slot: u32,
}

impl Sequence {
    /// Tokens generated.
    fn num_new(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Pages for the longest allowed answer, whose last token never enters the cache.
    fn max_pages(&self) -> usize {
        (self.request.prompt.len() + self.limit.saturating_sub(1)).div_ceil(PAGE_ROWS)
    }

    fn finish_at_limit(&self) -> Finish {
        if self.limit < self.request.max_new_tokens { Finish::Context } else { Finish::Length }
    }
}

/// Waiting requests, and the sequences that passes continue.
pub struct Scheduler<'a> {
    pass: Pass<'a>,
    limits: Limits,
    memory: Memory<'a>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// Pages returned by finished sequences.
    free_pages: Vec<u32>,
    /// Number of pages in use or free.
    num_pages: usize,
    /// The same of slots, of which a sequence has one.
    free_slots: Vec<u32>,
    num_slots: usize,
}

impl<'a> Scheduler<'a> {
    /// A scheduler without requests; memory is allocated as they need it.
    pub fn new(pass: Pass<'a>, limits: Limits) -> Self {
        Self {
            pass,
            limits,
            memory: Memory::new(pass),
            waiting: VecDeque::new(),
            running: Vec::new(),
            free_pages: Vec::new(),
            num_pages: 0,
            free_slots: Vec::new(),
            num_slots: 0,
        }
    }

    /// Appends a request to the queue.
    ///
    /// # Errors
    /// If it needs more pages than the limits allow, or the model cannot continue a text.
    ///
    /// # Panics
    /// If the prompt is empty or longer than the model's `max_position_embeddings`; callers check
    /// both, since they can give a better message.
    pub fn submit(&mut self, request: Request) -> Result<(), GenerateError> {
        let config = &self.pass.model.decoder.config;
        if let Some(layer) = config.looks_ahead() {
            return Err(GenerateError::LooksAhead { layer });
        }
        let longest = config.max_position_embeddings;
        assert!(!request.prompt.is_empty());
        let room = longest.checked_sub(request.prompt.len()).expect("a prompt that fits");
        let (limit, tokens) = (request.max_new_tokens.min(room), request.prompt.clone());
        let pages = Vec::new();
        let sequence = Sequence { request, limit, tokens, num_cached: 0, pages, slot: 0 };
        let (needed, max_pages) = (sequence.max_pages(), self.limits.max_pages);
        if needed > max_pages {
            let (prompt_len, max_new_tokens) = (sequence.request.prompt.len(), limit);
            return Err(GenerateError::TooLong { prompt_len, max_new_tokens, needed, max_pages });
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Drops a request, whether waiting or running.
    pub fn cancel(&mut self, id: u64) {
        self.waiting.retain(|sequence| sequence.request.id != id);
        self.release(|sequence| sequence.request.id == id);
    }

    /// Whether no request is left.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Runs one pass over the prompts just admitted and the last token of every other sequence, and
    /// reports the progress of each.
    ///
    /// # Errors
    /// If a token cannot be sampled: the scheduler must not be used afterwards. If the device
    /// failed: requests are as they were, and the step can be repeated.
    pub fn step(&mut self) -> Result<Vec<Progress>, GenerateError> {
        self.admit();
        let mut progress = self.finish_full();
        // Told at once: the pass may fail.
        if self.running.is_empty() || !progress.is_empty() {
            return Ok(progress);
        }
        let rows = self.rows()?;
        let logits = self.memory.logits(rows).inspect_err(|_| {
            if self.pass.model.decoder.config.deltas().next().is_some() {
                // Some states have gone on already, and only whole sequences begin anew.
                self.running.iter_mut().for_each(|sequence| sequence.num_cached = 0);
            }
        })?;
        let vocab_size = self.pass.model.decoder.config.vocab_size;
        let mut ended = Vec::new();
        for (sequence, logits) in self.running.iter_mut().zip(logits.chunks_exact(vocab_size)) {
            let id = sequence.request.id;
            let draw = Draw { request: id, position: sequence.num_new() as u64 };
            let compute = self.pass.compute.name();
            let token = sequence.request.sampling.choose(logits, draw);
            let token = token.map_err(|logit| GenerateError::NotFinite { draw, logit, compute })?;
            if sequence.request.stop_ids.contains(&token) {
                progress.push(Progress::Finished { id, finish: Finish::Stop });
                ended.push(id);
                continue;
            }
            sequence.num_cached = sequence.tokens.len();
            sequence.tokens.push(token);
            progress.push(Progress::Token { id, token });
        }
        self.release(|sequence| ended.contains(&sequence.request.id));
        progress.extend(self.finish_full());
        Ok(progress)
    }

    /// Admits waiting sequences in order of arrival, as far as the limits allow.
    fn admit(&mut self) {
        let mut reserved: usize = self.running.iter().map(Sequence::max_pages).sum();
        let mut prompt_rows = 0;
        while let Some(next) = self.waiting.front() {
            prompt_rows += next.request.prompt.len();
            reserved = reserved.saturating_add(next.max_pages());
            let is_alone = prompt_rows == next.request.prompt.len();
            let fits = self.running.len() < self.limits.max_sequences
                && reserved <= self.limits.max_pages
                && (is_alone || prompt_rows <= self.limits.max_prompt_rows);
            if !fits {
                break;
            }
            let slot = self.free_slots.pop().unwrap_or_else(|| {
                self.num_slots += 1;
                self.num_slots as u32 - 1
            });
            let next = self.waiting.pop_front();
            self.running.extend(next.map(|sequence| Sequence { slot, ..sequence }));
        }
    }

    /// Ends the sequences that have reached their limit.
    fn finish_full(&mut self) -> Vec<Progress> {
        let is_full = |sequence: &Sequence| sequence.num_new() == sequence.limit;
        let full = self.running.iter().filter(|sequence| is_full(sequence));
        let finished = full.map(|sequence| Progress::Finished {
            id: sequence.request.id,
            finish: sequence.finish_at_limit(),
        });
        let finished = finished.collect();
        self.release(is_full);
        finished
    }

    /// The tokens of the next pass; gives each sequence the pages it needs.
    fn rows(&mut self) -> Result<Rows, DeviceError> {
        let (mut rows, config) = (Rows::default(), &self.pass.model.decoder.config);
        for sequence in &mut self.running {
            let len = sequence.tokens.len();
            if config.changes_angles(sequence.num_cached, len) {
                // Keys were rotated by the angles of shorter sequences.
                sequence.num_cached = 0;
            }
            while sequence.pages.len() < len.div_ceil(PAGE_ROWS) {
                let page = self.free_pages.pop().unwrap_or_else(|| {
                    self.num_pages += 1;
                    self.num_pages as u32 - 1
                });
                sequence.pages.push(page);
            }
            let (cached, pending) = (sequence.num_cached, &sequence.tokens[sequence.num_cached..]);
            rows.push(pending, (&sequence.pages, sequence.slot), cached);
        }
        self.memory.reserve((self.num_pages, self.limits.max_pages), self.num_slots)?;
        Ok(rows)
    }

    /// Removes the sequences that `is_done` selects and frees their pages.
    fn release(&mut self, is_done: impl Fn(&Sequence) -> bool) {
        let done = self.running.extract_if(.., |sequence| is_done(sequence));
        for Sequence { pages, slot, .. } in done {
            self.free_pages.extend(pages);
            self.free_slots.push(slot);
        }
    }
}

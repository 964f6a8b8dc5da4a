//! Passes that go through a model block by block: what a block gives to the next is held apart from
//! the tape, so that many batches can go through one before the next one's weights are read.

use super::{Decoder, Layer, Past};
use crate::batch::Batch;
use crate::load::Model;
use crate::pass::Pass;
use hone_tensor::{DeviceError, Gradients, Observer, Tape, Tensor, Var, Weight, ops};
use std::collections::BTreeMap;

/// What flows between blocks, of a batch; or the gradient of that.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The residual stream, `[t, hidden_size]` in f32.
    pub x: Tensor,
    /// Embeddings of all blocks, if they have any; no gradient if nothing is known of it yet.
    embeddings: Option<Tensor>,
    /// Queries, keys and values of blocks whose keys later ones read.
    lent: BTreeMap<usize, Tensor>,
}

impl Stream {
    /// The gradient of the residual stream alone.
    pub fn gradient(x: Tensor) -> Self {
        Self { x, embeddings: None, lent: BTreeMap::new() }
    }
}

impl Decoder {
    /// What the first block reads of a batch. Inference only.
    pub fn begin<'a>(&'a self, tape: &mut Tape<'a>, batch: &'a Batch) -> Stream {
        let x = self.embedded(tape, batch);
        let embeddings = self.block_embeddings(tape, &x, &batch.tokens);
        let embeddings = embeddings.map(|embeddings| embeddings.value().clone());
        Stream { x: x.value().clone(), embeddings, lent: BTreeMap::new() }
    }

    /// Takes what block `i` reads to what the next one does. Inference only.
    pub fn run_block<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        i: usize,
        batch: &'a Batch,
        stream: &mut Stream,
    ) {
        let (_, y, lent) = self.run(tape, i, (batch, stream), false);
        stream.x = y.value().clone();
        stream.lent.extend(lent.map(|lent| (i, lent.value().clone())));
    }

    /// The hidden states after the final norm, `[t, hidden_size]`, of what the last block gives.
    pub fn end<'a>(&'a self, tape: &mut Tape<'a>, x: &Var) -> Var {
        self.normed(tape, x, self.final_norm())
    }

    /// Log-probabilities of a batch's targets, of what the last block gives: as
    /// [`Self::log_probs`].
    pub fn log_probs_of<'a>(&'a self, tape: &mut Tape<'a>, x: &Var, batch: &'a Batch) -> Var {
        let hidden = self.end(tape, x);
        let hidden = self.head_input(tape, hidden);
        ops::log_probs(tape, hidden, self.output_head(), &batch.rows, &batch.targets)
    }

    /// Runs block `i` and back: from the gradient of what it gives, that of what it reads, which is
    /// `stream`. `tape` is that of a second run.
    pub fn run_block_back<'a>(
        &'a self,
        mut tape: Tape<'a>,
        i: usize,
        of: (&'a Batch, &Stream),
        gradient: Stream,
        gradients: &mut Gradients,
    ) -> Stream {
        let Stream { x: d_y, embeddings: d_embeddings, lent: mut d_lent } = gradient;
        let ([x, keys, embeddings], y, lent) = self.run(&mut tape, i, of, true);
        let lender = self.config.layers[i].attention.keys_of;
        // Sums go on from what later blocks gave, as those of a pass over all blocks do.
        let known = [
            lent.zip(d_lent.remove(&i)),
            keys.clone().zip(lender.and_then(|of| d_lent.remove(&of))),
            embeddings.clone().zip(d_embeddings),
        ];
        let roots = [(y, d_y)].into_iter().chain(known.into_iter().flatten());
        let found = tape.backward_from(roots, gradients);
        let of_leaf = |leaf: Option<Var>| found.get(&leaf?).cloned();
        d_lent.extend(lender.zip(of_leaf(keys)));
        let x = of_leaf(x).expect("the gradient of what a block reads");
        Stream { x, embeddings: of_leaf(embeddings), lent: d_lent }
    }

    /// The gradient of `embedded` tokens, from that of what the first block reads.
    pub fn begin_back<'a>(
        &'a self,
        mut tape: Tape<'a>,
        (batch, embedded): (&'a Batch, Tensor),
        gradient: Stream,
        gradients: &mut Gradients,
    ) -> Tensor {
        let x = tape.leaf(embedded, true);
        let embeddings = self.block_embeddings(&mut tape, &x, &batch.tokens);
        let others = embeddings.zip(gradient.embeddings);
        let roots = [(x.clone(), gradient.x)].into_iter().chain(others);
        let found = tape.backward_from(roots, gradients);
        found.get(&x).cloned().expect("a root is its own leaf")
    }

    /// Runs block `i` on leaves of the tape: those, what it gives, and what it lends.
    fn run<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        i: usize,
        (batch, stream): (&'a Batch, &Stream),
        requires_grad: bool,
    ) -> ([Option<Var>; 3], Var, Option<Var>) {
        ops::round_adapters(tape, self.layers[i].groups());
        let mut leaf = |of: &Tensor| tape.leaf(of.clone(), requires_grad);
        let x = leaf(&stream.x);
        let keys = self.config.layers[i].attention.keys_of.map(|of| leaf(&stream.lent[&of]));
        let embeddings = stream.embeddings.as_ref().map(leaf);
        let others = [keys.clone(), embeddings.clone()];
        let mut past = Past::None(&batch.sequences);
        let (y, lent) = self.block(tape, i, &batch.angles, (x.clone(), others), &mut past);
        ([Some(x), keys, embeddings], y, lent)
    }
}

impl Layer {
    /// Gives the memory of mapped files back.
    fn release_files(&self) {
        let vectors = self.norms.iter().chain(&self.norm_biases).flatten();
        let weights = self.projections().map(|projection| &projection.weight);
        vectors.chain(weights).for_each(release);
    }
}

fn release(weight: &Weight) {
    if let Weight::Frozen(tensor) = weight {
        tensor.release_file();
    }
}

impl Model {
    /// Gives the memory of mapped files that block `i` has been read from back to the system.
    pub fn release_block(&self, i: usize) {
        self.decoder.layers[i].release_files();
    }

    /// The same of what is outside of the blocks: embedding and head.
    pub fn release_tables(&self) {
        let Decoder { embed_tokens, block_embedder, lm_head, .. } = &self.decoder;
        let table = block_embedder.as_ref().map(|of| &of.table);
        [Some(embed_tokens), table, lm_head.as_ref()].into_iter().flatten().for_each(release);
    }
}

impl Pass<'_> {
    /// The hidden states after the last norm of each batch, `[t, hidden_size]`. All batches go
    /// through a block before the next one is read, and mapped files are let go of after that, so
    /// that no more than a block of the weights takes memory, or the embedding. `done` is told of
    /// each block.
    ///
    /// # Errors
    /// If the device failed.
    pub fn hidden_by_blocks(
        self,
        batches: &[Batch],
        observer: Option<&dyn Observer>,
        done: &mut dyn FnMut(),
    ) -> Result<Vec<Tensor>, DeviceError> {
        self.device.reusing_memory(|| {
            let mut streams = self.begin_all(batches)?;
            for i in 0..self.model.decoder.layers.len() {
                self.run_all(i, batches, &mut streams, observer)?;
                done();
            }
            let end = |stream: Stream| {
                let mut tape = self.inference_tape();
                let x = tape.leaf(stream.x, false);
                let hidden = self.model.decoder.end(&mut tape, &x);
                self.device.settle().map(|()| hidden.value().clone())
            };
            streams.into_iter().map(end).collect()
        })
    }

    /// What the first block reads of each batch.
    ///
    /// # Errors
    /// If the device failed.
    pub fn begin_all(self, batches: &[Batch]) -> Result<Vec<Stream>, DeviceError> {
        let begin = |batch| {
            let mut tape = self.inference_tape();
            self.model.decoder.begin(&mut tape, batch)
        };
        let streams = batches.iter().map(begin).collect();
        self.device.settle()?;
        self.model.release_tables();
        Ok(streams)
    }

    /// Takes all batches through block `i`.
    ///
    /// # Errors
    /// If the device failed.
    pub fn run_all(
        self,
        i: usize,
        batches: &[Batch],
        streams: &mut [Stream],
        observer: Option<&dyn Observer>,
    ) -> Result<(), DeviceError> {
        for (batch, stream) in batches.iter().zip(streams) {
            let mut tape = self.inference_tape();
            if let Some(observer) = observer {
                tape.set_observer(observer);
            }
            self.model.decoder.run_block(&mut tape, i, batch, stream);
            self.device.settle()?;
        }
        self.model.release_block(i);
        Ok(())
    }
}

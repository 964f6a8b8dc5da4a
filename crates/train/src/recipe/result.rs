//! What a finished run leaves: adapter or model, samples, report.

use super::{Event, Finished, Run};
use crate::backend::Backend;
use crate::checkpoint::{self, write_file_whole};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::metrics::{EvalRecord, Records, StepRecord};
use crate::run_dir::{Actual, RunDir};
use crate::sample::{self, Prompt, Sample};
use crate::{failpoint, report};
use hone_model::{
    Comparison, ExportError, ExportOptions, LoadOptions, adapter, check_written, export_hf,
};
use hone_tensor::{AdapterId, Arena, DType, DeviceError, Gradients};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Rows that the result is compared on with the model in memory, and the most tokens of each.
const NUM_ROWS: usize = 4;
const MAX_TOKENS: usize = 64;

impl Run<'_> {
    fn answers(
        &self,
        prompts: &[Prompt],
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<String>, TrainError> {
        let (samples, max_new_tokens) = (prompts.len(), self.setup.run.report.max_new_tokens);
        if samples == 0 {
            return Ok(Vec::new());
        }
        event(Event::Sampling { samples, max_new_tokens });
        let pass = self.engine.pass();
        let answers = sample::answers(pass, &self.setup.tokenizer, prompts, max_new_tokens)?;
        event(Event::Sampled { samples });
        Ok(answers)
    }

    /// The base model's answers: made at the start of the run, and found again when it resumes.
    pub(super) fn samples_before(
        &self,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Sample>, TrainError> {
        if self.step > 0 {
            return Ok(self.dir.read_samples()?.unwrap_or_else(|text| {
                event(Event::Note { text });
                Vec::new()
            }));
        }
        let prompts = sample::prompts_of(self.setup)?;
        let answered = prompts.iter().zip(self.answers(&prompts, event)?);
        let sample =
            |(prompt, answer): (&Prompt, _)| Sample { before: Some(answer), ..prompt.sample() };
        let samples: Vec<Sample> = answered.map(sample).collect();
        self.dir.write_samples(&samples)?;
        Ok(samples)
    }

    /// Frees what only steps need, so that the result can be read back within the plan; returns the
    /// length of the arena in bytes.
    fn release_step_memory(&mut self) -> Result<usize, DeviceError> {
        let arena_bytes = self.arena.bytes();
        self.arena = Arena::new(&self.engine.device, 0)?;
        self.engine.gradients = Gradients::default();
        self.engine.reference = None;
        (self.engine.optimizer.m, self.engine.optimizer.v) = (Vec::new(), Vec::new());
        hone_tensor::release_free_memory();
        Ok(arena_bytes)
    }

    /// Writes the result, answers the samples again, and makes the report.
    pub(super) fn finish(
        mut self,
        mut samples: Vec<Sample>,
        begun: Instant,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Finished, TrainError> {
        let arena_bytes = self.release_step_memory()?;
        let result = self.write_result(event)?;
        failpoint::hit("loop.result_written");
        let prompts = sample::prompts_of(self.setup)?;
        for (prompt, answer) in prompts.iter().zip(self.answers(&prompts, event)?) {
            let after = Some(answer);
            let asked = prompt.sample();
            if samples.iter().all(|sample| sample.prompt != asked.prompt) {
                samples.push(asked.clone());
            }
            let of_prompt = samples.iter_mut().filter(|sample| sample.prompt == asked.prompt);
            of_prompt.for_each(|sample| sample.after = after.clone());
        }
        self.dir.write_samples(&samples)?;
        self.dir.finish(self.actual(begun, arena_bytes)?)?;
        let report = self.dir.join("report.html");
        write_file_whole(&report, report::build(self.dir.path())?.as_bytes())?;
        let evaluations = evaluations(self.dir)?;
        Ok(Finished { result, report, evaluations, samples })
    }

    /// `adapter/` or `model/`, complete or absent, and read back before it gets its name.
    fn write_result(&self, event: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, TrainError> {
        let name = if self.engine.lora.is_some() { "adapter" } else { "model" };
        let (result, partial) = (self.dir.join(name), self.dir.join(&format!(".{name}-partial")));
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(TrainError::io(&partial))?;
        }
        std::fs::create_dir(&partial).map_err(TrainError::io(&partial))?;
        let Engine { device, model, lora, .. } = &self.engine;
        match lora {
            Some(lora) => {
                let (id, base_model) = (AdapterId::default(), &self.setup.run.model.path);
                adapter::save(&partial, model, device, id, lora, base_model)?;
                self.dir.read_manifest()?.trained_on(self.setup)?.write(&partial)?;
                self.compare(&partial, DType::F32)?;
            }
            None => match self.write_model(&partial, model.file_dtype) {
                Err(TrainError::Export(ExportError::EffectLost { dtype, fidelity, .. })) => {
                    let text = format!(
                        "model/ is written as f32: in {dtype}, only {:.0} % of what training \
                         changed would be left",
                        100.0 * fidelity.kept()
                    );
                    event(Event::Note { text });
                    self.write_model(&partial, DType::F32)?;
                }
                written => written?,
            },
        }
        checkpoint::publish(&partial, &result)?;
        Ok(result)
    }

    /// What ends the template's turns, if it was learnt.
    fn end_of_turn(&self) -> Option<u32> {
        let (id, train) = (self.setup.tokenizer.turn_end_id()?, &self.setup.train);
        let learns = |i| {
            let row = train.row(i);
            row.tokens
                .iter()
                .zip(row.is_target)
                .any(|(token, is_target)| *token == id && *is_target)
        };
        (0..train.len()).any(learns).then_some(id)
    }

    fn write_model(&self, to: &Path, dtype: DType) -> Result<(), TrainError> {
        let Engine { device, model, .. } = &self.engine;
        let (base, end_of_turn) = (&*self.setup.model_dir, self.end_of_turn());
        let options = ExportOptions { base, dtype, end_of_turn, quantised: None };
        export_hf(model, device, options, to)?;
        self.compare(to, dtype)
    }

    /// Compares what was written with the model in memory, by what training changed.
    fn compare(&self, written: &Path, written_as: DType) -> Result<(), TrainError> {
        let Engine { device, model, lora, .. } = &self.engine;
        let mut note = |_| ();
        let (base, reloaded) = match lora {
            Some(_) => {
                let mut reloaded = model.without_adapters();
                adapter::load(written, &mut reloaded, device, &mut note)?;
                (model.without_adapters(), reloaded)
            }
            None => (
                hone_model::load(&self.setup.model_dir, device, LoadOptions::INFERENCE)?,
                hone_model::load(written, device, LoadOptions::INFERENCE)?,
            ),
        };
        let train = &self.setup.train;
        let row = |i: usize| train.row(i).tokens.iter().copied().take(MAX_TOKENS).collect();
        let rows: Vec<Vec<u32>> = (0..train.len().min(NUM_ROWS)).map(row).collect();
        let models = Comparison { device, base: Some(&base), intended: model, written: &reloaded };
        check_written(models, written_as, &rows)?;
        Ok(())
    }

    fn actual(&self, begun: Instant, arena_bytes: usize) -> Result<Actual, TrainError> {
        let records = Records::<StepRecord>::read(&self.dir.join("metrics.jsonl"))?.records;
        let steps: Vec<f64> = records.iter().map(|record| record.step_seconds).collect();
        // A GPU's step memory is given back by now; the steps have recorded what was taken, those
        // of earlier processes too.
        let peak = match self.setup.backend {
            Backend::Cpu { .. } => {
                let recorded = records.iter().filter_map(|record| record.peak_bytes).max();
                self.setup.backend.peak_bytes().max(recorded)
            }
            _ => None,
        };
        Ok(Actual {
            peak_bytes: peak,
            arena_bytes,
            step_seconds: median(&steps),
            total_seconds: steps.iter().sum::<f64>(),
            session_seconds: begun.elapsed().as_secs_f64(),
        })
    }
}

/// The evaluations so far.
pub(super) fn evaluations(dir: &RunDir) -> Result<Vec<EvalRecord>, TrainError> {
    Ok(Records::read(&dir.join("eval.jsonl"))?.records)
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

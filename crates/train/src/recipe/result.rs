//! What a finished run leaves: adapter or model, samples, report.

use super::*;
use crate::run_dir::Actual;
use hone_model::{LoadOptions, logits_error, logits_tolerance};
use hone_tensor::Gradients;

impl Run<'_> {
    fn prompts(&self) -> Result<Vec<Prompt>, TrainError> {
        let dataset = self.setup.eval.as_ref().map_or(&self.setup.train, |(eval, _)| eval);
        sample::prompts(dataset, &self.setup.tokenizer, self.setup.run.report.samples)
    }

    fn answer(&self, prompt: &Prompt) -> Result<String, TrainError> {
        let limit = self.setup.run.report.max_new_tokens;
        prompt.answer(self.engine.pass(), &self.setup.tokenizer, limit)
    }

    /// The base model's answers: made at the start of the run, and found again when it resumes.
    pub(super) fn samples_before(&self) -> Result<Vec<Sample>, TrainError> {
        if self.step > 0 {
            return Ok(self.dir.read_samples().unwrap_or_default());
        }
        let mut samples = Vec::new();
        for prompt in self.prompts()? {
            let before = Some(self.answer(&prompt)?);
            samples.push(Sample { before, ..prompt.sample() });
        }
        self.dir.write_samples(&samples)?;
        Ok(samples)
    }

    /// Frees what only steps need, so that the result can be read back within the plan; returns the
    /// length of the arena in bytes.
    fn release_step_memory(&mut self) -> usize {
        let arena_bytes = self.arena.bytes();
        self.arena = Arena::new(&self.engine.device, 0);
        self.engine.gradients = Gradients::default();
        (self.engine.optimizer.m, self.engine.optimizer.v) = (Vec::new(), Vec::new());
        hone_tensor::release_free_memory();
        arena_bytes
    }

    /// Writes the result, answers the samples again, and makes the report.
    pub(super) fn finish(
        mut self,
        mut samples: Vec<Sample>,
        begun: Instant,
    ) -> Result<Finished, TrainError> {
        let arena_bytes = self.release_step_memory();
        let result = self.write_result()?;
        failpoint::hit("loop.result_written");
        for prompt in self.prompts()? {
            let after = Some(self.answer(&prompt)?);
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
        let evaluations = evaluations(&self.dir)?;
        Ok(Finished { result, report, evaluations, samples })
    }

    /// `adapter/` or `model/`, complete or absent, and read back before it gets its name.
    fn write_result(&self) -> Result<PathBuf, TrainError> {
        let name = if self.engine.lora.is_some() { "adapter" } else { "model" };
        let (result, partial) = (self.dir.join(name), self.dir.join(&format!(".{name}-partial")));
        if partial.exists() {
            std::fs::remove_dir_all(&partial).map_err(TrainError::io(&partial))?;
        }
        std::fs::create_dir(&partial).map_err(TrainError::io(&partial))?;
        let Engine { device, model, lora, .. } = &self.engine;
        match lora {
            Some(lora) => adapter::save(&partial, model, lora, &self.setup.run.model.path)?,
            None => {
                export_hf(model, device, &self.setup.model_dir, model.file_dtype, &partial)?;
            }
        }
        self.compare(&partial)?;
        checkpoint::publish(&partial, &result)?;
        Ok(result)
    }

    /// Compares the logits of what was written with those of the model in memory.
    fn compare(&self, written: &Path) -> Result<(), TrainError> {
        let Engine { device, model, lora, compute, .. } = &self.engine;
        let reloaded = match lora {
            Some(_) => {
                let mut base = model.without_adapters();
                adapter::load(written, &mut base, device, &mut |_| ())?;
                base
            }
            None => hone_model::load(written, device, LoadOptions::INFERENCE)?,
        };
        let written_as = if lora.is_some() { DType::F32 } else { model.file_dtype };
        let row = self.setup.train.row(0);
        let tokens = &row.tokens[..row.tokens.len().min(64)];
        let error = logits_error((device, *compute), model, &reloaded, tokens);
        if error > logits_tolerance(written_as) {
            return Err(TrainError::NotWhatWasTrained { path: written.to_owned(), error });
        }
        Ok(())
    }

    fn actual(&self, begun: Instant, arena_bytes: usize) -> Result<Actual, TrainError> {
        let steps = step_seconds(&self.dir)?;
        // A GPU's step memory is given back by now; the steps have recorded what was taken.
        let peak = match self.setup.place {
            Place::Cpu { .. } => self.setup.place.peak_bytes(),
            Place::Cuda(_) => None,
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

/// The lines of `eval.jsonl` so far.
pub(super) fn evaluations(dir: &RunDir) -> Result<Vec<EvalRecord>, TrainError> {
    let path = dir.join("eval.jsonl");
    let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn step_seconds(dir: &RunDir) -> Result<Vec<f64>, TrainError> {
    let path = dir.join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
    let records = text.lines().filter_map(|line| serde_json::from_str::<StepRecord>(line).ok());
    Ok(records.map(|record| record.step_seconds).collect())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

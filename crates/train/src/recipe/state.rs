//! What a checkpoint holds: parameters, moments, and where in the data the run is.

use super::{Event, Run};
use crate::checkpoint::{self, CheckpointError};
use crate::engine::Engine;
use crate::error::TrainError;
use crate::loss_scale::LossScale;
use crate::run_dir::NUMERICS;
use crate::run_file::CheckpointSection;
use hone_data::Cursor;
use hone_tensor::safetensors::{SafeTensorsFile, write};
use hone_tensor::{DeviceError, ParamId, Target, Tensor};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

const PARAMS: &str = "params.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// Everything of a run's state that is not a tensor. Random numbers are functions of seed and
/// step, so there is no generator to keep.
#[derive(Serialize, Deserialize)]
struct State {
    /// Version of Hone that wrote it, and of its arithmetic: see [`NUMERICS`].
    #[serde(default)]
    hone_version: String,
    #[serde(default)]
    numerics: u32,
    step: u64,
    cursor: Cursor,
    /// Updates made: what corrects the optimizer's moments for their zero beginning.
    num_updates: u64,
    #[serde(default)]
    loss_scale: LossScale,
}

/// Everything that a checkpoint holds, in the CPU's memory.
pub(super) struct Snapshot {
    state: State,
    params: Vec<(String, Tensor)>,
    moments: Vec<(String, Tensor)>,
}

impl Snapshot {
    /// The step after which it was taken.
    pub(super) fn step(&self) -> u64 {
        self.state.step
    }

    /// Writes it under `root` and removes older ones beyond `keep`.
    pub(super) fn write(&self, root: &Path, keep: usize) -> Result<(), TrainError> {
        checkpoint::write(root, self.step(), |dir| self.fill(dir))?;
        checkpoint::prune(root, self.step(), keep)?;
        Ok(())
    }

    fn fill(&self, dir: &Path) -> Result<(), TrainError> {
        for (name, tensors) in [(PARAMS, &self.params), (OPTIMIZER, &self.moments)] {
            write(&dir.join(name), tensors.iter().map(|(name, t)| (name.clone(), t.into())))?;
        }
        let text = serde_json::to_string(&self.state).expect("plain data");
        let path = dir.join(STATE);
        std::fs::write(&path, text).map_err(TrainError::io(&path))
    }
}

impl Run<'_> {
    /// After so many steps, or so much time: steps may be long, and a run shorter than those.
    pub(super) fn checkpoint_is_due(&self) -> bool {
        let CheckpointSection { every_steps, every_minutes, .. } = self.setup.run.checkpoint;
        let is_old = self.kept.elapsed().as_secs_f64() >= 60.0 * every_minutes;
        self.step.is_multiple_of(every_steps) || (every_minutes > 0.0 && is_old)
    }

    /// Writes a checkpoint of the present state and removes old ones: at once, or behind the steps
    /// that a GPU goes on with, which the copy of its memory does not change any more.
    pub(super) fn save_checkpoint(
        &mut self,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let (root, keep) = (self.dir.checkpoints(), self.setup.run.checkpoint.keep);
        // Two copies would be one more than a machine needs room for.
        self.writer.settle(true, event)?;
        let snapshot = self.snapshot()?;
        self.kept = Instant::now();
        match self.engine.device.target() {
            Target::Cpu => {
                snapshot.write(&root, keep)?;
                event(Event::Checkpoint { step: self.step });
            }
            Target::Cuda => self.writer.begin(snapshot, root, keep),
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Snapshot, DeviceError> {
        let Engine { device, model, optimizer, loss_scale, .. } = &self.engine;
        let to_host = |name: String, tensor: &Tensor| Ok((name, tensor.to_host()?));
        let params = model.params.iter();
        let params = params.map(|(_, name, value)| to_host(name.to_owned(), value));
        let params = params.collect::<Result<Vec<_>, DeviceError>>()?;
        let named = |prefix: &str, tensors: &[Tensor]| {
            let pairs = params.iter().zip(tensors);
            let named = pairs.map(|((name, _), t)| to_host(format!("{prefix}.{name}"), t));
            named.collect::<Result<Vec<_>, DeviceError>>()
        };
        let moments = [named("m", &optimizer.m)?, named("v", &optimizer.v)?];
        device.settle()?;
        let (num_updates, loss_scale) = (optimizer.num_updates, *loss_scale);
        let state = State {
            hone_version: env!("CARGO_PKG_VERSION").to_owned(),
            numerics: NUMERICS,
            step: self.step,
            cursor: self.cursor,
            num_updates,
            loss_scale,
        };
        Ok(Snapshot { state, moments: moments.concat(), params })
    }

    /// Goes to the newest whole checkpoint, if there is one; tells of damaged ones.
    pub(super) fn load_newest(
        &mut self,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let (whole, rejected) = checkpoint::newest_whole(&self.dir.checkpoints())?;
        for rejected in &rejected {
            let text = format!("passed over a damaged checkpoint: {}", rejected.reason);
            event(Event::Note { text });
        }
        let Some(whole) = whole else {
            let text = "no whole checkpoint yet: starting from the beginning".to_owned();
            event(Event::Note { text });
            return Ok(());
        };
        self.load(&whole.dir)?;
        checkpoint::prune(&self.dir.checkpoints(), self.step, self.setup.run.checkpoint.keep)?;
        if self.step < self.setup.num_steps {
            event(Event::Resumed { step: self.step });
        } else {
            let text = format!("all {} steps are done: writing the result again", self.step);
            event(Event::Note { text });
        }
        Ok(())
    }

    fn load(&mut self, dir: &Path) -> Result<(), TrainError> {
        let path = dir.join(STATE);
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let state: State = serde_json::from_str(&text)
            .map_err(|error| unfit(dir, format!("{STATE} is not what a run writes: {error}")))?;
        if state.numerics != NUMERICS {
            return Err(TrainError::OtherVersion {
                path: dir.to_owned(),
                hone_version: state.hone_version,
                numerics: state.numerics,
                expected: NUMERICS,
            });
        }
        let params = SafeTensorsFile::open(&dir.join(PARAMS))?;
        let moments = SafeTensorsFile::open(&dir.join(OPTIMIZER))?;
        let Engine { device, model, optimizer, loss_scale, .. } = &mut self.engine;
        for i in 0..model.params.len() {
            let name = model.params.name(ParamId(i)).to_owned();
            copy(dir, &params, &name, model.params.value_mut(ParamId(i)))?;
            copy(dir, &moments, &format!("m.{name}"), &mut optimizer.m[i])?;
            copy(dir, &moments, &format!("v.{name}"), &mut optimizer.v[i])?;
        }
        device.settle()?;
        optimizer.num_updates = state.num_updates;
        *loss_scale = state.loss_scale;
        (self.step, self.cursor) = (state.step, state.cursor);
        Ok(())
    }
}

fn copy(dir: &Path, file: &SafeTensorsFile, name: &str, to: &mut Tensor) -> Result<(), TrainError> {
    let found = file.tensor(name)?;
    let found = found.filter(|t| t.shape() == to.shape() && t.dtype() == to.dtype());
    let found = found.ok_or_else(|| unfit(dir, format!("tensor `{name}` is not as expected")))?;
    to.copy_from_f32(found.f32());
    Ok(())
}

fn unfit(dir: &Path, problem: String) -> TrainError {
    TrainError::Checkpoint(CheckpointError::Damaged { dir: dir.to_owned(), problem })
}

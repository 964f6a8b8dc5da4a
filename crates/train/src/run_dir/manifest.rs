//! `manifest.json` of a run: what was trained, with what, on what, and how it went.

use super::inputs::{InputFile, Inputs};
use crate::code::Code;
use crate::error::TrainError;
use crate::machine;
use crate::planner::Plan;
use crate::setup::Setup;
use hone_data::DataReport;
use hone_model::ModelFiles;
use hone_model::adapter::TrainedOn;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the arithmetic. It is raised by every change after which some run that a release
/// could do computes other bits: a run is continued, and a checkpoint loaded, only by the version
/// that began it.
pub const NUMERICS: u32 = 3;

/// `schedule.kind` under which the learning rate of a step depends on no number of steps.
pub(super) const CONSTANT: &str = "constant";

fn constant() -> String {
    CONSTANT.to_owned()
}

/// Version of the file's layout.
pub const FORMAT_VERSION: u32 = 2;

/// What `manifest.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Who wrote it.
    #[serde(flatten)]
    pub writer: Writer,
    /// When the run was begun, for people.
    pub created: String,
    /// The same in seconds since 1970.
    pub created_unix: i64,
    /// Where.
    pub machine: Machine,
    /// The model.
    pub model: ModelFacts,
    /// The data.
    pub data: DataFacts,
    /// All files that the result depends on.
    pub inputs: Inputs,
    /// What was planned.
    pub plan: Plan,
    /// The first `schedule.kind` other than `constant` that the run had: from then on, not all of
    /// its steps are constant.
    #[serde(default = "constant")]
    pub schedule: String,
    /// What it took; `None` until the run is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actual: Option<Actual>,
}

/// The version of Hone that wrote a manifest, and what else decides how it rounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// `FORMAT_VERSION`; 0.1.0 wrote none.
    #[serde(default)]
    pub format_version: u32,
    /// Version of Hone.
    pub hone_version: String,
    /// [`NUMERICS`].
    #[serde(default)]
    pub numerics: u32,
    /// Of a GPU: versions of the driver and of the libraries that compile and multiply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_libraries: Option<String>,
}

/// The machine that the run was begun on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Processor.
    pub cpu: String,
    /// Threads that were used.
    pub threads: usize,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
}

/// The model that was trained.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelFacts {
    /// As the run file names it.
    pub path: String,
    /// Numbers in it.
    pub parameters: usize,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// Digest of its weights, if adapters are trained on them: see [`TrainedOn`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
}

/// What was loaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DataFacts {
    /// To learn from.
    pub train: DataReport,
    /// To evaluate on.
    pub eval: Option<DataReport>,
}

/// What a finished run took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Actual {
    /// Most bytes of the CPU's memory.
    pub peak_bytes: Option<u64>,
    /// Bytes of the step memory.
    pub arena_bytes: usize,
    /// Median of the steps.
    pub step_seconds: Option<f64>,
    /// All steps.
    pub total_seconds: f64,
    /// Of the last process that trained, from its start to the result; where it was killed after
    /// its last step, of the one that wrote the result.
    pub session_seconds: f64,
}

impl Actual {
    /// Of a run that was finished `before` and wrote its result again.
    pub(super) fn again_after(self, before: &Self) -> Self {
        let peak_bytes = self.peak_bytes.max(before.peak_bytes);
        Self { peak_bytes, session_seconds: before.session_seconds, ..self }
    }
}

impl Manifest {
    /// The manifest of a run that begins now.
    ///
    /// # Errors
    /// If an input file cannot be read.
    pub(super) fn new(setup: &Setup, plan: &Plan) -> Result<Self, TrainError> {
        let now = jiff::Timestamp::now();
        Ok(Self {
            writer: Writer::of(setup),
            created: now.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            created_unix: now.as_second(),
            machine: Machine {
                cpu: machine::cpu_name(),
                threads: setup.threads,
                memory_bytes: machine::total_memory(),
            },
            model: ModelFacts {
                path: setup.run.model.path.clone(),
                parameters: setup.config.num_parameters(),
                trainable_parameters: plan.trainable_parameters,
                weights_sha256: setup.lora.as_ref().map(|_| weights_sha256(setup)).transpose()?,
            },
            data: DataFacts {
                train: setup.train.report().clone(),
                eval: setup.eval.as_ref().map(|(eval, _)| eval.report().clone()),
            },
            inputs: Inputs::of(setup, &Inputs::default())?,
            plan: plan.clone(),
            schedule: setup.run.schedule.kind().to_owned(),
            actual: None,
        })
    }

    /// What an adapter of this run was trained on.
    ///
    /// # Errors
    /// If the model cannot be read.
    pub(crate) fn trained_on(&self, setup: &Setup) -> Result<TrainedOn, TrainError> {
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = hone_model::weight_files(&setup.model_dir)?;
        let weights: Vec<String> = weights.iter().map(|path| name(path)).collect();
        let line = |file: &InputFile| {
            let name = name(&file.path);
            weights.contains(&name).then(|| format!("{}  {name}", file.sha256))
        };
        let weights_sha256 = match &self.model.weights_sha256 {
            Some(digest) => digest.clone(),
            // The run was begun by an earlier version.
            None => weights_sha256(setup)?,
        };
        let (name, files) = (self.model.path.clone(), &self.inputs.model);
        Ok(TrainedOn { name, weights_sha256, files: files.iter().filter_map(line).collect() })
    }

    /// Reads the manifest of a run that this version may continue.
    ///
    /// # Errors
    /// If it is damaged, or of a version that lays it out or computes otherwise.
    pub(super) fn read(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io(path))?;
        let damaged = |error: serde_json::Error| {
            TrainError::Usage(
                Code::RunDirDamaged,
                format!(
                    "{}: damaged ({error}). Start a new run in another output.dir",
                    path.display()
                ),
            )
        };
        let writer: Writer = serde_json::from_str(&text).map_err(damaged)?;
        if (writer.format_version, writer.numerics) != (FORMAT_VERSION, NUMERICS) {
            return Err(TrainError::OtherVersion {
                path: path.to_owned(),
                hone_version: writer.hone_version,
                numerics: writer.numerics,
                expected: NUMERICS,
            });
        }
        serde_json::from_str(&text).map_err(damaged)
    }
}

fn weights_sha256(setup: &Setup) -> Result<String, TrainError> {
    Ok(ModelFiles::open(&setup.model_dir)?.weights_sha256()?)
}

impl Writer {
    /// This version of Hone where `setup` computes.
    pub(super) fn of(setup: &Setup) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            hone_version: env!("CARGO_PKG_VERSION").to_owned(),
            numerics: NUMERICS,
            gpu_libraries: setup.backend.gpu_libraries().map(str::to_owned),
        }
    }
}

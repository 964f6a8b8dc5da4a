//! The directory of a run: what is in it, and what a resumed run must find there.

mod claim;
mod inputs;
mod manifest;

use crate::checkpoint::write_file_whole;
use crate::code::Code;
use crate::error::TrainError;
use crate::failpoint;
use crate::planner::{Plan, Policy};
use crate::run_file::RunFile;
use crate::sample::Sample;
use crate::setup::Setup;
use inputs::Inputs;
use serde::Serialize;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub use claim::Claim;
pub use inputs::model_files;
use manifest::CONSTANT;
pub use manifest::{Actual, Manifest, NUMERICS, Writer};

const MANIFEST: &str = "manifest.json";

/// Paths inside a run's directory.
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory `output.dir` of a run.
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file or directory in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.join("checkpoints")
    }

    /// Whether a run was begun here. A `run.toml` alone may be one that a user wrote.
    pub fn holds_run(&self) -> bool {
        self.join("run.toml").exists() && self.join(MANIFEST).exists()
    }

    /// When the run here was begun, in seconds since 1970.
    pub fn begun_at(&self) -> Option<i64> {
        self.holds_run().then(|| Some(self.read_manifest().ok()?.created_unix)).flatten()
    }

    /// Checks that there is nothing here, or a run.
    fn check_is_ours(&self) -> Result<(), TrainError> {
        let what = if self.0.exists() && !self.0.is_dir() {
            "is a file"
        } else if self.holds_other_files() && !self.holds_run() {
            // In this order: another process may begin a run in between.
            "holds other files"
        } else {
            return Ok(());
        };
        let dir = self.0.display();
        let text = format!("output.dir: {dir} {what}. Name an empty or a new directory");
        Err(TrainError::Usage(Code::RunDirTaken, text))
    }

    /// Checks that a new run may take the directory.
    fn check_free(&self) -> Result<(), TrainError> {
        if !self.holds_run() {
            return self.check_is_ours();
        }
        Err(TrainError::Usage(
            Code::RunDirTaken,
            format!(
                "output.dir: {} already holds a run. Continue it with --resume, or name another \
                 directory (output.dir=… on the command line)",
                self.0.display()
            ),
        ))
    }

    /// Whether there is more than a run leaves that was killed at its very beginning.
    fn holds_other_files(&self) -> bool {
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let is_left_over = |name: &str| match name {
            "checkpoints" => entries(&self.checkpoints()).next().is_none(),
            _ => [claim::LOCK, "manifest.json", ".tmp-manifest.json", ".tmp-run.toml"]
                .contains(&name),
        };
        entries(&self.0).any(|entry| !entry.file_name().to_str().is_some_and(is_left_over))
    }

    /// Writes `manifest.json` and `run.toml` of a new run; `run.toml` last, since with it the run
    /// counts as begun.
    fn begin(&self, setup: &Setup, plan: &Plan) -> Result<(), TrainError> {
        let manifest = Manifest::new(setup, plan)?;
        let checkpoints = self.checkpoints();
        std::fs::create_dir_all(&checkpoints).map_err(TrainError::io(&checkpoints))?;
        self.write_json(MANIFEST, &manifest)?;
        failpoint::hit("run_dir.half_written");
        write_file_whole(&self.join("run.toml"), setup.run.to_toml().as_bytes())?;
        Ok(())
    }

    /// Checks that the run begun here is the one that `setup` describes, and returns its policy:
    /// other micro-batches would give other roundings.
    ///
    /// # Errors
    /// If settings or input files have changed since.
    pub fn check_same(&self, setup: &Setup) -> Result<Policy, TrainError> {
        if setup.begun_at != self.begun_at() {
            return Err(TrainError::Usage(
                Code::RunDirBusy,
                format!(
                    "--resume: another process began the run in {} while this one was getting \
                 ready; run the command again",
                    self.0.display()
                ),
            ));
        }
        let path = self.join("run.toml");
        let begun = RunFile::load(&path, &[])?;
        let manifest = self.read_manifest()?;
        self.check_settings((&begun, &manifest), setup)?;
        self.check_rounding(&manifest, setup)?;
        self.check_inputs((&begun, &manifest), setup)?;
        self.check_weights(&manifest, setup)?;
        Ok(manifest.plan.policy(setup.unit_tokens()))
    }

    /// Whether model and data are those that the run was begun with, wherever they are.
    fn check_inputs(
        &self,
        (begun, manifest): (&RunFile, &Manifest),
        setup: &Setup,
    ) -> Result<(), TrainError> {
        let inputs = Inputs::of(setup, &manifest.inputs)?;
        let Some((key, file)) = inputs.first_change(&manifest.inputs) else { return Ok(()) };
        let dir = self.0.display();
        let (code, what) = match begun.changes_among(&setup.run, [key]).pop() {
            Some(change) => (
                Code::ResumeSettingsChanged,
                format!(
                    "{change}: that is not what {dir} was begun with ({file} differs). Files may \
                     be elsewhere by now but not be others: change {key} back"
                ),
            ),
            None => (
                Code::ResumeInputsChanged,
                format!(
                    "a model or data file has changed since {dir} was begun: {file}. Put the files \
                     back"
                ),
            ),
        };
        let text = format!("--resume: {what}, or start a new run in another output.dir");
        Err(TrainError::Usage(code, text))
    }

    /// Whether only such settings differ as may: those that change nothing of the steps done.
    fn check_settings(
        &self,
        (begun, manifest): (&RunFile, &Manifest),
        setup: &Setup,
    ) -> Result<(), TrainError> {
        let mut changed = begun.changed_keys(&setup.run);
        match extension((begun, manifest), setup) {
            Ok(true) => changed.retain(|change| !belongs_to_extension(change)),
            Err(why) if changed.iter().all(|change| belongs_to_extension(change)) => {
                return Err(TrainError::Usage(Code::ResumeNotExtendable, why));
            }
            _ => {}
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(TrainError::Usage(
            Code::ResumeSettingsChanged,
            format!(
                "--resume: the settings are not those that {} was begun with:\n  {}\nChange them \
             back, or start a new run in another output.dir",
                self.0.display(),
                changed.join("\n  ")
            ),
        ))
    }

    /// Records what a resumed run does otherwise than it was begun with: settings that may change,
    /// and further steps. `manifest.json` comes last: until it knows of further steps, the same
    /// command extends the run again.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn update(&self, setup: &Setup, plan: &Plan) -> Result<(), TrainError> {
        let (path, text) = (self.join("run.toml"), setup.run.to_toml());
        let begun = RunFile::load(&path, &[])?;
        if std::fs::read_to_string(&path).map_err(TrainError::io(&path))? != text {
            write_file_whole(&path, text.as_bytes())?;
        }
        failpoint::hit("run_dir.half_written");
        let mut manifest = self.read_manifest()?;
        let is_longer = manifest.plan.num_steps != plan.num_steps;
        // The first of those that are not constant; a manifest may be older than its field.
        let kinds = [&*manifest.schedule, begun.schedule.kind(), setup.run.schedule.kind()];
        let kind = kinds.into_iter().find(|kind| *kind != CONSTANT).unwrap_or(CONSTANT).to_owned();
        let varies_now = manifest.schedule != kind;
        manifest.schedule = kind;
        if is_longer {
            // Measured at the end of the first part: of the whole, nothing is known yet.
            (manifest.plan, manifest.actual) = (plan.clone(), None);
        }
        if varies_now || is_longer {
            self.write_json(MANIFEST, &manifest)?;
        }
        Ok(())
    }

    /// Whether an epoch sees the rows of each file, which are the same, as often as when the run
    /// was begun.
    fn check_weights(&self, manifest: &Manifest, setup: &Setup) -> Result<(), TrainError> {
        let (then, now) = (&manifest.data.train.files, &setup.train.report().files);
        let changed = then.iter().zip(now).find(|(then, now)| then.weight != now.weight);
        let Some((then, now)) = changed else { return Ok(()) };
        Err(TrainError::Usage(
            Code::ResumeSettingsChanged,
            format!(
                "--resume: the weight of {} in data.train is not that which {} was begun with: \
                 {} → {}. Change it back, or start a new run in another output.dir",
                now.file,
                self.0.display(),
                then.weight,
                now.weight,
            ),
        ))
    }

    /// Whether sums are ordered as when the run was begun: by the same kind of processor and, for a
    /// GPU, the same libraries.
    fn check_rounding(&self, manifest: &Manifest, setup: &Setup) -> Result<(), TrainError> {
        let gpu = (manifest.plan.gpu.as_deref(), setup.backend.gpu_name());
        let libraries = (&manifest.writer.gpu_libraries, &Writer::of(setup).gpu_libraries);
        let shown = |value: Option<&str>| value.unwrap_or("the CPU").to_owned();
        let ((then, now), remedy) = if gpu.0 != gpu.1 {
            (gpu, "Set run.device so that it is the same")
        } else if libraries.0 != libraries.1 {
            let versions = (libraries.0.as_deref(), libraries.1.as_deref());
            (versions, "Install the versions of then")
        } else {
            return Ok(());
        };
        Err(TrainError::Usage(
            Code::ResumeOtherDevice,
            format!(
                "--resume: {} was begun on {}, and this is {}, which rounds otherwise. {remedy}, \
             or start a new run in another output.dir",
                self.0.display(),
                shown(then),
                shown(now)
            ),
        ))
    }

    /// Adds what really happened to `manifest.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&self, actual: Actual) -> Result<(), TrainError> {
        let manifest = self.read_manifest()?;
        let actual = match &manifest.actual {
            Some(before) => actual.again_after(before),
            None => actual,
        };
        self.write_json(MANIFEST, &Manifest { actual: Some(actual), ..manifest })
    }

    /// The samples written before. Where they cannot be read, what to tell the user; a damaged file
    /// is kept under another name, since this one will be written again.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn read_samples(&self) -> Result<Result<Vec<Sample>, String>, TrainError> {
        let path = self.join("samples.json");
        let lost = "the report will be without the answers from before training";
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Err(format!("{} is missing: {lost}", path.display())));
            }
            Err(error) => return Err(TrainError::io(&path)(error)),
        };
        let error = match serde_json::from_slice(&bytes) {
            Ok(samples) => return Ok(Ok(samples)),
            Err(error) => error,
        };
        let aside = self.join("samples.damaged.json");
        std::fs::rename(&path, &aside).map_err(TrainError::io(&aside))?;
        Ok(Err(format!(
            "{} is damaged ({error}) and kept as {}: {lost}",
            path.display(),
            aside.display()
        )))
    }

    /// Writes `samples.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_samples(&self, samples: &[Sample]) -> Result<(), TrainError> {
        self.write_json("samples.json", &samples)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(value).expect("plain data");
        write_file_whole(&self.join(name), text.as_bytes())?;
        Ok(())
    }

    /// What was recorded of the run.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_manifest(&self) -> Result<Manifest, TrainError> {
        Manifest::read(&self.join(MANIFEST))
    }
}

/// Keys of the number of steps.
const NUM_STEPS: [&str; 2] = ["train.max_steps", "train.num_epochs"];

/// Whether `setup` asks for more steps than the run was begun with, and for nothing that changes
/// those.
///
/// # Errors
/// Why the steps done would have been others, and what to do about it.
fn extension((begun, manifest): (&RunFile, &Manifest), setup: &Setup) -> Result<bool, String> {
    let (then, steps) = (manifest.plan.num_steps, setup.num_steps);
    let asked = begun.changes_among(&setup.run, NUM_STEPS).join(", ");
    if asked.is_empty() || steps <= then {
        return Ok(false);
    }
    let change = format!("--resume: {asked}");
    let kinds = [&*manifest.schedule, begun.schedule.kind(), setup.run.schedule.kind()];
    if let Some(kind) = kinds.into_iter().find(|kind| *kind != CONSTANT) {
        let result = match setup.lora {
            Some(_) => "adapter.init_from naming this one's adapter/",
            None => "model.path naming this one's model/",
        };
        return Err(format!(
            "{change}: with schedule.kind = \"{kind}\" the learning rate of every step follows \
             from their number, so only a run that always had \"constant\" can be extended, by \
             train.max_steps or train.num_epochs. Start a new run in another output.dir, with \
             {result}"
        ));
    }
    let warm_up = begun.train.num_warmup_steps(then);
    if setup.run.train.num_warmup_steps(steps) != warm_up {
        return Err(format!(
            "{change}: the warm-up would take other steps than it did. Give \
             train.warmup_steps={warm_up} as well"
        ));
    }
    Ok(true)
}

fn belongs_to_extension(change: &str) -> bool {
    let keys = [&NUM_STEPS[..], &["train.warmup_steps", "train.warmup_ratio"]].concat();
    keys.iter().any(|key| change.split(':').next() == Some(key))
}

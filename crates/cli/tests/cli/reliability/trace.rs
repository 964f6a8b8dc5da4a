//! All that a run computes, to be compared bit for bit.

use crate::sandbox::{Ended, Scene, ended, entries};
use hone_train::checkpoint::sha256_of_file;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Steps between checkpoints in [`Scene`].
pub const INTERVAL: u64 = 3;

/// What a finished run left.
#[derive(Debug, PartialEq)]
pub struct Trace {
    /// Step, loss, learning rate and gradient norm of every step, in order.
    steps: Vec<Value>,
    /// Rows of every micro-batch, as logged.
    rows: Vec<Value>,
    evaluations: Vec<Value>,
    /// SHA-256 of the last checkpoint's files and of the result's weights.
    digests: Vec<(String, String)>,
}

impl Trace {
    /// The trace of a run that has finished, which must have left nothing lying about.
    pub fn of(scene: &Scene) -> Self {
        let dir = scene.run_dir();
        let metrics = scene.lines("metrics.jsonl");
        let last_step = metrics.last().expect("steps were logged")["step"].as_u64().unwrap();
        let computed = ["step", "loss", "learning_rate", "grad_norm", "tokens", "target_tokens"];
        let steps = metrics.iter().map(|line| json!(computed.map(|key| &line[key])));
        let checkpoint = format!("checkpoints/step-{last_step}");
        let files = [
            format!("{checkpoint}/params.safetensors"),
            format!("{checkpoint}/optimizer.safetensors"),
            format!("{checkpoint}/state.json"),
            "adapter/adapter_model.safetensors".to_owned(),
            "adapter/adapter_config.json".to_owned(),
            "adapter/base.json".to_owned(),
            "model/model.safetensors".to_owned(),
        ];
        let files = files.into_iter().filter(|file| dir.join(file).exists());
        let digest = |file: String| (file.clone(), sha256_of_file(&dir.join(&file)).unwrap());
        let stray = |name: &String| name.starts_with('.') && name != ".lock";
        let left: Vec<String> = [entries(&dir), entries(&dir.join("checkpoints"))]
            .concat()
            .into_iter()
            .filter(stray)
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        Self {
            steps: steps.collect(),
            rows: scene.lines("rows.jsonl"),
            evaluations: scene.lines("eval.jsonl"),
            digests: files.map(digest).collect(),
        }
    }

    /// What a run of [`Scene::new`] leaves if nothing happens to it; computed once a process.
    pub fn expected() -> &'static Self {
        static EXPECTED: OnceLock<Trace> = OnceLock::new();
        EXPECTED.get_or_init(|| Self::undisturbed(&Scene::new(), &[]))
    }

    /// The trace of a run of `scene` that nothing happens to.
    pub fn undisturbed(scene: &Scene, more: &[&str]) -> Self {
        ended(&mut scene.train(more)).says(0, &[]);
        let trace = Self::of(scene);
        assert!(trace.digests.len() >= 4, "{:?}", trace.digests);
        trace
    }

    /// Asserts that `scene`'s run has finished with this trace.
    #[track_caller]
    pub fn assert_same(&self, scene: &Scene, what: &str) {
        let other = Self::of(scene);
        assert_eq!(self.steps, other.steps, "{what}");
        assert_eq!(self.rows, other.rows, "{what}");
        assert_eq!(self.evaluations, other.evaluations, "{what}");
        assert_eq!(self.digests, other.digests, "{what}");
    }
}

/// Resumes to the end.
#[track_caller]
pub fn resume(scene: &Scene) -> Ended {
    let resumed = ended(&mut scene.train(&["--resume"]));
    resumed.says(0, &[]);
    resumed
}

/// The step after which a resumed run went on; 0 where it began anew.
pub fn went_on_after(resumed: &Ended) -> u64 {
    let step_of = |line: &str| {
        let finished = || line.strip_prefix("note: all ")?.split_once(" steps are done");
        let step = line.strip_prefix("continuing after step ").or_else(|| Some(finished()?.0))?;
        Some(step.parse().unwrap())
    };
    resumed.stderr.lines().find_map(step_of).unwrap_or(0)
}

/// Sends a signal to a process.
pub fn signal(process: u32, name: &str) {
    Command::new("kill").args([name, &process.to_string()]).status().unwrap();
}

/// Newest checkpoint there is a directory of.
pub fn newest_step(checkpoints: &Path) -> u64 {
    let steps = entries(checkpoints).into_iter();
    steps.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0)
}

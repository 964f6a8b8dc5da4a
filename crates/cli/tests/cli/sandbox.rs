//! Tiny models, data, run files and disks for the tests, and the binary itself.

#[path = "../../../train/tests/train/tiny_model.rs"]
pub mod tiny_model;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;
use tiny_model::{rows, write_model};

/// A model, data and a run file in a directory of their own.
pub struct Scene {
    dir: TempDir,
}

/// How a command ended.
pub struct Ended {
    /// Exit status; `None` where a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Scene {
    /// Twelve steps of four micro-batches each, over more than two epochs, with an adapter and
    /// dropout; checkpoints every 3 steps, evaluations every 4.
    pub fn new() -> Self {
        Self::with_adapter(
            "[adapter]\nkind = \"lora\"\nrank = 4\ndropout = 0.1\n\
             [train]\nlearning_rate = 0.01\n",
        )
    }

    /// The same, all weights trained.
    pub fn full() -> Self {
        Self::with_adapter("[train]\nlearning_rate = 0.001\n")
    }

    fn with_adapter(adapter_and_train: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model("tied_gqa", &dir.path().join("model"));
        let scene = Self { dir };
        scene.write("train.jsonl", &rows(60));
        scene.write("eval.jsonl", &rows(9));
        let text = format!(
            "{adapter_and_train}max_steps = 12\nbatch_tokens = 128\neval_every_steps = 4\n\
             [model]\npath = \"model\"\n\
             [data]\ntrain = \"train.jsonl\"\neval = \"eval.jsonl\"\nmax_seq_len = 32\n\
             [checkpoint]\nevery_steps = 3\nkeep = 2\n\
             [budget]\nmicro_batch_tokens = 32\n\
             [run]\nthreads = 2\n\
             [report]\nsamples = 1\nmax_new_tokens = 4\n\
             [output]\ndir = \"run\"\n"
        );
        scene.write("run.toml", &text);
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The binary. What it measures of this machine is kept for all tests.
    pub fn hone(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hone"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .env_remove("HONE_FAILPOINT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `hone train run.toml` with more arguments.
    pub fn train(&self, more: &[&str]) -> Command {
        self.hone(&[&["train", "run.toml"], more].concat())
    }

    /// The run's directory.
    pub fn run_dir(&self) -> PathBuf {
        self.path("run")
    }

    /// The lines of one of the run's logs; a line that a kill has cut off is left out.
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.run_dir().join(name)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// Runs a command to its end.
pub fn ended(command: &mut Command) -> Ended {
    Ended::from(command.output().unwrap())
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Self { status: output.status.code(), stdout, stderr }
    }
}

impl Ended {
    /// Asserts the exit status and that each of `parts` is in what was said.
    #[track_caller]
    pub fn says(&self, status: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.status, Some(status), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in:\n{}", self.stderr);
        }
        self
    }
}

/// A small file system of its own, until it is dropped.
pub struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// Mounts one at `at`, which is made; `None`, said aloud, where this user may not mount.
    pub fn mount(at: &'a Path, kib: u32) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            hone_tensor::testing::skip("mounting a small disk needs root");
        }
        mounted.then_some(Self(at))
    }

    /// Makes it `kib` large.
    pub fn grow(&self, kib: u32) {
        let size = format!("remount,size={kib}k");
        assert!(Command::new("mount").args(["-o", &size]).arg(self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// Names of what is in a directory, sorted.
pub fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

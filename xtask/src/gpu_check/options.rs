//! The command's arguments.

use super::train;
use std::path::PathBuf;
use std::time::Duration;

/// Names the suites among the parts.
const SUITES: &str = "suites";

/// What to run, where, and for how long.
#[derive(Debug, PartialEq)]
pub struct Options {
    /// Number of the CUDA device, or `emulated`.
    pub device: String,
    /// Which parts to run; none: all.
    only: Vec<String>,
    /// What all variants of PyTorch may take together.
    pub peer_limit: Duration,
    /// What one of them may take, compiling included.
    pub variant_limit: Duration,
    /// Where page and figures go.
    pub out: Option<PathBuf>,
    /// Tiny models on the CPU, to try the benchmark without a GPU.
    pub tiny: bool,
}

impl Options {
    /// Reads the arguments after `gpu-check`.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            device: "0".to_owned(),
            only: Vec::new(),
            peer_limit: Duration::from_secs(400),
            variant_limit: Duration::from_secs(90),
            out: None,
            tiny: false,
        };
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            match arg {
                "--tiny" => options.tiny = true,
                "--out" => options.out = Some(value()?.into()),
                "--peer-seconds" => options.peer_limit = seconds(value()?)?,
                "--variant-seconds" => options.variant_limit = seconds(value()?)?,
                "--only" => {
                    options.only = value()?.split(',').map(part).collect::<Result<_, _>>()?;
                }
                "emulated" => options.device = arg.to_owned(),
                device if device.parse::<usize>().is_ok() => options.device = device.to_owned(),
                other => return Err(format!("unknown argument `{other}`")),
            }
        }
        Ok(options)
    }

    /// Whether this part was asked for.
    pub fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    /// Whether the suites run.
    pub fn runs_suites(&self) -> bool {
        !self.tiny && self.wants(SUITES)
    }

    /// Whether models are trained: an emulation is too slow for that.
    pub fn trains(&self) -> bool {
        let any = train::keys().any(|key| self.wants(key));
        any && (self.tiny || self.device != "emulated")
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map(Duration::from_secs);
    seconds.map_err(|_| format!("`{text}` is not a whole number of seconds"))
}

fn part(name: &str) -> Result<String, String> {
    let known: Vec<&str> = [SUITES].into_iter().chain(train::keys()).collect();
    match known.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("there is no part `{name}`; there are {}", known.join(", "))),
    }
}

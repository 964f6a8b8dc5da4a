//! PyTorch with PEFT in a process of its own.

use super::super::Place;
use super::Round;
use super::cases::{Case, Data, GSM8K_ROWS, Peer};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The peers' own environment, made when it is missing (about 5 GB).
pub fn venv(place: &Place) -> Result<std::path::PathBuf, String> {
    let dir = place.root.join("target/bench-venv");
    let python = dir.join("bin/python");
    if !python.exists() {
        eprintln!("installing PyTorch, transformers and PEFT into {}", dir.display());
        let ok = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        let made = ok(Command::new("python3").args(["-m", "venv"]).arg(&dir))
            && ok(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args([
                "torch",
                "transformers",
                "peft",
            ]));
        if !made {
            return Err("the peers could not be installed".to_owned());
        }
    }
    Ok(python)
}

/// PyTorch, waiting for its turn.
pub struct PeerProcess {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl PeerProcess {
    pub fn start(place: &Place, python: &Path, case: &Case) -> Result<Option<Self>, String> {
        let Peer::Peft { dtype, checkpointing, bf16_adapters } = case.peer else {
            return Ok(None);
        };
        let settings = json!({
            "model": place.dir.join(case.data.model()),
            "data": place.dir.join("train.jsonl"),
            "rows_per_step": case.data.rows_per_step(),
            "method": case.method,
            "dtype": dtype,
            "checkpointing": checkpointing,
            "bf16_adapters": bf16_adapters,
            "threads": case.threads,
        });
        let path = place.dir.join("peer.json");
        std::fs::write(&path, settings.to_string()).map_err(|error| error.to_string())?;
        let errors = std::fs::File::create(place.dir.join("peer.log"));
        let mut child = Command::new(python)
            .arg(place.root.join("bench/peft_steps.py"))
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.map_err(|error| error.to_string())?)
            .spawn()
            .map_err(|error| error.to_string())?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err("the peer has no pipes".to_owned());
        };
        let mut peer = Self { child, input, output: BufReader::new(output) };
        peer.answer()?;
        Ok(Some(peer))
    }

    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).map_err(|error| error.to_string())?;
        match read {
            0 => Err("the peer ended; see target/bench-train/peer.log".to_owned()),
            _ => serde_json::from_str(&line).map_err(|error| format!("{line}: {error}")),
        }
    }

    pub fn round(&mut self, case: &Case) -> Result<Round, String> {
        // All rows of GSM8K, since their lengths differ.
        let steps = if matches!(case.data, Data::Gsm8k) { GSM8K_ROWS / 8 } else { 1 };
        writeln!(self.input, "{steps}").map_err(|error| error.to_string())?;
        let answer = self.answer()?;
        let of = |key: &str| answer[key].as_f64().unwrap_or(f64::NAN);
        let tokens_per_second = of("tokens") / of("seconds");
        Ok(Round { tokens_per_second, peak_bytes: of("peak_bytes") })
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

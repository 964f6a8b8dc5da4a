//! PyTorch in a process of its own, which answers each line with a line of JSON.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// The Python of the peers' own environment, which is made when it is missing (about 5 GB).
pub fn venv(root: &Path) -> Result<PathBuf, String> {
    let dir = root.join("target/bench-venv");
    let python = dir.join("bin/python");
    if !python.exists() {
        let packages =
            ["torch", "transformers", "peft", "gguf", "bitsandbytes", "sentence-transformers"];
        eprintln!("installing {} into {}", packages.join(", "), dir.display());
        let ok = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        let pip = ["-m", "pip", "install", "--quiet"];
        let made = ok(Command::new("python3").args(["-m", "venv"]).arg(&dir))
            && ok(Command::new(&python).args(pip).args(packages));
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
    answers: Receiver<String>,
    /// What it says on standard error.
    log: PathBuf,
    /// What oneDNN says of itself, which is no answer.
    kernels: Vec<String>,
}

/// How a line of oneDNN's begins.
const ONEDNN: &str = "onednn_verbose,";

impl PeerProcess {
    /// Starts `command` and waits until it is ready; what it says beside its answers goes into
    /// `log`.
    pub fn start(command: &mut Command, log: &Path, limit: Duration) -> Result<Self, String> {
        let errors = std::fs::File::create(log);
        let errors = errors.map_err(|error| format!("{}: {error}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the peer has no pipes".to_owned());
        };
        let (lines, answers) = channel();
        std::thread::spawn(move || {
            let mut read = BufReader::new(output).lines().map_while(Result::ok);
            read.try_for_each(|line| lines.send(line))
        });
        let mut peer = Self { child, input, answers, log: log.to_owned(), kernels: Vec::new() };
        peer.answer(limit)?;
        Ok(peer)
    }

    /// Sends a line and waits for the answer to it.
    pub fn ask(&mut self, line: &str, limit: Duration) -> Result<Value, String> {
        // Where it has ended, so have its answers.
        let _ = writeln!(self.input, "{line}");
        self.answer(limit)
    }

    /// Lines of oneDNN's so far, for a peer that lets it speak.
    pub fn kernels(&self) -> &[String] {
        &self.kernels
    }

    fn answer(&mut self, limit: Duration) -> Result<Value, String> {
        let line = loop {
            let line = self.line(limit)?;
            match line.starts_with(ONEDNN) {
                true => self.kernels.push(line),
                false => break line,
            }
        };
        serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))
    }

    fn line(&mut self, limit: Duration) -> Result<String, String> {
        self.answers.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                // A late answer must not be taken for the next.
                let _ = self.child.kill();
                format!("no answer in {} s", limit.as_secs())
            }
            RecvTimeoutError::Disconnected => self.last_words(),
        })
    }

    fn last_words(&self) -> String {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
        let log = self.log.file_name().unwrap_or_default().to_string_lossy();
        format!("PyTorch ended: {} (see {log})", last.trim())
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

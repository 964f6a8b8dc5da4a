//! Hone's side: a run file, what is planned of it, and what its steps took.

use super::cases::{Case, Hone};
use super::{Bench, TIMED, WARM_UP};
use crate::bench::json;
use crate::bench::model::{Precision, write_model};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most that a run may take, its 16 GB of weights read.
const LIMIT: Duration = Duration::from_secs(240);

/// Writes the case's model unless it is there.
pub fn write_model_once(bench: &Bench<'_>, case: &Case) -> std::io::Result<()> {
    let model = bench.work.join(case.model);
    if model.join("model.safetensors").is_file() {
        return Ok(());
    }
    let begun = Instant::now();
    write_model(&model, &case.shape, Precision::Bf16)?;
    eprintln!("{} was written in {:.1} s", model.display(), begun.elapsed().as_secs_f64());
    Ok(())
}

/// Plans and trains; a row of the table.
pub fn row(bench: &Bench<'_>, case: &Case, variant: &Hone) -> Value {
    let mut row = measure(bench, case, variant).unwrap_or_else(|error| {
        eprintln!("{error}");
        json!({"error": format!("failed: {}", reason(&error))})
    });
    row["name"] = variant.name.into();
    row
}

/// The line of what a command said that names what went wrong.
fn reason(said: &str) -> &str {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().find_map(|line| line.strip_prefix("error: "));
    error.or_else(|| lines.next_back()).unwrap_or("no word")
}

fn measure(bench: &Bench<'_>, case: &Case, variant: &Hone) -> Result<Value, String> {
    let place = bench.place(case);
    let out = place.join("run");
    let file = format!(
        "[model]\npath = {:?}\ncompute = {:?}\n[data]\n\
         train = [{:?}]\n[adapter]\nkind = \"lora\"\nrank = 16\n\
         [train]\nmax_steps = {}\n[run]\ndevice = {:?}\n\
         cuda_graphs = {}\n[report]\nsamples = 0\n[output]\n\
         dir = {out:?}\n",
        bench.work.join(case.model),
        variant.compute,
        place.join("train.jsonl"),
        WARM_UP + TIMED,
        bench.device(),
        variant.cuda_graphs,
    );
    let run_file = place.join("run.toml");
    std::fs::write(&run_file, file).map_err(|error| format!("{}: {error}", run_file.display()))?;
    if out.exists() {
        std::fs::remove_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    }
    let command = |verb: &str| {
        let mut command = Command::new(&bench.hone);
        command.arg(verb).arg(&run_file).args(case.settings());
        command
    };
    let plan = json(command("plan").arg("--json"))?;
    let begun = Instant::now();
    finish(&mut command("train"), &place.join("train.log"))?;
    let seconds = begun.elapsed().as_secs_f64();
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    let steps = metrics.lines().skip(WARM_UP).map(serde_json::from_str::<Value>);
    let steps = steps.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    let all = |key: &str| steps.iter().map(|step| step[key].clone()).collect::<Vec<_>>();
    Ok(json!({
        "step_seconds": all("step_seconds"),
        "step_tokens": all("tokens"),
        "peak_bytes": all("peak_bytes").last(),
        "planned_seconds": plan["step_seconds"],
        "planned_bytes": plan["peak_bytes"],
        "job_seconds": seconds,
    }))
}

/// Waits for a command that ends in good time; what it said otherwise.
fn finish(command: &mut Command, log: &Path) -> Result<(), String> {
    let errors = std::fs::File::create(log).map_err(|error| error.to_string())?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            break status;
        }
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{} s were not enough", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    match status.success() {
        true => Ok(()),
        false => Err(std::fs::read_to_string(log).unwrap_or_default()),
    }
}

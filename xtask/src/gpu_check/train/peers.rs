//! PyTorch's side: `bench/gpu_peers.py` runs one variant after the other, the most promising of
//! every case before the next of any, until the time is over.

use super::cases::{Case, Variant};
use super::page::Page;
use super::{Bench, TIMED};
use crate::bench::peer::PeerProcess;
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

/// Most that importing PyTorch may take, and measuring the ceiling.
const START: Duration = Duration::from_secs(90);
/// With less than that no variant begins.
const LEAST: Duration = Duration::from_secs(15);
/// How much later than its limit an answer may come.
const GRACE: Duration = Duration::from_secs(20);

/// Runs the variants of all cases. An error only where there is no PyTorch that could.
pub fn run(bench: &Bench<'_>, page: &mut Page) -> Result<(), String> {
    let (begun, cases) = (Instant::now(), &bench.cases);
    let mut process = start(bench)?;
    let size = if bench.options.tiny { 256 } else { 8192 };
    let probe = json!({"job": "probe", "device": bench.device(), "size": size,
                       "limit_s": START.as_secs()});
    let about = ask(&mut process, &probe, START);
    if let Some(error) = about["error"].as_str() {
        return Err(error.to_owned());
    }
    page.say_of_peers(cases, &about)?;
    let most = cases.iter().map(|case| case.variants.len()).max().unwrap_or(0);
    for rank in 0..most {
        for case in cases {
            let Some(variant) = case.variants.get(rank) else { continue };
            let left = bench.options.peer_limit.saturating_sub(begun.elapsed());
            let mut row =
                if variant.attention == "flash_attention_2" && about["has_flash_attn"] == false {
                    json!({"error": "skipped: flash_attn is not installed"})
                } else if left < LEAST {
                    json!({"error": "skipped: no time left"})
                } else {
                    steps(&mut process, bench, case, variant, left)
                };
            row["name"] = variant.name().into();
            page.push(case, row)?;
        }
    }
    Ok(())
}

fn start(bench: &Bench<'_>) -> Result<PeerProcess, String> {
    let python = std::env::var_os("HONE_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command.arg(bench.root.join("bench/gpu_peers.py")).env("PYTHONDONTWRITEBYTECODE", "1");
    if bench.options.tiny {
        command.env("OMP_NUM_THREADS", "1");
    }
    let log = bench.options.out.as_ref().unwrap_or(&bench.work).join("peers.log");
    PeerProcess::start(&mut command, &log, START)
}

fn steps(
    process: &mut PeerProcess,
    bench: &Bench<'_>,
    case: &Case,
    variant: &Variant,
    left: Duration,
) -> Value {
    let limit = bench.options.variant_limit.min(left);
    let mut job = case.peer_settings(variant);
    job["job"] = "steps".into();
    job["steps"] = TIMED.into();
    job["model"] = bench.work.join(case.model).to_string_lossy().into();
    job["data"] = bench.place(case).join("rows.jsonl").to_string_lossy().into();
    job["device"] = bench.device().into();
    job["limit_s"] = limit.as_secs().into();
    ask(process, &job, limit)
}

/// The answer to a job, or an error in its place.
fn ask(process: &mut PeerProcess, job: &Value, limit: Duration) -> Value {
    let answer = process.ask(&job.to_string(), limit + GRACE);
    answer.unwrap_or_else(|error| json!({"error": format!("failed: {error}")}))
}

//! PyTorch with PEFT for the workloads.

use super::super::Place;
use super::super::peer::PeerProcess;
use super::Round;
use super::cases::{Case, Data, GSM8K_ROWS, Peer};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// None of its steps takes so long.
const LIMIT: Duration = Duration::from_secs(3600);

/// PyTorch, ready for the case; none where Hone is compared with itself.
pub fn start(
    place: &Place,
    python: &Path,
    case: &Case,
    model: &str,
) -> Result<Option<PeerProcess>, String> {
    let Peer::Peft { dtype, checkpointing, bf16_adapters, experts } = case.peer else {
        return Ok(None);
    };
    let settings = json!({
        "model": place.dir.join(model),
        "data": place.dir.join("train.jsonl"),
        "rows_per_step": case.data.rows_per_step(),
        "method": case.method,
        "dtype": dtype,
        "checkpointing": checkpointing,
        "bf16_adapters": bf16_adapters,
        "experts": experts,
        "threads": case.threads,
    });
    let path = place.dir.join("peer.json");
    std::fs::write(&path, settings.to_string()).map_err(|error| error.to_string())?;
    let mut command = Command::new(python);
    command
        .arg(place.root.join("bench/peft_steps.py"))
        .arg(&path)
        .env("OMP_NUM_THREADS", case.threads.to_string());
    PeerProcess::start(&mut command, &place.dir.join("peer.log"), LIMIT).map(Some)
}

/// The peer's part of a round.
pub fn round(peer: &mut PeerProcess, case: &Case) -> Result<Round, String> {
    // All rows of GSM8K, since their lengths differ.
    let steps = if matches!(case.data, Data::Gsm8k) { GSM8K_ROWS / 8 } else { 1 };
    let answer = peer.ask(&steps.to_string(), LIMIT)?;
    let of = |key: &str| answer[key].as_f64().unwrap_or(f64::NAN);
    let tokens_per_second = of("tokens") / of("seconds");
    Ok(Round { tokens_per_second, peak_bytes: of("peak_bytes") })
}

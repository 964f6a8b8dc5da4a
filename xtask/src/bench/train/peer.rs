//! PyTorch with PEFT for the workloads.

use super::super::Place;
use super::super::peer::PeerProcess;
use super::Round;
use super::cases::{Case, Data, GSM8K_ROWS, Peer};
use serde_json::json;
use std::collections::BTreeMap;
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
    let (model, data) = (place.dir.join(model), place.dir.join("train.jsonl"));
    let (script, settings) = match case.peer {
        Peer::Peft { dtype, checkpointing, bf16_adapters, experts } => {
            let settings = json!({
                "model": model,
                "data": data,
                "rows_per_step": case.data.rows_per_step(),
                "method": case.method,
                "masked": matches!(case.data, Data::Banking77 { .. }),
                "dtype": dtype,
                "checkpointing": checkpointing,
                "bf16_adapters": bf16_adapters,
                "experts": experts,
                "threads": case.threads,
                "names_kernels": true,
            });
            ("bench/peft_steps.py", settings)
        }
        Peer::SentenceTransformers => {
            let threads = case.threads;
            let settings =
                json!({ "model": model, "data": data, "dtype": "bf16", "threads": threads });
            ("bench/embed_texts.py", settings)
        }
        Peer::Hone(_) => return Ok(None),
    };
    let path = place.dir.join("peer.json");
    std::fs::write(&path, settings.to_string()).map_err(|error| error.to_string())?;
    let mut command = Command::new(python);
    command
        .arg(place.root.join(script))
        .arg(&path)
        .env("OMP_NUM_THREADS", case.threads.to_string());
    PeerProcess::start(&mut command, &place.dir.join("peer.log"), LIMIT).map(Some)
}

/// The peer's part of a round.
pub fn round(peer: &mut PeerProcess, case: &Case) -> Result<Round, String> {
    // All rows where their lengths differ.
    let steps = match case.data {
        Data::Gsm8k => GSM8K_ROWS / 8,
        Data::Banking77 { texts } => texts / case.data.rows_per_step(),
        Data::Words { .. } => 1,
    };
    let answer = peer.ask(&steps.to_string(), LIMIT)?;
    let of = |key: &str| answer[key].as_f64().unwrap_or(f64::NAN);
    let tokens_per_second = of("tokens") / of("seconds");
    Ok(Round { tokens_per_second, peak_bytes: of("peak_bytes") })
}

/// The kernel that took most of the time of products, as oneDNN calls it; none where PyTorch
/// multiplied without oneDNN.
pub fn kernel(lines: &[String]) -> Option<String> {
    let mut seconds: BTreeMap<&str, f64> = BTreeMap::new();
    for line in lines {
        // `onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx10_1_512_amx,…,0.25`
        let fields: Vec<&str> = line.split(',').collect();
        let [.., time] = &fields[..] else { continue };
        let Some(exec) = fields.iter().position(|field| *field == "exec") else { continue };
        let [kind, kernel] = fields.get(exec + 2..exec + 4).unwrap_or_default() else { continue };
        if ["matmul", "inner_product", "brgemm"].contains(kind) {
            *seconds.entry(kernel).or_default() += time.parse().unwrap_or(0.0);
        }
    }
    let most = seconds.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    most.map(|(kernel, _)| kernel.to_owned())
}

#[cfg(test)]
mod tests {
    use super::kernel;

    #[test]
    fn the_kernel_that_took_longest_is_named() {
        let line = |kind: &str, kernel: &str, time: &str| {
            format!(
                "onednn_verbose,v1,primitive,exec,cpu,{kind},{kernel},undef,src:bf16,,,2x3,{time}"
            )
        };
        let lines = [
            "onednn_verbose,v1,primitive,info,template:operation,engine,exec_time".to_owned(),
            line("matmul", "brg_matmul:avx512_core_bf16", "1.5"),
            line("reorder", "jit:uni", "9"),
            line("matmul", "brg_matmul:avx10_1_512_amx", "1"),
            line("inner_product", "brg_matmul:avx10_1_512_amx", "0.75"),
        ];
        assert_eq!(kernel(&lines).as_deref(), Some("brg_matmul:avx10_1_512_amx"));
        assert_eq!(kernel(&lines[..1]), None);
    }
}

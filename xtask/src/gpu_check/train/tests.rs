use super::NUM_STEPS;
use super::cases::{self, Case, Data, gsm8k_lengths};
use super::page::section;
use serde_json::json;

fn case(key: &str) -> Case {
    cases::all(false).into_iter().find(|case| case.key == key).expect("a known key")
}

#[test]
fn lengths_are_like_gsm8k() {
    let lengths = gsm8k_lengths(20_000);
    let mean = |sum: usize| sum as f64 / lengths.len() as f64;
    let prompt = mean(lengths.iter().map(|(prompt, _)| prompt).sum());
    let completion = mean(lengths.iter().map(|(_, completion)| completion).sum());
    assert!((prompt - 55.2).abs() < 1.5, "{prompt}");
    assert!((completion - 95.3).abs() < 1.5, "{completion}");
    assert!(lengths.iter().any(|(_, completion)| *completion > 300));
}

/// First-fit-decreasing, as Hone packs.
fn num_units(mut lengths: Vec<usize>, unit_tokens: usize) -> usize {
    lengths.sort_by_key(|&len| std::cmp::Reverse(len));
    let mut units: Vec<usize> = Vec::new();
    for len in lengths {
        match units.iter_mut().find(|unit| **unit + len <= unit_tokens) {
            Some(unit) => *unit += len,
            None => units.push(len),
        }
    }
    units.len()
}

/// Otherwise Hone's last step would be smaller than the others.
#[test]
fn gsm8k_fills_all_steps() {
    let case = case("gsm8k");
    let Data::Gsm8k { units, unit_tokens, .. } = case.data else { panic!("GSM8K") };
    let lengths = case.rows(NUM_STEPS).iter().map(|row| row.ids.len()).collect();
    assert_eq!(num_units(lengths, unit_tokens), NUM_STEPS * units);
}

#[test]
fn flops_of_full_rows() {
    let case = case("8B");
    let flops = super::flops_per_token(&case, &case.rows(1)[..1]);
    // 6.98 billion weights in layers; 0.525 billion in the head, for all tokens but one.
    let products = 4.0 * (6.979e9 + 0.5253e9 * 4095.0 / 4096.0);
    let attention = 12.0 * 4097.0 / 2.0 * 32.0 * 4096.0;
    assert!((flops / (products + attention) - 1.0).abs() < 1e-3, "{flops:e}");
}

#[test]
fn a_table_shows_all_that_came_of_it() {
    let hone = json!({"name": "Hone", "step_seconds": [0.5, 0.4, 1.0],
        "step_tokens": [100, 100, 100], "peak_bytes": 2 << 20,
        "planned_seconds": 0.45, "planned_bytes": 3 << 20});
    let slow = json!({"name": "PyTorch, sdpa", "step_seconds": [1.0], "step_tokens": [50],
        "peak_bytes": 5 << 20, "allocated_bytes": 4 << 20});
    let fast = json!({"name": "PyTorch, a", "step_seconds": [1.0], "step_tokens": [80]});
    let lost = json!({"name": "PyTorch, b", "error": "out of memory"});
    let text = section(&json!({"name": "8B", "step": "2 rows", "gpu": "A GPU",
        "flops_per_token": 1e9, "rows": [hone, slow, fast, lost],
        "peers": {"versions": "torch 2", "ceiling_flops": 1e12}}));
    let shows = |line: &str| assert!(text.contains(line), "{line}\n{text}");
    shows("2 rows. A GPU; torch 2; the ceiling is 1.0 TFLOP/s.");
    shows("| Hone | 200 (100–250) | 20 % | 0.500 | 0.450 | 2 | 3 |  |");
    shows("| PyTorch, sdpa | 50 (50–50) | 5 % | 1.000 |  | 5 |  | 4 |");
    shows("| PyTorch, b | out of memory |");
    shows("Hone / best of PyTorch (PyTorch, a): 2.50");
    let missing = json!({"rows": [], "peers": {"missing": "no module torch"}});
    assert!(section(&missing).contains("PyTorch was not found: no module torch"));
}

//! `hone plan` against what really happens; `cargo xtask bench plan` does the same on larger runs.

use super::{Scene, json, succeeds};
use crate::sandbox::tiny_model::rows;

/// Settings of runs whose steps take tens of megabytes.
const CONFIGURATIONS: [&[&str]; 4] = [
    &["budget.micro_batch_tokens=8192", "budget.recompute=none"],
    &["budget.micro_batch_tokens=16384", "model.compute=bf16", "model.base_precision=bf16"],
    &["budget.micro_batch_tokens=4096", "budget.recompute=block", "data.max_seq_len=64"],
    &["budget.micro_batch_tokens=16384", "model.compute=int8"],
];

/// Pages of a debug build's code, 62 MB in all, that only training touches: much beside so small a
/// run.
const LATER_PAGES: f64 = (2u64 << 20) as f64;

#[test]
fn plans_come_true() {
    if !cfg!(target_os = "linux") {
        return hone_tensor::testing::skip("the memory of a process is read on Linux only");
    }
    let cases = [(false, 0), (false, 1), (true, 2), (false, 3)];
    for (full, settings) in cases.map(|(full, i)| (full, CONFIGURATIONS[i])) {
        let scene = if full { Scene::full() } else { Scene::new() };
        scene.write("train.jsonl", &rows(4_000));
        let common = ["train.batch_tokens=16384", "train.max_steps=2", "--json"];
        // Measuring the machine takes memory of its own: not in the first command that counts.
        succeeds(&mut scene.hone(&[&["plan", "run.toml"], &common[..], settings].concat()));
        let plan = json(&mut scene.hone(&[&["plan", "run.toml"], &common[..], settings].concat()));
        json(&mut scene.train(&[&common[..], settings].concat()));
        let manifest = std::fs::read(scene.path("run/manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let actual = &manifest["actual"];
        println!("{settings:?}: planned {plan}, actual {actual}");
        assert_eq!(plan["arena_bytes"], actual["arena_bytes"]);
        let peak = |of: &serde_json::Value| of["peak_bytes"].as_f64().unwrap();
        let deviation = (peak(&plan) - peak(actual)).abs();
        assert!(
            deviation < 0.05 * peak(actual) + LATER_PAGES,
            "{settings:?}: off by {deviation} bytes"
        );
    }
}

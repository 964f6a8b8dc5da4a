use super::page::{page, shares, verdicts, worst_disagreement};
use super::picture::{front, picture};
use super::{kept::Kept, llama, ours};
use serde_json::{Value, json};
use std::fs;

const SAID: &str = "\
====== KL divergence statistics ======
Mean    KLD:   0.084312 ±   0.000812
Maximum KLD:   4.236221
99.9%   KLD:   1.403311
99.0%   KLD:   0.578300
Same top p: 87.402 ± 0.210 %
";

#[test]
fn figures_of_llama_perplexity_are_found() {
    let found = llama::divergence(SAID).unwrap();
    assert_eq!(found, json!({"kl": 0.084312, "kl_p999": 1.403311, "same_top": 0.87402}));
    let error = llama::divergence("Mean    KLD:   nan-like\n").unwrap_err();
    assert!(error.contains("Mean    KLD"), "{error}");
}

fn row(maker: &str, imatrix: bool, bytes: u64, kl: f64) -> Value {
    let text = json!({"kl": kl, "kl_p999": 10.0 * kl, "same_top": 0.9});
    json!({"maker": maker, "name": "x", "imatrix": imatrix, "bytes": bytes, "own": text,
           "other": text})
}

#[test]
fn the_best_file_is_that_of_least_kl_within_the_bits() {
    // Of 800 weights: 5.00, 4.90, 4.00 bits.
    let rows = [
        row("llama.cpp", true, 500, 0.03),
        row("llama.cpp", true, 490, 0.02),
        row("llama.cpp", true, 400, 0.05),
        row("llama.cpp", false, 400, 0.01),
        row("Hone", true, 400, 0.01),
    ];
    assert_eq!(ours::best(&rows, 800, 5.0).unwrap()["bytes"], 490);
    assert_eq!(ours::best(&rows, 800, 4.89).unwrap()["bytes"], 400);
    assert!(ours::best(&rows, 800, 3.9).is_none());
}

fn of_second() -> Value {
    let mut ours = row("Hone", true, 490, 0.012);
    ours["limit"] = 5.0.into();
    ours["effort"] = "default".into();
    ours["by_hone"] = json!({"kl": 0.0125});
    let tasks = json!({
        "full": {"lambada": 0.2, "lambada_stderr": 0.02, "gsm8k_loss": 1.0},
        "files": [
            {"ratio": 4, "bytes": 400, "same_top_own": 0.98, "same_top_other": 0.96,
             "same_top_answers": 0.8, "lambada": 0.19, "gsm8k_loss": 1.25},
            {"ratio": 5, "refused": "the least possible is 401 bytes"},
        ],
    });
    json!({"second": {
        "parameters": 800, "bf16_bytes": 1600, "measured": "today",
        "rows": [row("llama.cpp", true, 490, 0.02), ours], "tasks": tasks,
    }})
}

#[test]
fn verdicts_compare_at_the_same_limit_and_say_what_was_not_measured() {
    let kept = of_second();
    let page = page(&kept);
    let line = |what: &str| {
        let line = page.lines().find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("no line with `{what}` in\n{page}")).to_owned()
    };
    let found = line(
        "second: KL on own text with effort `default` as a share of llama.cpp's best at ≤ 5.0",
    );
    assert!(found.contains("| 0.600 | ≤ 0.7 | reached |"), "{found}");
    let found = line(
        "second: KL on own text with effort `default` as a share of llama.cpp's best at ≤ 3.6",
    );
    assert!(found.contains("not measured"), "{found}");
    // (0.98 + 0.96 + 0.8 + 0.95) / 4, rounded
    let found = line("second: quality kept at a ratio of 4");
    assert!(found.contains("| 0.923 | ≥ 0.97 | **missed** |"), "{found}");
    let found = line("second: quality kept at a ratio of 5");
    assert!(found.contains("not measured"), "{found}");
    assert!(line("refused: the least").contains("| 5 | – |"));
    assert!(verdicts(&kept).iter().any(|verdict| !verdict.reached()));
}

#[test]
fn tasks_at_chance_are_left_out() {
    let file = json!({"same_top_own": 1.0, "same_top_other": 1.0, "same_top_answers": 1.0,
                      "lambada": 0.0});
    let full = json!({"lambada": 0.01, "lambada_stderr": 0.009, "gsm8k_loss": 1.0});
    assert_eq!(shares(&full, &file).len(), 3);
    let full = json!({"lambada": 0.02, "lambada_stderr": 0.009, "gsm8k_loss": 1.0});
    assert_eq!(shares(&full, &file).last(), Some(&("LAMBADA's words", 0.0)));
}

#[test]
fn disagreement_is_a_share_of_five_percent_or_a_thousandth() {
    let with = |kl: f64, by_hone: f64| {
        let mut row = row("Hone", true, 1, kl);
        row["by_hone"] = json!({"kl": by_hone});
        row
    };
    let worst = worst_disagreement(&[with(0.001, 0.0015), with(1.0, 1.1), row("x", true, 1, 9.0)]);
    assert!((worst.unwrap() - 2.0).abs() < 1e-9, "{worst:?}");
    assert_eq!(worst_disagreement(&[row("x", true, 1, 9.0)]), None);
}

#[test]
fn the_front_leaves_out_what_smaller_files_beat() {
    let points = [(2.0, 1.0), (3.0, 0.5), (3.5, 0.7), (4.0, 0.1)];
    assert_eq!(front(&points), [(2.0, 1.0), (3.0, 0.5), (4.0, 0.1)]);
}

#[test]
fn the_picture_has_a_point_for_each_file_and_one_panel_for_each_model() {
    let svg = picture(&of_second());
    assert_eq!(svg.matches("<circle").count(), 2, "{svg}");
    assert_eq!(svg.matches("<g ").count(), 1);
    assert!(!svg.contains("NaN"), "{svg}");
}

#[test]
fn a_step_is_done_again_only_when_its_inputs_are_others() {
    let dir = std::env::temp_dir().join(format!("xtask-kept-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("input");
    fs::write(&file, "a").unwrap();
    let step = |words: &str, value: u64| {
        let make = || Ok(json!(value));
        Kept::new(&dir).step("model/step", (&[&file], words), make).unwrap()
    };
    assert_eq!(step("x", 1), 1);
    assert_eq!(step("x", 2), 1);
    assert_eq!(step("y", 3), 3);
    fs::write(&file, "b").unwrap();
    assert_eq!(step("y", 4), 4);
    Kept::new(&dir).forget("model/step");
    assert_eq!(step("y", 5), 5);
    fs::remove_dir_all(&dir).unwrap();
}

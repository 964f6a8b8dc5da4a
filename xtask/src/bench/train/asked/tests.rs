use super::super::super::doctor::Rates;
use super::super::cases::CASES;
use super::super::figures::{Machine, Round};
use super::super::rest::Rest;
use super::super::{FAMILIES, LLAMA};
use super::*;
use serde_json::json;

const AMX_KERNEL: &str = "brg_matmul:avx10_1_512_amx";

/// A round that is `ratio` times as fast as the peer's, under `isa`.
fn figures(ratio: f64, isa: &str, kernel: &str) -> Figures {
    let round = |tokens_per_second| Round { tokens_per_second, peak_bytes: 0.9e9 };
    let rates = Some(Rates { registers: 3e12, loads: 2e12 });
    Figures {
        hone: vec![round(100.0 * ratio)],
        peer: vec![round(100.0)],
        machine: vec![Machine { processor: "P".to_owned(), isa: isa.to_owned(), rates }],
        plans: vec![json!({ "step_seconds": 1.05, "flops_per_step": 1e12 })],
        step_seconds: vec![1.0],
        kernel: Some(kernel.to_owned()),
        rest: Some(Rest { share: 0.25 }),
        ..Figures::default()
    }
}

fn of_case(key: &str, figures: &Figures) -> (String, bool) {
    let case = CASES.iter().find(|case| case.key == key).unwrap();
    asked(&LLAMA, case, figures, f64::NAN)
}

#[test]
fn the_ratio_asked_depends_on_the_instruction_set() {
    let (words, reached) = of_case("bf16", &figures(2.6, "avx512bf16", "brg_matmul:avx512_core"));
    assert_eq!((&*words, reached), ("2.5; ≤ 1000 MB; rest of a step 25 %", true));
    let (words, reached) = of_case("bf16", &figures(2.6, "amx", AMX_KERNEL));
    let expected = "**3: missed**; ≤ 1000 MB; rest of a step 25 %, at most 33 %";
    assert_eq!((&*words, reached), (expected, false));
    assert!(of_case("full", &figures(1.6, "avx512bf16", "")).1);
    assert!(!of_case("full", &figures(1.6, "amx", AMX_KERNEL)).1);
}

#[test]
fn memory_plan_and_rest_are_checked() {
    let reached = |figures: &Figures| of_case("bf16", figures);
    let fine = || figures(3.1, "amx", AMX_KERNEL);
    assert!(reached(&fine()).1);
    let mut large = fine();
    large.hone[0].peak_bytes = 1.01e9;
    assert!(reached(&large).0.contains("**≤ 1000 MB: missed**"));
    let mut late = fine();
    late.step_seconds = vec![1.25];
    let words = reached(&late);
    assert!(words.0.ends_with("**off by 16 %: missed**") && !words.1, "{}", words.0);
    let llama = FAMILIES.cases.iter().find(|case| case.key == "llama").unwrap();
    assert_eq!(asked(&FAMILIES, llama, &late, 1.0), (String::new(), true));
    let mut rest = fine();
    rest.rest = Some(Rest { share: 0.4 });
    assert!(!reached(&rest).1);
    // Of slow tiles nothing is asked.
    rest.machine[0].rates = Some(Rates { registers: 3e12, loads: 0.5e12 });
    assert!(reached(&rest).1);
}

#[test]
fn a_peer_without_amx_is_no_peer_where_there_is_amx() {
    let (words, reached) = of_case("int8", &figures(9.0, "amx", "brg_matmul:avx512_core_bf16"));
    assert!(words.ends_with("**peer on AMX: missed**") && !reached, "{words}");
    // Hone itself needs none, nor PyTorch in f32.
    assert!(of_case("threads", &figures(1.95, "amx", "")).1);
    assert!(of_case("f32", &figures(1.0, "amx", "")).1);
}

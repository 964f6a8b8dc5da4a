use super::*;
use crate::cpu::Cpu;

const PLAIN: Router = Router {
    num_experts: 6,
    top_k: 2,
    scoring: Scoring::Softmax,
    normalise: true,
    scale: 1.0,
    groups: None,
};

fn chosen(router: &Router, logits: &[f32], bias: Option<&[f32]>) -> Vec<u32> {
    let mut weights = vec![0.0; logits.len() / router.num_experts * router.top_k];
    forward(&Cpu::new(1), router, View::F32(logits), bias, &mut weights)
}

#[test]
fn the_lowest_of_equals_is_chosen() {
    assert_eq!(chosen(&PLAIN, &[0.0; 6], None), [0, 1]);
    assert_eq!(chosen(&PLAIN, &[1.0, 2.0, 0.0, 2.0, 2.0, 1.0], None), [1, 3]);
    let nan = [f32::NAN, 1.0, f32::NAN, -1.0, f32::NAN, f32::NEG_INFINITY];
    assert_eq!(chosen(&PLAIN, &nan, None), [1, 3], "what is not a number is chosen last");
    assert_eq!(chosen(&Router { top_k: 6, ..PLAIN }, &[f32::NAN; 6], None), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_bias_decides_the_choice_and_no_weight() {
    let router = Router { scoring: Scoring::Sigmoid, normalise: false, ..PLAIN };
    let (logits, bias) = ([3.0, 2.0, 1.0, 0.0, -1.0, -2.0], [0.0, 0.0, 0.0, 0.0, 0.9, 2.0]);
    let mut weights = [0.0; 2];
    let found = forward(&Cpu::new(1), &router, View::F32(&logits), Some(&bias), &mut weights);
    assert_eq!(found, [5, 4]);
    for (weight, logit) in weights.into_iter().zip([-2.0f32, -1.0]) {
        assert!((weight - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6);
    }
}

/// The best expert is in a group whose second is poor.
#[test]
fn groups_are_chosen_by_their_two_best() {
    let groups = Some(Groups { count: 3, kept: 1 });
    let router = Router { scoring: Scoring::Sigmoid, groups, ..PLAIN };
    assert_eq!(chosen(&router, &[4.0, -9.0, 1.0, 1.0, 0.5, 0.6], None), [2, 3]);
    let two = Router { groups: Some(Groups { count: 3, kept: 2 }), ..router };
    assert_eq!(chosen(&two, &[4.0, -9.0, 1.0, 1.5, 0.5, 0.6], None), [3, 2]);
}

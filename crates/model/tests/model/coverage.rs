//! What of a model adapters reach: by name, by what layers do, and kind of layer by kind of layer.

use crate::fixture::{Golden, load};
use hone_model::adapter::{Coverage, LoraConfig, ROLES, TargetModules, attach, coverage};
use hone_model::{LayerKind, Part, Trained, Trait};
use hone_tensor::{DType, Device};

fn adapted(golden: &Golden, targets: &[&str]) -> Result<Vec<Coverage>, String> {
    adapted_by(golden, targets, false)
}

fn adapted_by(
    golden: &Golden,
    targets: &[&str],
    share_experts: bool,
) -> Result<Vec<Coverage>, String> {
    let device = Device::dry();
    let mut model = load(&golden.dir, &device, Some(DType::F32.into()), Trained::Nothing);
    let target_modules = match targets {
        ["all-linear"] => TargetModules::AllLinear,
        names => TargetModules::Patterns(names.iter().map(|&name| name.to_owned()).collect()),
    };
    let (rank, alpha, dropout, use_rslora) = (2, 4.0, 0.0, false);
    let config = LoraConfig { rank, alpha, dropout, target_modules, use_rslora, share_experts };
    attach(&mut model, &device, &config, 1).map_err(|error| error.to_string())?;
    let found = coverage(&model);
    let trained: u64 = found.iter().map(|line| line.trained).sum();
    assert_eq!(trained, model.params.num_elements() as u64, "{targets:?}");
    let all: u64 = found.iter().map(|line| line.parameters).sum();
    assert_eq!(all, model.decoder.config.num_parameters() as u64, "{targets:?}");
    Ok(found)
}

/// Whether all linear layers of a line are trained, or none is.
fn is_covered(line: &Coverage) -> bool {
    let all = line.modules.iter().all(|modules| modules.trained == modules.count);
    assert!(all || line.modules.iter().all(|modules| modules.trained == 0), "{line:?}");
    all
}

/// Every family: `all-linear` reaches all but routers, a role what has it and nothing else, and
/// names of layers reach all layers of that name.
#[test]
fn every_kind_of_layer_can_be_a_target() {
    for golden in Golden::all() {
        let case = golden.dir.display().to_string();
        let all = adapted(&golden, &["all-linear"]).unwrap();
        let (rest, of_blocks) = all.split_last().unwrap();
        assert!(rest.modules.is_empty() && rest.trained == 0, "{case}");
        for line in of_blocks {
            let is_router = line.kind == Part::Router.name();
            assert_eq!(is_covered(line), !is_router, "{case}: {line:?}");
            for modules in &line.modules {
                let by_name = adapted(&golden, &[&modules.name]).unwrap();
                let found = by_name.iter().flat_map(|line| &line.modules);
                let found: Vec<_> = found.filter(|other| other.name == modules.name).collect();
                assert!(found.iter().all(|of| of.trained == of.count), "{case}: {found:?}");
            }
        }
        for (role, part) in ROLES {
            let has = of_blocks.iter().any(|line| line.kind == part.name());
            match adapted(&golden, &[role]) {
                Ok(lines) => {
                    assert!(has, "{case}: {role}");
                    for line in &lines[..lines.len() - 1] {
                        assert_eq!(is_covered(line), line.kind == part.name(), "{case}: {line:?}");
                    }
                }
                Err(message) => {
                    assert!(!has && message.contains("matches no linear layer"), "{message}");
                }
            }
        }
    }
}

/// What experts share is counted once, and reaches them all.
#[test]
fn shared_matrices_are_counted_once() {
    let golden = Golden::load("qwen3_moe");
    let trained = |lines: &[Coverage]| {
        let experts = lines.iter().find(|line| line.kind == Part::Experts.name()).unwrap();
        assert!(is_covered(experts));
        experts.trained
    };
    let [each, shared] =
        [false, true].map(|share| trained(&adapted_by(&golden, &["all-linear"], share).unwrap()));
    assert_eq!(each, 6 * shared, "of six experts");
}

/// A full fine-tune trains all weights.
#[test]
fn all_weights_are_covered() {
    for case in ["qwen3_5", "qwen2_moe", "untied_bias_linear"] {
        let model = load(&Golden::load(case).dir, &Device::dry(), None, Trained::All);
        for line in coverage(&model) {
            assert!(is_covered(&line) && line.trained == line.parameters, "{case}: {line:?}");
        }
    }
}

/// Of a mixture with a dense block, a longer name may speak of both MLPs and reach one.
#[test]
fn a_target_that_reaches_only_some_of_what_it_names() {
    let golden = Golden::load("qwen3_moe");
    let trained = |targets: &[&str]| -> Result<u64, String> {
        Ok(adapted(&golden, targets)?.iter().map(|line| line.trained).sum())
    };
    assert_eq!(
        trained(&["mlp.down_proj"]).unwrap_err(),
        "adapter.target_modules: `mlp.down_proj` covers only MLP of 1 block, and not experts of 2 \
         blocks, which it also names. Write `down_proj` for all of them, or `*.mlp.down_proj` for \
         these alone"
    );
    assert!(trained(&["*.mlp.down_proj"]).unwrap() < trained(&["down_proj"]).unwrap());
    // What another target covers is not left out.
    assert!(trained(&["mlp.down_proj", "experts"]).unwrap() > trained(&["experts"]).unwrap());
}

/// Each part of a block, and each trait, is in a golden model: so it is packed, cut, recomputed,
/// and decoded step by step in the tests of packing and generation, which go through all of them.
#[test]
fn every_kind_of_layer_has_a_golden_model() {
    let configs = Golden::all().map(|golden| {
        let model = load(&golden.dir, &Device::dry(), None, Trained::Nothing);
        model.decoder.config
    });
    let kinds: Vec<LayerKind> =
        configs.flat_map(|config| config.layers.into_iter().flat_map(|of| of.kinds())).collect();
    for part in Part::ALL {
        assert!(kinds.iter().any(|kind| kind.part == *part), "no golden model has {part:?}");
    }
    for of in Trait::ALL {
        assert!(kinds.iter().any(|kind| kind.traits.contains(of)), "no golden model has {of:?}");
    }
}

//! Loading: element types, single files and shards, end tokens, and storage of weights.

use crate::fixture::{
    Entry, Golden, cases, copy_of, export, goldens_dir, load, logits, max_error, pack, rewrite,
    set_key,
};
use crate::random_weights::{FNV_OFFSET, fnv_1a};
use hone_model::{DecoderConfig, LayerConfig, LoadError, LoadOptions, Model, ModelFiles, Trained};
use hone_tensor::{Category, Compute, DType, Device, Storage};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn logits_of(model: &Model, golden: &Golden) -> Vec<f32> {
    let batch = pack(&model.decoder.config, &golden.samples(), 0);
    logits(model, &Device::cpu(2), Compute::F32, &batch)
}

/// The weights that PyTorch's results are of.
#[test]
fn weights_are_drawn_as_for_pytorch() {
    for case in cases() {
        let (golden, committed) = (Golden::load(&case), goldens_dir().join(&case));
        for part in ["", "adapter"] {
            let description = fs::read(committed.join(part).join("weights.json")).unwrap();
            let description: Value = serde_json::from_slice(&description).unwrap();
            let mut digest = FNV_OFFSET;
            for file in description["files"].as_object().unwrap().keys() {
                rewrite(&golden.dir.join(part).join(file), |tensors| {
                    digest = tensors.values().fold(digest, |sum, entry| fnv_1a(&entry.2, sum));
                });
            }
            assert_eq!(format!("{digest:016x}"), description["digest"], "{case} {part}");
        }
    }
}

/// Element types in the files of the goldens, and of the loaded matrices for each option.
#[test]
fn element_types() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        let in_file = match golden.facts["saved_as"].as_str() {
            Some("float16") => DType::F16,
            Some("bfloat16") => DType::Bf16,
            _ => DType::F32,
        };
        let as_is = load(&golden.dir, &device, None, Trained::Nothing);
        assert_eq!(as_is.file_dtype, in_file);
        let held = |model: &Model| model.params.resolve(model.decoder.head()).dtype();
        assert_eq!(held(&as_is), in_file);
        let expected = logits_of(&as_is, &golden);
        for wish in [DType::F32, DType::Bf16] {
            let model = load(&golden.dir, &device, Some(wish.into()), Trained::Nothing);
            assert_eq!((held(&model), model.file_dtype), (wish, in_file));
            let found = logits_of(&model, &golden);
            // Widening is exact.
            assert_eq!(found == expected, wish == DType::F32 || wish == in_file);
        }
        let trained = load(&golden.dir, &device, Some(DType::Bf16.into()), Trained::All);
        assert_eq!(held(&trained), DType::F32);
        let config = &trained.decoder.config;
        // What routers add for the choice alone is never trained, nor are factors of blocks.
        let mixtures = config.layers.iter().filter_map(|layer| layer.mlp.experts.as_ref());
        let corrected = mixtures.filter(|mixture| mixture.correction_bias);
        let fixed: usize = corrected.map(|mixture| mixture.router.num_experts).sum();
        let fixed = fixed + config.layers.iter().filter(|layer| layer.scaled).count();
        assert_eq!(trained.params.num_elements() + fixed, config.num_parameters());
        assert_eq!(logits_of(&trained, &golden), expected);
    }
}

/// A mapped weight is counted and not copied; one in another type is copied.
#[test]
fn memory_of_weights() {
    for case in cases() {
        let golden = Golden::load(&case);
        let bytes_held = |device: &Device, precision| {
            let model = load(&golden.dir, device, precision, Trained::Nothing);
            let bytes = device.persistent_bytes(Category::Weights);
            let config = &model.decoder.config;
            // Norms of values are ones, in no file; factors of blocks are the host's.
            let ones = |layer: &LayerConfig| match &layer.attention {
                of if of.norms_values && of.keys_of.is_none() => of.heads.head_dim,
                _ => 0,
            };
            let ones: usize = config.layers.iter().map(ones).sum();
            let scaled = config.layers.iter().filter(|layer| layer.scaled).count();
            (bytes, (config.num_parameters() + ones - scaled) as u64)
        };
        let (bytes, count) = bytes_held(&Device::cpu(1), Some(DType::F32.into()));
        assert_eq!(bytes, 4 * count, "{case}");
        let storages = Storage::NAMES.map(Storage::from_name);
        let is_ragged = |precision: &Option<Storage>| {
            let options = LoadOptions { base_precision: *precision, ..LoadOptions::INFERENCE };
            let loaded = hone_model::load(&golden.dir, &Device::dry(), options);
            matches!(loaded, Err(LoadError::Ragged { .. }))
        };
        for precision in storages.into_iter().chain([None]).filter(|of| !is_ragged(of)) {
            let real = bytes_held(&Device::cpu(1), precision);
            assert_eq!(real, bytes_held(&Device::dry(), precision), "{case} {precision:?}");
        }
    }
}

/// Rows that are not whole blocks are refused on the dry device already, with what they can be.
#[test]
fn blocks_that_rows_are_not_made_of_are_refused() {
    let golden = Golden::load("dynamic");
    let options =
        LoadOptions { base_precision: Storage::from_name("q4_0"), ..LoadOptions::INFERENCE };
    let error = hone_model::load(&golden.dir, &Device::dry(), options).err().unwrap().to_string();
    assert!(error.starts_with("base precision q4_0: tensor `model.layers.0."), "{error}");
    assert!(error.contains("are not whole blocks of 32, as q4_0 has them"), "{error}");
    assert!(error.ends_with("can be held in: f32, bf16, f16, int8, nf4"), "{error}");
}

#[test]
fn one_file_is_as_good_as_shards() {
    let (golden, dir) = (Golden::load("dynamic"), copy_of("dynamic"));
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut all = std::collections::BTreeMap::new();
    for shard in shards {
        rewrite(&dir.path().join(shard), |tensors| all.append(&mut tensors.clone()));
    }
    fs::rename(dir.path().join(shards[0]), dir.path().join("model.safetensors")).unwrap();
    rewrite(&dir.path().join("model.safetensors"), |tensors| *tensors = all);
    fs::remove_file(dir.path().join(shards[1])).unwrap();
    let device = Device::cpu(2);
    let (single, sharded) = (
        load(dir.path(), &device, None, Trained::Nothing),
        load(&golden.dir, &device, None, Trained::Nothing),
    );
    assert_eq!(logits_of(&single, &golden), logits_of(&sharded, &golden));
}

/// Biases only on attention, or only on the MLP.
#[test]
fn biases_where_the_configuration_has_them() {
    let device = Device::cpu(2);
    for (key, part) in [("attention_bias", ".self_attn."), ("mlp_bias", ".mlp.")] {
        let (golden, dir) = (Golden::load("untied_bias_linear"), copy_of("untied_bias_linear"));
        let is_bias = |name: &str| name.contains(part) && name.ends_with(".bias");
        let weights = dir.path().join("model.safetensors");
        let zeroed = |keep: bool| {
            rewrite(&weights, |tensors| {
                tensors.retain(|name, _| keep || !is_bias(name));
                let biases = tensors.iter_mut().filter(|(name, _)| is_bias(name));
                biases.for_each(|(_, (_, _, data))| data.fill(0));
            });
            let model = load(dir.path(), &device, None, Trained::Nothing);
            (logits_of(&model, &golden), model.decoder.config.num_parameters())
        };
        let with_zeros = zeroed(true);
        set_key(&dir.path().join("config.json"), key, json!(false));
        let without = zeroed(false);
        assert_eq!(with_zeros.0, without.0, "{key}");
        assert!(with_zeros.1 > without.1);
    }
}

/// Unaligned data in a file is copied and gives the same values.
#[test]
fn unaligned_data() {
    let (golden, dir) = (Golden::load("tied_gqa"), copy_of("tied_gqa"));
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes.splice(8 + header as usize..8 + header as usize, *b" ");
    bytes[..8].copy_from_slice(&(header + 1).to_le_bytes());
    fs::write(path, bytes).unwrap();
    let model = load(dir.path(), &Device::cpu(2), None, Trained::Nothing);
    assert_eq!(logits_of(&model, &golden), logits_of(&golden.base(&Device::cpu(2)), &golden));
}

/// bf16 norms with f32 matrices: vectors are converted to f32 whatever their type.
#[test]
fn mixed_element_types() {
    let dir = copy_of("tied_gqa");
    rewrite(&dir.path().join("model.safetensors"), |tensors| {
        let (dtype, _, data) = tensors.get_mut("model.norm.weight").unwrap();
        *dtype = Dtype::BF16;
        *data = data.chunks_exact(4).flat_map(|f32| [f32[2], f32[3]]).collect();
    });
    let options = LoadOptions::INFERENCE;
    let model = hone_model::load(dir.path(), &Device::cpu(1), options).unwrap();
    assert_eq!(model.file_dtype, DType::F32);
}

/// A directory is read once, however often it is loaded.
#[cfg(unix)]
#[test]
fn opened_files_are_loaded_again() {
    let (golden, dir, device) = (Golden::load("tied_gqa"), copy_of("tied_gqa"), Device::cpu(2));
    let files = ModelFiles::open(dir.path()).unwrap();
    dir.close().unwrap();
    files.load(&Device::dry(), LoadOptions::INFERENCE).unwrap();
    let model = files.load(&device, LoadOptions::INFERENCE).unwrap();
    assert_eq!(logits_of(&model, &golden), logits_of(&golden.base(&device), &golden));
}

#[test]
fn end_tokens() {
    let dir = copy_of("tied_gqa");
    let ids = |dir: &Path| DecoderConfig::load(dir).unwrap().eos_token_ids;
    assert_eq!(ids(dir.path()), [2]);
    set_key(&dir.path().join("config.json"), "eos_token_id", json!([2, 5]));
    assert_eq!(ids(dir.path()), [2, 5]);
    // `generation_config.json` takes precedence over `config.json`.
    let generation = dir.path().join("generation_config.json");
    fs::write(&generation, "{}").unwrap();
    assert_eq!(ids(dir.path()), [2, 5]);
    set_key(&generation, "eos_token_id", json!(7));
    assert_eq!(ids(dir.path()), [7]);
    set_key(&generation, "eos_token_id", json!([7, 8]));
    assert_eq!(ids(dir.path()), [7, 8]);
    assert_eq!(DecoderConfig::load(dir.path()).unwrap().stop_ids(&[2, 8]), [2, 7, 8]);
}

/// A modification of a weight file's tensors.
type Change = fn(&mut BTreeMap<String, Entry>);

/// A copy of `tied_gqa` with modified tensors.
fn changed(change: Change) -> TempDir {
    let dir = copy_of("tied_gqa");
    rewrite(&dir.path().join("model.safetensors"), change);
    dir
}

/// Layouts that transformers loads as the same model: the embedding copied as head, only the head
/// of the tied pair, names of the bare decoder, buffers of old versions, elements in f64, shards in
/// a folder.
#[test]
fn other_layouts_of_the_same_model() {
    let (device, golden) = (Device::cpu(2), Golden::load("tied_gqa"));
    let layouts: [Change; 5] = [
        |all| drop(all.insert(HEAD.to_owned(), all[EMBEDDING].clone())),
        |all| {
            let embedding = all.remove(EMBEDDING).unwrap();
            all.insert(HEAD.to_owned(), embedding);
        },
        |all| {
            let bare = |name: String| name.strip_prefix("model.").unwrap().to_owned();
            *all = std::mem::take(all).into_iter().map(|(name, t)| (bare(name), t)).collect();
        },
        |all| {
            let norm = all["model.norm.weight"].clone();
            all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), norm);
        },
        |all| {
            for (dtype, _, data) in all.values_mut() {
                let wide = |&x: &[u8; 4]| f64::from(f32::from_le_bytes(x)).to_le_bytes();
                *data = data.as_chunks().0.iter().flat_map(wide).collect();
                assert_eq!(std::mem::replace(dtype, Dtype::F64), Dtype::F32);
            }
        },
    ];
    let expected = logits_of(&golden.base(&device), &golden);
    for (i, layout) in layouts.into_iter().enumerate() {
        let model = load(changed(layout).path(), &device, None, Trained::Nothing);
        assert!(model.decoder.config.tie_word_embeddings, "layout {i}");
        assert_eq!(logits_of(&model, &golden), expected, "layout {i}");
    }
    let dir = copy_of("tied_gqa");
    let (weights, folder) = (dir.path().join("model.safetensors"), dir.path().join("weights"));
    fs::create_dir(&folder).unwrap();
    let mut map = serde_json::Map::new();
    rewrite(&weights, |all| {
        all.keys().for_each(|name| drop(map.insert(name.clone(), json!("weights/a.safetensors"))));
    });
    fs::rename(weights, folder.join("a.safetensors")).unwrap();
    let index = json!({ "weight_map": map }).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let model = load(dir.path(), &device, None, Trained::Nothing);
    assert_eq!(logits_of(&model, &golden), expected);
}

/// A head trained separately from the embedding is used whatever the configuration says, and kept
/// by an export.
#[test]
fn a_stored_head_unlike_the_embedding() {
    let (device, golden) = (Device::cpu(2), Golden::load("tied_gqa"));
    let dir = changed(|all| {
        let mut head = all[EMBEDDING].clone();
        let row = head.2.len() / head.1[0];
        head.2.rotate_left(row);
        all.insert(HEAD.to_owned(), head);
    });
    let tied = logits_of(&golden.base(&device), &golden);
    let model = load(dir.path(), &device, None, Trained::Nothing);
    let config = &model.decoder.config;
    assert!(!config.tie_word_embeddings);
    let moved = |row: &[f32]| [&row[1..], &row[..1]].concat();
    let expected: Vec<f32> = tied.chunks(config.vocab_size).flat_map(moved).collect();
    let found = logits_of(&model, &golden);
    assert!(max_error(&found, &expected) < 1e-5);
    let out = tempfile::tempdir().unwrap();
    export(&model, &device, dir.path(), DType::F32, out.path()).unwrap();
    let again = load(out.path(), &device, None, Trained::Nothing);
    assert_eq!(logits_of(&again, &golden), found);
    assert!(!DecoderConfig::load(out.path()).unwrap().tie_word_embeddings);
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A text model among other parts, named as transformers does now and did before: the same model,
/// and an export keeps names and what it does not read.
#[test]
fn text_models_among_other_parts() {
    check_among_other_parts("gemma3", "gemma3", DType::Bf16, "vision_tower");
    check_among_other_parts("gemma4_small", "gemma4", DType::F32, "model.vision_tower");
    check_among_other_parts("ministral3", "mistral3", DType::F32, "vision_tower");
    check_among_other_parts("qwen3_5", "qwen3_5", DType::F32, "model.visual");
    check_among_other_parts("qwen3_5_moe", "qwen3_5_moe", DType::F32, "model.visual");
}

/// `vision` is what the names of another part begin with.
fn check_among_other_parts(case: &str, outer_type: &str, dtype: DType, vision: &str) {
    let (device, golden) = (Device::cpu(2), Golden::load(case));
    let expected = logits_of(&golden.base(&device), &golden);
    let now = |name: &str| name.replacen("model.", "model.language_model.", 1);
    let before = |name: &str| format!("language_model.{name}");
    let layouts: [&dyn Fn(&str) -> String; 2] = [&now, &before];
    for renamed in layouts {
        let dir = copy_of(case);
        let tower = (Dtype::F16, vec![2, 3], (0..12).collect::<Vec<u8>>());
        // Of types that no weight has, or none that stands alone.
        let positions = (Dtype::I64, vec![1, 2], (0..16).collect::<Vec<u8>>());
        let pixels = (Dtype::U8, vec![2, 2], vec![1, 2, 3, 4]);
        let mut others = vec![
            (format!("{vision}.patches.weight"), tower.clone()),
            (format!("{vision}.positions"), positions),
            (format!("{vision}.pixels"), pixels),
        ];
        let path = dir.path().join("config.json");
        let mut text: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if outer_type.starts_with("qwen") {
            // Of tokens after the next, beside the text model.
            text["mtp_num_hidden_layers"] = json!(1);
            others.push(("mtp.fc.weight".to_owned(), tower.clone()));
            others.push(("mtp.layers.0.mlp.experts.gate_up_proj".to_owned(), tower.clone()));
        }
        rewrite(&dir.path().join("model.safetensors"), |all| {
            *all = std::mem::take(all).into_iter().map(|(name, t)| (renamed(&name), t)).collect();
            all.extend(others.clone());
        });
        let outer = json!({
            "model_type": outer_type, "vision_config": {"hidden_size": 3}, "image_token_index": 7,
            "eos_token_id": [1, 44], "tie_word_embeddings": text["tie_word_embeddings"],
            "text_config": text,
        });
        fs::write(&path, outer.to_string()).unwrap();
        let model = load(dir.path(), &device, None, Trained::Nothing);
        assert_eq!(logits_of(&model, &golden), expected);
        assert_eq!(model.decoder.config.eos_token_ids, [1, 44]);
        let other_bytes = others.iter().map(|(_, (.., bytes))| bytes.len() as u64).sum::<u64>();
        assert_eq!(model.other_bytes, other_bytes);

        let out = tempfile::tempdir().unwrap();
        export(&model, &device, dir.path(), dtype, out.path()).unwrap();
        let mut names = [Vec::new(), Vec::new()];
        for (dir, names) in [dir.path(), out.path()].into_iter().zip(&mut names) {
            rewrite(&dir.join("model.safetensors"), |all| {
                assert!(others.iter().all(|(name, tensor)| all[name] == *tensor));
                *names = all.keys().cloned().collect();
            });
        }
        assert_eq!(names[0], names[1]);
        let again = load(out.path(), &device, None, Trained::Nothing);
        assert_eq!(logits_of(&again, &golden), expected);
        assert_eq!(again.other_bytes, other_bytes);

        // What is not read of the text model itself may not be passed over.
        let name = renamed("model.layers.0.mlp.gate_proj.bias");
        rewrite(&dir.path().join("model.safetensors"), |all| {
            all.insert(name.clone(), tower.clone());
        });
        let refused = hone_model::load(dir.path(), &device, LoadOptions::INFERENCE).err().unwrap();
        assert!(refused.to_string().contains(&format!("tensor `{name}` is not part")));
    }
    let dir = copy_of("gemma3");
    set_key(&dir.path().join("config.json"), "model_type", "gemma3".into());
    let error = DecoderConfig::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("`text_config` is missing"), "{error}");
}

/// Blocks for tokens after the next are not read, and an export keeps them; so it does the names of
/// experts that are one tensor.
#[test]
fn what_predicts_further_tokens_stays() {
    let device = Device::cpu(1);
    for (case, has_key) in [("qwen3_next", false), ("qwen3_5_moe", true)] {
        let dir = copy_of(case);
        if has_key {
            set_key(&dir.path().join("config.json"), "mtp_num_hidden_layers", json!(1));
        }
        let further = (Dtype::F32, vec![2, 3], (0..24).collect::<Vec<u8>>());
        let mut names = [Vec::new(), Vec::new()];
        rewrite(&dir.path().join("model.safetensors"), |all| {
            all.insert("mtp.fc.weight".to_owned(), further.clone());
            names[0] = all.keys().cloned().collect();
        });
        let model = load(dir.path(), &device, None, Trained::Nothing);
        let out = tempfile::tempdir().unwrap();
        export(&model, &device, dir.path(), DType::F32, out.path()).unwrap();
        rewrite(&out.path().join("model.safetensors"), |all| {
            assert_eq!(all["mtp.fc.weight"], further);
            names[1] = all.keys().cloned().collect();
        });
        assert_eq!(names[0], names[1]);
    }
}

/// Files may have keys and values of blocks that read another's, as transformers does not use them
/// nor write them.
#[test]
fn keys_that_no_block_reads_are_left_out() {
    let (device, golden) = (Device::cpu(1), Golden::load("gemma4_small"));
    let expected = logits_of(&golden.base(&device), &golden);
    let dir = copy_of("gemma4_small");
    let file = |dir: &Path| dir.join("model.safetensors");
    let mut before = Vec::new();
    rewrite(&file(dir.path()), |all| {
        before = all.keys().cloned().collect();
        for module in ["k_proj", "v_proj", "k_norm", "v_norm"] {
            let unused = (Dtype::F16, vec![2, 3], vec![0; 12]);
            for tensor in ["weight", "bias", "weight_scale_inv", "weight.absmax"] {
                let name = format!("model.layers.4.self_attn.{module}.{tensor}");
                all.insert(name, unused.clone());
            }
        }
    });
    let model = load(dir.path(), &device, None, Trained::Nothing);
    assert_eq!(logits_of(&model, &golden), expected);
    let out = tempfile::tempdir().unwrap();
    export(&model, &device, dir.path(), DType::F32, out.path()).unwrap();
    rewrite(&file(out.path()), |all| assert!(all.keys().eq(&before)));
    // Those of a block that makes its own are read.
    rewrite(&file(dir.path()), |all| drop(all.remove("model.layers.2.self_attn.k_proj.weight")));
    assert!(hone_model::load(dir.path(), &device, LoadOptions::INFERENCE).is_err());
}

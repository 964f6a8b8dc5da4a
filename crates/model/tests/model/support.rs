//! What works with which family: the README's table, each of whose cells names the test that shows
//! it, and the tests of what no other shows for all families.

use crate::fixture::{Golden, cases, export, forward_backward, goldens_dir, load, logits, pack};
use crate::gguf;
use hone_model::generate::{Request, Sampling, generate_all};
use hone_model::{Model, Pass, Recompute, Trained, adapter, families};
use hone_tensor::{Compute, DType, Device, Storage};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;

/// Whose weights are held as bytes or in NF4 computes what the values of those do, bit for bit: the
/// logits, the adapter's gradients, and texts, before an export in f32 and after it.
#[test]
fn weights_in_few_bits_compute_what_their_values_do() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        for held in ["int8", "nf4"] {
            let case = format!("{} in {held}", golden.dir.display());
            let packed = load(&golden.dir, &device, Storage::from_name(held), Trained::Nothing);
            let is_packed = |storage: &Storage| storage.float().is_none();
            assert!(packed.storages().iter().any(is_packed), "{case}");
            let dir = tempfile::tempdir().unwrap();
            export(&packed, &device, &golden.dir, DType::F32, dir.path()).unwrap();
            let floats = load(dir.path(), &device, None, Trained::Nothing);
            let of = |mut model: Model| {
                adapter::load(&golden.dir.join("adapter"), &mut model, &device, &mut |_| ())
                    .unwrap();
                let batch = pack(&model.decoder.config, &golden.samples(), 0);
                let how = (Compute::F32, Recompute::None);
                let outcome = forward_backward(&model, &device, how, &batch, 1.0, None);
                let logits = logits(&model, &device, Compute::F32, &batch);
                (outcome, logits, text(&model, &device, &golden.samples()[0].ids[..3]))
            };
            assert!(of(packed) == of(floats), "{case}");
        }
    }
}

/// Some tokens that follow a prompt; none of an encoder.
pub fn text(model: &Model, device: &Device, prompt: &[u32]) -> Vec<u32> {
    if model.decoder.config.looks_ahead().is_some() {
        return Vec::new();
    }
    let prompt = prompt.to_vec();
    let (sampling, stop_ids) = (Sampling::GREEDY, Vec::new());
    let request = Request { id: 0, prompt, max_new_tokens: 4, sampling, stop_ids };
    let pass = Pass { device, model, compute: Compute::F32 };
    generate_all(pass, [request]).unwrap().remove(0).tokens
}

/// A test: the label of its link, its file in this crate, its name.
struct Shown(&'static str, &'static str, &'static str);

const LORA: Shown = Shown("lora", "tests/model/goldens.rs", "loss_and_adapter_gradients");
const FULL: Shown = Shown("full", "tests/model/goldens.rs", "loss_and_gradients_of_all_weights");
const GENERATE: Shown =
    Shown("generate", "src/generate/tests.rs", "a_cached_step_has_the_bits_of_the_whole_pass");
const EXPORT: Shown =
    Shown("export", "tests/model/export.rs", "merged_logits_are_those_of_the_adapter");
const HELD: Shown =
    Shown("held", "tests/model/support.rs", "weights_in_few_bits_compute_what_their_values_do");
const FILES: Shown =
    Shown("files", "tests/model/quantised.rs", "models_of_every_family_may_be_quantised");
const MXFP4: Shown =
    Shown("mxfp4", "tests/model/quantised.rs", "quantised_matrices_compute_what_their_values_do");
const GGUF: Shown = Shown("gguf", "tests/model/gguf.rs", "a_file_is_the_model_that_it_was_made_of");

impl Shown {
    fn cell(&self, text: &str) -> String {
        format!("[{text}][{}]", self.0)
    }

    /// Where the links of cells lead, once the test is found there.
    fn link(&self) -> String {
        let Self(label, file, name) = self;
        let source = std::fs::read_to_string(goldens_dir().join("../..").join(file)).unwrap();
        assert!(source.contains(&format!("fn {name}()")), "{file} has no {name}");
        format!("[{label}]: crates/model/{file} \"{name}\"\n")
    }
}

/// `HONE_WRITE_DOCS=1 cargo test` writes the table instead.
#[test]
fn the_table_in_the_readme_is_fresh() {
    const MARKS: [&str; 2] = ["<!-- families: generated -->\n", "<!-- families end -->\n"];
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let start = readme.find(MARKS[0]).expect("a mark") + MARKS[0].len();
    let end = readme.find(MARKS[1]).expect("a mark after the table");
    let fresh = table();
    if std::env::var_os("HONE_WRITE_DOCS").is_some() {
        let text = [&readme[..start], &fresh, &readme[end..]].concat();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let stale = "README.md's table is stale; write it with HONE_WRITE_DOCS=1 cargo test";
    assert!(readme[start..end] == fresh, "{stale}");
}

/// A line for each family, from the golden models that the tests go through.
fn table() -> String {
    let mut table = "| `model_type` | LoRA | all weights | generate | export | over int8, NF4 | \
                     FP8 files | NF4 files | MXFP4 files | GGUF files |\n"
        .to_owned()
        + &"| --- ".repeat(10)
        + "|\n";
    let goldens: Vec<(String, Golden)> = cases()
        .into_iter()
        .map(|case| {
            let golden = Golden::load(&case);
            let config = std::fs::read(golden.dir.join("config.json")).unwrap();
            let config: Value = serde_json::from_slice(&config).unwrap();
            (config["model_type"].as_str().unwrap().to_owned(), golden)
        })
        .collect();
    let device = Device::dry();
    for family in families::single() {
        let own: Vec<&Golden> =
            goldens.iter().filter(|(of, _)| of == family).map(|(_, golden)| golden).collect();
        assert!(!own.is_empty(), "no golden model of {family}");
        let is_decoder = |golden: &&Golden| {
            let model = load(&golden.dir, &device, None, Trained::Nothing);
            model.decoder.config.looks_ahead().is_none()
        };
        let generates = own.iter().all(is_decoder);
        let has_full = own.iter().any(|golden| golden.has("full_loss_curve"));
        assert!(has_full, "no golden model of {family} has gradients of all weights");
        let case_of = |golden: &&Golden| golden.dir.file_name().unwrap().to_owned();
        let has_gguf = own.iter().any(|golden| {
            gguf::CASES.iter().any(|(case, _)| *case == case_of(golden).to_str().unwrap())
        });
        let none = || "–".to_owned();
        let cells = [
            LORA.cell("✓"),
            FULL.cell("✓"),
            if generates { GENERATE.cell("✓") } else { none() },
            EXPORT.cell("✓"),
            HELD.cell("✓"),
            FILES.cell("✓"),
            FILES.cell("✓"),
            // Whose files have it.
            if family == "gpt_oss" { MXFP4.cell("✓") } else { none() },
            if has_gguf { GGUF.cell("✓") } else { none() },
        ];
        let _ = writeln!(table, "| `{family}` | {} |", cells.join(" | "));
    }
    let links = [LORA, FULL, GENERATE, EXPORT, HELD, FILES, MXFP4, GGUF].map(|shown| shown.link());
    table + "\n" + &links.concat()
}

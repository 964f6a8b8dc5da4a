//! Models as their makers publish them, planned without weights. `docs/families.md` says for each
//! family what adapters reach and what a run takes.

use crate::tiny_model::word_tokenizer;
use hone_model::adapter::Coverage;
use hone_model::{DecoderConfig, Recompute, families};
use hone_tensor::testing;
use hone_train::backend::Backend;
use hone_train::planner::{self, Plan, Policy};
use hone_train::report::format_bytes;
use hone_train::run_file::RunFile;
use hone_train::setup::{Setup, SetupOptions};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;
use tempfile::TempDir;

/// A family, with one to three published models.
#[derive(Deserialize)]
struct Family {
    #[serde(rename = "family")]
    name: String,
    /// Values of `model_type` of repositories that hold other parts, too.
    also: Vec<String>,
    /// A published chat template, by its path among the goldens of `hone-data`, if it is there.
    template: Option<String>,
    /// Whose it is, where it is not known to be the model's own.
    source: Option<String>,
    /// What the page says of it besides.
    limits: Vec<String>,
    /// Why there are fewer than three models.
    sizes: Option<String>,
    /// From the smallest to the largest.
    models: Vec<Published>,
}

#[derive(Deserialize)]
struct Published {
    name: String,
    /// What transformers counts.
    parameters: usize,
    /// `config.json`, without keys that no model reads.
    config: Value,
}

fn families_of_file() -> Vec<Family> {
    #[derive(Deserialize)]
    struct File {
        families: Vec<Family>,
    }
    let text = include_str!("../../../model/tests/published.json");
    serde_json::from_str::<File>(text).unwrap().families
}

/// The GPU that pages are about.
const GPU: &str = "h100-80g";
/// Tokens of a row and of a micro-batch, if the model reads as many; a step has four.
const ROW: usize = 2048;
const LORA: &[&str] = &["adapter.kind=lora", "adapter.rank=16"];

/// A directory with configuration and tokenizer but no weights, and data.
struct Described {
    dir: TempDir,
    config: DecoderConfig,
}

impl Described {
    fn new(model: &Published) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("config.json", model.config.to_string());
        write("tokenizer.json", word_tokenizer(64).to_string());
        write("tokenizer_config.json", r#"{"mask_token": "w5"}"#.to_owned());
        let config = DecoderConfig::load(dir.path()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.num_parameters(), model.parameters, "{}", model.name);
        let described = Self { dir, config };
        let words = (0..described.row()).map(|i| format!("w{}", 6 + i % 58));
        let text = words.collect::<Vec<String>>().join(" ");
        let row = format!("{}\n", serde_json::json!({ "text": text }));
        std::fs::write(described.dir.path().join("train.jsonl"), row.repeat(4)).unwrap();
        described
    }

    /// Tokens of a row.
    fn row(&self) -> usize {
        self.config.longest().map_or(ROW, |longest| longest.min(ROW))
    }

    fn setup(&self, gpu: &str, settings: &[&str]) -> Setup {
        let path = |name: &str| self.dir.path().join(name);
        let row = self.row();
        let text = format!(
            "model.path = {:?}\ndata.train = {:?}\ndata.append_eos = false\noutput.dir = {:?}\n\
             data.max_seq_len = {row}\ntrain.batch_tokens = {}\ntrain.max_steps = 100\n\
             report.samples = 0\n",
            self.dir.path(),
            path("train.jsonl"),
            path("run"),
            4 * row,
        );
        let masked = is_encoder(&self.config).then_some("objective.kind=masked");
        let settings = settings.iter().copied().chain(masked);
        let settings: Vec<String> = settings.map(str::to_owned).collect();
        let run = RunFile::from_str(&text, &settings).unwrap();
        let planned_for = Some(Backend::catalogued(gpu).unwrap());
        let options = SetupOptions { begun_at: None, planned_for };
        Setup::new(run, options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The leanest plan without blocks in the CPU's memory.
    fn plan(&self, settings: &[&str]) -> Plan {
        let setup = self.setup(GPU, &[&["budget.offload=none"], settings].concat());
        let policy = Policy { units: 1, recompute: Recompute::Block };
        planner::plan_with(&setup, &setup.backend.profile(), policy).unwrap().plan
    }
}

fn is_encoder(config: &DecoderConfig) -> bool {
    config.encoder.is_some()
}

/// As `hone plan --device h200` does it, all policies tried; three of ten in the quick tier.
#[test]
fn large_models_are_planned_in_a_second() {
    let large = [
        "meta-llama/Llama-3.1-70B",
        "Qwen/Qwen3.5-27B",
        "mistralai/Mixtral-8x22B-v0.1",
        "Qwen/Qwen2.5-72B-Instruct",
        "Qwen/Qwen3-32B",
        "Qwen/Qwen3-30B-A3B",
        "openai/gpt-oss-120b",
        "google/gemma-3-27b-it",
        "mistralai/Mistral-Large-Instruct-2407",
        "allenai/Olmo-3-1125-32B",
    ];
    let large = if testing::is_full() { &large[..] } else { &large[..3] };
    let mut planned = 0;
    let models = families_of_file().into_iter().flat_map(|family| family.models);
    for model in models.filter(|model| large.contains(&model.name.as_str())) {
        let described = Described::new(&model);
        let begun = Instant::now();
        let setup = described.setup("h200", &[LORA, &["model.base_precision=nf4"]].concat());
        let plan = planner::plan(&setup, &setup.backend.profile()).unwrap().plan;
        let seconds = begun.elapsed().as_secs_f64();
        println!("{}: {seconds:.2} s, {}", model.name, format_bytes(plan.peak_bytes));
        assert!(plan.fits && plan.offloaded_blocks == 0, "{}", model.name);
        // Without optimisation and beside other tests it takes longer.
        assert!(seconds < if cfg!(debug_assertions) { 20.0 } else { 1.0 }, "{}", model.name);
        planned += 1;
    }
    assert_eq!(planned, large.len());
}

/// `HONE_WRITE_DOCS=1 cargo test` writes the page instead; the full tier compares all of it, and
/// otherwise the smallest models of some families are.
#[test]
fn the_page_of_families_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/families.md");
    let all = families_of_file();
    check_complete(&all);
    check_templates(&all);
    let writes = std::env::var_os("HONE_WRITE_DOCS").is_some();
    if writes {
        std::fs::write(&path, page(&all)).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let stale = "docs/families.md is stale; write it with HONE_WRITE_DOCS=1 cargo test";
    if testing::is_full() {
        assert!(committed == page(&all), "{stale}");
        return;
    }
    all.iter().flat_map(|family| &family.models).for_each(|model| drop(Described::new(model)));
    let headings = all.iter().map(|family| format!("\n## {}\n", family.name));
    headings.for_each(|heading| assert!(committed.contains(&heading), "{heading}: {stale}"));
    for family in all.iter().filter(|family| ["Llama", "Gemma 3"].contains(&family.name.as_str())) {
        let line = line(&family.models[0]);
        assert!(committed.contains(&line), "{line}: {stale}");
    }
}

/// No family that can be read is left out.
fn check_complete(all: &[Family]) {
    let type_of = |model: &Published| model.config["model_type"].as_str().unwrap().to_owned();
    let types = all.iter().flat_map(|family| family.models.iter().map(type_of));
    let also = all.iter().flat_map(|family| family.also.clone());
    let found: BTreeSet<String> = types.chain(also).collect();
    let supported: BTreeSet<String> = families::supported().map(str::to_owned).collect();
    let missing: Vec<&String> = supported.symmetric_difference(&found).collect();
    assert!(missing.is_empty(), "crates/model/tests/published.json and families: {missing:?}");
    for family in all {
        assert_eq!(family.models.len() < 3, family.sizes.is_some(), "{}", family.name);
    }
}

/// The templates that the page names are among those whose renderings are compared.
fn check_templates(all: &[Family]) {
    let goldens = include_str!("../../../data/tests/goldens/chat.json");
    let goldens: Value = serde_json::from_str(goldens).unwrap();
    for template in all.iter().filter_map(|family| family.template.as_ref()) {
        let cases = goldens["templates"][template].as_object();
        assert!(cases.is_some_and(|cases| cases.len() > 10), "{template}");
    }
}

fn page(all: &[Family]) -> String {
    let mut page = format!(
        "# Families\n\n<!-- Generated from the code and crates/model/tests/published.json; do not \
         edit. -->\n\n\
         What is trained of each family, and what it takes by the planner: on one {GPU}, rows\n\
         of {ROW} tokens, or the longest that the model reads, four of them in a step and one\n\
         in a micro-batch, rank 16, with recomputation. Larger micro-batches are often faster,\n\
         and with `budget.offload` larger models fit. Speeds are planned from published figures\n\
         and unproven on hardware.\n\
         `hone plan run.toml --device {GPU}` plans your own run, and needs no weights for it.\n\n\
         `all-linear`, the default of `adapter.target_modules`, reaches what the tables say.\n\
         Without `[adapter]` all weights are trained, but for biases of a router's choice and\n\
         Gemma 4's factors of blocks.\n"
    );
    for family in all {
        let _ = write!(page, "\n## {}\n\n", family.name);
        let model_type = family.models[0].config["model_type"].as_str().unwrap();
        let types = [model_type].into_iter().chain(family.also.iter().map(String::as_str));
        let types: Vec<String> = types.map(|of| format!("`{of}`")).collect();
        let smallest = Described::new(&family.models[0]);
        let chat = about_template(family, is_encoder(&smallest.config));
        let _ = writeln!(page, "`model_type`: {}. {chat}\n", types.join(", "));
        page.push_str(&targets(&family.models[0].name, &smallest.plan(LORA).coverage));
        page.push_str(
            "\n| model | parameters | longest row | LoRA over the files | LoRA over NF4 | all \
             weights |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        family.models.iter().for_each(|model| page.push_str(&line(model)));
        if let Some(sizes) = &family.sizes {
            let _ = write!(page, "\n{sizes}\n");
        }
        if !family.limits.is_empty() {
            let _ = write!(page, "\nLimits:\n\n");
            for limit in &family.limits {
                let _ = writeln!(page, "- {limit}");
            }
        }
    }
    page
}

/// Which template's renderings are compared with those of transformers.
fn about_template(family: &Family, is_encoder: bool) -> String {
    match &family.template {
        Some(path) => {
            let name = path.rsplit('/').next().unwrap_or(path);
            match &family.source {
                None => format!("Its chat template renders as in transformers (`{name}`)."),
                Some(source) => {
                    format!("A chat template, `{name}`, renders as in transformers. {source}")
                }
            }
        }
        None if is_encoder => {
            "An encoder, which learns masked tokens (`objective.kind = \"masked\"`).".to_owned()
        }
        None => "No chat template of it is compared with transformers.".to_owned(),
    }
}

/// What adapters reach of a model.
fn targets(name: &str, coverage: &[Coverage]) -> String {
    let mut text = format!("| in {name} | blocks | linear layers | `all-linear` |\n");
    text.push_str("| --- | --- | --- | --- |\n");
    for line in coverage.iter().filter(|line| line.num_blocks > 0) {
        let names: Vec<String> =
            line.modules.iter().map(|modules| format!("`{}`", modules.name)).collect();
        let reach = match line.modules.iter().filter(|modules| modules.trained > 0).count() {
            0 => "none".to_owned(),
            all if all == line.modules.len() => "all".to_owned(),
            _ => line.reach(),
        };
        let Coverage { kind, num_blocks, .. } = line;
        let _ = writeln!(text, "| {kind} | {num_blocks} | {} | {reach} |", names.join(" "));
    }
    text
}

/// A model's row of its family's table.
fn line(model: &Published) -> String {
    let described = Described::new(model);
    let nf4 = [LORA, &["model.base_precision=nf4"]].concat();
    let cells = [LORA, &nf4, &[]];
    let cells = cells.map(|settings| cell(&described.plan(settings), described.row()));
    let (name, config) = (&model.name, &described.config);
    let longest = config.longest().map_or("any".to_owned(), |longest| longest.to_string());
    let billions = config.num_parameters() as f64 / 1e9;
    format!("| {name} | {billions:.2} B | {longest} | {} |\n", cells.join(" | "))
}

/// Memory, and the speed if it is enough.
fn cell(plan: &Plan, row: usize) -> String {
    let memory = format_bytes(plan.peak_bytes);
    // Two digits: how fast it really is nobody has measured.
    let speed = (4 * row) as f64 / plan.step_seconds;
    let speed = match speed {
        speed if speed >= 1e4 => format!("{:.0} k", speed / 1e3),
        speed if speed >= 1e3 => format!("{:.1} k", speed / 1e3),
        speed => format!("{:.0}", speed / 10.0).to_owned() + "0",
    };
    match plan.fits {
        true => format!("{memory}, {speed} tokens/s"),
        false => format!("{memory}: too much"),
    }
}

//! The schema as a whole (every key is consumed or refused), and one test per kind of mistake.

use super::schema::{Check, Default};
use super::*;
use hone_data::Setting;

const MINIMAL: &str = r#"
[model]
path = "models/tiny"
[data]
train = "rows.jsonl"
[output]
dir = "runs/a"
"#;

/// `MINIMAL` with an `[adapter]`, needed to set that table's keys.
fn with_adapter() -> String {
    format!("{MINIMAL}[adapter]\nkind = \"lora\"\n")
}

fn load(text: &str, overrides: &[&str]) -> Result<RunFile, String> {
    let overrides: Vec<String> = overrides.iter().map(|&o| o.to_owned()).collect();
    RunFile::from_str(text, &overrides).map_err(|error| error.to_string())
}

/// The message, asserted to hold every one of `parts`.
#[track_caller]
fn refused(text: &str, overrides: &[&str], parts: &[&str]) {
    let message = load(text, overrides).expect_err("must be refused");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// Other keys that must be set for the key's example to be allowed.
fn companions(key: &schema::Key) -> Vec<String> {
    let kind = key.only_if.map(|kind| format!("{}.kind={kind}", key.parts().0));
    let other = match key.path {
        "data.prompt_field" => Some("data.completion_field=a".to_owned()),
        "data.completion_field" => Some("data.prompt_field=q".to_owned()),
        _ => None,
    };
    kind.into_iter().chain(other).collect()
}

/// As [`load`], with overrides that are made for one key.
fn load_with(text: &str, overrides: &[String]) -> Result<RunFile, String> {
    load(text, &overrides.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A run file with the key at its example, in its own table.
fn with_line(key: &schema::Key, line: &str) -> String {
    let (table, name) = key.parts();
    let text = with_adapter();
    let text: String = text
        .lines()
        .filter(|have| !(key.default_is_required() && have.starts_with(&format!("{name} ="))))
        .map(|have| format!("{have}\n"))
        .collect();
    let header = format!("[{table}]\n");
    if text.contains(&header) {
        text.replace(&header, &format!("{header}{line}\n"))
    } else {
        format!("{text}{header}{line}\n")
    }
}

impl schema::Key {
    fn default_is_required(&self) -> bool {
        matches!(self.default, Default::Required)
    }
}

#[test]
fn every_key_is_consumed() {
    for key in keys::all() {
        let line = format!("{} = {}", key.parts().1, key.example);
        let from_file = load_with(&with_line(key, &line), &companions(key)).expect(key.path);
        let mut overrides = companions(key);
        overrides.push(format!("{}={}", key.path, key.example));
        let from_command_line = load_with(&with_adapter(), &overrides).expect(key.path);
        assert_eq!(from_file.flat().get(key.path), from_command_line.flat().get(key.path));
        let unset = load(&with_adapter(), &[]).unwrap();
        if !matches!(key.check, Check::Choice([_only])) {
            assert_ne!(from_file.flat().get(key.path), unset.flat().get(key.path), "{}", key.path);
        }
        assert_eq!(load(&from_file.to_toml(), &[]).as_ref(), Ok(&from_file), "{}", key.path);
    }
}

#[test]
fn every_key_is_refused_when_misspelt_or_of_the_wrong_kind() {
    for key in keys::all() {
        let (table, name) = key.parts();
        let misspelt = format!("{name}z = {}", key.example);
        refused(&with_line(key, &misspelt), &[], &[&format!("{table}.{name}z: unknown key; did")]);
        let wrong = format!("{name} = 2020-01-01");
        let parts = [format!("{}: found 2020-01-01 (datetime)", key.path), key.check.describe()];
        refused(&with_line(key, &wrong), &[], &[&parts[0], &parts[1], "line"]);
        if !matches!(key.check, Check::Text | Check::TextList { .. } | Check::Paths(_)) {
            let given = format!("{}=nonsense", key.path);
            refused(&with_adapter(), &[&given], &["on the command line", key.path, "nonsense"]);
        }
    }
}

#[test]
fn every_choice_has_its_variant() {
    for key in keys::all() {
        let Check::Choice(options) = key.check else { continue };
        for option in options {
            let given = format!("{}={option}", key.path);
            let run = load(&with_adapter(), &[&given]).expect(&given);
            assert_eq!(run.flat()[key.path], format!("\"{option}\""));
        }
    }
}

#[test]
fn every_limit_is_kept() {
    for key in keys::all() {
        let (good, bad): (Vec<String>, Vec<String>) = match key.check {
            Check::Int(min, max) => {
                let bad = if max == i64::MAX { vec![min - 1] } else { vec![min - 1, max + 1] };
                let text = |list: Vec<i64>| list.iter().map(i64::to_string).collect();
                (text(vec![min]), text(bad))
            }
            Check::Float(_) => {
                (vec!["0.5".into()], ["-0.1", "nan", "inf"].map(String::from).to_vec())
            }
            _ => continue,
        };
        for value in good.iter().filter(|_| key.path != "train.batch_tokens") {
            let kind = key.only_if.map(|kind| format!("{}.kind={kind}", key.parts().0));
            let given = [Some(format!("{}={value}", key.path)), kind];
            let given: Vec<&str> = given.iter().flatten().map(String::as_str).collect();
            load(&with_adapter(), &given).expect(key.path);
        }
        for value in bad {
            refused(&with_adapter(), &[&format!("{}={value}", key.path)], &[key.path, "expected"]);
        }
    }
}

#[test]
fn defaults_are_filled_in() {
    let full = load(MINIMAL, &[]).unwrap();
    assert_eq!((full.adapter.as_ref(), full.train.learning_rate), (None, 2e-5));
    assert_eq!((full.train.num_epochs, full.train.max_steps), (Some(1), None));
    assert_eq!((full.train.warmup_ratio, full.train.warmup_steps), (Some(0.03), None));
    let lora = load(&with_adapter(), &["adapter.rank=8", "train.max_steps=5"]).unwrap();
    let Some(AdapterSection::Lora(adapter)) = &lora.adapter else { panic!() };
    assert_eq!((adapter.rank, adapter.alpha, lora.train.learning_rate), (8, 16.0, 2e-4));
    assert_eq!(adapter.target_modules, TargetModules::AllLinear);
    assert_eq!((lora.train.num_epochs, lora.train.max_steps), (None, Some(5)));
    assert_eq!(load(&lora.to_toml(), &[]).unwrap(), lora);
}

#[test]
fn a_misspelt_key_names_line_and_neighbour() {
    let text = format!("{MINIMAL}[train]\nseed = 1\nlearning_rat = 1e-4\n");
    refused(&text, &[], &["line 10", "train.learning_rat:", "`train.learning_rate`"]);
    refused(MINIMAL, &["train.rank=8"], &["on the command line", "`adapter.rank`"]);
    refused(&format!("{MINIMAL}[trian]\n"), &[], &["line 8", "trian", "[train]"]);
    let text = format!("learning_rate = 1.0\n{MINIMAL}");
    refused(&text, &[], &["line 1", "`train.learning_rate`"]);
    let text = format!("{MINIMAL}[run]\nqqqqqqq = 1\n");
    refused(&text, &[], &["run.qqqqqqq", "the keys of [run] are device, threads, cuda_graphs"]);
}

#[test]
fn wrong_values_say_what_was_found_and_expected() {
    let text = format!("{MINIMAL}[train]\nlearning_rate = \"fast\"\n");
    let parts = ["line 9", "found \"fast\" (string)", "a number above 0", "1e-4"];
    refused(&text, &[], &parts);
    refused(MINIMAL, &["schedule.kind=cosin"], &["Did you mean \"cosine\"?"]);
    refused(MINIMAL, &["train.max_steps=1.5"], &["found 1.5 (float)", "whole number"]);
    refused(MINIMAL, &["budget.memory=16 apples"], &["budget.memory", "\"16GiB\""]);
    refused(MINIMAL, &["data.train=[]"], &["data.train", "at least one"]);
    refused("model = 3", &[], &["line 1", "model", "is a table"]);
    refused("[[model]]\npath = \"a\"", &[], &["line 1", "model", "is a table"]);
    refused("[model", &[], &["line 1", "not TOML"]);
    refused("[model]\npath = 'a'\npath = 'b'", &[], &["line 3", "duplicate key"]);
}

#[test]
fn missing_keys_are_named() {
    refused("", &[], &["model.path: missing"]);
    refused(&format!("{MINIMAL}[adapter]\n"), &[], &["line 8", "adapter.kind: missing"]);
    refused(MINIMAL, &["adapter.rank=4"], &["on the command line", "adapter.kind: missing"]);
}

/// Whatever nothing would read is refused by name.
#[test]
fn keys_of_other_records_are_refused() {
    for kind in ["dpo", "kto"] {
        let kind = format!("objective.kind={kind}");
        for given in [
            &["data.format=messages"][..],
            &["data.append_eos=false"],
            &["data.prompt_field=q", "data.completion_field=a"],
        ] {
            let key = given[0].split('=').next().unwrap();
            let refusal = format!("{key}: is not read with objective.kind");
            let parts = [refusal.as_str(), "whose records have a layout of their own; remove it"];
            refused(MINIMAL, &[given, &[kind.as_str()]].concat(), &parts);
        }
        load(MINIMAL, &[&kind, "data.format=auto", "data.append_eos=true"]).unwrap();
    }
    let parts = ["data.append_eos: false is only for documents of format text", "\"alpaca\""];
    refused(MINIMAL, &["data.format=alpaca", "data.append_eos=false"], &parts);
    load(MINIMAL, &["data.format=text", "data.append_eos=false"]).unwrap();
}

#[test]
fn overrides_take_the_files_place() {
    let text = format!("{MINIMAL}[train]\nnum_epochs = 3\nwarmup_ratio = 0.1\n");
    let run = load(
        &text,
        &[
            "train.max_steps=7",
            "train.warmup_steps = 2",
            "data.train=[\"a\",\"b\"]",
            "model.path=7",
        ],
    )
    .unwrap();
    assert_eq!((run.train.max_steps, run.train.num_epochs), (Some(7), None));
    assert_eq!((run.train.warmup_steps, run.train.warmup_ratio), (Some(2), None));
    assert_eq!((run.data.train, run.model.path), (unweighted(&["a", "b"]), "7".into()));
    refused(MINIMAL, &["train.seed"], &["key=value"]);
    refused(MINIMAL, &["train.seed=1", "train.seed=2"], &["train.seed", "twice"]);
    refused(MINIMAL, &["train=1"], &["`train` is a table"]);
    refused(MINIMAL, &["data.train=[\"a\""], &["data.train", "is not a value"]);
}

fn unweighted(paths: &[&str]) -> TrainFiles {
    let files = paths.iter().map(|path| TrainFilesSection { path: path.to_string(), weight: 1.0 });
    TrainFiles(files.collect())
}

/// `MINIMAL` with these tables, or what else is written of `data.train`.
fn mixed(train: &str) -> String {
    MINIMAL.replace("train = \"rows.jsonl\"\n", train)
}

#[test]
fn training_data_may_have_weights() {
    let tables = "[[data.train]]\npath = \"a\"\nweight = 2\n[[data.train]]\npath = \"b*\"\n";
    let run = load(&mixed(tables), &[]).unwrap();
    let weights: Vec<_> = run.data.train.0.iter().map(|f| (f.path.as_str(), f.weight)).collect();
    assert_eq!(weights, [("a", 2.0), ("b*", 1.0)]);
    assert_eq!(load(&run.to_toml(), &[]).as_ref(), Ok(&run), "{}", run.to_toml());
    let inline = "data.train=[{path = \"a\", weight = 2.0}, {path = \"b*\"}]";
    assert_eq!(load(MINIMAL, &[inline]), Ok(run));
    // The short form takes the place of tables, and is what tables without weights are written as.
    let short = load(&mixed(tables), &["data.train=c"]).unwrap();
    assert_eq!(short.data.train, unweighted(&["c"]));
    let plain = load(&mixed("[[data.train]]\npath = \"c\"\n"), &[]).unwrap();
    assert_eq!(plain, short);
    assert!(plain.to_toml().contains("train = [\"c\"]"), "{}", plain.to_toml());
}

#[test]
fn bad_tables_of_training_data_are_refused() {
    let table = |lines: &str| mixed(&format!("[[data.train]]\n{lines}\n"));
    for weight in ["0", "-1.5", "nan", "inf", "1001", "\"much\""] {
        let text = table(&format!("path = \"a\"\nweight = {weight}"));
        let found = format!("found {weight} (");
        let expected = "expected a number above 0, at most 1000";
        refused(&text, &[], &["line 7: data.train.weight:", &found, expected, "0.5"]);
    }
    refused(&table("weight = 2.0"), &[], &["line 5: data.train.path: missing", "chat.jsonl"]);
    refused(&table("path = \"\""), &[], &["line 6: data.train.path: found \"\""]);
    let text = table("path = \"a\"\nweigth = 2.0");
    refused(&text, &[], &["line 7: data.train.weigth: unknown key; did you mean `weight`?"]);
    let text = table("path = \"a\"\nshuffle = true");
    refused(&text, &[], &["data.train.shuffle", "the keys of [[data.train]] are path, weight"]);
    let text = table("path = \"a\"\nmax_seq_len = 8");
    refused(&text, &[], &["line 7", "is a key of [data]; write it above the first [[data.train]]"]);
    let text = mixed("train = [\"a\", {path = \"b\"}]\n");
    refused(&text, &[], &["line 5: data.train: found \"a\"", "all as texts, or all as tables"]);
    refused(MINIMAL, &["data.train=[{path = 1}]"], &["on the command line: data.train.path"]);
    let text = format!("{MINIMAL}[[data.eval]]\npath = \"a\"\nweight = 2.0\n");
    refused(&text, &[], &["line 8: data.eval:", "a text or a list of texts"]);
}

#[test]
fn contradictions_are_refused() {
    let text = format!("{MINIMAL}[train]\nnum_epochs = 3\nmax_steps = 2\n");
    refused(&text, &[], &["line 10", "train.max_steps", "train.num_epochs"]);
    let both = ["train.warmup_ratio=0.1", "train.warmup_steps=3"];
    refused(MINIMAL, &both, &["train.warmup_steps", "remove one"]);
    refused(MINIMAL, &["data.prompt_field=q"], &["data.completion_field", "both or neither"]);
    let unread = ["data.prompt_field=q", "data.completion_field=a", "data.format=text"];
    refused(MINIMAL, &unread, &["data.prompt_field", "prompt_completion"]);
    let steps = ["train.warmup_steps=9", "train.max_steps=8"];
    refused(MINIMAL, &steps, &["train.warmup_steps", "max_steps = 8"]);
    let batch = ["train.batch_tokens=100", "data.max_seq_len=128"];
    refused(MINIMAL, &batch, &["train.batch_tokens", "128"]);
    let micro = ["budget.micro_batch_tokens=300", "data.max_seq_len=128"];
    refused(MINIMAL, &micro, &["budget.micro_batch_tokens", "try 256"]);
    let targets = ["adapter.target_modules=[\"all-linear\",\"q_proj\"]"];
    refused(&with_adapter(), &targets, &["adapter.target_modules", "alone"]);
}

#[test]
fn token_counts_are_checked_again_with_the_models_length() {
    let run = load(MINIMAL, &["train.batch_tokens=1024", "budget.micro_batch_tokens=512"]).unwrap();
    assert!(run.check_with_max_seq_len(256).is_ok());
    let error = run.check_with_max_seq_len(2048).unwrap_err().to_string();
    assert!(error.contains("train.batch_tokens"), "{error}");
    let error = run.check_with_max_seq_len(1024).unwrap_err().to_string();
    assert!(error.contains("budget.micro_batch_tokens"), "{error}");
}

#[test]
fn sizes_are_read_and_written_exactly() {
    for (text, bytes) in [
        ("16GiB", 16 << 30),
        ("800MB", 800_000_000),
        ("1.5 gib", 3 << 29),
        ("12345", 12345),
        ("64b", 64),
    ] {
        let run = load(MINIMAL, &[&format!("budget.memory={text}")]).expect(text);
        assert_eq!(run.budget.memory, Some(ByteSize(bytes)), "{text}");
        assert_eq!(load(&run.to_toml(), &[]).unwrap(), run);
    }
    for text in ["0", "-1", "GiB", "infGB", "0.1b", "16"] {
        let quoted = format!("budget.memory=\"{text}\"");
        refused(MINIMAL, &[&quoted], &["budget.memory"]);
    }
}

#[test]
fn changed_keys_leave_out_what_a_resumed_run_may_change() {
    let old = load(MINIMAL, &[]).unwrap();
    let new = ["checkpoint.keep=9", "report.samples=0", "run.threads=1", "train.seed=1"];
    let new = load(MINIMAL, &new).unwrap();
    assert_eq!(old.changed_keys(&new), ["train.seed: 42 → 1"]);
    let new = load(&with_adapter(), &["train.learning_rate=2e-5"]).unwrap();
    assert!(old.changed_keys(&new).contains(&"adapter.rank: absent → 16".to_owned()));
    assert!(old.changed_keys(&old).is_empty());
}

#[test]
fn keys_of_another_kind_are_refused() {
    for key in keys::all().filter(|key| key.only_if.is_some()) {
        let (table, name) = key.parts();
        let Check::Choice(kinds) = keys::section(table).unwrap().keys[0].check else { panic!() };
        let has = |kind| keys::all().any(|k| k.path == key.path && k.only_if == Some(kind));
        for other in kinds.iter().filter(|kind| !has(kind)) {
            let given = [format!("{table}.kind={other}"), format!("{}={}", key.path, key.example)];
            let message = load_with(MINIMAL, &given).unwrap_err();
            let parts = [format!("{}: is for {table}.kind = ", key.path), format!("remove {name}")];
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let same = |other: &&schema::Key| other.path == key.path;
        assert!(keys::all().filter(same).all(|other| other.check == key.check), "{}", key.path);
    }
}

#[test]
fn names_of_other_tools_and_earlier_ones_are_translated() {
    for (given, ours) in [
        ("train.objective", "`objective.kind`"),
        ("adapter.method", "`adapter.kind`"),
        ("train.adam_beta2", "`optimizer.beta2`"),
        ("train.lr_schedule", "`schedule.kind`"),
        ("adapter.lora_alpha", "`adapter.alpha`"),
        ("train.num_train_epochs", "`train.num_epochs`"),
        ("train.gradient_accumulation_steps", "`train.batch_tokens`"),
        ("packing", "always packed"),
        ("trainer.learning_rate_scheduler.lr_scheduler_type", "unknown table"),
    ] {
        refused(MINIMAL, &[&format!("{given}=1")], &["on the command line", "unknown", ours]);
        if given == "packing" {
            refused(&format!("{given} = true\n{MINIMAL}"), &[], &["line 1", ours]);
        }
    }
}

#[test]
fn the_reference_names_every_key() {
    let reference = RunFile::reference_markdown();
    for key in keys::all() {
        assert!(reference.contains(&format!("| `{}`", key.parts().1)), "{}", key.path);
        assert!(key.example.parse::<toml::Value>().is_ok(), "{}", key.path);
    }
}

/// `HONE_WRITE_DOCS=1 cargo test` writes the page instead.
#[test]
fn the_reference_page_is_fresh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/run-file.md");
    let fresh = RunFile::reference_markdown();
    if std::env::var_os("HONE_WRITE_DOCS").is_some() {
        std::fs::write(&page, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(&page).unwrap_or_default();
    let hint = "docs/run-file.md is stale; write it with HONE_WRITE_DOCS=1 cargo test";
    assert!(committed == fresh, "{hint}");
}

/// Each setting that an error in data names has words here, whose keys there are and whose values
/// they take.
#[test]
fn settings_of_data_are_called_by_their_keys() {
    let settings = [
        Setting::Paths,
        Setting::Format,
        Setting::FormatAs(Format::Text),
        Setting::Fields,
        Setting::MaxSeqLen,
        Setting::Truncate,
        Setting::Skip,
        Setting::NoEos,
        Setting::Objective("dpo"),
        Setting::NumEpochs(1),
        Setting::MaxSteps,
    ];
    for setting in settings {
        let said = words(setting).expect("a run file has all settings");
        let paths = said.split([' ', ',']).filter(|word| word.contains('.'));
        let found: Vec<&str> = paths.collect();
        assert!(!found.is_empty(), "{said}");
        for path in found {
            assert!(keys::find(path).is_some(), "{path} is no key: {said}");
        }
        if let Some((_, assignment)) = said.split_once("set ").filter(|_| said.contains(" = ")) {
            load(MINIMAL, &[&assignment.replace(" = ", "=")]).expect(&said);
        }
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let error = RunFile::load(Path::new("no/such/run.toml"), &[]).unwrap_err().to_string();
    assert!(error.contains("no/such/run.toml"), "{error}");
}

#[test]
fn integers_are_for_frozen_weights() {
    for key in ["model.compute", "model.base_precision"] {
        refused(MINIMAL, &[&format!("{key}=int8")], &[key, "[adapter]", "frozen"]);
        load(&with_adapter(), &[&format!("{key}=int8")]).unwrap();
    }
    refused(MINIMAL, &["model.compute=fp8"], &["model.compute", "[adapter]", "frozen"]);
    load(&with_adapter(), &["model.compute=fp8"]).unwrap();
    refused(&with_adapter(), &["model.base_precision=fp8"], &["model.base_precision", "int8"]);
    for compute in ["model.compute=int8", "model.compute=fp8"] {
        refused(
            &with_adapter(),
            &[compute, "model.base_precision=bf16"],
            &["model.compute", "on the command line", "leave model.base_precision out"],
        );
    }
}

#[test]
fn what_is_trained_stays_on_the_gpu() {
    refused(MINIMAL, &["budget.offload=all"], &["budget.offload", "[adapter]", "frozen"]);
    load(&with_adapter(), &["budget.offload=all"]).unwrap();
    let continued = ["adapter.share_experts=true", "adapter.init_from=a"];
    refused(&with_adapter(), &continued, &["adapter.share_experts", "adapter.init_from"]);
    load(&with_adapter(), &continued[1..]).unwrap();
    load(MINIMAL, &["budget.offload=auto"]).unwrap();
}

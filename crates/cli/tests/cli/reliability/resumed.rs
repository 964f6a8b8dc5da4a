//! `--resume` in every situation.

use super::trace::{Trace, newest_step, resume, went_on_after};
use crate::sandbox::tiny_model::rows;
use crate::sandbox::{Scene, ended, entries};
use hone_train::checkpoint::sha256_of_file;
use serde_json::{Value, json};

/// A run killed in its eighth step, checkpoints 3 and 6.
fn killed() -> Scene {
    let scene = Scene::new();
    let killed = ended(scene.train(&[]).env("HONE_FAILPOINT", "loop.updated:8"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    scene
}

#[test]
fn where_nothing_was_begun_it_starts() {
    let expected = Trace::expected();
    let scene = Scene::new();
    assert_eq!(went_on_after(&resume(&scene)), 0);
    expected.assert_same(&scene, "started by --resume");
    let empty = Scene::new();
    std::fs::create_dir(empty.run_dir()).unwrap();
    resume(&empty);
    expected.assert_same(&empty, "started in an empty directory");
}

/// What a kill costs is bounded by time where there are few steps.
#[test]
fn minutes_too_make_a_checkpoint_due() {
    for (minutes, kept) in [("checkpoint.every_minutes=1e-6", 4), ("checkpoint.every_minutes=0", 0)]
    {
        let scene = Scene::new();
        let settings = ["checkpoint.every_steps=100", minutes];
        let killed = ended(scene.train(&settings).env("HONE_FAILPOINT", "loop.updated:5"));
        assert_eq!(killed.status, None, "{}", killed.stderr);
        assert_eq!(newest_step(&scene.path("run/checkpoints")), kept, "{minutes}");
    }
}

#[test]
fn a_finished_run_only_gets_its_result_again() {
    let scene = Scene::new();
    let expected = Trace::undisturbed(&scene, &[]);
    let metrics = scene.run_dir().join("metrics.jsonl");
    let before = sha256_of_file(&metrics).unwrap();
    let manifest = scene.run_dir().join("manifest.json");
    let read = || serde_json::from_slice::<Value>(&std::fs::read(&manifest).unwrap()).unwrap();
    // As of a run that took more than writing its result does.
    let mut of_run = read();
    of_run["actual"]["peak_bytes"] = json!(1_u64 << 40);
    of_run["actual"]["session_seconds"] = json!(1e6);
    std::fs::write(&manifest, of_run.to_string()).unwrap();
    let again = resume(&scene);
    assert_eq!(read()["actual"], of_run["actual"], "what the run took, not the last process");
    again.says(0, &["all 12 steps are done", "writing the result again"]);
    assert_eq!(sha256_of_file(&metrics).unwrap(), before, "nothing is trained again");
    expected.assert_same(&scene, "resumed when finished");
}

#[test]
fn without_resume_a_run_is_not_touched() {
    let scene = killed();
    let before = entries(&scene.run_dir());
    ended(&mut scene.train(&[])).says(2, &["already holds a run", "--resume", "output.dir"]);
    assert_eq!(entries(&scene.run_dir()), before);
}

#[test]
fn changed_settings_are_refused() {
    let (expected, scene) = (Trace::expected(), killed());
    let changes = [
        ("train.learning_rate=0.02", "train.learning_rate: 0.01 → 0.02"),
        ("train.max_steps=13", "train.max_steps: 12 → 13"),
        ("adapter.rank=8", "adapter.rank: 4 → 8"),
        ("train.seed=7", "train.seed: 42 → 7"),
        ("budget.micro_batch_tokens=64", "budget.micro_batch_tokens: 32 → 64"),
    ];
    for (change, said) in changes {
        let refused = ended(&mut scene.train(&["--resume", change]));
        refused.says(2, &["--resume", said, "another output.dir"]);
    }
    resume(&scene);
    expected.assert_same(&scene, "after refusals");
}

#[test]
fn changed_files_are_refused() {
    let tokenizer =
        |scene: &Scene| std::fs::read_to_string(scene.path("model/tokenizer.json")).unwrap() + "\n";
    for file in ["train.jsonl", "eval.jsonl", "model/tokenizer.json"] {
        let scene = killed();
        let text = if file.starts_with("model") { tokenizer(&scene) } else { rows(61) };
        scene.write(file, &text);
        let refused = ended(&mut scene.train(&["--resume"]));
        refused.says(2, &["has changed since", file, "another output.dir"]);
    }
}

/// Other files by another setting are no changed file.
#[test]
fn settings_that_name_other_files_are_refused_as_such() {
    let scene = killed();
    scene.write("other.jsonl", &rows(61));
    let refused = ended(&mut scene.train(&["--resume", "data.train=other.jsonl"]));
    let change = "data.train: [\"train.jsonl\"] → [\"other.jsonl\"]";
    refused.says(2, &["--resume", change, "change data.train back", "another output.dir"]);
    assert!(!refused.stderr.contains("has changed"), "{}", refused.stderr);
}

#[test]
fn what_changes_no_result_may_change() {
    let (expected, scene) = (Trace::expected(), killed());
    let more = [
        "run.threads=1",
        "checkpoint.every_steps=5",
        "report.samples=2",
        "budget.memory=4GiB",
        "train.on_nonfinite=skip",
        "--resume",
    ];
    let resumed = ended(&mut scene.train(&more));
    resumed.says(0, &[]);
    assert_eq!(went_on_after(&resumed), 6);
    expected.assert_same(&scene, "other threads, checkpoints, samples and budget");
}

#[test]
fn a_run_that_was_moved_goes_on() {
    let (expected, scene) = (Trace::expected(), killed());
    let moved = scene.path("moved");
    std::fs::rename(scene.run_dir(), &moved).unwrap();
    let resumed = ended(&mut scene.train(&["output.dir=moved", "--resume"]));
    resumed.says(0, &[]);
    std::fs::rename(&moved, scene.run_dir()).unwrap();
    expected.assert_same(&scene, "moved");
}

/// Inputs are compared by what is in them.
#[test]
fn a_model_and_data_that_were_moved_are_found_again() {
    let scene = killed();
    std::fs::rename(scene.path("model"), scene.path("elsewhere")).unwrap();
    std::fs::create_dir(scene.path("data")).unwrap();
    std::fs::rename(scene.path("train.jsonl"), scene.path("data/train.jsonl")).unwrap();
    let moved = ["model.path=elsewhere", "data.train=data/*.jsonl", "--resume"];
    let resumed = ended(&mut scene.train(&moved));
    resumed.says(0, &[]);
    assert_eq!(went_on_after(&resumed), 6);
}

/// Rows of a mixture are drawn anew for each epoch: the same ones after a kill.
#[test]
fn a_mixture_goes_on_with_the_same_rows() {
    let mixed = || {
        let scene = Scene::new();
        scene.write("more.jsonl", &rows(20));
        let text = std::fs::read_to_string(scene.path("run.toml")).unwrap();
        let tables = "[[data.train]]\npath = \"train.jsonl\"\nweight = 0.3\n\
                      [[data.train]]\npath = \"more.jsonl\"\nweight = 2.0\n";
        scene.write("run.toml", &(text.replace("train = \"train.jsonl\"\n", "") + tables));
        scene
    };
    let whole = mixed();
    let expected = Trace::undisturbed(&whole, &[]);
    let page = std::fs::read_to_string(whole.path("run/report.html")).unwrap();
    assert!(page.contains("<td>train.jsonl</td><td>60</td><td>0.3</td>"), "{page}");
    let effective = std::fs::read_to_string(whole.path("run/run.toml")).unwrap();
    assert!(effective.contains("weight = 0.3"), "{effective}");
    let plan = ended(&mut whole.hone(&["plan", "run.toml"]));
    for line in [
        "train.jsonl: 60 rows × 0.3: 18 an epoch, 31.0 %",
        "more.jsonl: 20 rows × 2: 40 an epoch, 69.0 %",
        "an epoch sees 58 rows",
    ] {
        assert!(plan.stdout.contains(line), "{}", plan.stdout);
    }

    let scene = mixed();
    let killed = ended(scene.train(&[]).env("HONE_FAILPOINT", "loop.updated:8"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    let other = "data.train=[{path='train.jsonl',weight=0.4},{path='more.jsonl',weight=2}]";
    ended(&mut scene.train(&["--resume", other]))
        .says(2, &["the weight of train.jsonl in data.train", "0.3 → 0.4", "another output.dir"]);
    assert_eq!(went_on_after(&resume(&scene)), 6);
    expected.assert_same(&scene, "a mixture");
}

/// A file that two tables name belongs to the first, and that is said.
#[test]
fn a_file_named_twice_keeps_its_first_weight() {
    let scene = Scene::new();
    let twice = "data.train=[{path='train.jsonl',weight=2},{path='./train.jsonl'}]";
    let plan = ended(&mut scene.hone(&["plan", "run.toml", twice]));
    plan.says(0, &["./train.jsonl is named more than once and read once, with weight 2, not 1"]);
    assert!(plan.stdout.contains("train.jsonl: 60 rows × 2"), "{}", plan.stdout);
}

#[test]
fn a_changed_adapter_to_start_from_is_refused() {
    let first = Scene::new();
    ended(&mut first.train(&[])).says(0, &[]);
    let (scene, begun) = (Scene::new(), first.path("run/adapter"));
    let init = format!("adapter.init_from={}", begun.display());
    let killed = ended(scene.train(&[&init]).env("HONE_FAILPOINT", "loop.updated:2"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    let other = ended(&mut first.train(&["output.dir=other", "train.seed=7"]));
    other.says(0, &[]);
    let weights = "adapter_model.safetensors";
    std::fs::copy(first.path("other/adapter").join(weights), begun.join(weights)).unwrap();
    let refused = ended(&mut scene.train(&[&init, "--resume"]));
    refused.says(2, &["has changed since", weights]);
}

/// The policy of the beginning is kept even where the planner would now choose another.
#[test]
fn another_budget_keeps_the_micro_batches() {
    let unpinned = |scene: &Scene| {
        let text = std::fs::read_to_string(scene.path("run.toml")).unwrap();
        scene.write("run.toml", &text.replace("micro_batch_tokens = 32\n", ""));
    };
    let scene = Scene::new();
    unpinned(&scene);
    let killed = ended(scene.train(&[]).env("HONE_FAILPOINT", "loop.updated:8"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    let micro_batches = |scene: &Scene| scene.lines("rows.jsonl")[0]["micro_batches"].clone();
    let before = micro_batches(&scene);
    let refused = ended(&mut scene.train(&["--resume", "budget.memory=1MiB"]));
    refused.says(2, &["needs", "1.00 MiB", "a resumed run keeps its micro-batches"]);
    ended(&mut scene.train(&["--resume", "budget.memory=6GiB"])).says(0, &[]);
    assert_eq!(micro_batches(&scene), before);
    let rows = scene.lines("rows.jsonl");
    assert!(rows.iter().all(|line| line["micro_batches"].as_array().unwrap().len() == 1));
}

/// As if it had been asked for all steps at once, and whatever else may change does; a kill while
/// that is recorded changes nothing of it.
#[test]
fn a_finished_run_is_extended() {
    let constant = ["schedule.kind=constant", "train.warmup_steps=2"];
    let run = |scene: &Scene, more: &[&str]| {
        let ended = ended(&mut scene.train(&[&constant, more].concat()));
        ended.says(0, &[]);
        ended
    };
    let (whole, scene) = (Scene::new(), Scene::new());
    run(&whole, &[]);
    run(&scene, &["train.max_steps=7"]);
    let metrics = scene.run_dir().join("metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, text.replacen('\n', "\nnonsense\n", 1)).unwrap();
    scene.write("run/samples.json", "[{");
    let extension = ["--resume", "train.eval_every_steps=5"];
    let mut command = scene.train(&[constant, extension].concat());
    let killed = ended(command.env("HONE_FAILPOINT", "run_dir.half_written"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    let extended = run(&scene, &extension);
    extended.says(0, &["continuing after step 7", "metrics.jsonl: 1 line is damaged"]);
    extended.says(0, &["samples.json is damaged", "without the answers from before training"]);
    let kept = std::fs::read_to_string(scene.path("run/samples.damaged.json")).unwrap();
    assert_eq!(kept, "[{");
    for file in ["adapter/adapter_model.safetensors", "rows.jsonl"] {
        let digest = |scene: &Scene| sha256_of_file(&scene.run_dir().join(file)).unwrap();
        assert_eq!(digest(&whole), digest(&scene), "{file}");
    }
    let steps: Vec<u64> =
        scene.lines("eval.jsonl").iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 4, 7, 10, 12]);
    let report = std::fs::read_to_string(scene.run_dir().join("report.html")).unwrap();
    assert!(report.contains("1 line is damaged") && !report.contains("Not finished"));
    let settings = std::fs::read_to_string(scene.run_dir().join("run.toml")).unwrap();
    assert!(settings.contains("max_steps = 12") && settings.contains("eval_every_steps = 5"));
}

#[test]
fn other_schedules_cannot_be_extended() {
    let extend = |scene: &Scene, begun: &[&str], more: &[&str]| {
        ended(&mut scene.train(&[begun, &["train.max_steps=3"]].concat())).says(0, &[]);
        ended(&mut scene.train(&[begun, &["train.max_steps=60", "--resume"], more].concat()))
    };
    let scene = Scene::new();
    let says = ["max_steps: 3 → 60", "schedule.kind = \"cosine\"", "adapter.init_from"];
    extend(&scene, &[], &[]).says(2, &says);
    // Nor by way of another schedule for no steps at all, where the manifest is older than that.
    let manifest = scene.run_dir().join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut older: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(older.as_object_mut().unwrap().remove("schedule"), Some(json!("cosine")));
    std::fs::write(&manifest, older.to_string()).unwrap();
    let constant = "schedule.kind=constant";
    ended(&mut scene.train(&[constant, "train.max_steps=3", "--resume"])).says(0, &[]);
    ended(&mut scene.train(&[constant, "train.max_steps=60", "--resume"])).says(2, &says);
    let (scene, constant) = (Scene::new(), ["schedule.kind=constant"]);
    let warm_up = extend(&scene, &constant, &[]);
    warm_up.says(2, &["warm-up", "Give train.warmup_steps=1"]);
    let more = [&constant[..], &["train.max_steps=6", "train.warmup_steps=1", "--resume"]].concat();
    ended(&mut scene.train(&more)).says(0, &["continuing after step 3"]);
}

/// Passes over the data as well as steps.
#[test]
fn further_epochs_extend_a_constant_run() {
    let scene = Scene::new();
    let text = std::fs::read_to_string(scene.path("run.toml")).unwrap();
    scene.write("run.toml", &text.replace("max_steps = 12\n", ""));
    let train = |settings: &[&str]| ended(&mut scene.train(settings));
    let constant = ["schedule.kind=constant", "train.warmup_steps=0"];
    train(&constant).says(0, &[]);
    let more = ["train.num_epochs=2", "--resume"];
    train(&[&constant[..], &more].concat()).says(0, &["continuing after step 5"]);
    assert_eq!(scene.lines("metrics.jsonl").len(), 10);
    let cosine = train(&["output.dir=cosine"]);
    cosine.says(0, &[]);
    let says = ["train.num_epochs: 1 → 2", "\"constant\"", "train.max_steps", "adapter.init_from"];
    train(&["output.dir=cosine", more[0], more[1]]).says(2, &says);
}

/// The rest of a schedule belongs to the steps to come.
#[test]
fn the_schedule_may_change() {
    let scene = killed();
    let resumed = ended(&mut scene.train(&["schedule.kind=constant", "--resume"]));
    resumed.says(0, &[]);
    assert_eq!(went_on_after(&resumed), 6);
    let rates: Vec<f64> =
        scene.lines("metrics.jsonl").iter().map(|l| l["learning_rate"].as_f64().unwrap()).collect();
    assert!(rates[5] < 0.01 && rates[6..].iter().all(|rate| *rate == 0.01), "{rates:?}");
}

//! `hone plan`

use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::output;
use hone_data::{DataReport, FileReport};
use hone_model::Recompute;
use hone_model::adapter::Coverage;
use hone_train::backend::Backend;
use hone_train::planner::{self, Plan};
use hone_train::report::{format_bytes, format_seconds};
use hone_train::setup::Setup;
use hone_train::{Code, TrainError};
use std::fmt::Write as _;

/// Prints the plan; status 2 when the run cannot fit.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let run = super::read_run_file(&args.run)?;
    let planned_for = args.device.as_deref().map(Backend::catalogued).transpose()?;
    let setup = super::prepare(planned_for, run, &mut super::print_note)?;
    let profile = setup.backend.profile();
    let plan = planner::plan(&setup, &profile)?.plan;
    if args.run.json {
        output::json(&serde_json::to_value(&plan).expect("a plan is plain data"));
    } else {
        output::line(&text(&setup, &plan));
    }
    if plan.fits {
        return Ok(());
    }
    let suggestions = plan.suggestions.join("\n  ");
    let text = format!("this run does not fit. What would make it fit:\n  {suggestions}");
    Err(TrainError::Usage(Code::MemoryDoesNotFit, text).into())
}

/// The plan as text.
pub fn text(setup: &Setup, plan: &Plan) -> String {
    let mut text = String::new();
    let report = setup.train.report();
    let _ = writeln!(
        text,
        "model    {} parameters, {} of them trained",
        count(setup.config.num_parameters() as u64),
        count(plan.trainable_parameters)
    );
    if setup.lora.is_some() {
        text.push_str(&targets(&plan.coverage));
    }
    let targets = match &setup.masking {
        None => format!("{} of them targets", report.target_tokens),
        Some(masking) => format!("a share of {} masked in each step", masking.ratio()),
    };
    let _ = writeln!(text, "data     {} rows, {} tokens, {targets}", report.rows, report.tokens);
    if report.files.iter().any(|file| file.weight != 1.0) {
        text.push_str(&mixture(report));
    }
    let held = match setup.lora {
        Some(_) => format!(", frozen weights stored as {}", plan.base_precision),
        None => String::new(),
    };
    let _ = writeln!(text, "compute  {}{held}", plan.compute);
    let budget = plan.budget_bytes.map_or("unknown".to_owned(), format_bytes);
    let verdict = if plan.fits { "fits" } else { "does not fit" };
    let peak = format_bytes(plan.peak_bytes);
    let _ = writeln!(text, "memory   {peak} of {budget}: {verdict}");
    for (name, bytes) in plan.memory.parts() {
        if bytes > 0 {
            let share = bytes as f64 / plan.peak_bytes as f64;
            let bar = "█".repeat((share * 30.0).round() as usize);
            let _ = writeln!(text, "         {name:<17}{:>9}  {bar}", format_bytes(bytes));
        }
    }
    let _ = writeln!(
        text,
        "step     {} × {} tokens, recompute {}: {:.3} TFLOP, about {}",
        plan.micro_batches_per_step,
        plan.micro_batch_tokens,
        if plan.recompute == Recompute::Block { "block" } else { "none" },
        plan.flops_per_step as f64 / 1e12,
        format_seconds(plan.step_seconds)
    );
    text.push_str(&host_memory(setup, plan));
    text.push_str(&time(plan));
    let _ = match &plan.gpu {
        None => write!(
            text,
            "         based on this machine's speed of {}; `hone doctor` measures it again",
            plan.speed_measured
        ),
        Some(gpu) => {
            let here = setup.backend.gpu_name().is_some();
            let measure = if here { "; `hone doctor` measures it" } else { "" };
            let speed = &plan.speed_measured;
            write!(text, "         on {gpu}, based on {speed}{measure}; unproven on hardware")
        }
    };
    text
}

/// What adapters reach, kind of layer by kind of layer.
fn targets(coverage: &[Coverage]) -> String {
    let kind = |line: &Coverage| match line.num_blocks {
        0 => line.kind.clone(),
        1 => format!("{} (1 block)", line.kind),
        blocks => format!("{} ({blocks} blocks)", line.kind),
    };
    let width = coverage.iter().map(|line| kind(line).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (i, line) in coverage.iter().enumerate() {
        let name = if i == 0 { "targets" } else { "" };
        let trained = if line.trained == 0 { "–".to_owned() } else { count(line.trained) };
        let shown = format!("{name:<9}{:<width$}  {trained:>9}  {}", kind(line), line.reach());
        let _ = writeln!(text, "{}", shown.trim_end());
    }
    text
}

/// What an epoch sees of each file.
fn mixture(data: &DataReport) -> String {
    let all = data.groups_per_epoch;
    let are_rows = data.files.iter().all(|file| file.groups == file.rows);
    let what = if are_rows { "rows" } else { "pairs" };
    let line = |file: &FileReport| {
        let FileReport { file: name, groups, weight, groups_per_epoch: seen, .. } = file;
        let (share, seen) = (100.0 * seen / all as f64, format!("{seen:.1}"));
        let seen = seen.trim_end_matches(".0");
        format!("         {name}: {groups} {what} × {weight}: {seen} an epoch, {share:.1} %\n")
    };
    let lines: String = data.files.iter().map(line).collect();
    lines + &format!("         an epoch sees {all} {what}\n")
}

/// The line of the whole time, and what it is made of.
fn time(plan: &Plan) -> String {
    let part = |what: String, seconds: f64| format!("{what} {}", format_seconds(seconds));
    let (time, steps, evaluations) = (&plan.time, plan.num_steps, plan.time.num_evaluations);
    let count = |number: u64, thing: &str| {
        format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
    };
    let mut parts = vec![part(count(steps, "step"), time.training_seconds)];
    if evaluations > 0 {
        parts.push(part(count(evaluations, "evaluation"), time.evaluation_seconds));
    }
    if time.sample_seconds > 0.0 {
        parts.push(part("samples".to_owned(), time.sample_seconds));
    }
    format!("time     about {}: {}\n", format_seconds(plan.total_seconds), parts.join(", "))
}

/// Lines about host memory used by a GPU run, if there is anything to report.
fn host_memory(setup: &Setup, plan: &Plan) -> String {
    let mut text = String::new();
    if plan.offloaded_blocks > 0 {
        let (blocks, all) = (plan.offloaded_blocks, setup.config.num_hidden_layers());
        let bytes = format_bytes(plan.offloaded_bytes);
        let copied = format_bytes(plan.copied_bytes_per_step);
        let _ = writeln!(
            text,
            "offload  {blocks} of {all} blocks stay in host memory ({bytes}, page-locked)\n\
             {:9}and share two buffers on the GPU, counted with its weights;\n\
             {:9}{copied} are copied per step",
            "", ""
        );
    }
    if let Some(free) = plan.host_free_bytes {
        let (needed, free) = (format_bytes(plan.host_bytes()), format_bytes(free));
        let _ = writeln!(text, "host     {needed} of host memory, {free} free: does not fit");
    }
    text
}

fn count(n: u64) -> String {
    match n {
        1_000_000_000.. => format!("{:.2} B", n as f64 / 1e9),
        1_000_000.. => format!("{:.2} M", n as f64 / 1e6),
        _ => n.to_string(),
    }
}

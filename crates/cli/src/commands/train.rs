//! `hone train`

use crate::args::{EventFormat, TrainArgs};
use crate::commands::plan;
use crate::failure::Failure;
use crate::output;
use crate::progress::{Progress, shown};
use crate::signals::StopFlag;
use hone_train::EvalRecord;
use hone_train::recipe::{self, Event, Finished, Options, Outcome};
use hone_train::run_dir::RunDir;
use hone_train::run_file::RunFile;
use hone_train::setup::Setup;
use hone_train::step_profile::StepProfile;
use std::path::Path;

/// Trains and prints where the results are.
pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    let mut audience = match args.events {
        Some(EventFormat::Json) => Audience::Program,
        None => Audience::Person(None),
    };
    let finished =
        train_for(args, &mut audience).inspect_err(|failure| audience.failed(failure))?;
    match (&audience, args.run.json) {
        (Audience::Program, _) => {}
        (Audience::Person(_), true) => output::json(&finished),
        (Audience::Person(_), false) => print_summary(&finished),
    }
    Ok(())
}

fn train_for(args: &TrainArgs, audience: &mut Audience) -> Result<Finished, Failure> {
    let run = super::read_run_file(&args.run)?;
    let options = Options { resume: args.resume, profile: args.profile };
    train(run, options, audience, "the same command and --resume")
}

/// Who follows a run.
pub enum Audience {
    /// A bar or lines on standard error, once the number of steps is known.
    Person(Option<Progress>),
    /// Every event as a JSON object on standard output.
    Program,
}

impl Audience {
    fn note(&mut self, text: String) {
        match self {
            Self::Person(_) => output::note(&format!("note: {text}")),
            Self::Program => output::json(&Event::Note { text }),
        }
    }

    fn hear(&mut self, setup: &Setup, event: &Event<'_>) {
        let progress = match self {
            Self::Program => return output::json(event),
            Self::Person(progress) => {
                progress.get_or_insert_with(|| Progress::new(setup.num_steps))
            }
        };
        if let Event::Planned(plan) = event {
            output::note(&format!("\n{}", plan::text(setup, plan)));
        }
        progress.show(event);
        if let Event::Profiled { profile, trace } = event {
            output::note(&profile_text(profile, trace));
        }
    }

    /// Ends a program's stream of events; an interruption has done so already.
    fn failed(&self, failure: &Failure) {
        if let (Self::Program, false) = (self, matches!(failure, Failure::Interrupted(_))) {
            failure.end_events();
        }
    }
}

/// Trains; a signal ends it with a checkpoint, and the user is told to continue with
/// `resume_with`. Before there is anything to keep, it leaves the directory as it was.
pub fn train(
    run: RunFile,
    options: Options,
    audience: &mut Audience,
    resume_with: &str,
) -> Result<Finished, Failure> {
    let stop = StopFlag::listen()
        .map_err(|error| Failure::Running(format!("cannot listen for signals: {error}")))?;
    let claim = RunDir::new(&run.output.dir).claim(options.resume)?;
    let setup = &super::prepare(None, run, &mut |text| audience.note(text))?;
    if stop.is_raised() {
        let dir = setup.run.output.dir.display();
        let failure =
            Failure::Interrupted(format!("stopped before training: {dir} is as it was before"));
        if let Audience::Program = audience {
            failure.end_events();
        }
        return Err(failure);
    }
    let mut hear = |event: Event<'_>| audience.hear(setup, &event);
    let outcome = recipe::train(claim, setup, options, &mut hear, &|| stop.is_raised());
    if let Audience::Person(Some(progress)) = audience {
        progress.finish();
    }
    match outcome? {
        Outcome::Finished(finished) => Ok(finished),
        Outcome::Interrupted { step } => Err(Failure::Interrupted(format!(
            "stopped after step {step} of {}; its checkpoint is in {}. Resume with {resume_with}",
            setup.num_steps,
            setup.run.output.dir.join("checkpoints").display()
        ))),
    }
}

fn print_summary(finished: &Finished) {
    let mut rows = Vec::new();
    if let (Some(first), Some(last)) = (finished.evaluations.first(), finished.evaluations.last()) {
        let change = |of: fn(&EvalRecord) -> Option<f64>| {
            format!("{} → {}", shown(of(first)), shown(of(last)))
        };
        let loss = change(|record| record.loss);
        let text = match last.metrics.is_empty() {
            true => format!("{loss} (perplexity {})", change(|record| record.perplexity)),
            false => loss,
        };
        rows.push(("evaluation loss", text));
        for (name, last) in &last.metrics {
            let first = shown(first.metrics.get(name).copied());
            rows.push((name.as_str(), format!("{first} → {last:.4}")));
        }
    }
    rows.push(("result", finished.result.display().to_string()));
    rows.push(("report", finished.report.display().to_string()));
    output::table(&rows);
}

/// A table of operations, and the path of the trace.
fn profile_text(profile: &StepProfile<'_>, path: &Path) -> String {
    let operations = profile.operations();
    let total: f64 = operations.iter().map(|operation| operation.seconds).sum();
    let mut text =
        format!("\n{total:.3} s per step by operation (mean of {} steps):\n", profile.num_steps);
    text.push_str(&format!(
        "{:<20} {:>6} {:>10} {:>6} {:>10} {:>9} {:>7}\n",
        "operation", "calls", "ms", "share", "planned ms", "GFLOP/s", "GB/s"
    ));
    for operation in &operations {
        let gflops =
            operation.flops_per_second.map_or(String::new(), |x| format!("{:.0}", x / 1e9));
        text.push_str(&format!(
            "{:<20} {:>6.0} {:>10.2} {:>5.1}% {:>10.2} {gflops:>9} {:>7.1}\n",
            operation.name,
            operation.calls,
            operation.seconds * 1e3,
            100.0 * operation.seconds / total,
            operation.planned_seconds * 1e3,
            operation.bytes_per_second / 1e9,
        ));
    }
    text + &format!("trace for ui.perfetto.dev: {}\n", path.display())
}

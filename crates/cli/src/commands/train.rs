//! `hone train`

use crate::args::TrainArgs;
use crate::commands::plan;
use crate::failure::Failure;
use crate::output;
use crate::progress::{Progress, shown};
use crate::signals::StopFlag;
use hone_train::recipe::{self, Event, Finished, Outcome};
use hone_train::run_dir::RunDir;
use hone_train::setup::Setup;
use serde_json::{Value, json};

/// Trains, and tells where the result is.
pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    let run = super::read_run_file(&args.run)?;
    let dir = RunDir::new(&run.output.dir);
    if !(args.resume && dir.holds_run()) {
        dir.check_free()?;
    }
    let setup = super::prepare(run)?;
    output::note(setup.run.to_toml().trim_end());
    let finished = train(&setup, args.resume, "the same command and --resume")?;
    if args.run.json {
        output::json(&summary(&finished));
    } else {
        print_summary(&finished);
    }
    Ok(())
}

/// Trains with progress on standard error; a signal ends it with a checkpoint, and the user is told
/// to go on with `go_on`.
pub fn train(setup: &Setup, resume: bool, go_on: &str) -> Result<Finished, Failure> {
    let stop = StopFlag::listen()
        .map_err(|error| Failure::Running(format!("cannot listen for signals: {error}")))?;
    let mut progress = Progress::new(setup.num_steps);
    let mut show = |event: Event<'_>| {
        if let Event::Planned(plan) = &event {
            output::note(&format!("\n{}", plan::text(setup, plan)));
        }
        progress.show(&event);
    };
    let outcome = recipe::train(setup, resume, &mut show, &|| stop.is_raised());
    progress.finish();
    match outcome? {
        Outcome::Finished(finished) => Ok(finished),
        Outcome::Interrupted { step } => Err(Failure::Interrupted(format!(
            "stopped after step {step} of {}; its checkpoint is in {}. Go on with {go_on}",
            setup.num_steps,
            setup.run.output.dir.join("checkpoints").display()
        ))),
    }
}

fn summary(finished: &Finished) -> Value {
    json!({
        "result": finished.result,
        "report": finished.report,
        "evaluations": finished.evaluations,
        "samples": finished.samples,
    })
}

fn print_summary(finished: &Finished) {
    let mut rows = Vec::new();
    if let (Some(first), Some(last)) = (finished.evaluations.first(), finished.evaluations.last()) {
        let text = format!(
            "{} → {} (perplexity {} → {})",
            shown(first.loss),
            shown(last.loss),
            shown(first.perplexity),
            shown(last.perplexity)
        );
        rows.push(("evaluation loss", text));
    }
    rows.push(("result", finished.result.display().to_string()));
    rows.push(("report", finished.report.display().to_string()));
    output::table(&rows);
}

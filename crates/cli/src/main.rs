//! The `hone` binary: parses arguments, calls the other crates and prints results.
//!
//! Results go to standard output, progress to standard error. Exit status: 0 success, 2 a usage or
//! configuration error, 1 a failure while running, 130 interrupted.

mod args;
mod commands;
mod demo;
mod failure;
mod output;
mod progress;
mod signals;

use args::{Arguments, Command};
use clap::Parser;
use failure::Failure;
use hone_tensor::Isa;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let as_json = arguments.command.wants_json();
    if let Err(failure) = check_instruction_set() {
        return failure.report(as_json);
    }
    let result = match arguments.command {
        Command::Demo(args) => commands::demo::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Embed(args) => commands::embed::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Compress(args) => commands::compress::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(as_json),
    }
}

/// Prints what is wrong with the command line, or help, as the user asked for it.
fn refuse(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    let given: Vec<String> =
        std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let has = |flag: &str| {
        given.iter().any(|arg| arg == flag || arg.starts_with(&(flag.to_owned() + "=")))
    };
    if error.use_stderr() {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let problem = text.split("\n\nUsage:").next().unwrap_or(text).trim_end();
        let failure = Failure::Usage(problem.to_owned());
        match (has("--events"), has("--json")) {
            (true, _) => failure.end_events(),
            (_, true) => output::json(&failure.object()),
            _ => {}
        }
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// `HONE_ISA`, a switch for tests, must name an instruction set that this machine has.
fn check_instruction_set() -> Result<(), Failure> {
    let Ok(name) = std::env::var("HONE_ISA") else { return Ok(()) };
    let known: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    if known.contains(&name.as_str()) {
        return Ok(());
    }
    let has = format!("this machine has {}", known.join(", "));
    Err(Failure::Usage(match Isa::missing_amx() {
        Some(reason) if name == "amx" => format!("HONE_ISA=amx: {reason}; {has}"),
        _ => format!("HONE_ISA={name}: {has}"),
    }))
}

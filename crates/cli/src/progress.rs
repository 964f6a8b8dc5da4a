//! Progress on standard error: a bar on a terminal, plain lines otherwise.

use crate::output;
use hone_train::recipe::Event;
use hone_train::report::format_rate;
use hone_train::{EvalRecord, StepRecord};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, VecDeque};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Minimum interval between lines if standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Since when there was no line of a kind.
#[derive(Default)]
struct Clock(Option<Instant>);

impl Clock {
    fn is_due(&self) -> bool {
        self.0.is_none_or(|last| last.elapsed() >= LINE_EVERY)
    }

    fn start(&mut self) {
        self.0 = Some(Instant::now());
    }
}

/// Tokens and seconds of the last steps: one alone may be short, as at the end of an epoch.
#[derive(Default)]
struct Rate(VecDeque<(u64, f64)>);

impl Rate {
    /// Tokens per second with one more step.
    fn with(&mut self, record: &StepRecord) -> f64 {
        const STEPS: usize = 10;
        self.0.truncate(STEPS - 1);
        self.0.push_front((record.tokens, record.step_seconds));
        let tokens: u64 = self.0.iter().map(|(tokens, _)| tokens).sum();
        tokens as f64 / self.0.iter().map(|(_, seconds)| seconds).sum::<f64>()
    }
}

/// Shows a run's events.
pub struct Progress {
    num_steps: u64,
    bar: Option<ProgressBar>,
    /// Of lines on steps, and on what takes a while besides: neither holds the other up.
    steps: Clock,
    others: Clock,
    started: Option<(Instant, u64)>,
    rate: Rate,
}

impl Progress {
    /// Progress of a run of `num_steps`.
    pub fn new(num_steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(num_steps as usize, ""));
        let (steps, others) = (Clock::default(), Clock::default());
        Self { num_steps, bar, steps, others, started: None, rate: Rate::default() }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Note { text } => self.line(&format!("note: {text}")),
            Event::Begun { settings } => self.line(&format!("settings {}", settings.display())),
            Event::Resumed { step } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(*step);
                    bar.reset_eta();
                }
                self.line(&format!("continuing after step {step}"));
            }
            Event::Step(record) => self.step(record),
            Event::Sampling { samples, .. } => {
                let things = if *samples == 1 { "sample" } else { "samples" };
                self.doing(&format!("answering {samples} {things}"), true);
            }
            Event::Evaluating { rows } => self.doing(&format!("evaluating on {rows} rows"), true),
            Event::EvaluationProgress { rows_done, rows } => {
                self.doing(&format!("evaluated {rows_done} of {rows} rows"), self.others.is_due());
            }
            Event::Evaluated(record) => self.line(&evaluation(record)),
            Event::Checkpoint { step } => {
                if self.bar.is_none() {
                    self.line(&format!("checkpoint after step {step}"));
                }
            }
            Event::Started { .. }
            | Event::Planned(_)
            | Event::Sampled { .. }
            | Event::Profiled { .. }
            | Event::Finished(_)
            | Event::Interrupted { .. }
            | Event::Failed { .. } => {}
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn step(&mut self, record: &StepRecord) {
        let (begun, first) = *self.started.get_or_insert((Instant::now(), record.step));
        let loss = shown(record.loss);
        let speed = format_rate(self.rate.with(record));
        if let Some(bar) = &self.bar {
            bar.set_message(format!("loss {loss} · {speed} tok/s"));
            bar.set_position(record.step);
            return;
        }
        if self.steps.is_due() || record.step == self.num_steps {
            self.steps.start();
            let left =
                time_left(begun.elapsed(), record.step - first, self.num_steps - record.step);
            let (step, all) = (record.step, self.num_steps);
            let more = metrics(&record.metrics);
            output::note(&format!("step {step}/{all}  loss {loss}{more}  {speed} tok/s{left}"));
        }
    }

    /// Shows what takes a while: on the bar, or where a line is due, as a line.
    fn doing(&mut self, text: &str, due: bool) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            bar.tick();
        } else if due {
            self.others.start();
            output::note(text);
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }
}

/// A bar over `len` things, which shows on a terminal only.
pub fn bar(len: usize, things: &'static str) -> ProgressBar {
    let template = "{bar:32} {pos}/{len}  {msg}  {elapsed} elapsed, {eta} left";
    let style = ProgressStyle::with_template(template).expect("a valid template");
    let style = style.progress_chars("━╸─");
    ProgressBar::new(len as u64).with_style(style).with_message(things)
}

/// What counts without an end that is known.
pub fn spinner(things: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{pos} {msg}  {elapsed} elapsed");
    ProgressBar::no_length().with_style(style.expect("a valid template")).with_message(things)
}

fn time_left(elapsed: Duration, done: u64, left: u64) -> String {
    if done == 0 || left == 0 {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() / done as f64 * left as f64;
    format!("  {} left", hone_train::report::format_seconds(seconds))
}

fn evaluation(record: &EvalRecord) -> String {
    let loss = shown(record.loss);
    let more = match record.metrics.is_empty() {
        true => format!(", perplexity {}", shown(record.perplexity)),
        false => metrics(&record.metrics),
    };
    format!("evaluation after step {}: loss {loss}{more}", record.step)
}

/// An objective's metrics, each preceded by a comma.
fn metrics(metrics: &BTreeMap<String, f64>) -> String {
    metrics.iter().map(|(name, value)| format!(", {name} {value:.4}")).collect()
}

/// Formats a value of a record, which is absent if it was not finite.
pub fn shown(value: Option<f64>) -> String {
    value.map_or("not finite".to_owned(), |x| format!("{x:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_hold_no_line_on_steps_up() {
        let mut progress = Progress { bar: None, ..Progress::new(3) };
        progress.show(&Event::Evaluating { rows: 9 });
        assert!(progress.steps.is_due() && !progress.others.is_due());
    }
}

//! Evaluations in the course of a run.

use super::{Event, Logs, Run, result, scorer};
use crate::error::TrainError;
use crate::evaluate::{self, EvalSet, Evaluation};
use crate::metrics::EvalRecord;
use std::time::{Duration, Instant};

/// How often progress is told at most.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

impl Run<'_> {
    /// Evaluates, if there is data to evaluate on and it was not done at this step before.
    pub(super) fn evaluate(
        &mut self,
        logs: &mut Logs,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let Some((dataset, units)) = &self.setup.eval else { return Ok(()) };
        let done = result::evaluations(self.dir)?.iter().any(|record| record.step == self.step);
        if done {
            return Ok(());
        }
        let rows = dataset.len();
        event(Event::Evaluating { rows });
        let (mut rows_done, mut told) = (0, Instant::now());
        let mut done = |of_batch| {
            rows_done += of_batch;
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                event(Event::EvaluationProgress { rows_done, rows });
            }
        };
        let masking = self.setup.masking.as_ref();
        let set = EvalSet { dataset, units, packing: self.packing(), masking };
        let Self { engine, arena, planned, .. } = self;
        let scorer = scorer(engine, arena, planned);
        let Evaluation { loss, perplexity, num_target_tokens, metrics } =
            evaluate::evaluate(scorer, &*engine.objective, set, &mut done)?;
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        let (loss, perplexity) = (finite(loss), perplexity.and_then(finite));
        let record = EvalRecord { step: self.step, loss, perplexity, num_target_tokens, metrics };
        logs.evaluations.push(&record)?;
        event(Event::Evaluated(&record));
        Ok(())
    }
}

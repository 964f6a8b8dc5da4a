//! From predicted divergences to measured ones: factors of groups, and bounds.

use super::{Allocation, PlanError, Planner};
use crate::ledger::Ledger;
use crate::meter::Meter;
use hone_model::{GgufExportError, GgufForm};
use hone_tensor::{DType, Storage};
use std::collections::BTreeSet;

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The least divergence of a file of at most so many bytes.
    Bytes(u64),
    /// The smallest file that is at most so far, in nats per token.
    Kl(f64),
}

/// How much a measured group may differ from what is predicted for it.
const MOST: f64 = 8.0;
/// What a factor is moved by.
const MOVES: [f64; 4] = [2.0, 0.5, 1.4, 0.7];
/// Measurements of the whole model at most.
const MEASUREMENTS: usize = 60;
/// Halvings of the range of sizes.
const HALVINGS: usize = 12;
/// Choices at most whose roundings are tried.
pub const TRIALS: usize = 3;
/// A choice that has so much of the divergence that it may have is not improved upon.
const ENOUGH: f64 = 0.75;
/// About the standard deviation of a divergence from window to window, as a share of its mean.
const SPREAD: f64 = 0.3;

/// The share of a divergence that a choice may have on so many windows, so that on as many others
/// it is hardly ever above it: two standard deviations of the difference below.
fn allowed(num_windows: usize) -> f64 {
    1.0 / (1.0 + 2.0 * SPREAD * (2.0 / num_windows.max(1) as f64).sqrt())
}

/// How far from the model one in these types is, in nats per token, after roundings that take too
/// long to be made for each choice.
pub type Trial<'a> = &'a mut dyn FnMut(&Allocation) -> Result<f64, PlanError>;

/// Groups that are measured, and whose factors are moved.
fn num_groups(form: &GgufForm<'_>) -> usize {
    let (groups, names) = super::groups(form);
    let of_matrices = form.tensors().iter().zip(groups).filter(|(of, _)| of.is_matrix());
    let found: BTreeSet<usize> = of_matrices.flat_map(|(_, groups)| groups).collect();
    found.iter().filter(|group| names.get(super::NO_BLOCK) != Some(*group)).count()
}

/// About as many measurements as a goal takes, with so many trials.
pub(crate) fn num_measurements(form: &GgufForm<'_>, goal: Goal, num_trials: usize) -> usize {
    let groups = num_groups(form);
    match goal {
        Goal::Bytes(_) => groups + MEASUREMENTS.min(MOVES.len() * groups + 1),
        Goal::Kl(_) => groups + (1 + HALVINGS) * (1 + num_trials),
    }
}

/// About as many choices. Moves that lead to none that is new are not measured.
pub(crate) fn num_choices(form: &GgufForm<'_>, goal: Goal) -> usize {
    match goal {
        Goal::Bytes(_) => 2 + MOVES.len() * num_groups(form),
        Goal::Kl(_) => 3 + HALVINGS,
    }
}

/// What says how far a choice is from the model.
struct Judge<'j, 'l> {
    meter: &'j Meter<'j>,
    /// What was measured.
    ledger: &'j mut Ledger<'l>,
    /// Told of each measurement.
    done: &'j mut dyn FnMut(),
}

/// What a file with tensors in given types has besides them.
fn overhead(planner: &Planner<'_>, chosen: &[Option<usize>]) -> Result<u64, GgufExportError> {
    let storages = planner.allocation(chosen).storages;
    Ok(planner.form.num_bytes(&storages)? - planner.bytes(chosen))
}

impl Planner<'_> {
    /// Types that reach the goal by what `meter` says, where the ledger does not know it; a
    /// divergence with the roundings that `trial` makes, if there are such. `done` is told of each
    /// measurement.
    ///
    /// # Errors
    /// If no types reach it, or the device failed.
    pub fn reach(
        &mut self,
        goal: Goal,
        (meter, trial): (&Meter<'_>, Option<Trial<'_>>),
        ledger: &mut Ledger<'_>,
        done: &mut dyn FnMut(),
    ) -> Result<Allocation, PlanError> {
        let mut judge = Judge { meter, ledger, done };
        let least = self.least();
        let smallest = self.choose(least).expect("the smallest of each");
        let overhead = overhead(self, &smallest)?;
        let num_weights = self.pass.model.decoder.config.num_parameters();
        match goal {
            Goal::Bytes(asked) if asked < least + overhead => {
                let least = least + overhead;
                let bits = 8.0 * least as f64 / num_weights as f64;
                Err(PlanError::TooSmall { asked, least, bits })
            }
            Goal::Bytes(asked) => {
                self.correct(asked - overhead, &mut judge)?;
                let best = self.search(asked - overhead, &mut judge)?;
                Ok(self.allocation(&best))
            }
            Goal::Kl(asked) => {
                // Where most is asked of the choice.
                self.correct((least + self.most()) / 2, &mut judge)?;
                let share = allowed(meter.num_windows());
                let within = share * asked;
                let best = self.smallest(within, &mut judge).map_err(|error| match error {
                    // In terms of what was asked for.
                    PlanError::TooExact { least, .. } => {
                        PlanError::TooExact { asked, least: least / share }
                    }
                    other => other,
                })?;
                let best = match trial {
                    Some(trial) => self.tried(within, best, trial, &mut judge)?,
                    None => best,
                };
                Ok(self.allocation(&best))
            }
        }
    }

    fn measure(
        &self,
        chosen: &[Option<usize>],
        judge: &mut Judge<'_, '_>,
    ) -> Result<f64, PlanError> {
        let kl = judge.ledger.next(|| {
            let kl = judge.meter.measure(&self.model(chosen)?)?.kl;
            if kl.is_finite() { Ok(kl) } else { Err(PlanError::NotFinite) }
        })?;
        (judge.done)();
        Ok(kl)
    }

    /// Sets the factors of kinds to how far measured divergences are above predicted ones, with
    /// types of about this size; those of blocks to how far theirs are above the mean of all.
    fn correct(&mut self, budget: u64, judge: &mut Judge<'_, '_>) -> Result<(), PlanError> {
        let Some(chosen) = self.choose(budget) else { return Ok(()) };
        let mut ratios = vec![None; self.factors.len()];
        let (mut of_blocks, mut sums) = (vec![false; self.factors.len()], [0.0; 2]);
        for (group, ratio) in ratios.iter_mut().enumerate() {
            let is_in = |i: usize| self.groups[i].contains(&group);
            let alone = |(i, choice): (usize, &Option<usize>)| choice.filter(|_| is_in(i));
            let alone: Vec<Option<usize>> = chosen.iter().enumerate().map(alone).collect();
            let of = |(i, choice): (usize, &Option<usize>)| {
                choice.map_or(0.0, |choice| self.candidates[i][choice].kl)
            };
            let predicted: f64 = alone.iter().enumerate().map(of).sum();
            of_blocks[group] = self.groups.iter().any(|groups| groups[1] == group);
            if predicted <= 0.0 || self.is_no_block(group) {
                continue;
            }
            let measured = self.measure(&alone, judge)?;
            *ratio = Some((measured / predicted).clamp(1.0 / MOST, MOST));
            if of_blocks[group] {
                sums = [sums[0] + measured, sums[1] + predicted];
            }
        }
        let mean = if sums[0] > 0.0 && sums[1] > 0.0 { sums[0] / sums[1] } else { 1.0 };
        for (group, ratio) in ratios.iter().enumerate() {
            let Some(ratio) = ratio else { continue };
            self.factors[group] = if of_blocks[group] { ratio / mean } else { *ratio };
        }
        Ok(())
    }

    /// Whether this is the group of tensors outside of blocks.
    fn is_no_block(&self, group: usize) -> bool {
        self.no_block == Some(group)
    }

    /// Moves factors as long as the measured divergence falls, at most `budget` bytes.
    fn search(
        &mut self,
        budget: u64,
        judge: &mut Judge<'_, '_>,
    ) -> Result<Vec<Option<usize>>, PlanError> {
        let mut best = self.choose(budget).expect("the budget is at least the least");
        let mut tried = vec![best.clone()];
        let mut least = self.measure(&best, judge)?;
        for by in MOVES {
            for group in 0..self.factors.len() {
                if tried.len() >= MEASUREMENTS || self.is_no_block(group) {
                    continue;
                }
                let before = self.factors[group];
                self.factors[group] *= by;
                let chosen = self.choose(budget).expect("as before");
                if tried.contains(&chosen) {
                    self.factors[group] = before;
                    continue;
                }
                tried.push(chosen.clone());
                let found = self.measure(&chosen, judge)?;
                match found < least {
                    true => (best, least) = (chosen, found),
                    false => self.factors[group] = before,
                }
            }
        }
        Ok(best)
    }

    /// The smallest choice that is measured to be at most `asked` from the model.
    fn smallest(
        &self,
        asked: f64,
        judge: &mut Judge<'_, '_>,
    ) -> Result<Vec<Option<usize>>, PlanError> {
        let (mut low, mut high) = (self.least(), self.most());
        let mut best = self.choose(high).expect("all bytes that there can be");
        let least = self.measure(&best, judge)?;
        if least > asked {
            return Err(PlanError::TooExact { asked, least });
        }
        for _ in 0..HALVINGS {
            let middle = low + (high - low) / 2;
            let chosen = self.choose(middle).expect("more than the least");
            match self.measure(&chosen, judge)? <= asked {
                true => (best, high) = (chosen, middle),
                false => low = middle,
            }
        }
        Ok(best)
    }

    /// The smallest of some choices that is at most `asked` from the model with the roundings of
    /// `trial`; `first` is so without them.
    fn tried(
        &self,
        asked: f64,
        first: Vec<Option<usize>>,
        trial: Trial<'_>,
        judge: &mut Judge<'_, '_>,
    ) -> Result<Vec<Option<usize>>, PlanError> {
        let (mut best, mut chosen) = (first.clone(), first);
        // Divergences of nearest values at which roundings reach it, and at which they do not.
        let (mut aim, mut good, mut bad) = (asked, asked, None);
        for i in 0..TRIALS {
            let kl = judge.ledger.next(|| trial(&self.allocation(&chosen)))?;
            (judge.done)();
            if kl <= asked || i == 0 {
                (best, good) = (chosen, aim);
                if kl >= ENOUGH * asked {
                    break;
                }
                // Roundings are taken to save the same share of others.
                aim *= asked / kl.max(f64::MIN_POSITIVE);
            } else {
                bad = Some(aim);
            }
            if i + 1 == TRIALS {
                break;
            }
            if let Some(bad) = bad {
                aim = aim.min((good * bad).sqrt());
            }
            chosen = self.smallest(aim, judge)?;
            if chosen == best {
                break;
            }
        }
        Ok(best)
    }

    /// Bytes of a choice.
    fn bytes(&self, chosen: &[Option<usize>]) -> u64 {
        let of = |(candidates, choice): (&Vec<super::Candidate>, &Option<usize>)| match choice {
            Some(choice) => candidates[*choice].bytes,
            None => 0,
        };
        self.candidates.iter().zip(chosen).map(of).sum()
    }

    /// Bytes of the largest choice.
    fn most(&self) -> u64 {
        let most = |of: &Vec<super::Candidate>| of.iter().map(|of| of.bytes).max().unwrap_or(0);
        self.candidates.iter().map(most).sum()
    }
}

/// The type of tensors without a choice.
pub(super) const WITHOUT_CHOICE: Storage = Storage::Float(DType::F32);

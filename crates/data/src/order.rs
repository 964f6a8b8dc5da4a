//! The order of training. Each epoch takes rows from each part of the mixture as often as its
//! weight says, shuffles them, packs them into units, and shuffles the units. The order depends
//! only on the data, the seed and the epoch, so a cursor of two numbers resumes it anywhere, and
//! neither micro-batch size nor number of ranks can change it.

use crate::dataset::{Dataset, Part, groups_per_epoch};
use crate::error::{DataError, Fix, Setting};
use crate::packing::{Group, Unit, groups, pack_decreasing};
use crate::random::Stream;
use serde::{Deserialize, Serialize};

/// Domains of the random streams.
const ROWS: u16 = 1;
const UNITS: u16 = 2;
const FRACTIONS: u16 = 3;
/// Most groups that are packed to count a run's steps, over all epochs: some ten seconds. Also most
/// of an epoch, where weights make them more than there are in the data.
const MAX_COUNTED_GROUPS: u64 = 100_000_000;

/// The next step to take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Completed passes over the data.
    pub epoch: u64,
    /// Completed steps of the current pass.
    pub step_in_epoch: u64,
}

/// The order of training.
pub struct Order {
    mixture: Mixture,
    units_per_step: usize,
    seed: u64,
    epoch: u64,
    /// The units of `epoch`, in order.
    units: Vec<Unit>,
}

/// What every epoch is made of.
struct Mixture {
    groups: Vec<Group>,
    parts: Vec<Part>,
    /// Slots of a unit.
    unit_tokens: usize,
}

impl Order {
    /// An order of `dataset`'s rows in units of `unit_tokens` slots, `units_per_step` of which
    /// make a step. Refuses rows that do not fit a unit, an empty step, and weights that make an
    /// epoch too long to be held in memory.
    pub fn new(
        dataset: &Dataset,
        unit_tokens: usize,
        units_per_step: usize,
        seed: u64,
    ) -> Result<Self, DataError> {
        if units_per_step == 0 {
            return Err(DataError::setup(
                "a step takes no units",
                "let a step take at least the tokens of a unit",
            ));
        }
        let groups = groups(dataset, unit_tokens)?;
        let mixture = Mixture { groups, parts: dataset.parts().to_vec(), unit_tokens };
        mixture.check_size()?;
        let units = mixture.units(seed, 0);
        Ok(Self { mixture, units_per_step, seed, epoch: 0, units })
    }

    /// Steps of one epoch; the last may have fewer units.
    pub fn steps_in_epoch(&mut self, epoch: u64) -> usize {
        self.turn_to(epoch);
        self.units.len().div_ceil(self.units_per_step)
    }

    /// Units of one epoch.
    pub fn units_in_epoch(&mut self, epoch: u64) -> usize {
        self.turn_to(epoch);
        self.units.len()
    }

    /// Tokens of one epoch: rows with a weight count as often as they are seen.
    pub fn tokens_in_epoch(&mut self, epoch: u64) -> usize {
        self.turn_to(epoch);
        self.units.iter().map(|unit| unit.num_tokens).sum()
    }

    /// Steps of the first `num_epochs` epochs. Epochs differ a little, as each is packed anew.
    /// Refuses more epochs than can be counted in seconds, since each must be packed for that.
    pub fn total_steps(&self, num_epochs: u64) -> Result<u64, DataError> {
        let records = self.mixture.groups_per_epoch();
        let most = MAX_COUNTED_GROUPS / records.max(1);
        if num_epochs > most.max(1) {
            return Err(DataError::setup(
                format!("{num_epochs} epochs of {records} records are too many to count"),
                Fix::from(Setting::NumEpochs(most.max(1))).or(Setting::MaxSteps),
            ));
        }
        let steps = |epoch| {
            let units = self.mixture.units(self.seed, epoch);
            units.len().div_ceil(self.units_per_step) as u64
        };
        Ok((0..num_epochs).map(steps).sum())
    }

    /// The units of the cursor's step; none if the cursor is past the end of its epoch, where
    /// `advance` never leaves it.
    pub fn step(&mut self, cursor: &Cursor) -> &[Unit] {
        self.turn_to(cursor.epoch);
        let start = cursor.step_in_epoch as usize * self.units_per_step;
        let start = start.min(self.units.len());
        &self.units[start..(start + self.units_per_step).min(self.units.len())]
    }

    /// Moves the cursor to the next step.
    pub fn advance(&mut self, cursor: &mut Cursor) {
        cursor.step_in_epoch += 1;
        if cursor.step_in_epoch as usize >= self.steps_in_epoch(cursor.epoch) {
            *cursor = Cursor { epoch: cursor.epoch + 1, step_in_epoch: 0 };
        }
    }

    fn turn_to(&mut self, epoch: u64) {
        if epoch != self.epoch {
            self.units = self.mixture.units(self.seed, epoch);
            self.epoch = epoch;
        }
    }
}

impl Mixture {
    /// Groups that an epoch takes from all parts.
    fn groups_per_epoch(&self) -> u64 {
        groups_per_epoch(&self.parts)
    }

    /// Refuses weights that repeat rows beyond what memory can hold.
    fn check_size(&self) -> Result<(), DataError> {
        let (all, most) =
            (self.groups_per_epoch(), MAX_COUNTED_GROUPS.max(self.groups.len() as u64));
        if all <= most {
            return Ok(());
        }
        Err(DataError::setup(
            format!(
                "with their weights, the data's {} records become {all} in an epoch, and at most \
                     {most} can be held",
                self.groups.len()
            ),
            "lower the weights and keep their ratios",
        ))
    }

    /// The units of an epoch, in order.
    fn units(&self, seed: u64, epoch: u64) -> Vec<Unit> {
        let mut order = self.groups_of(seed, epoch);
        Stream::new(seed, epoch, ROWS).shuffle(&mut order);
        let mut units = pack_decreasing(&order, &self.groups, self.unit_tokens);
        Stream::new(seed, epoch, UNITS).shuffle(&mut units);
        units
    }

    /// The groups of an epoch, part by part: each as often as the integer part of its weight says,
    /// and for the fraction a subset drawn at random.
    fn groups_of(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let mut stream = Stream::new(seed, epoch, FRACTIONS);
        let mut taken = Vec::new();
        for part in self.parts.iter().filter(|part| !part.groups.is_empty()) {
            let (all, wanted) = (part.groups.len(), part.groups_per_epoch());
            for _ in 0..wanted / all {
                taken.extend(part.groups.clone());
            }
            if wanted % all > 0 {
                let mut drawn = part.groups.clone().collect::<Vec<_>>();
                stream.shuffle(&mut drawn);
                taken.extend(&drawn[..wanted % all]);
            }
        }
        taken
    }
}

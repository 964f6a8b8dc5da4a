//! What was measured of a case.

use super::super::doctor::{Doctor, Rates};
use super::super::{Place, median};
use super::cases::Case;
use super::rest::Rest;
use serde_json::Value;

/// What one side did in a round.
pub struct Round {
    pub tokens_per_second: f64,
    pub peak_bytes: f64,
}

/// Both sides of a case.
#[derive(Default)]
pub struct Figures {
    pub hone: Vec<Round>,
    pub peer: Vec<Round>,
    /// Just before each round of Hone's.
    pub machine: Vec<Machine>,
    /// Made just before each round of Hone's, with rates measured then.
    pub plans: Vec<Value>,
    /// Medians of each round.
    pub step_seconds: Vec<f64>,
    /// From the start of the process to the first step, of each round.
    pub start_seconds: Vec<f64>,
    /// What PyTorch multiplied with most of the time, as oneDNN calls it.
    pub kernel: Option<String>,
    /// Where something is asked of it.
    pub rest: Option<Rest>,
}

/// What a row tells of the machine.
pub struct Machine {
    pub processor: String,
    pub isa: String,
    /// In the case's compute type.
    pub rates: Option<Rates>,
}

impl Machine {
    pub fn now(place: &Place, case: &Case) -> Result<Self, String> {
        let doctor = Doctor::ask(&place.hone, Some(case.threads))?;
        Ok(Self {
            processor: doctor.processor()?,
            isa: doctor.isa()?.to_owned(),
            rates: doctor.rates(case.compute()),
        })
    }
}

/// As `hone doctor` calls it.
pub const AMX: &str = "amx";

impl Figures {
    pub fn ratios(&self) -> Vec<f64> {
        let both = self.hone.iter().zip(&self.peer);
        both.map(|(hone, peer)| hone.tokens_per_second / peer.tokens_per_second).collect()
    }

    /// The median of a figure of each round's plan.
    pub fn planned(&self, key: &str) -> f64 {
        median(&self.of_plans(key))
    }

    /// How far the planned step is off, as a share of the actual one.
    pub fn off_by(&self) -> f64 {
        let both = self.of_plans("step_seconds").into_iter().zip(&self.step_seconds);
        median(&both.map(|(planned, actual)| planned / actual - 1.0).collect::<Vec<_>>())
    }

    /// The share of the machine's rate of products with loads that a step reaches.
    pub fn of_peak(&self) -> f64 {
        let reached = self.of_plans("flops_per_step").into_iter().zip(&self.step_seconds);
        let reached = reached.map(|(flops, seconds)| flops / seconds);
        let of_peak = reached.zip(self.rates(|rates| rates.loads)).map(|(rate, most)| rate / most);
        median(&of_peak.collect::<Vec<_>>())
    }

    /// A rate of products in each round; NaN where the doctor told none.
    pub fn rates(&self, of: impl Fn(Rates) -> f64) -> Vec<f64> {
        self.machine.iter().map(|machine| machine.rates.map_or(f64::NAN, &of)).collect()
    }

    /// Whether Hone computed with AMX, which PyTorch then has as well.
    pub fn has_amx(&self) -> bool {
        self.machine.iter().all(|machine| machine.isa == AMX)
    }

    fn of_plans(&self, key: &str) -> Vec<f64> {
        self.plans.iter().map(|plan| plan[key].as_f64().unwrap_or(f64::NAN)).collect()
    }
}

/// The most of all rounds.
pub fn peak(rounds: &[Round]) -> f64 {
    rounds.iter().map(|round| round.peak_bytes).fold(0.0, f64::max)
}

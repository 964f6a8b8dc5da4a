//! What would make a run fit.

use super::dry_run::DryRun;
use super::host::Host;
use super::memory::MemoryUse;
use crate::error::TrainError;
use crate::loading::Held;
use crate::run_file;
use crate::setup::Setup;
use hone_model::adapter::{LoraConfig, TargetModules};
use hone_tensor::{DType, Storage, Target};

/// Changes, each on top of those before, until the run fits: lines for the user.
pub(super) fn suggestions(
    setup: &Setup,
    host: Host,
    needed_bytes: u64,
) -> Result<Vec<String>, TrainError> {
    let (base_precision, lora) = (setup.base_precision, setup.lora.clone());
    let offload = setup.run.budget.offload;
    let lines = Vec::new();
    let mut variant =
        Variant { setup, host, base_precision, lora, offload, has_samples: true, lines };
    let pinned = setup.run.budget.micro_batch_tokens.is_some_and(|n| n > setup.unit_tokens())
        || setup.run.budget.recompute == run_file::Recompute::None;
    if pinned && variant.fits("leave budget.micro_batch_tokens and budget.recompute out")? {
        return Ok(variant.lines);
    }
    let can_offload = host.target == Target::Cuda && setup.lora.is_some();
    if can_offload && setup.run.budget.offload == run_file::Offload::None {
        variant.offload = run_file::Offload::All;
        if variant.fits("leave budget.offload out")? {
            return Ok(variant.lines);
        }
    }
    // Alone it changes nothing of what is learnt, so it comes before what does.
    let mut without_samples = variant.clone();
    if without_samples.leave_samples_out()? {
        return Ok(without_samples.lines);
    }
    if setup.lora.is_none() {
        variant.lora = Some(LoraConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            use_rslora: false,
            share_experts: false,
        });
        let change = "train an adapter instead of all weights: add [adapter] with kind = \"lora\"";
        if variant.fits(change)? {
            return Ok(variant.lines);
        }
    }
    if setup.base_precision.unwrap_or(setup.file_dtype.into()) == DType::F32 {
        variant.base_precision = Some(DType::Bf16.into());
        if variant.fits("model.base_precision = \"bf16\"")? {
            return Ok(variant.lines);
        }
    }
    if variant.base_precision != Some(Storage::INT8) {
        // Replaces a suggestion of bf16.
        variant.lines.retain(|line| !line.starts_with("model.base_precision"));
        variant.base_precision = Some(Storage::INT8);
        if variant.fits("model.base_precision = \"int8\"")? {
            return Ok(variant.lines);
        }
    }
    if variant.leave_samples_out()? || variant.shorter_rows_fit()? {
        return Ok(variant.lines);
    }
    Ok(vec![last_resort(setup, host, needed_bytes)])
}

/// Shortest sequence length to suggest.
const SHORTEST: usize = 32;

/// When no change of the run helps.
fn last_resort(setup: &Setup, host: Host, needed_bytes: u64) -> String {
    // A little more than is needed, since the program itself may take a little more next time.
    let enough = needed_bytes + needed_bytes / 16;
    // Of a GPU that need not be here, all that it has.
    let (there, whose) = match (host.free, host.target) {
        (Some(free), _) => (Some(free), "are free on this machine"),
        (None, Target::Cuda) => {
            (host.total.map(|total| total - total / 32), "are the GPU's to use")
        }
        (None, Target::Cpu) => (None, ""),
    };
    match (setup.run.budget.memory, there) {
        (Some(_), Some(there)) if enough <= there => format!(
            "budget.memory = \"{}MiB\" or more; {} {whose}",
            enough.div_ceil(1 << 20),
            crate::report::format_bytes(there)
        ),
        _ => "a smaller model, or a machine with more memory".to_owned(),
    }
}

/// The run with some settings changed, and the changes in words.
#[derive(Clone)]
struct Variant<'a> {
    setup: &'a Setup,
    host: Host,
    base_precision: Option<Storage>,
    lora: Option<LoraConfig>,
    offload: run_file::Offload,
    has_samples: bool,
    lines: Vec<String>,
}

impl Variant<'_> {
    /// Whether the changes so far and this one, already made, are enough.
    fn fits(&mut self, change: &str) -> Result<bool, TrainError> {
        let needed_bytes = self.leanest()?.total();
        Ok(self.note(change, needed_bytes))
    }

    /// Whether the changes so far are enough without samples, where those take more than a step.
    fn leave_samples_out(&mut self) -> Result<bool, TrainError> {
        self.has_samples = self.leanest()?.samples == 0;
        if self.has_samples { Ok(false) } else { self.fits("report.samples = 0") }
    }

    fn leanest(&self) -> Result<MemoryUse, TrainError> {
        Ok(self.dry()?.leanest(self.setup.unit_tokens()))
    }

    /// Whether rows of half the length, or a quarter, and so on, are enough.
    fn shorter_rows_fit(&mut self) -> Result<bool, TrainError> {
        let longest = self.setup.max_seq_len;
        let rows_per_unit = self.setup.unit_tokens() / longest;
        let mut dry = self.dry()?;
        for len in std::iter::successors(Some(longest / 2), |len| Some(len / 2)) {
            if len < SHORTEST {
                break;
            }
            let needed_bytes = dry.leanest(len * rows_per_unit).total();
            if self.host.fits(self.setup, needed_bytes) {
                let change = format!(
                    "data.max_seq_len = {len} (now {longest}) with data.overlong = \"truncate\""
                );
                return Ok(self.note(&change, needed_bytes));
            }
        }
        Ok(false)
    }

    fn note(&mut self, change: &str, needed_bytes: u64) -> bool {
        let fits = self.host.fits(self.setup, needed_bytes);
        self.lines.push(match fits {
            true => format!("{change} (needs {})", crate::report::format_bytes(needed_bytes)),
            false => format!("{change}, and"),
        });
        fits
    }

    fn dry(&self) -> Result<DryRun<'_>, TrainError> {
        // As the planner would: all blocks, where some would not do.
        let may = self.host.target == Target::Cuda && self.lora.is_some();
        let blocks = match self.offload {
            run_file::Offload::None => 0,
            _ if may => self.setup.config.num_hidden_layers(),
            _ => 0,
        };
        let (base_precision, lora) = (self.base_precision, self.lora.as_ref());
        let held = Held { base_precision, offloaded_blocks: blocks, lora };
        let dry = DryRun::new(self.setup, self.host, held)?;
        Ok(if self.has_samples { dry } else { dry.without_samples() })
    }
}

//! What is asked of a case, in words, and whether its figures reach it.

use super::super::doctor::Rates;
use super::cases::{Case, Peer};
use super::figures::{Figures, peak};
use super::{Suite, median};

/// The words, and whether all is reached; `llama` is the ratio of the case of that name.
pub fn asked(suite: &Suite, case: &Case, figures: &Figures, llama: f64) -> (String, bool) {
    let mut words = Words::default();
    let ratio = median(&figures.ratios());
    if let Some(least) = case.asked.ratio {
        let least = if figures.has_amx() { least.with_amx } else { least.without };
        words.add(least.to_string(), ratio >= least);
    }
    if let Some(times) = case.asked.of_llama {
        words.add(format!("{times} L = {:.2}", times * llama), ratio >= times * llama);
    }
    if let Some(most) = case.asked.peak {
        let found = peak(&figures.hone) / peak(&figures.peer);
        words.add(format!("peak {found:.2}, at most {most:.2}"), found <= most);
    }
    if let Some(most) = case.asked.peak_bytes {
        words.add(format!("≤ {:.0} MB", most / 1e6), peak(&figures.hone) <= most);
    }
    if let (Some(most), Some(rest)) = (case.asked.rest, &figures.rest) {
        let share = 100.0 * rest.share;
        // Where tiles are slow, products hide it.
        match figures.has_amx() && has_fast_tiles(figures) {
            true => words.add(
                format!("rest of a step {share:.0} %, at most {:.0} %", 100.0 * most),
                rest.share <= most,
            ),
            false => words.add(format!("rest of a step {share:.0} %"), true),
        }
    }
    // Shown in columns of their own, and so named only where they are missed.
    let off_by = figures.off_by().abs();
    if suite.plan_within.is_some_and(|most| off_by > most) {
        words.add(format!("off by {:.0} %", 100.0 * off_by), false);
    }
    let multiplies_in_bf16 = matches!(case.peer, Peer::Peft { dtype: "bf16", .. });
    let named = |kernel: &String| kernel.contains("amx");
    if figures.has_amx() && multiplies_in_bf16 && !figures.kernel.as_ref().is_some_and(named) {
        words.add("peer on AMX".to_owned(), false);
    }
    (words.words.join("; "), words.reached)
}

/// What is asked so far.
struct Words {
    words: Vec<String>,
    reached: bool,
}

impl Default for Words {
    fn default() -> Self {
        Self { words: Vec::new(), reached: true }
    }
}

impl Words {
    fn add(&mut self, words: String, reached: bool) {
        self.words.push(if reached { words } else { format!("**{words}: missed**") });
        self.reached &= reached;
    }
}

/// Whether the unit that multiplies tiles was in its faster state: operands come as fast as it
/// multiplies, or nearly so.
fn has_fast_tiles(figures: &Figures) -> bool {
    let registers = median(&figures.rates(|rates| rates.registers));
    let loads = median(&figures.rates(|rates| rates.loads));
    !Rates { registers, loads }.is_held_by_loads()
}

#[cfg(test)]
mod tests;

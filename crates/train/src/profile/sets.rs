//! How fast each instruction set of this machine multiplies.

use super::measure::{WINDOW, median};
use hone_tensor::ceiling::{self, Operands, Products};
use hone_tensor::{Device, Isa};
use serde::Serialize;

/// Rates of products in one type by one instruction set, on all threads. FLOP/s count a
/// multiply-add as two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetRates {
    /// Name of the instruction set, as in `HONE_ISA`.
    pub isa: &'static str,
    /// `f32`, `bf16` or `int8`.
    pub compute: &'static str,
    /// Operations per second on what is in registers; `None` where no instruction multiplies the
    /// type, and plain code does.
    pub registers: Option<f64>,
    /// The same with operands that tiles load from the first-level cache.
    pub loads: f64,
}

impl SetRates {
    /// Whether loads slow the instruction to less than half of its rate.
    pub fn is_held_by_loads(&self) -> bool {
        self.registers.is_some_and(|registers| registers > 2.0 * self.loads)
    }
}

/// Windows of each rate.
const WINDOWS: usize = 3;

/// Measures every instruction set that this machine has, the slowest first, in windows that take
/// turns: what a neighbour does for a moment slows one window of each, and not the medians.
pub fn measure_sets(threads: usize) -> Vec<SetRates> {
    let devices: Vec<(Isa, Device)> =
        Isa::available().into_iter().map(|isa| (isa, Device::cpu_with_isa(threads, isa))).collect();
    let kinds: Vec<_> = devices
        .iter()
        .flat_map(|(isa, device)| Products::ALL.map(|products| (*isa, device, products)))
        .collect();
    let mut found = vec![[const { Vec::new() }; 2]; kinds.len()];
    for _ in 0..WINDOWS {
        for ((_, device, products), found) in kinds.iter().zip(&mut found) {
            let cpu = device.as_cpu().expect("a CPU was asked for");
            for (operands, found) in [Operands::InRegisters, Operands::InCache].iter().zip(found) {
                found.extend(ceiling::rate(cpu, *products, *operands, WINDOW));
            }
        }
    }
    let rates = kinds.iter().zip(found).map(|((isa, _, products), [registers, loads])| {
        let registers = (!registers.is_empty()).then(|| median(registers));
        SetRates { isa: isa.name(), compute: products.name(), registers, loads: median(loads) }
    });
    rates.collect()
}

//! What `hone doctor` says of this machine: its instruction sets, and how fast each multiplies.

use super::json;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// An answer of `hone doctor --json`.
pub struct Doctor(Value);

/// Rates of products in one compute type by one instruction set, in FLOP/s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// With operands in registers.
    pub registers: f64,
    /// With operands that are loaded from the first-level cache.
    pub loads: f64,
}

impl Rates {
    /// Whether loads slow the instruction to less than half of its rate.
    pub fn is_held_by_loads(self) -> bool {
        self.registers > 2.0 * self.loads
    }
}

impl Doctor {
    /// Measures; with the number of threads that Hone chooses if none is given.
    pub fn ask(hone: &Path, threads: Option<usize>) -> Result<Self, String> {
        let mut command = Command::new(hone);
        command.args(["doctor", "--json"]);
        if let Some(threads) = threads {
            command.args(["--threads", &threads.to_string()]);
        }
        json(&mut command).map(Self)
    }

    /// The rates that plans are made with.
    pub fn profile(&self) -> &Value {
        &self.0["profile"]
    }

    /// The instruction set that Hone uses.
    pub fn isa(&self) -> Result<&str, String> {
        self.text("isa")
    }

    /// Processor and threads.
    pub fn processor(&self) -> Result<String, String> {
        Ok(format!("{}, {} threads", self.text("processor")?, self.profile()["threads"]))
    }

    /// Processor, threads and instruction set.
    pub fn machine(&self) -> Result<String, String> {
        Ok(format!("{}, {}", self.processor()?, self.isa()?))
    }

    /// Names of the instruction sets that this machine has.
    pub fn instruction_sets(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.rows().filter_map(|row| row["isa"].as_str()).collect();
        names.dedup();
        names
    }

    /// The rates of the instruction set that Hone uses, in `compute`.
    pub fn rates(&self, compute: &str) -> Option<Rates> {
        let of = |row: &&Value| row["isa"] == self.profile()["isa"] && row["compute"] == compute;
        self.rows().find(of).and_then(of_row)
    }

    /// The rates of every instruction set, as a table in GFLOP/s.
    pub fn table(&self) -> String {
        let mut table = "Products by instruction set, from registers and with loads from the \
                         first-level cache, GFLOP/s:\n\n\
                         | instruction set | type | registers | loads | |\n\
                         | --- | --- | ---: | ---: | --- |\n"
            .to_owned();
        for row in self.rows() {
            let giga = |key: &str| row[key].as_f64().map(|rate| rate / 1e9);
            let shown =
                |rate: Option<f64>| rate.map_or("–".to_owned(), |rate| format!("{rate:.0}"));
            let (registers, loads) = (giga("registers"), giga("loads"));
            let is_held = of_row(row).is_some_and(Rates::is_held_by_loads);
            let note = if is_held { "loads more than halve it" } else { "" };
            let [isa, compute] = ["isa", "compute"].map(|key| row[key].as_str().unwrap_or("?"));
            let (registers, loads) = (shown(registers), shown(loads));
            let _ = writeln!(table, "| {isa} | {compute} | {registers} | {loads} | {note} |");
        }
        table
    }

    fn rows(&self) -> impl Iterator<Item = &Value> {
        self.0["instruction_sets"].as_array().into_iter().flatten()
    }

    fn text(&self, key: &str) -> Result<&str, String> {
        let text = self.profile()[key].as_str();
        text.ok_or_else(|| format!("hone doctor does not tell its {key}"))
    }
}

/// Both rates of a row; none where plain code multiplies, and no instruction.
fn of_row(row: &Value) -> Option<Rates> {
    Some(Rates { registers: row["registers"].as_f64()?, loads: row["loads"].as_f64()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rates_are_those_of_the_instruction_set_in_use() {
        let row = |isa: &str, compute: &str, loads: f64| {
            let (isa, compute) = (json!(isa), json!(compute));
            json!({ "isa": isa, "compute": compute, "registers": 9.0, "loads": loads })
        };
        let doctor = Doctor(json!({
            "profile": { "isa": "amx", "processor": "P", "threads": 2 },
            "instruction_sets": [
                row("avx512", "bf16", 1.0), row("amx", "bf16", 2.0), row("amx", "int8", 3.0),
            ],
        }));
        assert_eq!(doctor.instruction_sets(), ["avx512", "amx"]);
        assert_eq!(doctor.rates("int8"), Some(Rates { registers: 9.0, loads: 3.0 }));
        assert_eq!(doctor.rates("f32"), None);
        assert_eq!(doctor.machine().unwrap(), "P, 2 threads, amx");
    }
}

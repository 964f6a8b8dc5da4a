//! Where a run's memory goes.

use serde::{Deserialize, Serialize};

/// Bytes by use. Those that only some runs have are not written where there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Frozen weights.
    pub weights: u64,
    /// Trained adapters.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub adapters: u64,
    /// Weights, where all are trained.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parameters: u64,
    /// Their gradients.
    pub gradients: u64,
    /// Their moments.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// Logits and their like.
    pub head: u64,
    /// Intermediate results within operations.
    pub workspace: u64,
    /// Of the step memory, what is unused at its fullest.
    pub gaps: u64,
    /// What answering the samples takes beyond the step memory, which is not there meanwhile.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub samples: u64,
    /// The program itself, tokenizer and rows, where the CPU computes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub program_and_data: u64,
    /// What the driver takes of a GPU's memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub driver: u64,
    /// What preparing the data took beyond all this; it is over before training begins.
    pub preparation: u64,
}

impl MemoryUse {
    /// Every use with its name.
    pub fn parts(&self) -> [(&'static str, u64); 13] {
        [
            ("weights", self.weights),
            ("adapters", self.adapters),
            ("parameters", self.parameters),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("head", self.head),
            ("workspace", self.workspace),
            ("gaps", self.gaps),
            ("samples", self.samples),
            ("program and data", self.program_and_data),
            ("driver", self.driver),
            ("preparation", self.preparation),
        ]
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

//! How frozen weights are held: `auto`, or a storage by its name.

use hone_tensor::Storage;
use serde::{Deserialize, Serialize};

/// How frozen weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Held {
    /// Decided from the model's files and from what products are computed in.
    Auto,
    /// As asked for.
    As(Storage),
}

impl Held {
    /// The values: `auto`, and every storage.
    pub const VALUES: &'static [&'static str] = &{
        let mut all = ["auto"; 1 + Storage::NAMES.len()];
        let mut i = 0;
        while i < Storage::NAMES.len() {
            all[i + 1] = Storage::NAMES[i];
            i += 1;
        }
        all
    };

    /// Whether they are packed and so cannot be trained.
    pub fn is_packed(self) -> bool {
        matches!(self, Self::As(Storage::Packed(_)))
    }
}

impl From<Held> for &'static str {
    fn from(held: Held) -> Self {
        match held {
            Held::Auto => "auto",
            Held::As(storage) => storage.name(),
        }
    }
}

impl TryFrom<String> for Held {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "auto" => Ok(Self::Auto),
            name => Storage::from_name(name)
                .map(Self::As)
                .ok_or_else(|| format!("weights are not held as `{name}`")),
        }
    }
}

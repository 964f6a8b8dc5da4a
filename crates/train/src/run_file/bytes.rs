//! Sizes such as "16GiB" in the run file: reading, and writing so that reading gives the same.

use serde::{Deserialize, Serialize, Serializer};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The size that a text such as "16GiB", "1.5 GB" or "800MB" is; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        parse(text).and_then(|bytes| u64::try_from(bytes).ok()).map(Self)
    }
}

const UNITS: [(&str, u64); 9] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

/// Bytes of a text such as "16GiB", "1.5 GB" or "800MB"; `None` if it is none, or below one byte.
pub(super) fn parse(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| {
        text.strip_suffix(name).map(|number| (number.trim_end(), *unit))
    })?;
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (1.0..9.0e18).contains(&bytes).then_some(bytes as i64)
}

/// Writes the size with the largest binary unit that keeps it exact.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0;
        let exact = [("GiB", 1 << 30), ("MiB", 1 << 20)]
            .into_iter()
            .find(|(_, u)| bytes.is_multiple_of(*u));
        match exact {
            Some((name, unit)) => to.serialize_str(&format!("{}{name}", bytes / unit)),
            None => to.serialize_u64(bytes),
        }
    }
}

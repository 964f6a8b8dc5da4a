//! Checks of a safetensors header that the library omits: duplicate names, and offsets so large
//! that their sum overflows.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// Maximum length of a header, as in the reference implementation: longer ones are damaged, or
/// meant to exhaust memory.
const MAX_BYTES: u64 = 100_000_000;

/// Checks that names are unique and that every tensor ends inside the file.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("it has {} bytes, at least 8 are needed", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_BYTES {
        return Err(format!("its header claims {length} bytes, at most {MAX_BYTES} are allowed"));
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        let rest = rest.len();
        return Err(format!("its header claims {length} bytes, but only {rest} bytes follow"));
    };
    let Header(extents) = serde_json::from_slice(header).map_err(|e| format!("header: {e}"))?;
    let data = (rest.len() - header.len()) as u64;
    match extents.into_iter().find(|(_, end)| *end > data) {
        Some((name, end)) => Err(format!(
            "tensor `{name}` ends at byte {end} of the data, which has only {data} bytes"
        )),
        None => Ok(()),
    }
}

/// Names of the tensors and the end of each.
struct Header(Vec<(String, u64)>);

#[derive(serde::Deserialize)]
struct Entry {
    /// Absent in `__metadata__`.
    data_offsets: Option<[u64; 2]>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let (mut names, mut extents) = (HashSet::new(), Vec::new());
        while let Some((name, entry)) = map.next_entry::<String, Entry>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name `{name}` occurs twice")));
            }
            extents.extend(entry.data_offsets.map(|[_, end]| (name, end)));
        }
        Ok(Header(extents))
    }
}

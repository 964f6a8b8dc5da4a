//! Writes GGUF files for tests, as they are and as they should not be.

use super::write::{entry, preamble, string};

pub use super::write::Meta;

/// A value of the metadata, as it should be or not.
#[derive(Clone, Debug)]
pub enum Field {
    /// As files have it.
    Known(Meta),
    /// Any type, and its bytes.
    Raw(u32, Vec<u8>),
}

impl From<Meta> for Field {
    fn from(value: Meta) -> Self {
        Self::Known(value)
    }
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Self::Known(text.into())
    }
}

/// A file to be.
#[derive(Clone, Debug)]
pub struct Writer {
    /// Version of the format.
    pub version: u32,
    /// Bytes that tensors are aligned to.
    pub alignment: usize,
    /// The metadata, in order.
    pub keys: Vec<(String, Field)>,
    /// The tensors, in order.
    pub tensors: Vec<Entry>,
}

/// A tensor to be.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Number of its type.
    pub kind: u32,
    /// Lengths of the dimensions, slowest first.
    pub shape: Vec<u64>,
    /// Its elements.
    pub bytes: Vec<u8>,
    /// Where it is said to begin; `None`: where it does.
    pub offset: Option<u64>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { version: 3, alignment: 32, keys: Vec::new(), tensors: Vec::new() }
    }
}

impl Writer {
    /// Adds a key, or gives it another value.
    pub fn set(&mut self, key: &str, value: impl Into<Field>) -> &mut Self {
        self.keys.retain(|(other, _)| other != key);
        self.keys.push((key.to_owned(), value.into()));
        self
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, kind: u32, shape: &[usize], bytes: Vec<u8>) -> &mut Self {
        let shape = shape.iter().map(|&len| len as u64).collect();
        self.tensors.push(Entry { name: name.to_owned(), kind, shape, bytes, offset: None });
        self
    }

    /// Adds a tensor of `f32`.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
        self.tensor(name, 0, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = preamble(self.version, self.tensors.len(), self.keys.len());
        for (key, value) in &self.keys {
            string(&mut out, key);
            match value {
                Field::Known(value) => value.write(&mut out),
                Field::Raw(kind, bytes) => {
                    out.extend(kind.to_le_bytes());
                    out.extend(bytes);
                }
            }
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            let offset = tensor.offset.unwrap_or(data.len() as u64);
            entry(&mut out, &tensor.name, &tensor.shape, tensor.kind, offset);
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

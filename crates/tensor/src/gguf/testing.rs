//! Writes GGUF files for tests, as they are and as they should not be.

/// A value of the metadata in the type in which files have it.
#[derive(Clone, Debug)]
pub enum Meta {
    /// 16 bits.
    U16(u16),
    /// 32 bits.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 32 bits.
    F32(f32),
    /// A byte, 0 or 1.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array of strings.
    Texts(Vec<String>),
    /// An array of numbers of 32 bits, signed.
    I32s(Vec<i32>),
    /// An array of numbers of 32 bits.
    F32s(Vec<f32>),
    /// An array of bytes, 0 or 1.
    Bools(Vec<bool>),
    /// Any type, and its bytes.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Meta {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
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
    pub keys: Vec<(String, Meta)>,
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
    pub fn set(&mut self, key: &str, value: impl Into<Meta>) -> &mut Self {
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
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(&mut out, key);
            write_value(&mut out, value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|len| out.extend(len.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &Meta) {
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Meta::U16(x) => scalar(2, &x.to_le_bytes()),
        Meta::U32(x) => scalar(4, &x.to_le_bytes()),
        Meta::I32(x) => scalar(5, &x.to_le_bytes()),
        Meta::F32(x) => scalar(6, &x.to_le_bytes()),
        Meta::Bool(x) => scalar(7, &[u8::from(*x)]),
        Meta::Raw(kind, bytes) => scalar(*kind, bytes),
        Meta::Text(text) => {
            scalar(8, &[]);
            string(out, text);
        }
        Meta::Texts(texts) => {
            array(out, 8, texts.len());
            texts.iter().for_each(|text| string(out, text));
        }
        Meta::I32s(numbers) => {
            array(out, 5, numbers.len());
            numbers.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Meta::F32s(numbers) => {
            array(out, 6, numbers.len());
            numbers.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Meta::Bools(flags) => {
            array(out, 7, flags.len());
            out.extend(flags.iter().map(|&flag| u8::from(flag)));
        }
    }
}

fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

//! Reads numbers and texts from the front of a file's bytes.

/// A place in a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    /// Bytes read so far.
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let rest = self.rest();
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let taken = taken.ok_or_else(|| {
            format!("{len} bytes are to follow byte {}, but only {} do", self.at, rest.len())
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    /// The next bytes, as many as the result has.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length, then as many bytes.
    pub(super) fn string(&mut self) -> Result<&'a [u8], String> {
        let len = self.u64()?;
        self.take(len)
    }

    /// A string that must be UTF-8.
    pub(super) fn text(&mut self) -> Result<&'a str, String> {
        let at = self.at;
        let bytes = self.string()?;
        std::str::from_utf8(bytes).map_err(|_| format!("the text at byte {at} is not UTF-8"))
    }
}

//! CUDA sources, embedded in the binary.

/// Kernels of one operation, compiled together.
#[derive(Debug)]
pub struct Source {
    /// Name in messages and in the cache of compiled kernels.
    pub name: &'static str,
    /// Texts that are concatenated after `prelude.cuh`.
    pub texts: &'static [&'static str],
    /// Name expressions of all kernels: `rms_norm_forward<bf16>`.
    pub kernels: &'static [&'static str],
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Source {
    /// The whole program.
    pub(crate) fn program(&self) -> String {
        let mut program = include_str!("prelude.cuh").to_owned();
        self.texts.iter().for_each(|text| program.push_str(text));
        program
    }

    /// Index of a kernel in [`Source::kernels`].
    ///
    /// # Panics
    /// If it is not listed there.
    pub(crate) fn position(&self, kernel: &str) -> usize {
        let position = self.kernels.iter().position(|&name| name == kernel);
        position.unwrap_or_else(|| panic!("{} has no kernel {kernel}", self.name))
    }
}

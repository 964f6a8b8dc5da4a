//! What a smaller file is and what it lost, as JSON and as a table.

use super::super::export::card::FOUR_TEXTS;
use super::types::Types;
use crate::output;
use hone_compress::Measured;
use hone_model::FormTensor;
use hone_tensor::{DType, Storage};
use serde_json::json;
use std::cmp::Reverse;
use std::path::Path;

/// A file that was written.
pub(super) struct Report<'a> {
    pub(super) out: &'a Path,
    pub(super) bytes: u64,
    /// Bits of the whole file per weight of the model.
    pub(super) bits: f64,
    pub(super) tensors: &'a [FormTensor],
    pub(super) types: &'a Types,
    pub(super) measured: Measured,
    /// Whether it was measured on text that was held out.
    pub(super) is_held_out: bool,
}

/// Tensors of one kind, such as `ffn_down`, in all blocks.
struct Kind<'a> {
    name: String,
    /// Types, and how many tensors have each.
    types: Vec<(&'a str, usize)>,
    bytes: usize,
    share: f64,
}

impl Report<'_> {
    pub(super) fn print(&self, as_json: bool) {
        match as_json {
            true => self.json(),
            false => self.table(),
        }
    }

    /// Type and bytes of a tensor in the file.
    fn stored(&self, index: usize) -> (&'static str, usize) {
        let (tensor, choice) = (&self.tensors[index], &self.types.choices[index]);
        let storage: Storage = if tensor.is_matrix() { choice.storage } else { DType::F32.into() };
        (storage.name(), storage.num_bytes(&tensor.shape))
    }

    fn json(&self) {
        let tensor = |i: usize| {
            let (kind, bytes) = self.stored(i);
            let mut found = json!({ "name": self.tensors[i].name, "type": kind, "bytes": bytes });
            if let Some(shares) = &self.types.shares {
                found["kl_share"] = shares[i].into();
            }
            found
        };
        output::json(&json!({
            "out": self.out,
            "bytes": self.bytes,
            "bits_per_weight": self.bits,
            "kl": self.measured.kl,
            "same_top": self.measured.same_top,
            "num_tokens": self.measured.num_tokens,
            "is_held_out": self.is_held_out,
            "tensors": (0..self.tensors.len()).map(tensor).collect::<Vec<_>>(),
        }));
    }

    fn table(&self) {
        let size = size(self.bytes, self.bits);
        let mut lines = vec![
            ("written", self.out.display().to_string()),
            ("size", size),
            ("tensors", self.of_types()),
        ];
        let kinds = self.kinds();
        lines.extend(kinds.iter().map(|kind| (kind.name.as_str(), kind.words())));
        lines.push(("compared", compared(&self.measured, self.is_held_out)));
        lines.extend(self.replaced().map(|replaced| ("replaced", replaced)));
        output::table(&lines);
    }

    /// How many tensors and bytes are in each type.
    fn of_types(&self) -> String {
        let mut types: Vec<(&str, usize, usize)> = Vec::new();
        for (name, bytes) in (0..self.tensors.len()).map(|i| self.stored(i)) {
            match types.iter_mut().find(|(other, ..)| *other == name) {
                Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + bytes),
                None => types.push((name, 1, bytes)),
            }
        }
        types.sort_by_key(|(.., bytes)| Reverse(*bytes));
        let words = |(name, count, bytes): (&str, usize, usize)| {
            format!("{count} in {name} ({})", megabytes(bytes as f64))
        };
        types.into_iter().map(words).collect::<Vec<_>>().join(", ")
    }

    /// Kinds of tensors with a share of the divergence, where that was predicted.
    fn kinds(&self) -> Vec<Kind<'_>> {
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let shares = self.types.shares.iter().flatten().enumerate();
        for (i, share) in shares.filter(|(i, _)| self.tensors[*i].is_matrix()) {
            let name = self.tensors[i].name.trim_end_matches(".weight");
            let name = name.rsplit('.').next().unwrap_or(name);
            let (stored, bytes) = self.stored(i);
            let at = kinds.iter().position(|kind| kind.name == name).unwrap_or_else(|| {
                let (types, name) = (Vec::new(), name.to_owned());
                kinds.push(Kind { name, types, bytes: 0, share: 0.0 });
                kinds.len() - 1
            });
            let kind = &mut kinds[at];
            (kind.bytes, kind.share) = (kind.bytes + bytes, kind.share + share);
            match kind.types.iter_mut().find(|(other, _)| *other == stored) {
                Some((_, count)) => *count += 1,
                None => kind.types.push((stored, 1)),
            }
        }
        kinds
    }

    /// Tensors that are not in the type that a mix gives them.
    fn replaced(&self) -> Option<String> {
        let mut replaced = self.tensors.iter().zip(&self.types.choices).filter_map(|of| {
            let (tensor, choice) = of;
            let wanted = choice.instead_of?.name();
            Some(format!("{} ({} for {wanted})", tensor.name, choice.storage.name()))
        });
        let first = replaced.next()?;
        let count = 1 + replaced.count();
        Some(format!("in {count} of {}: {first}, …", self.tensors.len()))
    }
}

impl Kind<'_> {
    fn words(&self) -> String {
        let types: Vec<String> =
            self.types.iter().map(|(name, count)| format!("{count} in {name}")).collect();
        format!(
            "{}, {:.1} % of the divergence: {}",
            megabytes(self.bytes as f64),
            100.0 * self.share,
            types.join(", ")
        )
    }
}

/// The figures of a comparison, for the model card.
pub(super) fn figures(measured: &Measured, is_held_out: bool) -> Vec<(&'static str, String)> {
    vec![
        ("text", text(measured, is_held_out)),
        ("KL divergence, nats per token", format!("{:.3e}", measured.kl)),
        ("most likely token the same", format!("{:.1} %", 100.0 * measured.same_top)),
    ]
}

/// What was compared, in words.
pub(super) fn compared(measured: &Measured, is_held_out: bool) -> String {
    format!(
        "{:.4} nats of KL divergence per token on {}; the most likely token is the same for \
         {:.1} %",
        measured.kl,
        text(measured, is_held_out),
        100.0 * measured.same_top
    )
}

/// The text that was measured on.
fn text(measured: &Measured, is_held_out: bool) -> String {
    match is_held_out {
        true => format!("{} held-out tokens", measured.num_tokens),
        false => FOUR_TEXTS.to_owned(),
    }
}

/// How large it is, in words.
pub(super) fn size(bytes: u64, bits: f64) -> String {
    format!("{}, {bits:.2} bits per weight", megabytes(bytes as f64))
}

pub(super) fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

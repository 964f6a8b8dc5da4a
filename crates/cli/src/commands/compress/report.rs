//! What a smaller file is and what it lost, as JSON and as a table.

use super::super::Weighed;
use super::super::export::card::FOUR_TEXTS;
use super::estimate::Estimate;
use super::types::Types;
use super::ways::Ways;
use super::work::Stage;
use crate::output;
use hone_compress::Measured;
use hone_model::FormTensor;
use hone_tensor::{DType, Storage};
use hone_train::machine::peak_resident_bytes;
use hone_train::report::comparison::Kind;
use serde_json::json;
use std::cmp::Reverse;
use std::path::Path;

/// A file that was written.
pub(super) struct Report<'a> {
    pub(super) out: &'a Path,
    /// What it was made of.
    pub(super) base: Weighed,
    /// Files of the calibration text.
    pub(super) calibration: &'a [String],
    pub(super) bytes: u64,
    /// Bits of the whole file per weight of the model.
    pub(super) bits: f64,
    pub(super) tensors: &'a [FormTensor],
    pub(super) types: &'a Types,
    pub(super) measured: Measured,
    /// What the two ways to ship an adapter gave.
    pub(super) ways: Option<Ways>,
    /// Whether it was measured on text that was held out.
    pub(super) is_held_out: bool,
    /// What was expected when it was begun, if that was asked.
    pub(super) estimate: Option<Estimate>,
    /// Seconds since then.
    pub(super) seconds: f64,
    /// What each took.
    pub(super) stages: Vec<Stage>,
}

/// A tensor of a file, as a table by kinds counts it.
pub(in super::super) struct Part<'a> {
    pub(in super::super) name: &'a str,
    pub(in super::super) kind: &'a str,
    pub(in super::super) bytes: f64,
    /// Predicted share of the divergence.
    pub(in super::super) share: Option<f64>,
}

/// Tensors by kinds, such as `ffn_down` of all blocks, in the order of their first ones.
pub(in super::super) fn kinds<'a>(tensors: impl Iterator<Item = Part<'a>>) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for Part { name, kind: stored, bytes, share } in tensors {
        let name = kind_of(name);
        let at = kinds.iter().position(|kind| kind.name == name).unwrap_or_else(|| {
            let name = name.to_owned();
            kinds.push(Kind { name, types: Vec::new(), bytes: 0.0, kl_share: None });
            kinds.len() - 1
        });
        let kind = &mut kinds[at];
        kind.bytes += bytes;
        if let Some(share) = share {
            kind.kl_share = Some(kind.kl_share.unwrap_or(0.0) + share);
        }
        match kind.types.iter_mut().find(|(other, _)| other == stored) {
            Some((_, count)) => *count += 1,
            None => kind.types.push((stored.to_owned(), 1)),
        }
    }
    kinds
}

/// The name of a tensor without its block: `attn_q` of `blk.3.attn_q.weight`.
fn kind_of(name: &str) -> &str {
    let name = name.trim_end_matches(".weight");
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    let mut end = name.len();
    for part in name.rsplit('.') {
        if is_number(part) {
            return name.get(end + 1..).filter(|kind| !kind.is_empty()).unwrap_or(name);
        }
        end = end.saturating_sub(part.len() + 1);
    }
    name
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
        let mut object = json!({
            "out": self.out,
            "base": self.base,
            "calibration": self.calibration,
            "bytes": self.bytes,
            "bits_per_weight": self.bits,
            "kl": self.measured.kl,
            "same_top": self.measured.same_top,
            "num_tokens": self.measured.num_tokens,
            "is_held_out": self.is_held_out,
            "estimate": self.estimate,
            "seconds": self.seconds,
            "memory_bytes": peak_resident_bytes(),
            "stages": self.stages,
            "tensors": (0..self.tensors.len()).map(tensor).collect::<Vec<_>>(),
        });
        if let Some(ways) = &self.ways {
            object["adapter"] = json!(ways);
            object["adapter"]["better"] = ways.better().into();
        }
        output::json(&object);
    }

    fn table(&self) {
        let size = size(self.bytes, self.bits);
        let mut lines = vec![
            ("written", self.out.display().to_string()),
            ("size", size),
            ("tensors", self.of_types()),
        ];
        let kinds = self.kinds();
        lines.extend(kinds.iter().map(|kind| (kind.name.as_str(), words(kind))));
        lines.push(("compared", compared(&self.measured, self.is_held_out)));
        lines.extend(self.ways.as_ref().map(|ways| ("adapter", self.shipped(ways))));
        lines.extend(self.replaced().map(|replaced| ("replaced", replaced)));
        output::table(&lines);
    }

    /// Both ways to ship the adapter, in words.
    fn shipped(&self, ways: &Ways) -> String {
        let Ways { loss, loss_merged, difference, interval } = ways;
        let advice = match (ways.better(), interval) {
            (Some("adapter"), _) => "the adapter beside the model is better",
            (Some(_), _) => "merged is better",
            (None, Some(_)) => "neither is surely better",
            (None, None) => "too little text to say which is better",
        };
        let interval = interval
            .map_or(String::new(), |[low, high]| format!(" (95 %: {low:+.4} to {high:+.4})"));
        format!(
            "{loss:.4} nats per token beside the model ({}), {loss_merged:.4} merged ({}): \
             {difference:+.4}{interval}; {advice}",
            megabytes(self.base.bytes as f64),
            megabytes(self.bytes as f64)
        )
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

    /// Kinds of matrices with their share of the divergence, where that was predicted.
    fn kinds(&self) -> Vec<Kind> {
        let shares = self.types.shares.iter().flatten().enumerate();
        kinds(shares.filter(|(i, _)| self.tensors[*i].is_matrix()).map(|(i, share)| {
            let (kind, bytes) = self.stored(i);
            Part { name: &self.tensors[i].name, kind, bytes: bytes as f64, share: Some(*share) }
        }))
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

fn words(kind: &Kind) -> String {
    let types: Vec<String> =
        kind.types.iter().map(|(name, count)| format!("{count} in {name}")).collect();
    format!(
        "{}, {:.1} % of the divergence: {}",
        megabytes(kind.bytes),
        100.0 * kind.kl_share.unwrap_or(0.0),
        types.join(", ")
    )
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

#[cfg(test)]
mod tests {
    use super::kind_of;

    #[test]
    fn a_kind_is_a_name_without_its_block() {
        for (name, kind) in [
            ("blk.3.attn_q.weight", "attn_q"),
            ("blk.13.attn_q.bias", "attn_q.bias"),
            ("token_embd.weight", "token_embd"),
            ("model.layers.0.self_attn.q_proj.weight", "self_attn.q_proj"),
            ("model.layers.0.mlp.experts.7.down_proj", "down_proj"),
            ("7", "7"),
            ("", ""),
        ] {
            assert_eq!(kind_of(name), kind, "{name}");
        }
    }
}

//! llama.cpp's mixes: the types of `llama-quantize`, tensor by tensor.

use hone_model::{DecoderConfig, FormTensor};
use hone_tensor::{DType, Storage};

/// A mix of types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Its name here, which is llama.cpp's in small letters.
    pub name: &'static str,
    /// Its number in files (`general.file_type`).
    pub file_type: u32,
    /// The type of most tensors.
    base: &'static str,
}

const fn mix(name: &'static str, file_type: u32, base: &'static str) -> Mix {
    Mix { name, file_type, base }
}

/// All of them.
static MIXES: [Mix; 21] = [
    mix("f32", 0, "f32"),
    mix("bf16", 32, "bf16"),
    mix("f16", 1, "f16"),
    mix("q8_0", 7, "q8_0"),
    mix("q6_k", 18, "q6_k"),
    mix("q5_1", 9, "q5_1"),
    mix("q5_k_m", 17, "q5_k"),
    mix("q5_k_s", 16, "q5_k"),
    mix("q5_0", 8, "q5_0"),
    mix("q4_1", 3, "q4_1"),
    mix("q4_k_m", 15, "q4_k"),
    mix("q4_k_s", 14, "q4_k"),
    mix("q4_0", 2, "q4_0"),
    mix("iq4_nl", 25, "iq4_nl"),
    mix("iq4_xs", 30, "iq4_xs"),
    mix("mxfp4_moe", 38, "q8_0"),
    mix("q3_k_l", 13, "q3_k"),
    mix("q3_k_m", 12, "q3_k"),
    mix("q3_k_s", 11, "q3_k"),
    mix("q2_k", 10, "q2_k"),
    mix("q2_k_s", 21, "q2_k"),
];

/// What of a block a matrix is, as far as mixes tell matrices apart.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Values,
    Keys,
    Output,
    Down,
    Other,
}

/// What of a model mixes go by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    num_blocks: usize,
    /// Query heads that share keys and values.
    group: usize,
    num_experts: usize,
    /// Whether it is a Llama or Qwen2 of 80 blocks, whose values are many times used.
    is_70b: bool,
    /// Whether the importance of columns is known.
    has_importance: bool,
}

impl Facts {
    /// Those of a model of an architecture of GGUF files.
    pub fn of(config: &DecoderConfig, architecture: &str, has_importance: bool) -> Self {
        let heads = config.layers.iter().find(|layer| layer.delta.is_none());
        let heads = heads.map(|layer| layer.attention.heads);
        let experts = config.layers.iter().find_map(|layer| layer.mlp.experts.as_ref());
        let group = heads.map_or(1, |heads| heads.num_heads / heads.num_kv_heads.max(1));
        let is_kind = architecture == "qwen2" || architecture == "llama" && group > 1;
        Self {
            num_blocks: config.num_hidden_layers(),
            group,
            num_experts: experts.map_or(0, |experts| experts.router.num_experts),
            is_70b: config.num_hidden_layers() == 80 && experts.is_none() && is_kind,
            has_importance,
        }
    }
}

/// A tensor of a file.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Its name.
    pub name: &'a str,
    /// Lengths of its dimensions, slowest first.
    pub shape: &'a [usize],
    /// Whether it is a matrix, or those of all experts, which may have any type.
    pub is_matrix: bool,
}

impl<'a> From<&'a FormTensor> for Stored<'a> {
    fn from(tensor: &'a FormTensor) -> Self {
        Self { name: &tensor.name, shape: &tensor.shape, is_matrix: tensor.is_matrix() }
    }
}

impl Mix {
    /// The mix with this name, in letters of either case.
    pub fn named(name: &str) -> Option<Self> {
        MIXES.into_iter().find(|mix| mix.name.eq_ignore_ascii_case(name))
    }

    /// All names.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MIXES.iter().map(|mix| mix.name)
    }

    /// The type of each tensor; what is no matrix is in `f32`.
    pub fn types(self, facts: &Facts, tensors: &[Stored<'_>]) -> Vec<Storage> {
        let head = match tensors.iter().any(|tensor| tensor.name == HEAD) {
            true => HEAD,
            false => EMBEDDING,
        };
        let mut num_values = 0;
        let type_of = |tensor: &Stored<'_>| {
            let name = match tensor.name {
                _ if !tensor.is_matrix => "f32",
                name if name == head => self.of_head(tensor.shape),
                EMBEDDING => self.base,
                name => {
                    let (block, part) = place(name);
                    let at = if part == Part::Values { num_values } else { block };
                    num_values += usize::from(part == Part::Values);
                    match self.name {
                        "mxfp4_moe" if tensor.shape.len() == 3 => "mxfp4",
                        _ => self.of_block(part, at, facts),
                    }
                }
            };
            Storage::from_name(name).unwrap_or(DType::F32.into())
        };
        tensors.iter().map(type_of).collect()
    }

    /// The head counts for more than its share of the bytes.
    fn of_head(self, shape: &[usize]) -> &'static str {
        let cols = shape.last().copied().unwrap_or(1);
        let fits = |name| {
            Storage::from_name(name).is_some_and(|of| of.checked_num_bytes(&[1, cols]).is_ok())
        };
        match self.base {
            base @ ("f32" | "bf16" | "f16" | "q8_0") => base,
            base if !fits(base) => "q8_0",
            _ => "q6_k",
        }
    }

    /// The type of a matrix of block `i`, or of the `i`th that makes values.
    fn of_block(self, part: Part, i: usize, facts: &Facts) -> &'static str {
        let n = facts.num_blocks;
        // The first and the last eighth of the blocks, and every third between them.
        let is_sensitive = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
        let is_quantised = !matches!(self.base, "f32" | "bf16" | "f16" | "q8_0");
        if facts.num_experts == 8 && is_quantised {
            let is_low = matches!(
                self.name,
                "q2_k" | "q3_k_s" | "q3_k_m" | "q4_k_s" | "q4_k_m" | "iq4_nl" | "iq4_xs"
            );
            match part {
                Part::Values | Part::Keys => return "q8_0",
                Part::Output => return if is_low { "q5_k" } else { self.base },
                _ => {}
            }
        }
        let found = match (self.name, part) {
            ("q2_k", Part::Values) if facts.group >= 4 => "q4_k",
            ("q2_k", Part::Values | Part::Down | Part::Output) => "q3_k",
            ("q2_k_s", Part::Values) if facts.group >= 4 => "q4_k",
            ("q2_k_s", Part::Down) if i < n / 8 => "q4_k",
            ("q3_k_m", Part::Values) => {
                if i < 2 {
                    "q5_k"
                } else {
                    "q4_k"
                }
            }
            ("q3_k_m", Part::Down) => {
                if i < n / 16 {
                    "q5_k"
                } else {
                    "q4_k"
                }
            }
            ("q3_k_m", Part::Output) => "q4_k",
            ("q3_k_l", Part::Values | Part::Down | Part::Output) => "q5_k",
            ("q4_k_s", Part::Values) if i < 4 => "q5_k",
            ("q4_k_s", Part::Down) if i < n / 8 => "q5_k",
            ("q4_k_m" | "q5_k_m", Part::Values | Part::Down) if is_sensitive => "q6_k",
            ("iq4_nl" | "iq4_xs", Part::Values) if facts.group >= 4 => "q5_k",
            ("iq4_nl" | "iq4_xs", Part::Down) if i < n / 8 && !facts.has_importance => "q5_k",
            ("q4_0", Part::Down) if i < n / 8 && facts.has_importance => "q4_1",
            ("q5_0", Part::Down) if i < n / 8 && facts.has_importance => "q5_1",
            _ => self.base,
        };
        match (part, found) {
            (Part::Values, "q3_k" | "q4_k") if facts.is_70b => "q5_k",
            _ => found,
        }
    }
}

const HEAD: &str = "output.weight";
const EMBEDDING: &str = "token_embd.weight";

/// The block of a tensor, and what of it the tensor is.
fn place(name: &str) -> (usize, Part) {
    let mut parts = name.split('.').skip(1);
    let block = parts.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let part = match parts.next() {
        Some("attn_v" | "attn_qkv") => Part::Values,
        Some("attn_k") => Part::Keys,
        Some("attn_output") => Part::Output,
        Some(name) if name.starts_with("ffn_down") => Part::Down,
        _ => Part::Other,
    };
    (block, part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENSE: Facts =
        Facts { num_blocks: 22, group: 8, num_experts: 0, is_70b: false, has_importance: false };

    /// The types of a model's tensors in a mix: embedding, head, then those of each block.
    fn types(mix: &str, facts: Facts, cols: usize, is_tied: bool) -> Vec<(String, &'static str)> {
        let mut names = vec!["token_embd.weight".to_owned()];
        names.extend((!is_tied).then(|| "output.weight".to_owned()));
        let parts =
            ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"];
        let of_block = |i: usize| parts.map(|part| format!("blk.{i}.{part}.weight"));
        names.extend((0..facts.num_blocks).flat_map(of_block));
        let shape = [64, cols];
        let stored = |name| Stored { name, shape: &shape, is_matrix: !str::contains(name, "norm") };
        let tensors: Vec<Stored<'_>> = names.iter().map(|name| stored(name.as_str())).collect();
        let types = Mix::named(mix).unwrap().types(&facts, &tensors);
        names.iter().cloned().zip(types.into_iter().map(Storage::name)).collect()
    }

    /// The blocks in which a part has this type.
    fn blocks(all: &[(String, &str)], part: &str, kind: &str) -> Vec<usize> {
        let is_it = |(name, of): &&(String, &str)| name.contains(part) && *of == kind;
        let block = |(name, _): &(String, &str)| name.split('.').nth(1).unwrap().parse().unwrap();
        all.iter().filter(is_it).map(block).collect()
    }

    fn of(all: &[(String, &'static str)], name: &str) -> &'static str {
        all.iter().find(|(other, _)| other == name).unwrap().1
    }

    /// What `llama-quantize` prints for TinyLlama.
    #[test]
    fn q4_k_m_of_a_dense_model() {
        let all = types("Q4_K_M", DENSE, 2048, false);
        let sensitive = [0, 1, 4, 7, 10, 13, 16, 19, 20, 21];
        for part in ["attn_v", "ffn_down"] {
            assert_eq!(blocks(&all, part, "q6_k"), sensitive);
            assert_eq!(blocks(&all, part, "q4_k").len(), 12);
        }
        for part in ["attn_q", "attn_k", "attn_output", "ffn_up"] {
            assert_eq!(blocks(&all, part, "q4_k").len(), 22);
        }
        assert_eq!(blocks(&all, "attn_norm", "f32").len(), 22);
        assert_eq!((of(&all, "output.weight"), of(&all, "token_embd.weight")), ("q6_k", "q4_k"));
    }

    #[test]
    fn heads_and_ties() {
        let tied = |mix, cols| of(&types(mix, DENSE, cols, true), "token_embd.weight");
        assert_eq!(tied("q4_k_m", 2048), "q6_k");
        assert_eq!(tied("q4_0", 2048), "q6_k");
        assert_eq!(tied("q8_0", 2048), "q8_0");
        // Rows that are no whole blocks of the mix's own type.
        assert_eq!(tied("q4_k_m", 576), "q8_0");
        assert_eq!(tied("f16", 576), "f16");
    }

    #[test]
    fn other_mixes() {
        let all = types("q3_k_m", DENSE, 2048, false);
        assert_eq!(blocks(&all, "attn_v", "q5_k"), [0, 1]);
        assert_eq!(blocks(&all, "attn_v", "q4_k").len(), 20);
        assert_eq!(blocks(&all, "ffn_down", "q5_k"), [0]);
        assert_eq!(blocks(&all, "attn_output", "q4_k").len(), 22);
        let all = types("q2_k", DENSE, 2048, false);
        assert_eq!(blocks(&all, "attn_v", "q4_k").len(), 22);
        assert_eq!(blocks(&all, "ffn_down", "q3_k").len(), 22);
        assert_eq!(blocks(&all, "attn_q", "q2_k").len(), 22);
        let alone = Facts { group: 1, ..DENSE };
        assert_eq!(blocks(&types("q2_k", alone, 2048, false), "attn_v", "q3_k").len(), 22);
        let all = types("q4_k_s", DENSE, 2048, false);
        assert_eq!(blocks(&all, "attn_v", "q5_k"), [0, 1, 2, 3]);
        assert_eq!(blocks(&all, "ffn_down", "q5_k"), [0, 1]);
        let known = Facts { has_importance: true, ..DENSE };
        assert_eq!(blocks(&types("q4_0", known, 2048, false), "ffn_down", "q4_1"), [0, 1]);
        assert_eq!(blocks(&types("q4_0", DENSE, 2048, false), "ffn_down", "q4_1"), [0; 0]);
    }

    #[test]
    fn models_of_eight_experts_and_of_80_blocks() {
        let mixtral = Facts { num_blocks: 32, group: 4, num_experts: 8, ..DENSE };
        let all = types("q4_k_m", mixtral, 4096, false);
        for part in ["attn_v", "attn_k"] {
            assert_eq!(blocks(&all, part, "q8_0").len(), 32);
        }
        assert_eq!(blocks(&all, "attn_output", "q5_k").len(), 32);
        assert_eq!(blocks(&types("q3_k_l", mixtral, 4096, false), "attn_output", "q3_k").len(), 32);
        let large = Facts { num_blocks: 80, is_70b: true, ..DENSE };
        let all = types("q4_k_s", large, 8192, false);
        assert_eq!(blocks(&all, "attn_v", "q5_k").len(), 80);
        assert_eq!(blocks(&types("q3_k_m", large, 8192, false), "attn_v", "q5_k").len(), 80);
    }
}

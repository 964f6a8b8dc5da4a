//! How text is cut before its pieces are merged: what `tokenizer.ggml.pre` names.

use serde_json::{Value, json};

/// A way to cut text, under the names that files have for it.
pub(super) struct Splits {
    names: &'static [&'static str],
    /// Regular expressions that cut one after the other.
    patterns: &'static [&'static str],
    /// Whether each digit is cut off first.
    single_digits: bool,
    /// Whether GPT-2's own expression cuts last.
    as_gpt2: bool,
    /// Whether a piece that is a token as a whole is not merged from its parts.
    pub(super) ignores_merges: bool,
    /// Whether text is composed (Unicode's NFC) first.
    composes: bool,
    /// Whether BOS is added where the file does not say.
    pub(super) adds_bos: bool,
}

/// Text that is not cut.
pub(super) static PLAIN_TEXT: Splits = PLAIN;

const PLAIN: Splits = Splits {
    names: &[],
    patterns: &[],
    single_digits: false,
    as_gpt2: false,
    ignores_merges: false,
    composes: false,
    adds_bos: false,
};

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);
const GPT2: &str = concat!(
    r"'s",
    r"|'t",
    r"|'re",
    r"|'ve",
    r"|'m",
    r"|'ll",
    r"|'d",
    r"| ?\p{L}+",
    r"| ?\p{N}+",
    r"| ?[^\s\p{L}\p{N}]+",
    r"|\s+(?!\S)",
);
/// Letters that are upper or lower case in the version of Unicode that DeepSeek's tokenizer has.
const DEEPSEEK: &str = concat!(
    r"\s?[",
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽ",
    "Ა-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ",
    "ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗ",
    "Ａ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃",
    r"]+",
);
const CJK: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r"| ?[\p{P}\p{S}]+[\r\n]*",
    r"|\s*[\r\n]+",
    r"|\s+(?!\S)",
    r"|\s+",
);

static ALL: [Splits; 14] = [
    // What llama.cpp falls back to.
    Splits {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ..PLAIN
    },
    Splits {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "exaone4",
            "jais",
            "trillion",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
        ],
        as_gpt2: true,
        ..PLAIN
    },
    Splits {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        single_digits: true,
        as_gpt2: true,
        ..PLAIN
    },
    Splits {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        patterns: &[LLAMA3],
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    Splits { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], patterns: &[LLAMA3], ..PLAIN },
    Splits { names: &["glm4"], patterns: &[LLAMA3], ignores_merges: true, ..PLAIN },
    Splits {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "f2llmv2"],
        patterns: &[QWEN2],
        composes: true,
        ..PLAIN
    },
    Splits { names: &["qwen35"], patterns: &[QWEN35], composes: true, ..PLAIN },
    Splits {
        names: &["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"],
        patterns: &[GPT4O],
        ..PLAIN
    },
    Splits {
        names: &["tekken"],
        patterns: &[TEKKEN],
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    Splits {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            DEEPSEEK,
            "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
            r"\s+$",
            CJK,
            r"\p{N}",
        ],
        ..PLAIN
    },
    Splits {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"],
        ..PLAIN
    },
    Splits {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        ..PLAIN
    },
    Splits {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        ..PLAIN
    },
];

impl Splits {
    /// What a name stands for.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|splits| splits.has_name(name))
    }

    pub(super) fn all() -> impl Iterator<Item = &'static Self> {
        ALL.iter()
    }

    /// The name that new files have for it.
    pub(super) fn name(&self) -> &'static str {
        self.names[0]
    }

    /// Whether files may call it so.
    pub(super) fn has_name(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// All names, for messages.
    pub(super) fn names() -> String {
        ALL.iter().flat_map(|splits| splits.names).copied().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn normalizer(&self) -> Value {
        if self.composes { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The `pre_tokenizer` of a tokenizer whose pieces are bytes.
    pub(super) fn pre_tokenizer(&self) -> Value {
        let digits = json!({"type": "Digits", "individual_digits": true});
        let split = |pattern: &&str| {
            let pattern = json!({"Regex": pattern});
            json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
        };
        let mut steps: Vec<Value> = self.single_digits.then_some(digits).into_iter().collect();
        steps.extend(self.patterns.iter().map(split));
        steps.push(byte_level(self.as_gpt2));
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// The step, or the decoder, that maps bytes to the characters of tokens.
pub(super) fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

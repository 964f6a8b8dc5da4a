//! Tokenizers in GGUF files: what becomes of them as `tokenizer.json`, and what is refused.

use crate::fixture::copy_of;
use crate::gguf_files::from_directory;
use hone_model::{LlamaCppPieces, texts_of_gguf};
use hone_tensor::gguf::testing::{Meta, Writer};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn texts(tokens: &[&str]) -> Meta {
    Meta::Texts(tokens.iter().map(|token| (*token).to_owned()).collect())
}

/// A file with a tokenizer of bytes, of which it knows few.
fn bytes() -> Writer {
    let mut writer = from_directory(copy_of("tied_gqa").path());
    let tokens =
        ["<s>", "</s>", "<|turn|>", "a", "b", "1", "2", "Ġ", "ab", "Ġab", "12", "'", "s", "'s"];
    writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "gpt-2")
        .set("tokenizer.ggml.tokens", texts(&tokens))
        .set(
            "tokenizer.ggml.token_type",
            Meta::I32s([3, 3, 4].into_iter().chain([1; 11]).collect()),
        )
        .set("tokenizer.ggml.merges", texts(&["a b", "Ġ ab", "1 2", "' s"]))
        .set("tokenizer.ggml.bos_token_id", Meta::U32(0))
        .set("tokenizer.ggml.eos_token_id", Meta::U32(1))
        .set("tokenizer.ggml.eot_token_id", Meta::U32(2))
        .set("tokenizer.chat_template", "{{ messages }}");
    writer
}

/// A file with a tokenizer of SentencePiece.
fn pieces() -> Writer {
    pieces_with("tied_gqa", &[])
}

/// The same of a golden model, with marks of turns.
fn pieces_with(case: &str, marks: &[&str]) -> Writer {
    let mut writer = from_directory(copy_of(case).path());
    let tokens =
        ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA4>", "▁", "a", "b", "c", "ab", "▁a", "bc", "▁ab"];
    let tokens = [&tokens[..], marks].concat();
    let mut scores = vec![0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -0.5, -3.0];
    scores.resize(tokens.len(), 0.0);
    let mut kinds: Vec<i32> = [2, 3, 3, 6, 6].into_iter().chain([1; 8]).collect();
    kinds.resize(tokens.len(), 3);
    writer
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.tokens", texts(&tokens))
        .set("tokenizer.ggml.scores", Meta::F32s(scores))
        .set("tokenizer.ggml.token_type", Meta::I32s(kinds));
    writer
}

fn all_texts(writer: &Writer) -> Result<std::collections::BTreeMap<&'static str, String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    let path = format!("{}: ", path.display());
    texts_of_gguf(&folder.path().join("m.gguf"))
        .map_err(|error| error.to_string().replace(&path, ""))
}

fn tokenizer(writer: &Writer) -> Tokenizer {
    all_texts(writer).unwrap()["tokenizer.json"].parse().unwrap()
}

fn ids(writer: &Writer, text: &str) -> Vec<u32> {
    tokenizer(writer).encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn bytes_are_merged_between_marks() {
    let mut writer = bytes();
    assert_eq!(ids(&writer, "ab ab's12"), [8, 9, 13, 10]);
    assert_eq!(ids(&writer, "<|turn|>a</s>b"), [2, 3, 1, 4]);
    assert_eq!(tokenizer(&writer).decode(&[2, 8, 9, 1], false).unwrap(), "<|turn|>ab ab</s>");
    assert_eq!(tokenizer(&writer).decode(&[2, 8, 9, 1], true).unwrap(), "ab ab");
    writer.set("tokenizer.ggml.add_bos_token", Meta::Bool(true));
    writer.set("tokenizer.ggml.add_eos_token", Meta::Bool(true));
    assert_eq!(ids(&writer, "ab"), [0, 8, 1]);
    writer.set("tokenizer.ggml.pre", "smollm");
    assert_eq!(ids(&writer, "ab12"), [0, 8, 5, 6, 1]);
}

/// Every name gives a tokenizer that cuts as its vocabulary was made for.
#[test]
fn text_is_cut_as_the_file_names_it() {
    let cut = |pre: &str| {
        let mut writer = bytes();
        writer.set("tokenizer.ggml.pre", pre);
        let tokenizer = tokenizer(&writer);
        let mut text = "I'LL don't   12345 x?!\n\nÄa".into();
        tokenizers::PreTokenizer::pre_tokenize(tokenizer.get_pre_tokenizer().unwrap(), &mut text)
            .unwrap();
        let kind = (tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        let pieces = text.get_splits(kind.0, kind.1);
        let pieces: Vec<&str> = pieces.into_iter().map(|(piece, ..)| piece).collect();
        pieces.join("|")
    };
    let gpt2 = "I|'|LL|Ġdon|'t|ĠĠ|Ġ12345|Ġx|?!|Ċ|Ċ|ÃĦa";
    let digits = "I|'|LL|Ġdon|'t|ĠĠĠ|1|2|3|4|5|Ġx|?!|Ċ|Ċ|ÃĦa";
    let llama3 = "I|'LL|Ġdon|'t|ĠĠ|Ġ|123|45|Ġx|?!ĊĊ|ÃĦa";
    let qwen2 = "I|'LL|Ġdon|'t|ĠĠ|Ġ|1|2|3|4|5|Ġx|?!ĊĊ|ÃĦa";
    let gpt4o = "I'LL|Ġdon't|ĠĠ|Ġ|123|45|Ġx|?!ĊĊ|ÃĦa";
    let tekken = "I|'LL|Ġdon|'t|ĠĠ|Ġ|1|2|3|4|5|Ġx|?!ĊĊ|ÃĦa";
    for (pre, pieces) in [
        ("default", "I|'|LL|Ġdon|'|t|ĠĠ|Ġ|123|45|Ġx|?!|Ċ|Ċ|ÃĦa"),
        ("gpt-2", gpt2),
        ("olmo", gpt2),
        ("smollm", digits),
        ("refact", digits),
        ("llama-bpe", llama3),
        ("dbrx", llama3),
        ("qwen2", qwen2),
        ("qwen35", qwen2),
        ("gpt-4o", gpt4o),
        ("tekken", tekken),
        ("falcon", "I|'|LL|Ġdon|'|t|ĠĠ|Ġ|123|45|Ġx|?!|Ċ|Ċ|ÃĦa"),
        // Its punctuation has the letters of ASCII too, and cuts words again.
        ("deepseek-llm", "I|'|LL|Ġdon|'|t|ĠĠĠ|1|2|3|4|5|Ġx|?!|Ċ|Ċ|ÃĦ|a"),
        ("deepseek-coder", "I|'|LL|Ġdon|'|t|ĠĠĠ|1|2|3|4|5|Ġx|?!|Ċ|Ċ|ÃĦa"),
        ("deepseek-v3", "I|'LL|Ġdon|'t|ĠĠĠ|123|45|Ġx|?!ĊĊ|ÃĦa"),
    ] {
        assert_eq!(cut(pre), pieces, "{pre}");
    }
}

#[test]
fn pieces_are_merged_by_their_scores() {
    let mut writer = pieces();
    // The space before the text and BOS are what files without a word on it mean.
    assert_eq!(ids(&writer, "ab"), [1, 12]);
    assert_eq!(ids(&writer, "abc ab"), [1, 10, 11, 12]);
    assert_eq!(ids(&writer, "ä"), [1, 5, 3, 4]);
    assert_eq!(ids(&writer, "a</s>"), [1, 10, 2]);
    assert_eq!(tokenizer(&writer).decode(&[12, 5, 3, 4], false).unwrap(), "ab ä");
    writer.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    writer.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    assert_eq!(ids(&writer, "ab ab"), [9, 12]);
    writer.set("tokenizer.ggml.merges", texts(&["▁ a", "▁a b"]));
    assert_eq!(ids(&writer, "ab ab"), [6, 7, 12]);
}

/// Gemma 4's, of merges that the file gives: BOS is added whatever it says, and no space.
#[test]
fn pieces_are_merged_by_the_merges_of_gemma() {
    let mut writer = pieces();
    writer.set("tokenizer.ggml.model", "gemma4").set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    writer.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    writer.set("tokenizer.ggml.merges", texts(&["▁ a", "▁a b"]));
    assert_eq!(ids(&writer, "ab abc"), [1, 6, 7, 12, 8]);
    assert_eq!(ids(&writer, "ä"), [1, 3, 4]);
    writer.keys.retain(|(key, _)| key != "tokenizer.ggml.merges");
    let found = all_texts(&writer).unwrap_err();
    assert_eq!(found, "`tokenizer.ggml.merges` is missing: fetch the model again");
}

/// llama.cpp's own search comes to the same, unless all scores are alike: then the left-most pair
/// is joined first.
#[test]
fn pieces_are_joined_as_by_llama_cpp() {
    let read = |writer: &Writer, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, writer.bytes()).unwrap();
        LlamaCppPieces::read(&path).unwrap().map(|pieces| pieces.encode(text))
    };
    let mut writer = pieces();
    for text in ["ab", "abc ab", " ab", "", "ä", "a</s>ab ab", "<s>ab", "abcabcab  bcbc\n", "caabé"]
    {
        if text.contains(['\n', 'é']) {
            // Bytes that this vocabulary has no token for.
            assert!(read(&writer, text).unwrap().contains(&0), "{text:?}");
            continue;
        }
        assert_eq!(read(&writer, text), Some(ids(&writer, text)), "{text:?}");
    }
    assert_eq!(read(&writer, "abc"), Some(vec![1, 10, 11]));
    writer.set("tokenizer.ggml.scores", Meta::F32s(vec![0.0; 13]));
    assert_eq!(read(&writer, "abc"), Some(vec![1, 12, 8]));
    writer.set("tokenizer.ggml.add_space_prefix", Meta::Bool(false));
    writer.set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    writer.set("tokenizer.ggml.add_eos_token", Meta::Bool(true));
    assert_eq!(read(&writer, "abc"), Some(vec![9, 8, 2]));
    assert_eq!(read(&bytes(), "ab"), None);
    // As models that call themselves Phi-3 have it.
    let mut writer = pieces_with("phi3", &["<|user|>"]);
    assert_eq!(read(&writer, "<|user|>\n ab"), Some(vec![1, 13, 5, 0, 12]));
    writer.set("general.name", "Phi-3 mini");
    assert_eq!(read(&writer, "<|user|>\n ab"), Some(vec![1, 13, 12]));
}

/// As by llama.cpp and the Hub's tokenizers of Llama 2, Mistral 7B and Mixtral: every text between
/// marks has a space before it, and so has one that begins with a space.
#[test]
fn each_text_begins_with_a_space() {
    let writer = pieces();
    let cases: [(&str, &[u32]); 6] = [
        ("", &[1]),
        ("ab", &[1, 12]),
        (" ab", &[1, 5, 12]),
        ("<s>ab", &[1, 1, 12]),
        ("<s> ab", &[1, 1, 5, 12]),
        ("a</s>ab ab", &[1, 10, 2, 12, 12]),
    ];
    for (text, expected) in cases {
        assert_eq!(ids(&writer, text), expected, "{text:?}");
    }
}

/// Mistral's templates put the space after `[INST]` themselves where it is a token of its own.
#[test]
fn marks_of_mistral_have_no_space_after_them() {
    let writer = pieces_with("tied_gqa", &["[INST]", "[/INST]"]);
    assert_eq!(ids(&writer, "ab"), [1, 12]);
    assert_eq!(ids(&writer, "[INST] ab[/INST] a</s>ab"), [1, 13, 12, 14, 10, 2, 9]);
}

/// By llama.cpp and the Hub's tokenizer of Phi-3.
#[test]
fn marks_of_phi_take_the_whitespace_after_them() {
    let marks = ["<|user|>", "<|end|>", "<|endoftext|>"];
    let text = "<s> ab<|user|>\n ab<|end|>\n<|endoftext|> ab</s> ab";
    let writer = pieces_with("phi3", &marks);
    assert_eq!(ids(&writer, text), [1, 1, 5, 12, 13, 12, 14, 15, 5, 12, 2, 12]);
    // Those of Phi-3 alone.
    let writer = pieces_with("tied_gqa", &marks);
    assert_eq!(ids(&writer, "<|user|> ab"), [1, 13, 5, 12]);
}

/// Where no merges lead to a token that a piece is as a whole, as to some Chinese words of GLM-4.
#[test]
fn pieces_that_are_tokens() {
    let mut writer = bytes();
    let tokens = ["a", "b", "ab", "aba"];
    writer
        .set("tokenizer.ggml.tokens", texts(&tokens))
        .set("tokenizer.ggml.token_type", Meta::I32s(vec![1; tokens.len()]))
        .set("tokenizer.ggml.merges", texts(&["a b"]))
        .set("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    writer.keys.retain(|(key, _)| !key.ends_with("_token_id"));
    let taken_whole = ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken", "glm4"];
    let merged = ["chatglm-bpe", "dbrx", "default", "gpt-2", "gpt-4o", "qwen2", "qwen35", "smollm"];
    for (names, expected) in [(&taken_whole[..], &[3][..]), (&merged[..], &[2, 0][..])] {
        for name in names {
            writer.set("tokenizer.ggml.pre", *name);
            assert_eq!(ids(&writer, "aba"), expected, "{name}");
        }
    }
}

#[test]
fn settings_go_along() {
    let mut writer = bytes();
    writer.set("tokenizer.ggml.add_bos_token", Meta::Bool(true));
    let texts = all_texts(&writer).unwrap();
    let json = |name: &str| serde_json::from_str::<Value>(&texts[name]).unwrap();
    let config = json("tokenizer_config.json");
    for (key, value) in [
        ("bos_token", json!("<s>")),
        ("eos_token", json!("</s>")),
        ("add_bos_token", json!(true)),
        ("add_eos_token", json!(false)),
        ("chat_template", json!("{{ messages }}")),
        ("model_max_length", json!(64)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(json("generation_config.json"), json!({"bos_token_id": 0, "eos_token_id": [1, 2]}));
    assert_eq!(json("config.json")["eos_token_id"], json!([1, 2]));
    writer.set("tokenizer.chat_template.tool_use", "{{ tools }}");
    writer.set("tokenizer.chat_templates", self::texts(&["tool_use"]));
    let config = all_texts(&writer).unwrap().remove("tokenizer_config.json").unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let named = |name, template| json!({"name": name, "template": template});
    assert_eq!(
        config["chat_template"],
        json!([named("default", "{{ messages }}"), named("tool_use", "{{ tools }}")])
    );
    writer.keys.retain(|(key, _)| key != "tokenizer.ggml.model");
    assert!(!all_texts(&writer).unwrap().contains_key("tokenizer.json"));
}

type Change = fn(&mut Writer);

#[test]
fn unusable_tokenizers() {
    let cases: [(Change, &str); 9] = [
        (
            |w| set(w, "tokenizer.ggml.model", "bert".into()),
            "`tokenizer.ggml.model` is `bert`, and only `gpt2`, `llama` and `gemma4` are read:",
        ),
        (
            |w| set(w, "tokenizer.ggml.pre", "spiral".into()),
            "`tokenizer.ggml.pre` is `spiral`, which is not known: give the model's directory in",
        ),
        (
            |w| set(w, "tokenizer.ggml.tokens", Meta::U32(3)),
            "`tokenizer.ggml.tokens` must be a list, found 3",
        ),
        (
            |w| set(w, "tokenizer.ggml.tokens", texts(&["a"])),
            "`tokenizer.ggml.token_type` has 14 entries for 1 tokens",
        ),
        (
            |w| set(w, "tokenizer.ggml.tokens", texts(&["x".repeat(5000).as_str(); 14])),
            "`tokenizer.ggml.tokens` has a token of more than 4096 bytes, 0",
        ),
        (
            |w| set(w, "tokenizer.ggml.merges", texts(&["a b", "ab"])),
            "`tokenizer.ggml.merges` has an entry, 1, that is not two pieces with a space",
        ),
        (
            |w| w.keys.retain(|(key, _)| key != "tokenizer.ggml.merges"),
            "`tokenizer.ggml.merges` is missing: fetch the model again",
        ),
        (
            |w| set(w, "tokenizer.ggml.eos_token_id", Meta::U32(14)),
            "`tokenizer.ggml.eos_token_id` is 14, and there are only 14 tokens",
        ),
        (
            |w| set(w, "tokenizer.ggml.add_bos_token", Meta::U32(1)),
            "`tokenizer.ggml.add_bos_token` must be true or false, found 1",
        ),
    ];
    for (change, says) in cases {
        let mut writer = bytes();
        change(&mut writer);
        let found = all_texts(&writer).expect_err(says);
        assert!(found.starts_with(says), "{found:?} is not {says:?}");
    }
    let mut writer = pieces();
    writer.keys.retain(|(key, _)| key != "tokenizer.ggml.scores");
    let found = all_texts(&writer).unwrap_err();
    assert_eq!(found, "`tokenizer.ggml.scores` is missing: fetch the model again");
}

fn set(writer: &mut Writer, key: &str, value: Meta) {
    writer.set(key, value);
}

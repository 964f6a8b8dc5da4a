//! A byte-level tokenizer made on the spot: token id = byte value, then the special tokens.

use hone_data::{DataError, Dataset, RecordSpec, Setting, Tokenizer, load};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub const BOS: u32 = 256;
pub const EOS: u32 = 257;
pub const IM_START: u32 = 258;
pub const IM_END: u32 = 259;

/// The usual ChatML template; its spans are found, not marked.
pub const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A front end that calls settings as the code does.
pub fn words(setting: Setting) -> Option<String> {
    Some(format!("<{setting:?}>"))
}

/// A folder with data files and a tokenizer.
pub struct Fixture {
    dir: tempfile::TempDir,
    pub tokenizer: Tokenizer,
}

impl Fixture {
    pub fn new(config: Value) -> Self {
        Self::of(&tokenizer_json(), &config)
    }

    fn of(tokenizer: &Value, config: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        Self { dir, tokenizer }
    }

    /// BOS and EOS, no chat template.
    pub fn plain() -> Self {
        Self::new(json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    }

    /// The same, with both around every text, as encoders have it.
    pub fn framed() -> Self {
        let mut tokenizer = tokenizer_json();
        let template = &mut tokenizer["post_processor"]["processors"][1];
        let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        template["single"].as_array_mut().unwrap().push(end);
        template["special_tokens"]["</s>"] =
            json!({"id": "</s>", "ids": [257], "tokens": ["</s>"]});
        Self::of(&tokenizer, &json!({"bos_token": "<s>", "eos_token": "</s>"}))
    }

    pub fn chat(template: &str) -> Self {
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
        Self::new(config)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Writes a file and loads it.
    pub fn load(
        &self,
        name: &str,
        text: impl AsRef<[u8]>,
        spec: &RecordSpec,
    ) -> Result<Dataset, DataError> {
        let path = self.write(name, text).display().to_string();
        load(&[path], spec, &self.tokenizer, 2)
    }

    /// The error of loading a file, without the folder's name.
    pub fn error(&self, name: &str, text: impl AsRef<[u8]>, spec: &RecordSpec) -> String {
        let error = self.load(name, text, spec).expect_err("an error is expected").message(words);
        error.replace(&format!("{}/", self.dir.path().display()), "")
    }

    /// Text of the row's targets, special tokens included.
    pub fn target_text(&self, dataset: &Dataset, row: usize) -> String {
        let row = dataset.row(row);
        let pairs = row.tokens.iter().zip(row.is_target);
        let ids = pairs.filter_map(|(id, is)| is.then_some(*id)).collect::<Vec<_>>();
        self.tokenizer.decode(&ids, false).unwrap()
    }

    pub fn row_text(&self, dataset: &Dataset, row: usize) -> String {
        self.tokenizer.decode(dataset.row(row).tokens, false).unwrap()
    }
}

fn tokenizer_json() -> Value {
    let mut vocab = Map::new();
    let mut others = 256;
    for byte in 0..256u32 {
        // GPT-2's printable stand-ins for bytes.
        let is_printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if is_printable { byte } else { others };
        others += u32::from(!is_printable);
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let added = special.iter().zip(256..).map(|(content, id)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true})
    });
    json!({
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0,
            "direction": "Right"},
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true},
            {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []}
    })
}

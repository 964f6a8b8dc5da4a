//! Writes GGUF files, and checks that texts become the same tokens with them.

use super::super::Opened;
use crate::failure::Failure;
use hone_data::Tokenizer;
use hone_data::chat::Conversation;
use hone_model::{ExportError, GgufExportError, GgufForm, ModelTexts};
use hone_tensor::Storage;
use hone_train::setup::tokenizer_of;
use hone_train::{Code, TrainError};
use serde_json::json;
use std::path::Path;

/// Texts that tokenizers are known to disagree on: scripts, accents composed and not, emoji,
/// digits, code, blanks.
const TEXTS: [&str; 12] = [
    "Hello, world! It's 3.14, isn't it? We'LL see.",
    "  two leading blanks, a tab\tand three trailing   ",
    "line\n\nbreaks\r\n\n\n and\n  indents\n\t\tmore",
    "1 22 333 4444 55555 1234567890 3.3..3 1,000,000",
    "fn main() { let x = \"a\\nb\"; println!(\"{x:>8}\"); } // => !=",
    "naïve café, nai\u{308}ve cafe\u{301}, Straße, ﬁne, Ⅷ, ½",
    "Приветствую! Γειά σου Κόσμε, שלום עולם, مرحبا بالعالم",
    "你好，世界。こんにちは世界！안녕하세요 세계",
    "नमस्ते दुनिया สวัสดีชาวโลก កាន់តែពិសេស",
    "👍🏽 👩‍👩‍👧‍👦 🇪🇺 🚀🚀🚀 ✅ \u{200b}zero\u{200d}width\u{feff}",
    "",
    " ",
];

/// The form of a model with its adapter merged.
pub(in super::super) fn form(opened: &Opened) -> Result<GgufForm<'_>, Failure> {
    let Opened { model, tokenizer, dir, .. } = opened;
    let form = || {
        let mut form = GgufForm::of(model, &ModelTexts::read(dir)?)?;
        let name = dir.file_stem().unwrap_or_default().to_string_lossy();
        form.set_name(&name);
        // A model that was not tuned keeps the stop tokens that it was published with.
        if let Some(id) = tokenizer.turn_end_id().filter(|_| super::is_adapted(model)) {
            form.end_turns_with(id);
        }
        Ok(form)
    };
    form().map_err(failure)
}

/// Writes the form, and compares tokenizer and chat template.
pub(in super::super) fn write(
    opened: &Opened,
    form: &GgufForm<'_>,
    storages: &[Storage],
    out: &Path,
) -> Result<(), Failure> {
    form.write(&opened.device, storages, out).map_err(failure)?;
    same_tokens(&opened.tokenizer, &tokenizer_of(out)?)
}

fn failure(error: GgufExportError) -> Failure {
    match error {
        GgufExportError::ModelType(_)
        | GgufExportError::Setting(_)
        | GgufExportError::Tokenizer(_)
        | GgufExportError::Unwritable(_) => {
            TrainError::Usage(Code::ExportFailed, error.to_string()).into()
        }
        other => TrainError::from(ExportError::from(other)).into(),
    }
}

/// Refuses a file whose tokenizer or template does not do what the model's own does.
fn same_tokens(own: &Tokenizer, written: &Tokenizer) -> Result<(), Failure> {
    let refused = |what: String| {
        let message = format!(
            "{what}, so nothing was written: other programs would give the model other tokens. \
             Write it in Hugging Face layout (--format hf)"
        );
        Failure::from(TrainError::Usage(Code::ExportFailed, message))
    };
    let marked: Vec<String> = own
        .special_token_ids()
        .into_iter()
        .filter_map(|id| own.decode(&[id], false).ok())
        .map(|token| format!("a{token} b {token}{token}c"))
        .collect();
    for text in TEXTS.into_iter().chain(marked.iter().map(String::as_str)) {
        if own.encode(text, true)? != written.encode(text, true)? {
            return Err(refused(format!(
                "with the tokenizer as a GGUF file has it, {text:?} becomes other tokens"
            )));
        }
    }
    let (own, written) = (own.chat_template(), written.chat_template());
    let conversations = [
        json!([{"role": "user", "content": "Hi"}]),
        json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": " 2 + 2?\n"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 👍?"},
        ]),
    ];
    for messages in conversations {
        let messages = messages.as_array().cloned().unwrap_or_default();
        let conversation = Conversation { messages, tools: None };
        let rendered = [own, written].map(|template| {
            template.and_then(|template| template.render(&conversation, true).ok())
        });
        if rendered[0] != rendered[1] {
            return Err(refused("the chat template renders otherwise from the file".to_owned()));
        }
    }
    Ok(())
}

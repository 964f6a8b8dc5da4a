//! Writes GGUF files, and checks that texts become the same tokens with them.

use super::super::Opened;
use super::card::Card;
use crate::failure::Failure;
use hone_compress::{Columns, ReadBack, read_back};
use hone_data::Tokenizer;
use hone_data::chat::Conversation;
use hone_model::{
    ExportError, FINGERPRINT_TEXT, GgufExportError, GgufForm, Importance, LlamaCppPieces,
    LoadOptions, ModelTexts,
};
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
pub(in super::super) fn form<'a>(opened: &'a Opened, card: &Card) -> Result<GgufForm<'a>, Failure> {
    let Opened { model, tokenizer, dir, .. } = opened;
    let fingerprint = tokenizer.encode(FINGERPRINT_TEXT, true)?;
    let form = || {
        let texts = ModelTexts { fingerprint: fingerprint.clone(), ..ModelTexts::read(dir)? };
        let mut form = GgufForm::of(model, &texts)?;
        let name = dir.file_stem().unwrap_or_default().to_string_lossy();
        form.set_name(&name);
        card.metadata().into_iter().for_each(|(key, value)| form.set(&key, value));
        // A model that was not tuned keeps the stop tokens that it was published with.
        if let Some(id) = tokenizer.turn_end_id().filter(|_| super::is_adapted(model)) {
            form.end_turns_with(id);
        }
        Ok(form)
    };
    form().map_err(failure)
}

/// Writes the form, after so many tensors that are there. `done` is told how many tensors there are
/// after each.
pub(in super::super) fn write(
    opened: &Opened,
    form: &GgufForm<'_>,
    types: (&[Storage], Importance<'_>),
    (out, first): (&Path, usize),
    done: &mut dyn FnMut(usize),
) -> Result<(), Failure> {
    form.write_from(&opened.device, types, (out, first), done).map_err(failure)
}

/// Reads the file that was written of `written` in these types back, and refuses it if a tensor is
/// not what was meant. The one that is furthest from that of `form`, and how much of its squares.
pub(in super::super) fn same_weights(
    opened: &Opened,
    [form, written]: [&GgufForm<'_>; 2],
    types: (&[Storage], &Columns),
    out: &Path,
) -> Result<Option<(String, f64)>, Failure> {
    let found = hone_model::load(out, &opened.device, LoadOptions::INFERENCE)?;
    let forms = [form, written, &form.with_model(&found)];
    let ReadBack { differs, worst } = read_back(&opened.device, forms, types)?;
    match differs {
        None => Ok(worst),
        Some(tensor) => {
            let message = format!(
                "`{tensor}` is not read back as it was written, so nothing was; please report this \
                 as a bug in Hone"
            );
            Err(TrainError::Usage(Code::ExportFailed, message).into())
        }
    }
}

/// Compares tokenizer and chat template of a file with the model's own.
pub(in super::super) fn check(opened: &Opened, out: &Path) -> Result<(), Failure> {
    let texts = ModelTexts::read(&opened.dir).map_err(failure)?;
    same_tokens(&opened.tokenizer, &texts, out)
}

pub(in super::super) fn failure(error: GgufExportError) -> Failure {
    match error {
        GgufExportError::ModelType(_)
        | GgufExportError::Setting(_)
        | GgufExportError::Tokenizer(_)
        | GgufExportError::NoArchitecture
        | GgufExportError::Part(_)
        | GgufExportError::NotFinite(_)
        | GgufExportError::Unwritable(_) => {
            TrainError::Usage(Code::ExportFailed, error.to_string()).into()
        }
        other => TrainError::from(ExportError::from(other)).into(),
    }
}

/// Refuses a file whose tokenizer or templates do not do what the model's own do.
fn same_tokens(own: &Tokenizer, texts: &ModelTexts, out: &Path) -> Result<(), Failure> {
    let refused = |what: String| {
        let message = format!(
            "{what}, so nothing was written: other programs would give the model other tokens. \
             Write it in Hugging Face layout (--format hf)"
        );
        Failure::from(TrainError::Usage(Code::ExportFailed, message))
    };
    let written = &tokenizer_of(out)?;
    let pieces = LlamaCppPieces::read(out).map_err(|error| failure(error.into()))?;
    let marked: Vec<String> = own
        .special_token_ids()
        .into_iter()
        .filter_map(|id| own.decode(&[id], false).ok())
        .map(|token| format!("a{token} b {token}{token}c"))
        .collect();
    let built_in = TEXTS.into_iter().chain([FINGERPRINT_TEXT]);
    let is_other =
        |text: &str, ids: &[u32]| pieces.as_ref().is_some_and(|pieces| pieces.encode(text) != ids);
    let mut other_marks = 0;
    for (text, has_mark) in
        built_in.map(|text| (text, false)).chain(marked.iter().map(|text| (text.as_str(), true)))
    {
        let ids = own.encode(text, true)?;
        if ids != written.encode(text, true)? {
            return Err(refused(format!(
                "with the tokenizer as a GGUF file has it, {text:?} becomes other tokens"
            )));
        }
        match is_other(text, &ids) {
            true if has_mark => other_marks += 1,
            true => {
                return Err(refused(format!(
                    "with the scores that a GGUF file has of tokens, llama.cpp makes other ones \
                     of {text:?}"
                )));
            }
            false => {}
        }
    }
    if other_marks > 0 {
        super::super::print_note(format!(
            "next to {other_marks} of {} special tokens llama.cpp keeps or adds blanks that the \
             model's tokenizer does not, which no setting of the format changes; a conversation \
             may begin its turns with another token there",
            marked.len()
        ));
    }
    let templates = ModelTexts::read(out).map_err(failure)?.templates();
    if templates != texts.templates() {
        return Err(refused("the chat templates are read otherwise from the file".to_owned()));
    }
    let (own, written) = (own.chat_template(), written.chat_template());
    for conversation in conversations() {
        for prompts in [true, false] {
            let [own, written] = [own, written]
                .map(|of| of.and_then(|template| template.render(&conversation, prompts).ok()));
            if own != written {
                return Err(refused(
                    "the chat template renders otherwise from the file".to_owned(),
                ));
            }
        }
    }
    Ok(())
}

/// What templates are compared on: turns, a system's word, tools and calls of them.
fn conversations() -> Vec<Conversation> {
    let tools = json!([{"type": "function", "function": {
        "name": "weather",
        "description": "Says what the weather is like.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "A town."}},
            "required": ["place"],
        },
    }}]);
    let call = json!({"type": "function", "id": "call00001", "function": {
        "name": "weather",
        "arguments": {"place": "Zürich"},
    }});
    let asked = json!({"role": "user", "content": "Is it raining?"});
    [
        (json!([{"role": "user", "content": "Hi"}]), None),
        (
            json!([
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": " 2 + 2?\n"},
                {"role": "assistant", "content": "4"},
                {"role": "user", "content": "And 👍?"},
            ]),
            None,
        ),
        (json!([asked.clone()]), Some(tools.clone())),
        (
            json!([
                asked,
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "Yes."},
            ]),
            Some(tools),
        ),
    ]
    .into_iter()
    .map(|(messages, tools)| {
        let messages = messages.as_array().cloned().unwrap_or_default();
        Conversation { messages, tools }
    })
    .collect()
}

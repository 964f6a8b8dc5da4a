//! `hone generate`

use super::Opened;
use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::output;
use hone_data::chat::Conversation;
use hone_model::generate::{Finish, GenerateOptions, Sampling, generate};
use serde_json::json;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Instant;

/// Continues the prompt, printing text as it comes.
pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let opened = super::open(&args.model, super::Purpose::Compute)?;
    let prompt = prompt_tokens(args, &opened)?;
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        },
        stop_ids: opened.model.decoder.config.stop_ids(opened.tokenizer.stop_token_ids()),
        compute: opened.compute,
    };
    let mut stream = opened.tokenizer.decode_stream(&prompt, true);
    let mut text = String::new();
    let mut failure = None;
    let begun = Instant::now();
    let (tokens, finish) =
        generate(&opened.model, &opened.device, &prompt, &options, &mut |token| match stream
            .push(token)
        {
            Ok(piece) => show(args, &mut text, &piece),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        });
    if let Some(error) = failure {
        return Err(error.into());
    }
    let _ = show(args, &mut text, &stream.finish()?);
    let tokens_per_second = tokens.len() as f64 / begun.elapsed().as_secs_f64();
    if args.json {
        output::json(&json!({
            "text": text,
            "tokens": tokens.len(),
            "tokens_per_second": tokens_per_second,
            "finish_reason": finish_reason(finish),
        }));
        return Ok(());
    }
    if std::io::stdout().is_terminal() {
        output::line("");
    }
    output::note(&format!("{} tokens, {tokens_per_second:.0} tokens/s", tokens.len()));
    if finish == Finish::Context {
        output::note("note: the model's longest sequence is reached");
    }
    Ok(())
}

/// Prints a piece of text, unless a JSON object will hold it all.
fn show(args: &GenerateArgs, text: &mut String, piece: &str) -> ControlFlow<()> {
    text.push_str(piece);
    match args.json {
        true => ControlFlow::Continue(()),
        false => output::piece(piece),
    }
}

fn prompt_tokens(args: &GenerateArgs, opened: &Opened) -> Result<Vec<u32>, Failure> {
    let tokens = match args.chat {
        false => opened.tokenizer.encode(&args.prompt, true)?,
        true => {
            let template = opened.tokenizer.chat_template().ok_or_else(|| {
                Failure::Usage("--chat: this model has no chat template; leave --chat out".into())
            })?;
            let message = json!({ "role": "user", "content": args.prompt });
            let conversation = Conversation { messages: vec![message], tools: None };
            let text = template
                .render(&conversation, true)
                .map_err(|error| Failure::Usage(format!("--chat: {error}")))?;
            opened.tokenizer.encode(&text, false)?
        }
    };
    let knows = opened.model.decoder.config.vocab_size;
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= knows) {
        return Err(Failure::Usage(format!(
            "--prompt holds token id {id}, but the model knows only {knows} tokens (vocab_size in \
             config.json): leave that token out"
        )));
    }
    let longest = opened.model.decoder.config.max_position_embeddings;
    if tokens.is_empty() {
        return Err(Failure::Usage(
            "--prompt is empty and this tokenizer puts no token before a text; give some text"
                .into(),
        ));
    }
    if tokens.len() >= longest {
        return Err(Failure::Usage(format!(
            "--prompt has {} tokens, and the model was made for {longest} in all; shorten it",
            tokens.len()
        )));
    }
    Ok(tokens)
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Context => "length",
        Finish::Caller => "cancelled",
    }
}

//! `hone generate`

use super::Described;
use crate::args::GenerateArgs;
use crate::failure::Failure;
use crate::output;
use hone_data::chat::Conversation;
use hone_model::generate::{Answer, Finish, GenerateError, Request, Sampling, generate};
use hone_train::report::format_rate;
use hone_train::setup::check_prompt;
use serde_json::json;
use std::ops::ControlFlow;
use std::time::Instant;

/// Continues the prompt, streaming the text.
pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let text = prompt_text(args)?;
    let described = super::describe(&args.model, super::Purpose::Compute)?;
    if let Some(layer) = described.config().looks_ahead() {
        return Err(Failure::Usage(GenerateError::LooksAhead { layer }.to_string()));
    }
    described.predicts_tokens(&args.model)?;
    let request = request(args, &described, &text)?;
    let opened = described.load()?;
    let mut stream = opened.tokenizer.decode_stream(&request.prompt, true);
    let mut text = String::new();
    let mut failure = None;
    let begun = Instant::now();
    let answer = generate(opened.pass(), request, &mut |token| match stream.push(token) {
        Ok(piece) => show(args, &mut text, &piece),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    });
    if !args.json && (answer.is_err() || failure.is_some()) && !text.is_empty() {
        output::line("");
    }
    let Answer { tokens, finish } = answer?;
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
    // In a pipe too, so that later output starts on a new line.
    if !text.ends_with('\n') {
        output::line("");
    }
    output::note(&format!("{} tokens, {} tokens/s", tokens.len(), format_rate(tokens_per_second)));
    if finish == Finish::Context {
        output::note("note: stopped at the model's maximum sequence length");
    }
    if tokens.is_empty() && !args.chat && opened.tokenizer.chat_template().is_some() {
        output::note(
            "note: the model ended at once. It has a chat template: ask a model that was trained \
             on conversations with --chat",
        );
    }
    Ok(())
}

fn request(args: &GenerateArgs, described: &Described, text: &str) -> Result<Request, Failure> {
    let mut stop_ids = described.config().stop_ids(described.tokenizer.stop_token_ids());
    if args.chat {
        stop_ids.extend(described.tokenizer.turn_end_id());
    }
    Ok(Request {
        id: 0,
        prompt: prompt_tokens(args, described, text)?,
        max_new_tokens: args.max_new_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        },
        stop_ids,
    })
}

/// The prompt from the command line, or from a file or standard input without its final newline.
fn prompt_text(args: &GenerateArgs) -> Result<String, Failure> {
    let Some(path) = &args.prompt_file else { return Ok(args.prompt.clone().unwrap_or_default()) };
    let read = match path.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(path),
    };
    let mut text = read.map_err(|error| {
        let path = path.display();
        Failure::Usage(format!(
            "--prompt-file {path}: {error}; name a text file, or - for standard input"
        ))
    })?;
    let end = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text).len());
    text.truncate(end.unwrap_or(text.len()));
    Ok(text)
}

/// Prints a piece of text, unless all of it goes into a JSON object.
fn show(args: &GenerateArgs, text: &mut String, piece: &str) -> ControlFlow<()> {
    text.push_str(piece);
    match args.json {
        true => ControlFlow::Continue(()),
        false => output::piece(piece),
    }
}

fn prompt_tokens(
    args: &GenerateArgs,
    described: &Described,
    text: &str,
) -> Result<Vec<u32>, Failure> {
    let mut tokens = match args.chat {
        false => described.tokenizer.encode(text, true)?,
        true => {
            let template = described.tokenizer.chat_template().ok_or_else(|| {
                Failure::Usage("--chat: this model has no chat template; omit --chat".into())
            })?;
            let system = args.system.iter().map(|text| ("system", text.as_str()));
            let messages = system.chain([("user", text)]);
            let message = |(role, content)| json!({ "role": role, "content": content });
            let messages = messages.map(message).collect();
            let conversation = Conversation { messages, tools: None };
            let text = template
                .render(&conversation, true)
                .map_err(|fault| Failure::Usage(format!("--chat: {}", fault.message(|_| None))))?;
            described.tokenizer.encode(&text, false)?
        }
    };
    // Some tokenizers append EOS, after which the answer would be a new text.
    let is_text = !args.chat && tokens.len() > 1;
    if is_text && tokens.last().copied() == described.tokenizer.eos_token_id() {
        tokens.pop();
    }
    check_prompt(&tokens, described.config())?;
    let longest = described.config().max_position_embeddings;
    if tokens.is_empty() {
        return Err(Failure::Usage(
            "--prompt is empty and this tokenizer adds no BOS token; give some text".into(),
        ));
    }
    if tokens.len() >= longest {
        return Err(Failure::Usage(format!(
            "--prompt has {} tokens, but the model supports only {longest} in total; shorten it",
            tokens.len()
        )));
    }
    Ok(tokens)
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length | Finish::Context => "length",
        Finish::Cancelled => "cancelled",
    }
}

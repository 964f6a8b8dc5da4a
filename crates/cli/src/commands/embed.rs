//! `hone embed`

use super::{Described, check_parent};
use crate::args::EmbedArgs;
use crate::failure::Failure;
use crate::output;
use crate::progress;
use hone_model::LoadError;
use hone_model::embed::{EmbedSettings, MaxSeqLength, Pooling, embed};
use hone_train::TrainError;
use hone_train::checkpoint::write_file_whole;
use hone_train::machine;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

/// Embeds the texts and writes the embeddings.
pub fn run(args: &EmbedArgs) -> Result<(), Failure> {
    check_parent("--out", &args.out)?;
    let format = Format::of(&args.out)?;
    let texts = read_texts(args)?;
    let described = super::describe(&args.model, super::Purpose::Compute)?;
    let settings = settings(args, &described)?;
    let limit = limit(args, &described, &settings)?;
    let begun = Instant::now();
    let Tokenised { rows, num_truncated } = tokenise(args, &described, &settings, (&texts, limit))?;
    let tokenised = begun.elapsed();
    let opened = described.load()?;
    let begun = Instant::now();
    let bar = progress::bar(rows.len(), "texts");
    let how = (settings.pooling, settings.normalize);
    let embeddings = embed(opened.pass(), &rows, how, &mut |n| bar.inc(n as u64));
    bar.finish_and_clear();
    let embeddings = embeddings?;
    let seconds = (tokenised + begun.elapsed()).as_secs_f64();
    let width = opened.model.decoder.config.hidden_size;
    if let Some(i) = embeddings.chunks(width).position(|row| row.iter().any(|x| !x.is_finite())) {
        return Err(Failure::Running(format!(
            "{}: the embedding of the text is not finite: a weight of the model is not, or the \
             model overflows with --compute {}",
            texts[i].place,
            opened.compute.name()
        )));
    }
    write_embeddings(format, &args.out, &embeddings, width)?;
    let num_tokens = rows.iter().map(Vec::len).sum();
    let counts = Counts { texts: rows.len(), tokens: num_tokens, width, truncated: num_truncated };
    report(args, &settings, counts, seconds);
    Ok(())
}

/// What was embedded.
struct Counts {
    texts: usize,
    tokens: usize,
    width: usize,
    truncated: usize,
}

/// Says what was written; tokenising and embedding took so many `seconds`.
fn report(args: &EmbedArgs, settings: &EmbedSettings, counts: Counts, seconds: f64) {
    let Counts { texts, tokens, width, truncated } = counts;
    let EmbedSettings { pooling, normalize, .. } = settings;
    if args.json {
        output::json(&json!({
            "out": args.out,
            "texts": texts,
            "tokens": tokens,
            "dimensions": width,
            "truncated": truncated,
            "pooling": pooling.name(),
            "normalized": normalize,
            "seconds": seconds,
            "peak_bytes": machine::peak_resident_bytes(),
        }));
        return;
    }
    let length = if *normalize { ", of length 1" } else { "" };
    let rate = texts as f64 / seconds.max(1e-9);
    output::table(&[
        ("written", args.out.display().to_string()),
        ("embeddings", format!("{texts} of {width} numbers{length}, {rate:.0} texts/s")),
        ("pooling", pooling.name().to_owned()),
        ("truncated", format!("{truncated} texts")),
    ]);
}

/// What the model's files say, unless flags say otherwise.
fn settings(args: &EmbedArgs, described: &Described) -> Result<EmbedSettings, Failure> {
    let (config, asked) = (described.config(), args.pooling.map(Pooling::from));
    let prompt = args.prompt_name.as_deref();
    let mut settings = EmbedSettings::read(&described.dir, config, asked, prompt)
        .map_err(|error| TrainError::from(LoadError::from(error)))?;
    settings.normalize |= args.normalize;
    Ok(settings)
}

/// Longest text in tokens, and what sets it.
fn limit(
    args: &EmbedArgs,
    described: &Described,
    settings: &EmbedSettings,
) -> Result<(usize, String), Failure> {
    let config = described.config();
    let longest = config.longest().unwrap_or(usize::MAX);
    let of_model = format!("the model's positions are {longest}");
    match args.max_seq_len {
        Some(asked) if asked > longest => Err(Failure::Usage(format!(
            "--max-seq-len {asked} is longer than the model supports: {of_model}"
        ))),
        Some(asked) => Ok((asked, format!("--max-seq-len is {asked}"))),
        None => Ok(match &settings.max_seq_length {
            Some(MaxSeqLength { len, set_by }) if *len <= longest => {
                (*len, format!("{set_by} to {len}"))
            }
            _ => (longest, of_model),
        }),
    }
}

/// A text and where it is.
struct Text {
    place: String,
    text: String,
}

fn read_texts(args: &EmbedArgs) -> Result<Vec<Text>, Failure> {
    let path = &args.input;
    let at = |line: usize| format!("{}:{}", path.display(), line + 1);
    let content = std::fs::read_to_string(path).map_err(|error| {
        Failure::Usage(format!("{}: {error}; give a file of texts in UTF-8", path.display()))
    })?;
    let has_extension = |wanted: &str| path.extension().is_some_and(|found| found == wanted);
    let lines = content.lines().enumerate();
    let texts: Vec<Text> = if has_extension("jsonl") {
        let records = lines.filter(|(_, line)| !line.trim().is_empty());
        let text = |(i, line)| Ok(Text { place: at(i), text: text_of(line, &args.field, &at(i))? });
        records.map(text).collect::<Result<_, Failure>>()?
    } else if has_extension("txt") {
        lines.map(|(i, line)| Text { place: at(i), text: line.to_owned() }).collect()
    } else {
        return Err(Failure::Usage(format!(
            "{}: is of no known kind; give a .jsonl file with a record a line, or a .txt file with \
             a text a line",
            path.display()
        )));
    };
    match texts.is_empty() {
        true => Err(Failure::Usage(format!("{}: has no texts", path.display()))),
        false => Ok(texts),
    }
}

/// The text of a record: a JSON string, or a field of an object.
fn text_of(line: &str, field: &str, place: &str) -> Result<String, Failure> {
    let value: Value = serde_json::from_str(line)
        .map_err(|error| Failure::Usage(format!("{place}: not valid JSON: {error}")))?;
    let found = match &value {
        Value::String(text) => Some(text),
        Value::Object(record) => match record.get(field) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        },
        _ => None,
    };
    found.cloned().ok_or_else(|| {
        Failure::Usage(format!(
            "{place}: there is no text `{field}`; name the field with --field, or write each text \
             as a JSON string"
        ))
    })
}

struct Tokenised {
    rows: Vec<Vec<u32>>,
    num_truncated: usize,
}

fn tokenise(
    args: &EmbedArgs,
    described: &Described,
    settings: &EmbedSettings,
    (texts, (limit, set_by)): (&[Text], (usize, String)),
) -> Result<Tokenised, Failure> {
    let vocab_size = described.config().vocab_size;
    let (mut rows, mut num_truncated) = (Vec::new(), 0);
    let whole = |Text { text, .. }: &Text| {
        let text = format!("{}{text}", settings.prompt);
        if settings.lowercase { text.to_lowercase() } else { text }
    };
    let whole: Vec<String> = texts.iter().map(whole).collect();
    let threads = super::num_threads(args.model.threads);
    let encoded = described.tokenizer.encode_all(&whole, true, threads);
    for (Text { place, .. }, encoded) in texts.iter().zip(encoded) {
        let encoded = encoded?;
        let mut ids = encoded.ids;
        if ids.is_empty() {
            return Err(Failure::Usage(format!("{place}: the text has no tokens; remove it")));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(Failure::Usage(format!(
                "{place}: token {id} is beyond the model's {vocab_size}: the tokenizer is of \
                 another model"
            )));
        }
        if ids.len() > limit {
            if !args.truncate {
                return Err(Failure::Usage(format!(
                    "{place}: the text has {} tokens, but {set_by}; give --truncate to embed the \
                     beginnings of longer texts",
                    ids.len()
                )));
            }
            // What the tokenizer adds at the end stays there.
            let end = encoded.is_added.iter().rev().take_while(|is_added| **is_added).count();
            let cut = ids.len() - limit;
            let kept = ids.len() - end.min(limit) - cut;
            ids.drain(kept..kept + cut);
            num_truncated += 1;
        }
        rows.push(ids);
    }
    Ok(Tokenised { rows, num_truncated })
}

/// A kind of file to write.
#[derive(Clone, Copy)]
enum Format {
    Jsonl,
    Npy,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Result<Self, Failure> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl") => Ok(Self::Jsonl),
            Some("npy") => Ok(Self::Npy),
            Some("safetensors") => Ok(Self::Safetensors),
            _ => Err(Failure::Usage(format!(
                "--out {}: is of no known kind; end it in .jsonl, .npy or .safetensors",
                path.display()
            ))),
        }
    }
}

/// Writes embeddings, whole or not at all.
fn write_embeddings(
    format: Format,
    out: &Path,
    embeddings: &[f32],
    width: usize,
) -> Result<(), Failure> {
    let shape = [embeddings.len() / width, width];
    let bytes = match format {
        Format::Jsonl => jsonl(embeddings, width).into_bytes(),
        Format::Npy => npy(embeddings, shape),
        Format::Safetensors => safetensors(embeddings, shape),
    };
    Ok(write_file_whole(out, &bytes)?)
}

/// `{"embedding": [...]}` a line.
fn jsonl(embeddings: &[f32], width: usize) -> String {
    let mut text = String::new();
    for row in embeddings.chunks(width) {
        let _ = writeln!(text, "{}", json!({ "embedding": row }));
    }
    text
}

/// NumPy's format 1.0: a header padded to a multiple of 64 bytes, then the numbers.
fn npy(embeddings: &[f32], [rows, cols]: [usize; 2]) -> Vec<u8> {
    const START: usize = 10;
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let len = (START + header.len() + 1).next_multiple_of(64) - START;
    header.push_str(&" ".repeat(len - header.len() - 1));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((len as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(embeddings.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

/// One tensor, `embeddings`.
fn safetensors(embeddings: &[f32], shape: [usize; 2]) -> Vec<u8> {
    let end = size_of_val(embeddings);
    let tensor = json!({ "dtype": "F32", "shape": shape, "data_offsets": [0, end] });
    let mut header = json!({ "embeddings": tensor }).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(embeddings.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

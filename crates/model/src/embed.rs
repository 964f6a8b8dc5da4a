//! Embeddings of whole texts: hidden states, pooled. What a directory of sentence-transformers says
//! of pooling, length and the like is read from its own files.

use crate::batch::Batch;
use crate::config::DecoderConfig;
use crate::decoder::Recompute;
use crate::pass::Pass;
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::DeviceError;
use serde_json::Value;
use std::path::Path;

/// How the hidden states of a text become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    Cls,
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
}

impl Pooling {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Last => "last",
        }
    }
}

/// The longest text that a model's files want.
#[derive(Clone, Debug, PartialEq)]
pub struct MaxSeqLength {
    /// In tokens, special ones included.
    pub len: usize,
    /// File and key that say so.
    pub set_by: String,
}

/// What a model's files say of embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedSettings {
    /// How states are pooled.
    pub pooling: Pooling,
    /// Whether embeddings have length 1.
    pub normalize: bool,
    /// Longest text, if the files say it.
    pub max_seq_length: Option<MaxSeqLength>,
    /// Whether texts are lowercased.
    pub lowercase: bool,
    /// What is put before each text.
    pub prompt: String,
}

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
const TOKENIZER: &str = "tokenizer_config.json";
/// Those with many added tokens have megabytes.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
const MODEL_MAX_LENGTH: &str = "model_max_length";
/// What sentence-transformers call the file of the model itself, now and once for single families.
const TRANSFORMERS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

impl EmbedSettings {
    /// Reads `modules.json` and the files it names, as version 6 of sentence-transformers does,
    /// with the prompt called `prompt_name`, or the files' usual one. Without them, encoders pool
    /// by the mean and decoders by the last token; and if a pooling is `asked` for, it is that.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and key.
    pub fn read(
        dir: &Path,
        config: &DecoderConfig,
        asked: Option<Pooling>,
        prompt_name: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let usual = if config.looks_ahead().is_some() { Pooling::Mean } else { Pooling::Last };
        let pooling = asked.unwrap_or(usual);
        let mut settings = Self {
            pooling,
            normalize: false,
            max_seq_length: None,
            lowercase: false,
            prompt: String::new(),
        };
        let path = dir.join(MODULES);
        let mut include_prompt = true;
        if path.is_file() {
            for (i, (kind, place)) in read_modules(&path)?.iter().enumerate() {
                match kind.as_str() {
                    "Transformer" => settings.read_transformer(&dir.join(place))?,
                    "Pooling" => {
                        let raw = RawConfig::read(&dir.join(place).join("config.json"))?;
                        settings.pooling = asked.map_or_else(|| pooling_of(&raw), Ok)?;
                        include_prompt = raw.flag("include_prompt", true)?;
                    }
                    "Normalize" => settings.normalize = true,
                    other => {
                        let problem = format!(
                            "is `{other}`, which is not supported; Transformer, Pooling and \
                             Normalize are: embed with a model that has no other modules"
                        );
                        return Err(key_error(&path, &format!("[{i}].type"), problem));
                    }
                }
            }
        }
        settings.read_tokenizer(dir)?;
        if path.is_file() || prompt_name.is_some() {
            settings.read_prompt(&dir.join(PROMPTS), prompt_name, include_prompt)?;
        }
        Ok(settings)
    }

    fn read_transformer(&mut self, dir: &Path) -> Result<(), ConfigError> {
        let files = TRANSFORMERS.iter().map(|name| (name, dir.join(name)));
        let Some((name, path)) = files.into_iter().find(|(_, path)| path.is_file()) else {
            return Ok(());
        };
        let raw = RawConfig::read(&path)?;
        const TASK: &str = "transformer_task";
        if let Some(task) = raw.text(TASK)?.filter(|task| *task != "feature-extraction") {
            let problem = format!(
                "is `{task}`, which does not embed: embed with a model of `feature-extraction`"
            );
            return Err(raw.error(TASK, problem));
        }
        self.lowercase = raw.flag("do_lower_case", false)?;
        let longest = |len: usize, key| MaxSeqLength { len, set_by: format!("{name} sets {key}") };
        self.max_seq_length =
            raw.optional_size("max_seq_length")?.map(|len| longest(len, "max_seq_length"));
        for key in ["tokenizer_args", "processor_kwargs"] {
            let Some(arguments) = raw.object(key)? else { continue };
            let len = arguments.optional_size(MODEL_MAX_LENGTH)?;
            self.max_seq_length =
                len.map(|len| longest(len, MODEL_MAX_LENGTH)).or(self.max_seq_length.take());
        }
        Ok(())
    }

    /// The tokenizer says it where newer files, and models without modules, do not.
    fn read_tokenizer(&mut self, dir: &Path) -> Result<(), ConfigError> {
        let path = dir.join(TOKENIZER);
        if self.max_seq_length.is_none() && path.is_file() {
            let raw = RawConfig::read_up_to(&path, MAX_TOKENIZER_BYTES)?;
            // Files without a limit have 1e30.
            let len = raw.get(MODEL_MAX_LENGTH).and_then(Value::as_u64);
            let len = len.and_then(|len| usize::try_from(len).ok()).filter(|len| *len > 0);
            let set_by = format!("{TOKENIZER} sets {MODEL_MAX_LENGTH}");
            self.max_seq_length = len.map(|len| MaxSeqLength { len, set_by });
        }
        Ok(())
    }

    /// The prompt that is asked for, or the usual one.
    fn read_prompt(
        &mut self,
        path: &Path,
        asked: Option<&str>,
        include_prompt: bool,
    ) -> Result<(), ConfigError> {
        const KEY: &str = "default_prompt_name";
        let none = |name: &str, names: String| {
            let problem = format!("has no prompt `{name}`; it has {names}");
            key_error(path, "prompts", problem)
        };
        if !path.is_file() {
            return asked
                .map_or(Ok(()), |name| Err(none(name, "none, or is not there".to_owned())));
        }
        let raw = RawConfig::read(path)?;
        let usual = raw.text(KEY)?;
        let Some(name) = asked.or(usual) else { return Ok(()) };
        let prompts = raw.object("prompts")?;
        let prompt = prompts.as_ref().map(|all| all.text(name)).transpose()?.flatten();
        let Some(prompt) = prompt else {
            let all = raw.get("prompts").and_then(Value::as_object);
            let names = all.into_iter().flatten().map(|(name, _)| format!("`{name}`"));
            let names: Vec<String> = names.collect();
            return Err(match asked {
                Some(asked) if names.is_empty() => none(asked, "none".to_owned()),
                Some(asked) => none(asked, names.join(", ")),
                None => raw.error(KEY, format!("is `{name}`, which `prompts` does not have")),
            });
        };
        if !include_prompt && !prompt.is_empty() {
            let problem = format!(
                "has `{name}`, but the prompt's tokens are not to be pooled (`include_prompt` of \
                 the pooling), which is not supported"
            );
            return Err(raw.error("prompts", problem));
        }
        prompt.clone_into(&mut self.prompt);
        Ok(())
    }
}

/// Folders of what comes after the model itself, as sentence-transformers have it: pooling and the
/// like.
///
/// # Errors
/// If `modules.json` is there and cannot be read.
pub(crate) fn module_folders(dir: &Path) -> Result<Vec<String>, ConfigError> {
    let path = dir.join(MODULES);
    let modules = if path.is_file() { read_modules(&path)? } else { Vec::new() };
    Ok(modules.into_iter().map(|(_, place)| place).filter(|place| !place.is_empty()).collect())
}

fn key_error(path: &Path, key: &str, problem: String) -> ConfigError {
    ConfigError::Key { path: path.to_owned(), key: key.to_owned(), problem }
}

/// Kinds and folders of modules, in order.
fn read_modules(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let io = |source| ConfigError::Io { path: path.to_owned(), source };
    let json = |reason: String| ConfigError::Json { path: path.to_owned(), reason };
    let text = std::fs::read(path).map_err(io)?;
    let value: Value =
        serde_json::from_slice(&text).map_err(|e| json(format!("not valid JSON: {e}")))?;
    let Value::Array(modules) = value else {
        return Err(json("expected a list of modules".to_owned()));
    };
    let module = |(i, module): (usize, &Value)| {
        let text = |key| {
            let found = module.get(key).and_then(Value::as_str);
            let problem = || key_error(path, &format!("[{i}].{key}"), "must be a text".to_owned());
            found.ok_or_else(problem)
        };
        let (kind, place) = (text("type")?, text("path")?);
        if Path::new(place)
            .components()
            .any(|part| !matches!(part, std::path::Component::Normal(_)))
        {
            let problem = format!("is {place:?}: expected a folder in the model's directory");
            return Err(key_error(path, &format!("[{i}].path"), problem));
        }
        Ok((kind.rsplit('.').next().unwrap_or(kind).to_owned(), place.to_owned()))
    };
    modules.iter().enumerate().map(module).collect()
}

/// `pooling_mode`, or the one of older keys that is true; the mean if none is.
fn pooling_of(raw: &RawConfig) -> Result<Pooling, ConfigError> {
    const KEY: &str = "pooling_mode";
    const OLDER: [(&str, &str); 6] = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_lasttoken", "lasttoken"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ];
    let newer = match raw.get(KEY) {
        Some(Value::Array(modes)) if modes.len() == 1 => modes[0].as_str(),
        _ => raw.text(KEY)?,
    };
    let mut modes: Vec<(&str, &str)> = newer.map(|mode| (KEY, mode)).into_iter().collect();
    for (key, mode) in OLDER {
        if modes.first().is_none_or(|(key, _)| *key != KEY) && raw.flag(key, false)? {
            modes.push((key, mode));
        }
    }
    match modes[..] {
        [(_, "cls")] => Ok(Pooling::Cls),
        [(_, "mean")] | [] => Ok(Pooling::Mean),
        [(_, "lasttoken")] => Ok(Pooling::Last),
        [(key, mode)] => {
            let problem = format!(
                "asks for `{mode}`, which is not supported; choose cls, mean or last with --pooling"
            );
            Err(raw.error(key, problem))
        }
        [_, (key, _), ..] => {
            Err(raw.error(key, "asks for one pooling beside another; choose one with --pooling"))
        }
    }
}

/// Tokens of a pass: enough for efficient matmuls, few enough for caches.
const BATCH_TOKENS: usize = 1024;

/// Embeddings `[rows, hidden_size]` of rows of tokens, none of which is empty. Rows are packed one
/// after another, without padding between them; `advance` hears how many a pass embedded.
///
/// # Errors
/// If the device failed.
///
/// # Panics
/// Within a trace or a plan of the device.
pub fn embed(
    pass: Pass<'_>,
    rows: &[Vec<u32>],
    (pooling, normalize): (Pooling, bool),
    advance: &mut dyn FnMut(usize),
) -> Result<Vec<f32>, DeviceError> {
    let mut embeddings = Vec::with_capacity(rows.len() * pass.model.decoder.config.hidden_size);
    let mut left = rows;
    pass.device.reusing_memory(|| {
        while !left.is_empty() {
            let mut tokens = 0;
            let fits = |row: &&Vec<u32>| {
                tokens += row.len();
                tokens <= BATCH_TOKENS
            };
            let count = left.iter().take_while(fits).count().max(1);
            let (now, later) = left.split_at(count);
            embed_packed(pass, now, (pooling, normalize), &mut embeddings)?;
            advance(count);
            left = later;
        }
        Ok(embeddings)
    })
}

fn embed_packed(
    pass: Pass<'_>,
    rows: &[Vec<u32>],
    (pooling, normalize): (Pooling, bool),
    embeddings: &mut Vec<f32>,
) -> Result<(), DeviceError> {
    let config = &pass.model.decoder.config;
    let h = config.hidden_size;
    let (tokens, mut positions, mut bounds) = (rows.concat(), Vec::new(), vec![0]);
    for row in rows {
        positions.extend(0..row.len() as u32);
        bounds.push(positions.len() as u32);
    }
    let targets = vec![u32::MAX; tokens.len()];
    let batch = Batch::new(config, &tokens, &positions, &bounds, &targets, u32::MAX);
    let mut tape = pass.inference_tape();
    let hidden = pass.model.decoder.hidden(&mut tape, &batch, Recompute::None);
    let hidden = hidden.value().try_to_vec_f32()?;
    pass.device.settle()?;
    for bound in bounds.windows(2) {
        let states = &hidden[bound[0] as usize * h..bound[1] as usize * h];
        let mut pooled: Vec<f64> = match pooling {
            Pooling::Cls => states[..h].iter().map(|&x| f64::from(x)).collect(),
            Pooling::Last => states[states.len() - h..].iter().map(|&x| f64::from(x)).collect(),
            Pooling::Mean => {
                let mut sums = vec![0.0; h];
                for state in states.chunks_exact(h) {
                    sums.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(*x));
                }
                let count = (states.len() / h) as f64;
                sums.into_iter().map(|sum| sum / count).collect()
            }
        };
        if normalize {
            let length = pooled.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            pooled.iter_mut().for_each(|x| *x /= length);
        }
        embeddings.extend(pooled.into_iter().map(|x| x as f32));
    }
    Ok(())
}

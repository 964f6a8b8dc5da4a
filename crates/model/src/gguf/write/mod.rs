//! GGUF files of models: what [`super`] reads, the other way around.
//!
//! A file is first laid out and its header read back: the configuration that Hone finds there must
//! be the model's, or nothing is written. So a setting that the format has no key for is found
//! whatever it is.

mod adapter;
mod fingerprint;
mod keys;
mod tokenizer;
mod weights;

pub use adapter::GgufAdapter;
pub use fingerprint::{FINGERPRINT_TEXT, tokenizer_name};

use super::architectures::{self, Architecture};
use super::{is_gguf, texts_of_gguf};
use crate::adapter::AdapterError;
use crate::config::DecoderConfig;
use crate::load::Model;
use crate::raw_config::ConfigError;
use crate::weights::{Linear, Role};
use hone_tensor::gguf::{GgufPlan, GgufTensor, GgufUnwritable, GgufWriter, Meta};
use hone_tensor::{DType, Device, DeviceError, Storage, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a model cannot be written as a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum GgufExportError {
    /// No architecture.
    #[error(
        "models of type `{0}` are not written as GGUF files; write this one in Hugging Face layout \
         (--format hf)"
    )]
    ModelType(String),
    /// No architecture, and so none of an adapter.
    #[error(
        "GGUF files have no architecture of this model that Hone writes, so its adapter has no \
         form there; the adapter's directory is in PEFT's layout, and other programs load it \
         beside its base"
    )]
    NoArchitecture,
    /// A part of an adapter that files have no place for.
    #[error(
        "the adapter of `{0}` has no form in GGUF files; merge it into the model (without \
         --adapter-only), or use its directory, which is in PEFT's layout"
    )]
    Part(String),
    /// A number of an adapter that is none, or becomes none.
    #[error(
        "the adapter of `{0}` contains a value that is not finite (NaN or infinite), or would be \
         in f32 with its scale; nothing was written. Go back to an earlier checkpoint"
    )]
    NotFinite(String),
    /// What was written is read otherwise.
    #[error(
        "the adapter of `{0}` is not read back as it was written; please report this as a bug in \
         Hone"
    )]
    Differs(String),
    /// An adapter cannot be read back.
    #[error(transparent)]
    Adapter(#[from] Box<AdapterError>),
    /// A part or setting that files have no place for.
    #[error("{0} has no form in GGUF files; write the model in Hugging Face layout (--format hf)")]
    Setting(String),
    /// A tokenizer that files have no form for.
    #[error(
        "the tokenizer has no form in GGUF files: {0}; write the model in Hugging Face layout \
         (--format hf)"
    )]
    Tokenizer(String),
    /// The base's files cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor or key has no form.
    #[error(transparent)]
    Unwritable(#[from] GgufUnwritable),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The small files of a model, parsed.
#[derive(Clone, Debug, Default)]
pub struct ModelTexts {
    /// `config.json`.
    pub config: Value,
    /// `generation_config.json`; null if there is none.
    pub generation: Value,
    /// `tokenizer.json`; null if there is none.
    pub tokenizer: Value,
    /// `tokenizer_config.json`; null if there is none.
    pub tokenizer_config: Value,
    /// The chat template that is a file of its own.
    pub chat_template: Option<String>,
    /// Further templates that are files of their own, by their names.
    pub more_templates: BTreeMap<String, String>,
    /// What the tokenizer makes of [`FINGERPRINT_TEXT`]; empty: it was not asked.
    pub fingerprint: Vec<u32>,
}

impl ModelTexts {
    /// Those of a directory in Hugging Face layout, or of a GGUF file.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn read(model: &Path) -> Result<Self, GgufExportError> {
        if is_gguf(model) {
            let texts = texts_of_gguf(model)?;
            let parsed = |name: &str| {
                let text = texts.get(name);
                text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
            };
            return Ok(Self::of(parsed, None));
        }
        let read = |name: &str| -> Result<Option<String>, GgufExportError> {
            let path = model.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(GgufExportError::Io { path, source }),
            }
        };
        let mut parsed = BTreeMap::new();
        for name in FILES {
            let Some(text) = read(name)? else { continue };
            let value = serde_json::from_str(&text).map_err(|error| GgufExportError::Io {
                path: model.join(name),
                source: io::Error::other(error),
            })?;
            parsed.insert(name, value);
        }
        let template = read("chat_template.jinja")?;
        let mut more_templates = BTreeMap::new();
        for entry in std::fs::read_dir(model.join(MORE_TEMPLATES)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".jinja")) else {
                continue;
            };
            let text = read(&format!("{MORE_TEMPLATES}/{name}.jinja"))?.unwrap_or_default();
            more_templates.insert(name.to_owned(), text);
        }
        let texts = Self::of(|name| parsed.remove(name).unwrap_or_default(), template);
        Ok(Self { more_templates, ..texts })
    }

    fn of(mut parsed: impl FnMut(&str) -> Value, chat_template: Option<String>) -> Self {
        let [config, generation, tokenizer, tokenizer_config] = FILES.map(&mut parsed);
        let rest = Self::default();
        Self { config, generation, tokenizer, tokenizer_config, chat_template, ..rest }
    }

    /// The chat templates by their names; that of no name is the one for every conversation.
    pub fn templates(&self) -> BTreeMap<Option<String>, String> {
        let named = |name: &str| (name != "default").then(|| name.to_owned());
        let mut templates = BTreeMap::new();
        match &self.tokenizer_config["chat_template"] {
            Value::String(template) => {
                templates.insert(None, template.clone());
            }
            Value::Array(entries) => templates.extend(entries.iter().filter_map(|entry| {
                let (name, template) = (entry["name"].as_str()?, entry["template"].as_str()?);
                Some((named(name), template.to_owned()))
            })),
            _ => {}
        }
        if let Some(template) = &self.chat_template {
            // It takes the place of all that the configuration has.
            templates = BTreeMap::from([(None, template.clone())]);
        }
        let more = self.more_templates.iter();
        templates.extend(more.map(|(name, template)| (named(name), template.clone())));
        templates
    }
}

/// A folder of templates in addition to the default one.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// The files of [`ModelTexts`], in its order.
const FILES: [&str; 4] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];

/// A model as a GGUF file holds it: metadata, and which weights are in which tensor.
pub struct GgufForm<'a> {
    model: &'a Model,
    architecture: &'static Architecture,
    metadata: Vec<(String, Meta)>,
    tensors: Vec<FormTensor>,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct FormTensor {
    /// Its name.
    pub name: String,
    /// Lengths of its dimensions, slowest first.
    pub shape: Vec<usize>,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    /// Weights, one after another: those of all experts, or only one.
    Weights(Vec<Role>),
    /// Divisors of frequencies.
    Factors(Vec<f32>),
}

impl FormTensor {
    /// The weights in it, one after another: those of all experts, or one; none if it is computed.
    pub fn roles(&self) -> &[Role] {
        match &self.content {
            Content::Weights(roles) => roles,
            Content::Factors(_) => &[],
        }
    }

    /// Whether it is a matrix, or those of all experts, which may be stored in any type; everything
    /// else is in f32.
    pub fn is_matrix(&self) -> bool {
        let Content::Weights(roles) = &self.content else { return false };
        match roles[0] {
            Role::EmbedTokens | Role::LmHead => true,
            // A rounded router would choose other experts.
            Role::Matrix(_, linear) => !linear.is_router() && !matches!(linear, Linear::SharedGate),
            _ => false,
        }
    }
}

impl<'a> GgufForm<'a> {
    /// The form of a model whose small files are these.
    ///
    /// # Errors
    /// If its architecture, a part of it, a setting or the tokenizer has none.
    pub fn of(model: &'a Model, texts: &ModelTexts) -> Result<Self, GgufExportError> {
        let config = &model.decoder.config;
        let model_type = texts.config.get("model_type").and_then(Value::as_str).unwrap_or("");
        let architecture = architectures::of_model_type(model_type)
            .ok_or_else(|| GgufExportError::ModelType(model_type.to_owned()))?;
        if let Some(what) = keys::unknown_to_llama_cpp(config, architecture) {
            return Err(GgufExportError::Setting(format!(
                "{what} in a model of type `{model_type}`"
            )));
        }
        let mut metadata = keys::metadata(config, text_part(&texts.config), architecture)?;
        metadata.extend(tokenizer::metadata(texts, config)?);
        // Of the blocks of packed types; the specification wants it whatever the mix.
        metadata.push(("general.quantization_version".to_owned(), Meta::U32(2)));
        let mut tensors = weights::tensors(config, architecture)?;
        let factors = keys::factors(config).into_iter().map(|(name, factors)| FormTensor {
            name: name.to_owned(),
            shape: vec![factors.len()],
            content: Content::Factors(factors),
        });
        tensors.extend(factors);
        Ok(Self { model, architecture, metadata, tensors })
    }

    /// Name of the architecture (`general.architecture`).
    pub fn architecture(&self) -> &'static str {
        self.architecture.name
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[FormTensor] {
        &self.tensors
    }

    /// Says in which mix of types the file is, by ggml's number for it. Programs guess it if the
    /// file does not say.
    pub fn set_file_type(&mut self, number: u32) {
        self.metadata.push(("general.file_type".to_owned(), Meta::U32(number)));
    }

    /// Gives the model a name, from which llama.cpp also takes how Phi-3 splits text.
    pub fn set_name(&mut self, name: &str) {
        let name = match self.architecture.name {
            "phi3" if !name.to_lowercase().contains("phi-3") => format!("Phi-3 {name}"),
            _ => name.to_owned(),
        };
        self.metadata.push(("general.name".to_owned(), Meta::Text(name)));
    }

    /// Adds a key.
    pub fn set(&mut self, key: &str, value: Meta) {
        self.metadata.push((key.to_owned(), value));
    }

    /// Adds a token to those that end a generation.
    pub fn end_turns_with(&mut self, token: u32) {
        let key = |name: &str| format!("tokenizer.ggml.{name}_token_id");
        let of = |name: &str| self.metadata.iter().find(|(other, _)| *other == key(name));
        let names = ["eos", "eot", "eom"];
        if names.iter().any(|name| of(name).is_some_and(|(_, id)| *id == Meta::U32(token))) {
            return;
        }
        let free = names.into_iter().find(|name| of(name).is_none()).unwrap_or("eom");
        self.metadata.retain(|(other, _)| *other != key(free));
        self.metadata.push((key(free), Meta::U32(token)));
    }

    /// Columns of a matrix, or what is known of them, in the file's order.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn columns(&self, role: Role, columns: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        weights::columns(&self.model.decoder.config, role, columns)
    }

    /// The same form of another model of this configuration.
    pub fn with_model<'b>(&self, model: &'b Model) -> GgufForm<'b> {
        let Self { architecture, metadata, tensors, .. } = self;
        let (metadata, tensors) = (metadata.clone(), tensors.clone());
        GgufForm { model, architecture, metadata, tensors }
    }

    /// A matrix with its adapter merged, with rows in the model's order, in f32 or with the values
    /// that the file will have if columns, in its order, count so much.
    ///
    /// # Errors
    /// If the device failed or there is no memory.
    pub fn matrix(
        &self,
        device: &Device,
        role: Role,
        (storage, importance): (Storage, &[f32]),
    ) -> Result<Tensor, DeviceError> {
        weights::in_model(self.model, device, role, (storage, importance))
    }

    /// Some rows, in the model's order, of what [`Self::matrix`] gives in f32. Those of an
    /// embedding or a head are read alone.
    ///
    /// # Errors
    /// If the device failed or there is no memory.
    pub fn rows(
        &self,
        device: &Device,
        role: Role,
        rows: Range<usize>,
    ) -> Result<Tensor, DeviceError> {
        weights::rows_in_model(self.model, device, role, rows)
    }

    /// The same with the values that the file will have if columns, in its order, count so much.
    ///
    /// # Errors
    /// If the device failed or there is no memory.
    pub fn stored_rows(
        &self,
        device: &Device,
        part: (Role, Range<usize>),
        as_stored: (Storage, &[f32]),
    ) -> Result<Tensor, DeviceError> {
        weights::stored_rows(self.model, device, part, as_stored)
    }

    /// Writes the file with matrices in these storages, one for each of [`Self::tensors`]; those of
    /// others are not read. `importance` is that of the columns of a tensor's part, in the file's
    /// order; empty if it is unknown.
    ///
    /// # Errors
    /// If a storage has no form or does not fit the rows, if a setting has no form, or if the
    /// device or the system fails.
    pub fn write(
        &self,
        device: &Device,
        types: (&[Storage], Importance<'_>),
        path: &Path,
    ) -> Result<(), GgufExportError> {
        self.write_from(device, types, (path, 0), &mut |_| ())
    }

    /// As [`Self::write`], after so many tensors that another process has written into this very
    /// file; one that has another header or length is written anew. `done` is told how many
    /// tensors there are after each one.
    ///
    /// # Errors
    /// As those of [`Self::write`].
    pub fn write_from(
        &self,
        device: &Device,
        (storages, importance): (&[Storage], Importance<'_>),
        (path, first): (&Path, usize),
        done: &mut dyn FnMut(usize),
    ) -> Result<(), GgufExportError> {
        let io = |source| GgufExportError::Io { path: path.to_owned(), source };
        let plan = self.plan(storages)?;
        let begun = if first > 0 { GgufWriter::reopen(path, &plan).map_err(io)? } else { None };
        let (mut writer, first) = match begun {
            Some(writer) => (writer, first),
            None => (GgufWriter::create(path, plan).map_err(io)?, 0),
        };
        for (i, tensor) in self.tensors.iter().enumerate() {
            if let Content::Factors(factors) = &tensor.content {
                let bytes: Vec<u8> = factors.iter().flat_map(|x| x.to_le_bytes()).collect();
                writer.write(i, 0, &bytes).map_err(io)?;
            }
        }
        self.check_header(path)?;
        for (i, tensor) in self.tensors.iter().enumerate().skip(first) {
            let (storage, mut at) = (writer.plan().tensors()[i].storage, 0);
            for (part, &role) in tensor.roles().iter().enumerate() {
                let known = if tensor.is_matrix() { importance(i, part) } else { &[] };
                let role = (role, self.architecture);
                weights::stored(self.model, device, role, (storage, known), &mut |rows| {
                    writer.write(i, at, rows.bytes()).map_err(io)?;
                    rows.release_file();
                    at += rows.num_bytes() as u64;
                    Ok(())
                })?;
            }
            done(i + 1);
        }
        writer.sync().map_err(io)
    }

    /// Size in bytes of the file with matrices in these storages.
    ///
    /// # Errors
    /// If a storage has no form or does not fit the rows.
    pub fn num_bytes(&self, storages: &[Storage]) -> Result<u64, GgufExportError> {
        Ok(self.plan(storages)?.num_bytes())
    }

    fn plan(&self, storages: &[Storage]) -> Result<GgufPlan, GgufUnwritable> {
        let storage = |tensor: &FormTensor, storage: Storage| match tensor.is_matrix() {
            true => storage,
            false => DType::F32.into(),
        };
        let tensors = self.tensors.iter().zip(storages).map(|(tensor, &of)| GgufTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            storage: storage(tensor, of),
        });
        GgufPlan::new(&self.metadata, tensors.collect())
    }

    /// Checks that the file says of the model what its own configuration does.
    fn check_header(&self, path: &Path) -> Result<(), GgufExportError> {
        let written = DecoderConfig::load(path)?;
        match keys::difference(&self.model.decoder.config, &written) {
            None => Ok(()),
            Some(what) => Err(GgufExportError::Setting(what)),
        }
    }
}

/// The importance of the columns of a tensor's part, by their numbers.
pub type Importance<'i> = &'i dyn Fn(usize, usize) -> &'i [f32];

/// The language model's part of a configuration.
fn text_part(config: &Value) -> &Value {
    config.get("text_config").unwrap_or(config)
}

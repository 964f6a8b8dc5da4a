//! One module per verb.

pub mod compress;
pub mod demo;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod export;
pub mod generate;
pub mod plan;
pub mod report;
pub mod train;

use crate::args::{ModelArgs, RunFileArgs};
use crate::failure::Failure;
use crate::output;
use hone_data::{DataError, Tokenizer, Words};
use hone_model::adapter::{AdapterError, LoraConfig, TrainedOn};
use hone_model::heads::NO_LM_HEAD;
use hone_model::{DecoderConfig, LoadOptions, Model, ModelFiles, Pass, adapter};
use hone_tensor::{Category, Compute, Device, Target};
use hone_train::backend::{Asked, Backend};
use hone_train::run_dir::RunDir;
use hone_train::run_file::{RunFile, check_held_for};
use hone_train::setup::{Setup, SetupOptions, held_type, resolve, surplus_tokens, tokenizer_of};
use hone_train::{Code, TrainError};
use serde::Serialize;
use std::path::{Path, PathBuf};

fn read_run_file(args: &RunFileArgs) -> Result<RunFile, Failure> {
    Ok(RunFile::load(&args.run_file, &args.overrides)?)
}

/// The run that a run file describes, for a GPU that need not be here if one is given.
fn prepare(
    planned_for: Option<Backend>,
    run: RunFile,
    note: &mut dyn FnMut(String),
) -> Result<Setup, Failure> {
    let begun_at = RunDir::new(&run.output.dir).begun_at();
    let options = SetupOptions { begun_at, planned_for };
    Ok(Setup::new(run, options, note)?)
}

/// Prints a note on standard error.
fn print_note(note: String) {
    output::note(&format!("note: {note}"));
}

/// A model whose files were read, its weights apart: all that can be wrong with a request is said
/// before those are loaded, which may take a minute.
struct Described {
    dir: PathBuf,
    files: ModelFiles,
    /// On a dry device, with the adapter.
    model: Model,
    tokenizer: Tokenizer,
    backend: Backend,
    compute: Compute,
    options: LoadOptions,
    adapter: Option<PathBuf>,
}

impl Described {
    fn config(&self) -> &DecoderConfig {
        &self.model.decoder.config
    }

    /// Refuses a model without a head that predicts tokens.
    fn predicts_tokens(&self, args: &ModelArgs) -> Result<(), Failure> {
        match self.config().lacks_lm_head {
            true => Err(Failure::Usage(format!("{}: {NO_LM_HEAD}", args.model))),
            false => Ok(()),
        }
    }

    fn load(self) -> Result<Opened, Failure> {
        let device = self.backend.device();
        self.load_on(device)
    }

    /// Loads it beside another model, on that one's device.
    fn load_on(self, device: Device) -> Result<Opened, Failure> {
        let Self { dir, files, tokenizer, compute, options, adapter, .. } = self;
        let mut model = files.load(&device, options)?;
        let mut lora = None;
        if let Some(adapter) = &adapter {
            // What there is to note was noted.
            lora = Some(adapter::load(adapter, &mut model, &device, &mut |_| ())?);
        }
        Ok(Opened { dir, device, model, lora, tokenizer, compute })
    }
}

/// A model opened for inference.
struct Opened {
    dir: PathBuf,
    device: Device,
    model: Model,
    /// Settings of its adapter.
    lora: Option<LoraConfig>,
    tokenizer: Tokenizer,
    compute: Compute,
}

impl Opened {
    /// As `args`, with which it was opened, name it.
    fn weighed(&self, args: &ModelArgs) -> Result<Weighed, Failure> {
        let named = (args.model.as_str(), args.adapter.as_deref());
        Weighed::of(named, &self.dir, &self.model)
    }

    fn pass(&self) -> Pass<'_> {
        Pass { device: &self.device, model: &self.model, compute: self.compute }
    }
}

/// A model as reports name it, and how large it is.
#[derive(Serialize)]
struct Weighed {
    /// As the command line names it.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<PathBuf>,
    /// Of its weight files, and of those of the adapter.
    bytes: u64,
    /// Without what these files hold besides its weights, such as other parts of a larger model.
    bits_per_weight: f64,
}

impl Weighed {
    /// The model that was called `name` and is in `dir`, with the adapter that it was given.
    fn of(
        (name, adapter): (&str, Option<&Path>),
        dir: &Path,
        model: &Model,
    ) -> Result<Self, Failure> {
        let bytes = |file: PathBuf| Ok(file.metadata().map_err(TrainError::io(&file))?.len());
        let files = hone_model::weight_files(dir)?.into_iter();
        let files = files.chain(adapter.into_iter().flat_map(adapter::files));
        let bytes = files.map(bytes).sum::<Result<u64, TrainError>>()?;
        let of_weights = bytes.saturating_sub(model.other_bytes);
        let num_parameters = model.decoder.config.num_parameters();
        let bits_per_weight = 8.0 * of_weights as f64 / num_parameters as f64;
        let (name, adapter) = (name.to_owned(), adapter.map(Path::to_owned));
        Ok(Self { name, adapter, bytes, bits_per_weight })
    }
}

/// Why a model is opened.
enum Purpose {
    Compute,
    /// For the values in its file, which nothing but what was asked for may change.
    Unchanged,
}

fn describe(args: &ModelArgs, purpose: Purpose) -> Result<Described, Failure> {
    let (held, asked) = (args.base_precision, args.compute.into());
    check_held_for(held, asked, "--base-precision")
        .map_err(|problem| Failure::Usage(format!("--compute {problem}")))?;
    let dir = resolve(&args.model, &mut print_note)?;
    let files = ModelFiles::open(&dir)?;
    let dry = Device::dry();
    let mut model = files.load(&dry, LoadOptions::INFERENCE)?;
    let tokenizer = tokenizer_of(&dir)?;
    let threads = num_threads(args.threads);
    let note = &mut print_note;
    let asked_device = Asked { setting: "--device", device: &args.device };
    let (backend, compute) = Backend::open(asked_device, (asked, model.file_dtype), threads, note)?;
    let base_precision = match purpose {
        Purpose::Compute => held_type(held, compute, &model),
        Purpose::Unchanged => held_type(held, Compute::F32, &model),
    };
    let options = LoadOptions { base_precision, ..LoadOptions::INFERENCE };
    // Counted as they will be held, to refuse before weights are loaded what cannot be, and a model
    // that is too large for a GPU.
    let is_on_gpu = backend.gpu_name().is_some();
    if is_on_gpu || base_precision.is_some() {
        let counted = Device::dry_as(if is_on_gpu { Target::Cuda } else { Target::Cpu });
        files.load(&counted, options)?;
        if is_on_gpu {
            backend.check_room(counted.persistent_bytes(Category::Weights))?;
        }
    }
    let config = &model.decoder.config;
    backend.check_heads(config.max_head_dim(), config.max_delta_key_dim())?;
    surplus_tokens(&dir, config, &tokenizer).into_iter().for_each(&mut *note);
    if let Some(adapter) = &args.adapter {
        adapter::load(adapter, &mut model, &dry, note)?;
        if !args.other_base {
            check_base(adapter, (&args.model, &files))?;
        }
    }
    let adapter = args.adapter.clone();
    Ok(Described { dir, files, model, tokenizer, backend, compute, options, adapter })
}

/// Refuses an adapter of another model.
fn check_base(adapter: &Path, (name, files): (&str, &ModelFiles)) -> Result<(), Failure> {
    TrainedOn::check(adapter, (name, files)).map_err(|error| match error {
        AdapterError::OtherBase { .. } => {
            let message = format!(
                "{error}; or give --other-base, if these weights stand for those, such as the same \
                 model in fewer bits"
            );
            TrainError::Usage(Code::AdapterInvalid, message).into()
        }
        error => error.into(),
    })
}

/// An error in data, with settings in the words of a command's flags.
fn named_by_flags(error: DataError, words: Words) -> TrainError {
    let message = error.message(words);
    TrainError::Usage(TrainError::Data(error).code(), message)
}

/// Checks that the directory that an output is written into exists.
fn check_parent(flag: &str, path: &Path) -> Result<(), Failure> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) if !parent.is_dir() => Err(Failure::Usage(format!(
            "{flag} {}: there is no directory {}; create it, or choose another",
            path.display(),
            parent.display()
        ))),
        _ => Ok(()),
    }
}

/// Whether two paths, in directories that exist, lead to one file, which need not.
fn is_same_file(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).canonicalize().ok()?;
            Some(parent.join(path.file_name()?))
        })
    };
    whole(a).is_some_and(|a| whole(b) == Some(a))
}

fn num_threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(hone_train::machine::num_threads)
}

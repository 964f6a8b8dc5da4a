//! From a run file to everything a run needs, checked: model directory, tokenizer, data, order.

use crate::backend::{Asked, Backend};
use crate::code::Code;
use crate::error::TrainError;
use crate::masking::{Masking, notes_of_heads};
use crate::mixture;
use crate::objectives;

use crate::run_file::{self, AdapterSection, Held, LoraSection, ObjectiveSection, RunFile};
use hone_data::{Cursor, Dataset, Order, RecordSpec, Tokenizer, Unit, pack_in_order};
use hone_model::adapter::{AdapterError, LoraConfig, TargetModules, TrainedOn};
use hone_model::hub::{self, HubError, HubSettings};
use hone_model::{DecoderConfig, LoadError, LoadOptions, Model, ModelFiles};
use hone_tensor::{Compute, DType, Device, Storage};
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// A run, ready to be planned.
pub struct Setup {
    /// The effective run file.
    pub run: RunFile,
    /// When the run in `output.dir` was begun, in seconds since 1970; `None`: there is none yet.
    pub begun_at: Option<i64>,
    /// Where the model is: its directory, or a GGUF file.
    pub model_dir: PathBuf,
    /// Its shape.
    pub config: DecoderConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// What products are computed in.
    pub compute: Compute,
    /// How frozen matrices are held; `None`: as in the file.
    pub base_precision: Option<Storage>,
    /// Element type of the matrices in the file.
    pub file_dtype: DType,
    /// Adapters; `None`: full fine-tuning.
    pub lora: Option<LoraConfig>,
    /// A PEFT adapter to start from.
    pub init_adapter: Option<PathBuf>,
    /// How tokens are masked; `None`: they are not.
    pub masking: Option<Masking>,
    /// Longest row, and slots of a packed unit.
    pub max_seq_len: usize,
    /// Rows to learn from.
    pub train: Dataset,
    /// Rows to evaluate on, and their units.
    pub eval: Option<(Dataset, Vec<Unit>)>,
    /// Units of an optimizer step.
    pub units_per_step: usize,
    /// Units of the first epoch.
    pub units_in_epoch: usize,
    /// The units of the first step, which is as large as any.
    pub first_step: Vec<Unit>,
    /// Optimizer steps of the whole run.
    pub num_steps: u64,
    /// Threads of the CPU to use.
    pub threads: usize,
    /// Where to compute.
    pub backend: Backend,
}

/// What a setup takes that is not in the run file.
#[derive(Default)]
pub struct SetupOptions {
    /// When the run in `output.dir` was begun, in seconds since 1970, if it is to be resumed.
    pub begun_at: Option<i64>,
    /// A GPU to plan for; `run.device` then has no say.
    pub planned_for: Option<Backend>,
}

impl Setup {
    /// Opens what the run file names. `note` is told what the user should know.
    ///
    /// # Errors
    /// Whatever is wrong with model, data or settings.
    pub fn new(
        mut run: RunFile,
        options: SetupOptions,
        note: &mut dyn FnMut(String),
    ) -> Result<Self, TrainError> {
        let SetupOptions { begun_at, planned_for } = options;
        let model_dir = match planned_for {
            None => resolve(&run.model.path, note)?,
            Some(_) => resolve_for_plan(&run.model.path, note)?,
        };
        let file = hone_model::load(&model_dir, &Device::dry(), LoadOptions::INFERENCE)?;
        if planned_for.is_none() {
            // A dry device does without.
            hone_model::weight_files(&model_dir)?;
            check_base(&run, &model_dir)?;
        }
        let config = file.decoder.config.clone();
        let mut tokenizer = tokenizer_of(&model_dir)?;
        if let Some(begun) = begun_at {
            // Templates may print today's date; a resumed run must see that of its beginning.
            tokenizer.set_now(begun);
        }
        surplus_tokens(&model_dir, &config, &tokenizer).into_iter().for_each(&mut *note);
        let threads = run.run.threads.unwrap_or_else(crate::machine::num_threads);
        let (backend, compute) = backend(&run, planned_for, (threads, file.file_dtype), note)?;
        backend.check_heads(config.max_head_dim(), config.max_delta_key_dim())?;
        let base_precision = held_type(run.model.base_precision, compute, &file);
        let adapter = run.adapter.as_ref().map(|AdapterSection::Lora(lora)| lora);
        let init_adapter = adapter.and_then(|lora| lora.init_from.clone());
        let lora = adapter.map(lora_config);
        if let Some(lora) = &lora {
            lora.target_modules.resolve(&file.decoder)?;
        }
        refuse_balance_of_nothing(&run, &config)?;
        let masking = masking(&mut run, &config, &tokenizer, note)?;
        let given_max_seq_len = run.data.max_seq_len;
        let max_seq_len = max_seq_len(&mut run, &config, note)?;
        let unit_tokens = max_seq_len * rows_per_unit(&run);
        let units_per_step = units_per_step(&run, unit_tokens, note);
        let spec = record_spec(&run, max_seq_len, &config);
        let (train, eval) = data(&run, (&spec, &config), &tokenizer, threads, note)?;
        let mut order = Order::new(&train, unit_tokens, units_per_step, run.train.seed)?;
        let num_steps = match (run.train.max_steps, run.train.num_epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => order.total_steps(epochs.unwrap_or(1))?,
        };
        if run.train.max_steps.is_none() && num_steps < FEW_STEPS {
            let longest_of_eval = eval.as_ref().map_or(0, |(eval, _)| eval.report().longest_row);
            let longest_row = train.report().longest_row.max(longest_of_eval);
            let lens = (given_max_seq_len, longest_row);
            note(few_steps(&run, &train, order.tokens_in_epoch(0), lens, num_steps)?);
        }
        warm_up_of_few_steps(&run, num_steps).into_iter().for_each(&mut *note);
        Ok(Self {
            begun_at,
            model_dir,
            config,
            tokenizer,
            compute,
            base_precision,
            file_dtype: file.file_dtype,
            lora,
            init_adapter,
            masking,
            max_seq_len,
            train,
            eval,
            units_per_step,
            units_in_epoch: order.units_in_epoch(0),
            first_step: order.step(&Cursor::default()).to_vec(),
            num_steps,
            threads,
            backend,
            run,
        })
    }

    /// Slots of a packed unit, which holds the longest group of rows.
    pub fn unit_tokens(&self) -> usize {
        self.max_seq_len * rows_per_unit(&self.run)
    }

    /// The order of training, from the beginning.
    ///
    /// # Errors
    /// None that [`Setup::new`] has not found before.
    pub fn order(&self) -> Result<Order, TrainError> {
        Ok(Order::new(&self.train, self.unit_tokens(), self.units_per_step, self.run.train.seed)?)
    }
}

/// Refuses an adapter to start from that was trained on another model.
fn check_base(run: &RunFile, model_dir: &Path) -> Result<(), TrainError> {
    let adapter = run.adapter.as_ref().map(|AdapterSection::Lora(lora)| lora);
    let Some(dir) = adapter.and_then(|lora| lora.init_from.as_deref()) else { return Ok(()) };
    let model = (&*run.model.path, &ModelFiles::open(model_dir)?);
    TrainedOn::check(dir, model).map_err(|error| match error {
        AdapterError::OtherBase { .. } => TrainError::Usage(
            Code::AdapterInvalid,
            format!(
                "adapter.init_from: {error} as model.path; or merge it into that (hone export \
                 --adapter), and train a new adapter on the result"
            ),
        ),
        error => error.into(),
    })
}

/// How tokens are masked, and what to know of the model's heads.
fn masking(
    run: &mut RunFile,
    config: &DecoderConfig,
    tokenizer: &Tokenizer,
    note: &mut dyn FnMut(String),
) -> Result<Option<Masking>, TrainError> {
    let masking = Masking::of(run, config, tokenizer)?;
    if masking.is_some() {
        // An encoder writes no texts.
        run.report.samples = 0;
    }
    notes_of_heads(config, masking.as_ref()).into_iter().for_each(note);
    Ok(masking)
}

/// Rows to evaluate on, and their units.
type EvalRows = (Dataset, Vec<Unit>);

/// Rows to learn from, and to evaluate on.
fn data(
    run: &RunFile,
    (spec, config): (&RecordSpec, &DecoderConfig),
    tokenizer: &Tokenizer,
    threads: usize,
    note: &mut dyn FnMut(String),
) -> Result<(Dataset, Option<EvalRows>), TrainError> {
    let train = hone_data::load(&run.data.train.0, spec, tokenizer, threads)?;
    let eval = evaluation_data(run, spec, tokenizer, threads)?;
    check_tokens(&train, config)?;
    let told = &train.report().warnings;
    told.iter().for_each(|warning| note(format!("data.train: {warning}")));
    if let Some((eval, _)) = &eval {
        check_tokens(eval, config)?;
        let more = eval.report().warnings.iter().filter(|warning| !told.contains(warning));
        more.for_each(|warning| note(format!("data.eval: {warning}")));
    }
    unread_settings(run, &train, eval.as_ref()).into_iter().for_each(note);
    Ok((train, eval))
}

/// Rows to evaluate on, if any are named, and their units.
fn evaluation_data(
    run: &RunFile,
    spec: &RecordSpec,
    tokenizer: &Tokenizer,
    num_threads: usize,
) -> Result<Option<(Dataset, Vec<Unit>)>, TrainError> {
    if run.data.eval.is_empty() {
        return Ok(None);
    }
    let eval = hone_data::load(&run.data.eval, spec, tokenizer, num_threads)?;
    let units = pack_in_order(&eval, spec.max_seq_len * rows_per_unit(run))?;
    Ok(Some((eval, units)))
}

/// What to know of settings that change nothing with this data.
fn unread_settings(
    run: &RunFile,
    train: &Dataset,
    eval: Option<&(Dataset, Vec<Unit>)>,
) -> Vec<String> {
    let mut notes = Vec::new();
    let mut data = std::iter::once(train).chain(eval.map(|(eval, _)| eval));
    if !run.data.append_eos && !data.any(|data| data.report().holds_documents()) {
        notes.push(
            "data.append_eos = false changes nothing: it is for documents of format text, and \
             there are none"
                .to_owned(),
        );
    }
    if run.train.eval_every_steps > 0 && eval.is_none() {
        notes.push("train.eval_every_steps changes nothing: data.eval names no files".to_owned());
    }
    notes
}

/// Where to compute, and in what.
fn backend(
    run: &RunFile,
    planned_for: Option<Backend>,
    (threads, file): (usize, DType),
    note: &mut dyn FnMut(String),
) -> Result<(Backend, Compute), TrainError> {
    let asked = Asked { setting: "run.device =", device: &run.run.device };
    let Some(backend) = planned_for else {
        return Backend::open(asked, (run.model.compute, file), threads, note);
    };
    asked.check()?;
    let compute = backend.compute_for(run.model.compute, file)?;
    Ok((backend, compute))
}

/// Runs of fewer steps than this barely leave the warm-up.
const FEW_STEPS: u64 = 10;
/// Steps that small data should give.
const ENOUGH_STEPS: usize = 50;

/// What to know of a share of warm-up that is a whole step where there are few.
fn warm_up_of_few_steps(run: &RunFile, num_steps: u64) -> Option<String> {
    let ratio = run.train.warmup_ratio.filter(|_| num_steps < FEW_STEPS)?;
    let warm_up = match (run.train.num_warmup_steps(num_steps), num_steps) {
        (0, _) => return None,
        (_, 1) => "the only step is warm-up: its".to_owned(),
        (1, _) => format!("the first of {num_steps} steps is warm-up: its"),
        (more, _) => format!("the first {more} of {num_steps} steps are warm-up: the first one's"),
    };
    Some(format!(
        "with train.warmup_ratio = {ratio} {warm_up} learning rate is 0, so it changes nothing. \
         Set train.warmup_steps = 0 to learn from every step"
    ))
}

/// What to know of a run of few steps. The batch that it suggests makes more of them, has room for
/// the longest row, and the run file allows it.
fn few_steps(
    run: &RunFile,
    train: &Dataset,
    epoch_tokens: usize,
    (given_max_seq_len, longest_row): (Option<usize>, usize),
    num_steps: u64,
) -> Result<String, TrainError> {
    let (batch, rows) = (run.train.batch_tokens, rows_per_unit(run));
    let max_seq_len = run.data.max_seq_len.expect("filled in by now");
    let kind = objectives::of(&run.objective).records();
    let longest = kind.longest_scored(longest_row).min(max_seq_len);
    let epochs = run.train.num_epochs.unwrap_or(1);
    let all = epoch_tokens.saturating_mul(epochs as usize);
    let at_least = match run.budget.micro_batch_tokens {
        // It has to be a multiple of `max_seq_len`, which then has to stay.
        Some(micro_batch) => micro_batch.max(max_seq_len * rows),
        None => longest * rows,
    };
    let wanted = (all / ENOUGH_STEPS).max(at_least).next_power_of_two();
    let also = match (given_max_seq_len, wanted / rows) {
        (Some(given), shorter) if shorter < given => format!(" and data.max_seq_len to {shorter}"),
        _ => String::new(),
    };
    // Packed as they would be then: shorter units leave more of their slots empty.
    let unit_tokens = (max_seq_len * rows).min(wanted);
    let packed = Order::new(train, unit_tokens, wanted / unit_tokens, run.train.seed)?;
    let more = match packed.total_steps(epochs)? {
        more if wanted < batch && more > num_steps => {
            format!("Set it to {wanted}{also} for {more} steps, or raise")
        }
        _ => "Raise".to_owned(),
    };
    let steps = if num_steps == 1 { "step" } else { "steps" };
    Ok(format!(
        "only {num_steps} {steps}: an epoch holds {epoch_tokens} tokens and train.batch_tokens is \
         {batch}. {more} train.num_epochs to learn more"
    ))
}

/// The directory or GGUF file of a model, fetched from the hub if need be; `note` is told of each
/// file.
///
/// # Errors
/// If there is no such model, or it cannot be fetched.
pub fn resolve(model: &str, note: &mut dyn FnMut(String)) -> Result<PathBuf, TrainError> {
    resolve_with(model, &HubSettings::from_env(), note)
}

/// The same without weights, which a plan can do without; `note` is told where they are not here.
fn resolve_for_plan(model: &str, note: &mut dyn FnMut(String)) -> Result<PathBuf, TrainError> {
    let settings = HubSettings { without_weights: true, ..HubSettings::from_env() };
    let path = resolve_with(model, &settings, note)?;
    if let Err(LoadError::NoWeights { pickled: None, .. }) = hone_model::weight_files(&path) {
        note(format!("{model}: its weights are not here, and planned by what config.json says"));
    }
    Ok(path)
}

fn resolve_with(
    model: &str,
    settings: &HubSettings,
    note: &mut dyn FnMut(String),
) -> Result<PathBuf, TrainError> {
    let note = RefCell::new(note);
    let fetched = |file: &str| (note.borrow_mut())(format!("fetching {file}"));
    hub::resolve_with(model, settings, &fetched).map_err(|error| match error {
        HubError::Offline { .. } | HubError::Network { .. } | HubError::NotFound { .. } => {
            let here = "there is no such directory here, so it was taken for a hub name";
            let message = format!("{model}: {here}: {error}");
            TrainError::Usage(TrainError::Hub(error).code(), message)
        }
        other => other.into(),
    })
}

/// The tokenizer of a model directory or GGUF file.
///
/// # Errors
/// If it has none, or one that cannot be used.
pub fn tokenizer_of(model: &Path) -> Result<Tokenizer, TrainError> {
    Ok(match hone_model::is_gguf(model) {
        true => Tokenizer::from_texts(model, &hone_model::texts_of_gguf(model)?)?,
        false => Tokenizer::from_dir(model)?,
    })
}

/// What to know where the tokenizer has more tokens than the embedding has rows. It is no fault
/// as long as no text holds such a token: a padding token is often added so.
pub fn surplus_tokens(dir: &Path, config: &DecoderConfig, tokenizer: &Tokenizer) -> Option<String> {
    let (has, knows) = (tokenizer.vocab_size(), config.vocab_size);
    (has > knows).then(|| {
        format!(
            "{}: the tokenizer has token ids up to {}, but the model knows only {knows} tokens \
             (its vocab_size): texts with the others are refused",
            dir.display(),
            has - 1
        )
    })
}

/// Refuses rows with a token for which the embedding has no row.
///
/// # Errors
/// Naming the first such row.
pub fn check_tokens(dataset: &Dataset, config: &DecoderConfig) -> Result<(), TrainError> {
    let Some((source, id)) = dataset.first_beyond(config.vocab_size) else { return Ok(()) };
    Err(TrainError::unknown_token(&format!("{}:{}: the row", source.file, source.line), id, config))
}

/// Refuses a prompt with a token for which the embedding has no row.
///
/// # Errors
/// Naming the token.
pub fn check_prompt(prompt: &[u32], config: &DecoderConfig) -> Result<(), TrainError> {
    let unknown = prompt.iter().find(|&&id| id as usize >= config.vocab_size);
    unknown.map_or(Ok(()), |&id| Err(TrainError::unknown_token("the prompt", id, config)))
}

/// How frozen matrices are held of a model that was opened as `file` has it; `None`: as there.
/// Products in eight bits need integers; for those in f16 floats are converted once and not each
/// time, but blocks stay: they would take several times the memory.
pub fn held_type(asked: Held, compute: Compute, file: &Model) -> Option<Storage> {
    let has_floats = || file.storages().iter().all(|storage| storage.float().is_some());
    match (asked, compute) {
        (Held::As(storage), _) => Some(storage),
        (Held::Auto, Compute::Fp8 | Compute::Int8) => Some(Storage::INT8),
        (Held::Auto, Compute::F16) => {
            Some(DType::F16.into()).filter(|_| file.file_dtype != DType::F16 && has_floats())
        }
        (Held::Auto, _) => None,
    }
}

fn lora_config(section: &LoraSection) -> LoraConfig {
    LoraConfig {
        rank: section.rank,
        alpha: section.alpha,
        dropout: section.dropout as f32,
        target_modules: match &section.target_modules {
            run_file::TargetModules::AllLinear => TargetModules::AllLinear,
            run_file::TargetModules::Patterns(p) => TargetModules::Patterns(p.clone()),
        },
        use_rslora: section.use_rslora,
        share_experts: section.share_experts,
    }
}

/// Longest rows unless the run file says so.
const MAX_SEQ_LEN: usize = 2048;
/// A bound that many rows exceed.
const SHORT_ROWS: usize = 256;

/// Fills in `data.max_seq_len` and checks it against the model and the batch.
fn max_seq_len(
    run: &mut RunFile,
    config: &DecoderConfig,
    note: &mut dyn FnMut(String),
) -> Result<usize, TrainError> {
    let longest = config.max_position_embeddings;
    let max_seq_len = run.data.max_seq_len.unwrap_or_else(|| {
        let (usual, room) = (longest.min(MAX_SEQ_LEN), run.train.batch_tokens / rows_per_unit(run));
        if room < usual.min(SHORT_ROWS) {
            note(format!(
                "data.max_seq_len is {room}, as train.batch_tokens = {} has no room for longer \
                 rows; raise train.batch_tokens for those",
                run.train.batch_tokens
            ));
        }
        usual.min(room)
    });
    if !config.supports_len(max_seq_len) {
        return Err(TrainError::Usage(
            Code::RunFileInvalidValue,
            format!(
                "data.max_seq_len = {max_seq_len} is longer than the model was made for: the \
                 model's positions are {longest}; set it to at most {longest}"
            ),
        ));
    }
    run.data.max_seq_len = Some(max_seq_len);
    run.check_with_max_seq_len(max_seq_len)?;
    let (together, batch_tokens) = (rows_per_unit(run) * max_seq_len, run.train.batch_tokens);
    if together > batch_tokens {
        return Err(TrainError::Usage(
            Code::RunFileInvalidValue,
            format!(
                "train.batch_tokens = {batch_tokens} has no room for {} rows of data.max_seq_len = \
             {max_seq_len} tokens, which objective.kind = \"{}\" compares; set it to at least \
             {together}",
                rows_per_unit(run),
                run.objective.kind(),
            ),
        ));
    }
    Ok(max_seq_len)
}

/// Refuses the auxiliary loss of a model that has no routers.
fn refuse_balance_of_nothing(run: &RunFile, config: &DecoderConfig) -> Result<(), TrainError> {
    if run.train.router_aux_loss_coef == 0.0 || mixture::has_experts(config) {
        return Ok(());
    }
    let problem = "train.router_aux_loss_coef evens out the load of experts, and this model has \
                   none: remove it";
    Err(TrainError::Usage(Code::RunFileInvalidValue, problem.to_owned()))
}

/// Longest rows that a unit must hold together.
fn rows_per_unit(run: &RunFile) -> usize {
    objectives::of(&run.objective).records().rows_per_record()
}

fn units_per_step(run: &RunFile, unit_tokens: usize, note: &mut dyn FnMut(String)) -> usize {
    let (batch_tokens, units) = (run.train.batch_tokens, run.train.batch_tokens / unit_tokens);
    if units * unit_tokens != batch_tokens {
        note(format!(
            "train.batch_tokens = {batch_tokens} is no multiple of the \
             {unit_tokens} of a unit (data.max_seq_len, or that of all rows that are compared): a \
             step takes {} tokens",
            units * unit_tokens
        ));
    }
    units
}

fn record_spec(run: &RunFile, max_seq_len: usize, config: &DecoderConfig) -> RecordSpec {
    let data = &run.data;
    let is_masked = matches!(run.objective, ObjectiveSection::Masked(_));
    RecordSpec {
        format: data.format,
        prompt_field: data.prompt_field.clone(),
        completion_field: data.completion_field.clone(),
        max_seq_len,
        model_max_len: config.longest(),
        overlong: data.overlong,
        on_error: data.on_error,
        // What an encoder's texts end with, its tokenizer adds.
        append_eos: data.append_eos && !is_masked,
        kind: objectives::of(&run.objective).records(),
        keeps_ends: is_masked,
        context_tokens: 0,
        all_tokens_are_targets: is_masked || run.objective == ObjectiveSection::Pretrain,
    }
}

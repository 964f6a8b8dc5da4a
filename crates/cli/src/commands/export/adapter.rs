//! Writes an adapter by itself.

use super::super::Opened;
use super::card::Card;
use crate::args::{ExportArgs, ExportFormat};
use crate::failure::Failure;
use hone_model::adapter::TrainedOn;
use hone_model::{Comparison, Fidelity, GgufAdapter, adapter};
use hone_tensor::gguf::Meta;
use hone_tensor::{AdapterId, DType};
use hone_train::TrainError;
use std::path::Path;

/// Refuses what does not go with `--adapter-only`.
pub(super) fn check(args: &ExportArgs) -> Result<(), Failure> {
    if args.model.adapter.is_none() {
        return Err(Failure::Usage(
            "--adapter-only: there is no adapter; name one with --adapter".to_owned(),
        ));
    }
    match args.dtype.map(DType::from) {
        None | Some(DType::F32) => Ok(()),
        Some(dtype) => Err(Failure::Usage(format!(
            "--dtype {}: adapters are written in f32, as they were trained; omit it",
            dtype.name()
        ))),
    }
}

/// Writes the adapter, with what `card` says of the model that it is for.
pub(super) fn write(
    opened: &Opened,
    format: ExportFormat,
    card: &Card,
    to: &Path,
) -> Result<(), Failure> {
    let Opened { device, model, lora, .. } = opened;
    let id = AdapterId::default();
    let failed = |error| Failure::from(TrainError::from(error));
    match (format, lora) {
        (ExportFormat::Hf, Some(lora)) => {
            std::fs::create_dir(to).map_err(TrainError::io(to))?;
            adapter::save(to, model, device, id, lora, card.base()).map_err(failed)?;
            card.trained_on().map_or(Ok(()), |trained_on| trained_on.write(to)).map_err(failed)
        }
        _ => {
            let mut form = GgufAdapter::of(model, id).map_err(super::gguf::failure)?;
            form.set("general.name", Meta::Text(card.name().to_owned()));
            card.metadata().into_iter().for_each(|(key, value)| form.set(&key, value));
            let trained_on = card.trained_on().map(TrainedOn::metadata).into_iter().flatten();
            trained_on.for_each(|(key, value)| form.set(key, value));
            form.write(device, to).map_err(super::gguf::failure)
        }
    }
}

/// Reads the adapter back and compares what it makes of the base.
pub(super) fn compare(opened: &Opened, written: &Path) -> Result<Fidelity, Failure> {
    let Opened { device, model, .. } = opened;
    let (base, mut again) = (model.without_adapters(), model.without_adapters());
    adapter::load(written, &mut again, device, &mut |_| ()).map_err(TrainError::from)?;
    let models = Comparison { device, base: Some(&base), intended: model, written: &again };
    super::checked(models, DType::F32, opened)
}

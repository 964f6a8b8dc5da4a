//! Which weights are in which tensor, and their bytes there.

use super::{Content, FormTensor, GgufExportError};
use crate::config::DecoderConfig;
use crate::decoder::Part;
use crate::export::{pieces, table, written};
use crate::gguf::architectures::Architecture;
use crate::gguf::delta::Tiled;
use crate::gguf::tensors::pairs_from_halves;
use crate::load::Model;
use crate::weights::{DeltaPart, Linear, Role, WeightSpec};
use hone_tensor::gguf::GgufFile;
use hone_tensor::safetensors::{load_as, pack_as};
use hone_tensor::{Category, DType, Device, DeviceError, Storage, Tensor, Tiles};
use std::collections::HashMap;
use std::ops::Range;

/// The tensors of a file, in the order of the model.
pub(super) fn tensors(
    config: &DecoderConfig,
    architecture: &Architecture,
) -> Result<Vec<FormTensor>, GgufExportError> {
    let (mut tensors, mut of_experts) = (Vec::new(), HashMap::new());
    for WeightSpec { role, name, mut shape } in config.weights() {
        let Some(tensor) = architecture.tensor_of(role, config) else {
            return Err(GgufExportError::Setting(format!("the weight `{name}`")));
        };
        let is_expert =
            matches!(role, Role::Matrix(_, Linear::Expert(..)) | Role::Bias(_, Linear::Expert(..)));
        if !is_expert {
            // `[channels, 1, width]`
            if matches!(role, Role::Delta(_, DeltaPart::Conv)) {
                shape.retain(|&len| len > 1);
            }
            tensors.push(FormTensor { name: tensor, shape, content: Content::Weights(vec![role]) });
            continue;
        }
        let at = *of_experts.entry(tensor.clone()).or_insert_with(|| {
            let shape = [&[0], &shape[..]].concat();
            tensors.push(FormTensor { name: tensor, shape, content: Content::Weights(Vec::new()) });
            tensors.len() - 1
        });
        let all: &mut FormTensor = &mut tensors[at];
        all.shape[0] += 1;
        if let Content::Weights(roles) = &mut all.content {
            roles.push(role);
        }
    }
    Ok(tensors)
}

/// Gives `write` a weight with its adapter merged, as a file has it: with rows and heads in its
/// order, in `storage`. Blocks that need not change are those that are held. A table is given some
/// rows at a time, and the pages of a mapped file are let go of.
pub(super) fn stored(
    model: &Model,
    device: &Device,
    (role, architecture): (Role, &Architecture),
    as_stored: (Storage, &[f32]),
    write: &mut dyn FnMut(&Tensor) -> Result<(), GgufExportError>,
) -> Result<(), GgufExportError> {
    match table(model, role) {
        Some(table) => pieces(table, as_stored).try_for_each(|piece| write(&piece?))?,
        None => write(&whole(model, device, (role, architecture), as_stored)?)?,
    }
    if let Some(weight) = model.weight(role) {
        weight.release_file();
    }
    Ok(())
}

/// A weight as a file has it.
fn whole(
    model: &Model,
    device: &Device,
    (role, architecture): (Role, &Architecture),
    (storage, importance): (Storage, &[f32]),
) -> Result<Tensor, DeviceError> {
    let config = &model.decoder.config;
    let tiled = Tiled::of(role, config);
    let mut tensor = match held(model, role, storage) {
        Some(tensor) => tensor.clone(),
        None => written(model, device, role, DType::F32)?.to_host()?,
    };
    if let Some(head_dim) = architecture.turned(role, config) {
        let num_rows = tensor.shape()[0];
        tensor = GgufFile::reordered(&tensor, num_rows, |row| pairs_from_halves(row, head_dim))?;
    }
    if let Some(tiled) = tiled {
        tensor = in_file_order(&tiled, tensor)?;
    }
    if matches!(role, Role::Delta(_, DeltaPart::ALog)) {
        let rates: Vec<f32> = tensor.try_to_vec_f32()?.iter().map(|x| -x.exp()).collect();
        tensor = Tensor::from_f32(&rates, tensor.shape());
    }
    if architecture.has_plus_one(role) {
        let more: Vec<f32> = tensor.try_to_vec_f32()?.iter().map(|x| x + 1.0).collect();
        tensor = Tensor::from_f32(&more, tensor.shape());
    }
    if tensor.storage() == storage {
        return Ok(tensor);
    }
    pack_as(&tensor, storage, importance)
}

/// A matrix with its adapter merged, in the model's order of rows, in f32 or as a file has it. The
/// pages of a mapped file are let go of if another matrix was made of it.
pub(super) fn in_model(
    model: &Model,
    device: &Device,
    role: Role,
    (storage, importance): (Storage, &[f32]),
) -> Result<Tensor, DeviceError> {
    if let Some(tensor) = held(model, role, storage) {
        return Ok(tensor.clone());
    }
    if let Some(table) = table(model, role) {
        let packed = Tensor::of_rows(storage, table.shape(), pieces(table, (storage, importance)));
        table.release_file();
        return packed;
    }
    let tensor = written(model, device, role, DType::F32)?.to_host()?;
    if let Some(weight) = model.weight(role) {
        weight.release_file();
    }
    if tensor.storage() == storage {
        return Ok(tensor);
    }
    match Tiled::of(role, &model.decoder.config) {
        Some(Tiled::Columns(tiles)) if storage.float().is_none() => {
            let tensor = in_file_order(&Tiled::Columns(tiles), tensor)?;
            Ok(pack_as(&tensor, storage, importance)?.with_tiles(tiles))
        }
        _ => pack_as(&tensor, storage, importance),
    }
}

/// Some rows of what [`in_model`] gives in f32.
pub(super) fn rows_in_model(
    model: &Model,
    device: &Device,
    role: Role,
    rows: Range<usize>,
) -> Result<Tensor, DeviceError> {
    if let Some(table) = table(model, role) {
        let rows = table.rows(rows)?.expect("rows of a table");
        return load_as(Device::host(), Category::Workspace, &rows, DType::F32);
    }
    let whole = in_model(model, device, role, (DType::F32.into(), &[]))?;
    Ok(whole.rows(rows)?.expect("rows of floats"))
}

/// Some rows in f32 of what [`in_model`] gives with these types.
pub(super) fn stored_rows(
    model: &Model,
    device: &Device,
    (role, rows): (Role, Range<usize>),
    (storage, importance): (Storage, &[f32]),
) -> Result<Tensor, DeviceError> {
    let in_f32 = |tensor: &Tensor| load_as(Device::host(), Category::Workspace, tensor, DType::F32);
    if held(model, role, storage).is_some() || has_tiled_columns(model, role) {
        let whole = in_model(model, device, role, (storage, importance))?;
        return match whole.rows(rows.clone())? {
            Some(rows) => in_f32(&rows),
            None => Ok(in_f32(&whole)?.rows(rows)?.expect("rows of floats")),
        };
    }
    let rows = rows_in_model(model, device, role, rows)?;
    in_f32(&pack_as(&rows, storage, importance)?)
}

/// What is known of a matrix's columns, in the file's order.
pub(super) fn columns(
    config: &DecoderConfig,
    role: Role,
    columns: Vec<f32>,
) -> Result<Vec<f32>, DeviceError> {
    match Tiled::of(role, config) {
        Some(tiled @ Tiled::Columns(_)) => {
            let row = Tensor::from_f32(&columns, &[1, columns.len()]);
            in_file_order(&tiled, row)?.try_to_vec_f32()
        }
        _ => Ok(columns),
    }
}

/// Whether a matrix's columns have another order in a file.
fn has_tiled_columns(model: &Model, role: Role) -> bool {
    matches!(Tiled::of(role, &model.decoder.config), Some(Tiled::Columns(_)))
}

/// The tensor that is held of a weight, if its bytes can be those of the file: nothing is merged,
/// and columns have the file's order.
fn held(model: &Model, role: Role, storage: Storage) -> Option<&Tensor> {
    let weight = match model.decoder.part(role)? {
        Part::Plain(weight) => weight,
        Part::Matrix(projection) if projection.adapters.is_empty() => &projection.weight,
        Part::Matrix(_) => return None,
    };
    let tensor = model.params.resolve(weight);
    let is_in_order = match tensor.storage() {
        Storage::Packed(format) => has_tiled_columns(model, role) == format.tiles.is_some(),
        Storage::Float(_) => true,
    };
    (tensor.storage() == storage && tensor.is_on_host() && is_in_order).then_some(tensor)
}

/// Heads in tiles, as [`Tiled::in_hub_order`] finds them.
pub(super) fn in_file_order(tiled: &Tiled, tensor: Tensor) -> Result<Tensor, DeviceError> {
    let num_rows = tensor.shape().first().copied().unwrap_or(1);
    match *tiled {
        Tiled::Rows { tiles, after_keys } => {
            let inverse = inverse(tiles);
            let first = if after_keys { num_rows - inverse.len() } else { 0 };
            GgufFile::reordered(&tensor, num_rows, |row| match row.checked_sub(first) {
                None => row,
                Some(row) => first + inverse[row],
            })
        }
        Tiled::Columns(_) if tensor.storage().float().is_none() => Ok(tensor),
        Tiled::Columns(tiles) => {
            let inverse = inverse(Tiles { len: 1, ..tiles });
            GgufFile::reordered(&tensor, num_rows * inverse.len(), |part| {
                part / inverse.len() * inverse.len() + inverse[part % inverse.len()]
            })
        }
    }
}

/// Where each of the file's elements is in Hugging Face's order.
fn inverse(tiles: Tiles) -> Vec<usize> {
    let mut inverse = vec![0; tiles.groups * tiles.per_group * tiles.len];
    for i in 0..inverse.len() {
        inverse[tiles.at(i)] = i;
    }
    inverse
}

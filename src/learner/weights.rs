//! Trained parameters as a file in the safetensors format, which other programs read.

use super::Layout;
use crate::error::{Error, Result};
use crate::files::write_atomically;
use bytemuck::cast_slice;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const FORMAT_VERSION: &str = "1";

/// What the file says about itself, beside the tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightsInfo {
    /// The network's name.
    pub network: String,
    /// The data set's name.
    pub dataset: String,
}

/// Writes `parameters` under the tensors' names. The file appears whole or not at all: it is written beside `path`, brought to
/// the disk, and renamed.
///
/// # Errors
///
/// [`Error::File`] if it cannot be written; [`Error::Internal`] if `parameters` does not have the layout's length.
pub fn save(path: &Path, layout: &Layout, parameters: &[f32], info: &WeightsInfo) -> Result<()> {
    check_length(layout, parameters)?;
    let header = header(layout, info);
    let header_len = (header.len() as u64).to_le_bytes();
    write_atomically(path, &[&header_len, header.as_bytes(), cast_slice(parameters)])
}

// The format is little-endian, and parameters are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// What comes before the data, which are the flat buffer itself. Not by the crate's `serialize`: that puts the metadata
/// into a random order, and the same parameters should make the same file.
fn header(layout: &Layout, info: &WeightsInfo) -> String {
    let metadata =
        json!({ "dataset": info.dataset, "format_version": FORMAT_VERSION, "network": info.network });
    let mut entries = Map::from_iter([("__metadata__".to_owned(), metadata)]);
    for tensor in &layout.tensors {
        let bytes = [tensor.range.start, tensor.range.end].map(|element| element * size_of::<f32>());
        let entry = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": bytes });
        entries.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(entries).to_string();
    // Readers that map the file want aligned data.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    header
}

/// Reads a file written by [`save`] into `parameters`, which has the length of `layout`. The file must have exactly the
/// layout's tensors, in any order.
///
/// # Errors
///
/// [`Error::Data`] if the file is missing, truncated, of another format, or of another network; [`Error::Internal`] if
/// `parameters` does not have the layout's length. Nothing is changed then.
pub fn load(path: &Path, layout: &Layout, parameters: &mut [f32]) -> Result<WeightsInfo> {
    check_length(layout, parameters)?;
    let bytes = fs::read(path).map_err(|e| Error::data(path, format!("cannot be read: {e}")))?;
    let damaged = |e| Error::data(path, format!("is truncated or no safetensors file: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let said = |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key)).cloned();
    match said("format_version").as_deref() {
        Some(FORMAT_VERSION) => {}
        Some(version) => {
            let what = format!("has format version {version}; this program reads version {FORMAT_VERSION}");
            return Err(Error::data(path, what));
        }
        None => return Err(Error::data(path, "was not written by this program: it has no format_version")),
    }
    check_tensors(&file, layout).map_err(|what| Error::data(path, what))?;
    for tensor in &layout.tensors {
        let view = file.tensor(&tensor.name).map_err(damaged)?;
        // The file's bytes need not be aligned.
        for (into, bytes) in parameters[tensor.range.clone()].iter_mut().zip(view.data().as_chunks::<4>().0) {
            *into = f32::from_le_bytes(*bytes);
        }
    }
    Ok(WeightsInfo {
        network: said("network").unwrap_or_default(),
        dataset: said("dataset").unwrap_or_default(),
    })
}

fn check_length(layout: &Layout, parameters: &[f32]) -> Result<()> {
    if parameters.len() == layout.len {
        return Ok(());
    }
    Err(Error::Internal(format!("{} parameters in a layout of {}", parameters.len(), layout.len)))
}

/// Names, types and shapes; the error says the first difference.
fn check_tensors(file: &SafeTensors, layout: &Layout) -> Result<(), String> {
    let in_file: BTreeSet<&str> = file.names().into_iter().collect();
    let in_layout: BTreeSet<&str> = layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    if let Some(name) = in_layout.difference(&in_file).next() {
        return Err(format!("is of another network: it has no tensor `{name}`"));
    }
    if let Some(name) = in_file.difference(&in_layout).next() {
        return Err(format!("is of another network: it has a tensor `{name}`, which this one does not"));
    }
    for tensor in &layout.tensors {
        let view = file.tensor(&tensor.name).map_err(|e| e.to_string())?;
        if view.dtype() != Dtype::F32 {
            return Err(format!("has tensor `{}` as {:?} instead of F32", tensor.name, view.dtype()));
        }
        if view.shape() != tensor.shape {
            return Err(format!(
                "is of another network: tensor `{}` has shape {:?} instead of {:?}",
                tensor.name,
                view.shape(),
                tensor.shape
            ));
        }
    }
    Ok(())
}

//! The safetensors files of a Hugging Face folder, mapped into memory.
#![allow(unsafe_code, reason = "memory-mapped files")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dlm_datasets::fs::open_file;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::{folder_kind, json_text};
use crate::compute::mapped_files;
use crate::compute::tensor_io::decode_floats;
use crate::error::{Error, Result};
use crate::report::console::message;

/// The tensors of a checkpoint folder; they are read when asked for.
pub(crate) struct Checkpoint {
    dir: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    index: BTreeMap<String, Place>,
}

/// Where a tensor is; headers are parsed once, however many tensors they hold.
struct Place {
    /// Index into the files.
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of the file.
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Maps the safetensors of a folder: one file, or the shards that the index names. Where a
    /// tensor is in several shards, that of the last one counts, as in transformers 5, which reads
    /// the shards in the order of their names.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index_file = dir.join("model.safetensors.index.json");
        if single.is_file() {
            return Self::map(dir, &[single], &BTreeMap::new());
        }
        if !index_file.is_file() {
            return Err(Error::format(dir, folder_kind::explain(dir, "model.safetensors")));
        }
        let map = weight_map(&index_file)?;
        let mut names: Vec<&String> = map.values().collect();
        names.sort_unstable();
        names.dedup();
        let paths: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
        Self::map(dir, &paths, &map)
    }

    /// Maps one file.
    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new(""));
        Self::map(dir, &[path.to_path_buf()], &BTreeMap::new())
    }

    /// Maps files; `map` says for each tensor in which of them it is.
    fn map(dir: &Path, paths: &[PathBuf], map: &BTreeMap<String, String>) -> Result<Self> {
        let mut files = Vec::new();
        let mut index: BTreeMap<String, Place> = BTreeMap::new();
        let mut missing: BTreeMap<&String, &String> = map.iter().collect();
        let mut elsewhere = Vec::new();
        for path in paths {
            let file = open_file(path).map_err(|e| Error::io(path, "opening the weights", e))?;
            // SAFETY: the mapping is read-only and lives as long as `Checkpoint`. As with every
            // mapped file, other processes must not change or truncate it meanwhile; model folders
            // are written once.
            let bytes = unsafe { Mmap::map(&file) }
                .map_err(|e| Error::io(path, "mapping the weights", e))?;
            check_header(path, &bytes)?;
            #[cfg(test)]
            tests::PARSED.set(tests::PARSED.get() + bytes.len());
            let st = SafeTensors::deserialize(&bytes).map_err(|e| {
                Error::format(
                    path,
                    format!("not a whole safetensors file: {e}; is the download complete?"),
                )
            })?;
            for (name, view) in st.iter() {
                match map.get_key_value(name) {
                    Some((_, named)) if dir.join(named) != *path => {
                        elsewhere.push(format!("{name} in {} beside {named}", path.display()));
                    }
                    Some((tensor, _)) => _ = missing.remove(tensor),
                    None if index.contains_key(name) => {
                        return Err(Error::format(
                            path,
                            format!(
                                "{name} is in another shard too, and weight_map of model.safetensors.index.json does not say which one counts"
                            ),
                        ));
                    }
                    None => {}
                }
                // the views lie in the mapping
                let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
                let place = Place {
                    file: files.len(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: start..start + view.data().len(),
                };
                index.insert(name.to_string(), place);
            }
            files.push((path.clone(), bytes));
        }
        if let Some((tensor, file)) = missing.first_key_value() {
            return Err(Error::format(
                dir.join("model.safetensors.index.json"),
                format!(
                    "weight_map says that {tensor} is in {file}, which does not hold it; is the download complete?"
                ),
            ));
        }
        if let Some(example) = elsewhere.first() {
            message(format_args!(
                "warning: {} tensors are in a shard that weight_map does not name for them, such as {example}: where two shards hold a tensor, the last one's is used, as in transformers 5",
                elsewhere.len()
            ));
        }
        Ok(Checkpoint { dir: dir.to_path_buf(), files, index })
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Shape and values of a floating-point tensor, in fp32.
    pub(crate) fn f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let (path, dtype, shape, data) = self.view(name)?;
        let values = decode_floats(dtype, data).ok_or_else(|| {
            Error::format(path, format!("{name} has dtype {dtype:?}: the weights are quantised; expected F32, F16 or BF16, take the unquantised checkpoint"))
        })?;
        Ok((shape, values))
    }

    /// The file, dtype, shape and bytes of a tensor.
    pub(crate) fn view(&self, name: &str) -> Result<(&Path, Dtype, Vec<usize>, &[u8])> {
        let place = self
            .index
            .get(name)
            .ok_or_else(|| Error::Tensors(format!("tensor {name} is missing")))?;
        let (path, map) = &self.files[place.file];
        Ok((path, place.dtype, place.shape.clone(), &map[place.bytes.clone()]))
    }

    /// Refuses what was read where a file was cut off meanwhile.
    pub(crate) fn check_whole(&self) -> Result<()> {
        mapped_files::check(self.files.first().map_or(&self.dir, |(path, _)| path))
    }
}

/// Most bytes of a header: those of 300,000 tensors are about 30 MB.
const MOST_HEADER_BYTES: u64 = 100_000_000;

/// Refuse a safetensors file whose header is longer than any real one, before it is parsed. One
/// that is longer than the file is damage, which the parser names.
pub(crate) fn check_header(path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(length) = bytes.first_chunk().map(|length| u64::from_le_bytes(*length)) else {
        return Ok(());
    };
    if length <= MOST_HEADER_BYTES || length > bytes.len() as u64 {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{}: its first 8 bytes announce a safetensors header of {length} bytes; expected at most {MOST_HEADER_BYTES}",
        path.display()
    )))
}

/// Tensor name → name of the shard, from an index file.
fn weight_map(index_file: &Path) -> Result<BTreeMap<String, String>> {
    let text = json_text::read(index_file)
        .map_err(|e| Error::io(index_file, "reading the shard index", e))?;
    let json = json_text::parse(&text)
        .map_err(|e| Error::format(index_file, format!("not valid JSON: {e}")))?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .filter(|map| !map.is_empty())
        .ok_or_else(|| Error::format(index_file, "no weight_map object with tensors"))?;
    let mut shards = BTreeMap::new();
    for (tensor, file) in map {
        let plain = |name: &&str| {
            let named = Path::new(name).file_name();
            named == Some(name.as_ref()) && !name.contains('\\') && !name.contains("..")
        };
        let name = file.as_str().filter(plain);
        let Some(name) = name else {
            return Err(Error::format(
                index_file,
                format!("weight_map says that {tensor} is in {file}; expected a plain file name"),
            ));
        };
        shards.insert(tensor.clone(), name.to_string());
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a file of `count` tensors of one number each.
    fn folder(count: usize) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let entry = |i: usize| {
            format!(
                r#""t.{i}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#,
                4 * i,
                4 * i + 4
            )
        };
        let header = format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..count).flat_map(|i| (i as f32).to_le_bytes()));
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        dir
    }

    thread_local! {
        /// Bytes of files whose headers were parsed.
        pub(super) static PARSED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    /// The header is parsed once, however many tensors are read.
    #[test]
    fn three_hundred_thousand_tensors_are_read_in_linear_time() {
        const COUNT: usize = 300_000;
        let dir = folder(COUNT);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let sum: f64 =
            (0..COUNT).map(|i| f64::from(checkpoint.f32(&format!("t.{i}")).unwrap().1[0])).sum();
        let bytes = std::fs::metadata(dir.path().join("model.safetensors")).unwrap().len();
        assert_eq!(PARSED.get(), bytes as usize);
        assert_eq!(sum, (COUNT * (COUNT - 1) / 2) as f64);
        assert_eq!(checkpoint.names().count(), COUNT);
    }
}

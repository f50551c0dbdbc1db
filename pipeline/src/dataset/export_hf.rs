//! Exports a dataset to the layout that `datasets.load_from_disk` of the Python library reads:
//! Arrow streams with `state.json` and `dataset_info.json`.

use crate::error::{Error, Result};
use crate::pack::apart::check_apart;
use crate::pack::ownership::has_format_mark;
use arrow::array::RecordBatch;
use arrow::ipc::writer::StreamWriter;
use dlm_datasets::fs::{PARTIAL, create_partial, finish_partial, lock_dir, write_atomic};
use dlm_datasets::manifest::{FileEntry, Manifest, Split};
use dlm_datasets::reader::MappedFile;
use dlm_datasets::{Dataset, schema};
use serde_json::json;
use std::io::BufWriter;
use std::path::Path;

/// Exports the dataset in the folder `dir` to the folder `out`; returns its manifest.
///
/// # Errors
///
/// [`Error::Output`] if `out` holds an exported dataset; further variants if `dir` is not a
/// dataset, and for failures of the disk.
pub fn export_hf(dir: impl AsRef<Path>, out: impl AsRef<Path>) -> Result<Manifest> {
    let (dir, out) = (dir.as_ref(), out.as_ref());
    let ds = Dataset::open(dir)?;
    check_apart([dir].into_iter(), out)?;
    let m = ds.manifest();
    if out.join("dataset_dict.json").exists() {
        return Err(Error::Output {
            path: out.to_path_buf(),
            reason: "holds an exported dataset; give another folder".to_string(),
        });
    }
    let _lock = lock_dir(out)?;
    let mut splits = Vec::new();
    for split in [Split::Train, Split::Eval] {
        let files: Vec<&FileEntry> = m.files.iter().filter(|f| f.split == split).collect();
        if files.is_empty() {
            continue;
        }
        let folder = out.join(split.name());
        if holds_foreign_files(&folder) {
            return Err(Error::Output {
                path: folder,
                reason: "holds files that dlm-prep did not write; give another folder".to_string(),
            });
        }
        std::fs::create_dir_all(&folder).map_err(Error::io("making", &folder))?;
        let mut names = Vec::new();
        for (k, f) in files.iter().enumerate() {
            let name = format!("data-{k:05}-of-{:05}.arrow", files.len());
            let path = dir.join(&f.path);
            let batches = MappedFile::open(&path, Some(f.bytes))?.batches(&path, m.seq_len)?;
            write_stream(&folder.join(&name), m.seq_len, &batches)?;
            names.push(json!({"filename": name}));
        }
        let state = json!({"_data_files": names, "_fingerprint": &ds.fingerprint()[..16], "_format_columns": null, "_format_kwargs": {},
            "_format_type": null, "_output_all_columns": false, "_split": split.name()});
        write_json(
            &folder.join("dataset_info.json"),
            &json!({"citation": "", "description": "Packed rows for block-diffusion training", "homepage": "", "license": ""}),
        )?;
        write_json(&folder.join("state.json"), &state)?;
        splits.push(split.name());
    }
    write_json(&out.join("dataset_dict.json"), &json!({"splits": splits}))?;
    Ok(m.clone())
}

/// Whether a folder has files other than an interrupted export leaves: data files of this program,
/// complete or partial, with JSON beside them.
fn holds_foreign_files(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return folder.exists() };
    let names: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    let is_arrow = |p: &&std::path::PathBuf| p.extension().is_some_and(|x| x == "arrow");
    let own = names.iter().filter(is_arrow).all(|p| has_format_mark(p));
    let partial = names.iter().any(|p| p.to_string_lossy().ends_with(PARTIAL));
    !names.is_empty() && !(own && (partial || names.iter().any(|p| is_arrow(&p))))
}

fn write_json(path: &Path, v: &serde_json::Value) -> Result<()> {
    Ok(write_atomic(path, v.to_string().as_bytes())?)
}

/// Writes one Arrow stream, under a temporary name until it is complete.
fn write_stream(path: &Path, seq_len: usize, batches: &[RecordBatch]) -> Result<()> {
    let mut partial = path.as_os_str().to_os_string();
    partial.push(PARTIAL);
    let partial = std::path::PathBuf::from(partial);
    let file = create_partial(&partial)?;
    let failed = |e: arrow::error::ArrowError| dlm_datasets::Error::arrow(&partial)(e);
    let mut w =
        StreamWriter::try_new(BufWriter::with_capacity(1 << 20, file), &schema::schema(seq_len))
            .map_err(failed)?;
    for b in batches {
        w.write(b).map_err(failed)?;
    }
    w.finish().map_err(failed)?;
    let file = w.into_inner().map_err(failed)?;
    let file = file.into_inner().map_err(|e| Error::io("writing", &partial)(e.into_error()))?;
    Ok(finish_partial(file, &partial, path)?)
}

//! Joins datasets that were prepared in parts (`--shard I/N`).
//!
//! In: folders prepared with the same settings, tokenizer and template, in the order of the result.
//! Out: one dataset with all their rows. Source indices are changed to those of the joined list,
//! counts are summed.

use crate::error::{Error, Result};
use crate::pack::apart::check_apart;
use crate::pack::output_folder::{self, check_folder_to_fill};
use dlm_datasets::fs::{lock_dir, write_atomic};
use dlm_datasets::manifest::{Counts, Manifest, Source, Split};
use dlm_datasets::writer::{BATCH_ROWS, ShardWriter, shard_name, write_manifest};
use dlm_datasets::{Dataset, Document};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The fingerprint of what these datasets give together.
pub(crate) fn joined_fingerprint(parts: &[Dataset]) -> String {
    let fingerprints: Vec<String> = parts.iter().map(|p| p.fingerprint()).collect();
    dlm_datasets::hash::sha256(fingerprints.join("+").as_bytes())
}

/// Rows per data file of the result.
const SHARD_ROWS: usize = 128 * BATCH_ROWS;

/// Joins the datasets in the folders `dirs` into the folder `out`; returns the manifest.
///
/// # Errors
///
/// [`Error::Usage`] if there are no folders, or their datasets were not prepared alike or are the
/// same part; [`Error::Output`] if `out` holds a finished dataset, unless it is this very one;
/// further variants for failures of the disk. `out` may neither lie in one of `dirs` nor hold one.
pub fn merge(dirs: &[impl AsRef<Path>], out: impl AsRef<Path>) -> Result<Manifest> {
    let out = out.as_ref();
    let parts: Vec<Dataset> =
        dirs.iter().map(|d| Dataset::open(d.as_ref())).collect::<std::result::Result<_, _>>()?;
    let Some(first) = parts.first() else {
        return Err(Error::Usage("nothing to merge".to_string()));
    };
    for p in &parts[1..] {
        check_alike(first, p)?;
    }
    check_apart(dirs.iter().map(AsRef::as_ref), out)?;
    let fingerprint = joined_fingerprint(&parts);
    if out.join(dlm_datasets::manifest::FILE_NAME).exists() {
        // the same call, which was killed after its work, removes what it left
        if let Ok(whole) = Manifest::read(out)
            && whole.recipe_fingerprint == fingerprint
        {
            output_folder::remove_leftovers(out)?;
            return Ok(whole);
        }
        return Err(Error::Output {
            path: out.to_path_buf(),
            reason: "holds a finished dataset; give another --out".to_string(),
        });
    }
    let tokenizer = first.dir().join("tokenizer");
    check_folder_to_fill(out, &tokenizer)?;
    let _lock = lock_dir(out)?;
    copy_tokenizer(&tokenizer, &out.join("tokenizer"))?;
    let mut m = Manifest {
        files: Vec::new(),
        sources: Vec::new(),
        counts: Counts::default(),
        mixture: Vec::new(),
        ..first.manifest().clone()
    };
    (m.packing.train_rows, m.packing.eval_rows, m.packing.row_padding) = (0, 0, 0);
    if let Some(shard) = m.recipe.get_mut("shard") {
        *shard = serde_json::Value::Null;
    }
    let (mut indices, mut joined) = (Vec::new(), Joined::default());
    for p in &parts {
        let part = p.manifest();
        m.counts.add(&part.counts);
        for (reason, example) in &part.drop_examples {
            m.drop_examples.entry(reason.clone()).or_insert_with(|| example.clone());
        }
        m.packing.train_rows += part.packing.train_rows;
        m.packing.eval_rows += part.packing.eval_rows;
        m.packing.row_padding += part.packing.row_padding;
        indices.push(
            part.sources.iter().map(|s| joined.add(&mut m.sources, s)).collect::<Vec<usize>>(),
        );
    }
    for split in [Split::Train, Split::Eval] {
        let mut writer: Option<ShardWriter> = None;
        for (p, indices) in parts.iter().zip(&indices) {
            for row in p.split(split).iter() {
                let row = row?;
                let documents: Vec<Document> = row
                    .documents
                    .iter()
                    .map(|d| Document {
                        source: indices.get(d.source).copied().unwrap_or(d.source),
                        ..*d
                    })
                    .collect();
                if let Some(w) = writer.take_if(|w| w.rows() >= SHARD_ROWS) {
                    m.files.push(w.finish()?);
                }
                let w = match &mut writer {
                    Some(w) => w,
                    closed => {
                        let index = m.files.iter().filter(|f| f.split == split).count();
                        closed.insert(ShardWriter::create(
                            out,
                            &shard_name(split, index),
                            split,
                            m.seq_len,
                        )?)
                    }
                };
                w.push(row.input_ids, row.labels, &documents)?;
            }
        }
        if let Some(w) = writer {
            m.files.push(w.finish()?);
        }
    }
    m.recipe_fingerprint = fingerprint;
    write_manifest(out, &m)?;
    Ok(m)
}

/// Copies a tokenizer folder.
fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(Error::io("making", to))?;
    let entries = std::fs::read_dir(from).map_err(Error::io("listing", from))?;
    for entry in entries {
        let name = entry.map_err(Error::io("listing", from))?.file_name();
        let path = from.join(&name);
        if path.is_dir() {
            copy_tokenizer(&path, &to.join(&name))?;
            continue;
        }
        let bytes = std::fs::read(&path).map_err(Error::io("reading", &path))?;
        write_atomic(&to.join(&name), &bytes)?;
    }
    Ok(())
}

/// Sources of all parts, found by what makes them the same.
#[derive(Default)]
struct Joined {
    index: HashMap<[Option<String>; 4], usize>,
    licences: Vec<HashSet<String>>,
}

impl Joined {
    /// The index of source `s` in the joined list, to which its counts are added.
    fn add(&mut self, all: &mut Vec<Source>, s: &Source) -> usize {
        let key = [Some(s.name.clone()), s.category.clone(), s.dataset.clone(), s.revision.clone()];
        if let Some(&k) = self.index.get(&key) {
            all[k].counts.add(&s.counts);
            for l in &s.licences {
                if self.licences[k].insert(l.clone()) {
                    all[k].licences.push(l.clone());
                }
            }
            return k;
        }
        self.index.insert(key, all.len());
        self.licences.push(s.licences.iter().cloned().collect());
        all.push(s.clone());
        all.len() - 1
    }
}

/// Refuses two datasets that are not parts of one.
fn check_alike(a: &Dataset, b: &Dataset) -> Result<()> {
    let differ = |key: &str, x: String, y: String| {
        Error::Usage(format!(
            "{} and {} do not go together: {key} is {x} and {y}",
            a.dir().display(),
            b.dir().display()
        ))
    };
    let (x, y) = (a.manifest(), b.manifest());
    let settings = |m: &Manifest| {
        let mut r = m.recipe.clone();
        if let Some(s) = r.get_mut("shard") {
            *s = serde_json::Value::Null;
        }
        // What was not read beside the inputs makes no difference.
        if let Some(r) = r.as_object_mut() {
            r.remove("inputs");
        }
        r.to_string()
    };
    for (key, p, q) in [
        ("tokenizer_sha256", x.tokenizer_sha256.clone(), y.tokenizer_sha256.clone()),
        ("template_sha256", x.template_sha256.clone(), y.template_sha256.clone()),
        ("mask_token_id", x.mask_token_id.to_string(), y.mask_token_id.to_string()),
        ("recipe", settings(x), settings(y)),
    ] {
        if p != q {
            return Err(differ(key, p, q));
        }
    }
    if x.recipe.get("shard") == y.recipe.get("shard")
        && x.recipe.get("shard").is_some_and(|s| !s.is_null())
    {
        return Err(differ("shard", x.recipe["shard"].to_string(), y.recipe["shard"].to_string()));
    }
    Ok(())
}

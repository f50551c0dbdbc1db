//! `manifest.json`: what a packed dataset is, where it came from, and what was left out.
//!
//! In: the folder. Out: [`Manifest`]. It is written last and renamed into place, so a folder that
//! has one is whole.

use crate::{Error, hash};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The format this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// The manifest's file name.
pub const FILE_NAME: &str = "manifest.json";

/// Which part of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Rows held out.
    Eval,
}

impl Split {
    /// `"train"` or `"eval"`, as in file names.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Eval => "eval",
        }
    }
}

/// What fills a document up to its block boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Padding {
    /// The mask token (the paper's choice).
    #[default]
    Mask,
    /// The end-of-text token.
    Eos,
}

/// Which grid the blocks follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alignment {
    /// Blocks count from the document's start, as in decoding.
    #[default]
    Sample,
    /// The last response alone is brought to a multiple of the block size first.
    Response,
}

/// Which assistant turns carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Every assistant turn.
    #[default]
    All,
    /// The last one.
    Last,
}

/// One data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// File name inside the dataset folder.
    pub path: String,
    /// Train or eval.
    pub split: Split,
    /// Rows in it.
    pub rows: usize,
    /// Its length.
    pub bytes: u64,
    /// Its content.
    pub sha256: String,
}

/// What was read, kept, dropped and written. `rows_read = rows_kept + sum of dropped`, always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Conversations read from the sources.
    pub rows_read: u64,
    /// Conversations of which at least one document was written.
    pub rows_kept: u64,
    /// Conversations left out, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Documents written (more than `rows_kept` under the `split` policy).
    pub documents: u64,
    /// Document tokens written, block padding not counted.
    pub tokens: u64,
    /// Positions with a label.
    pub response_tokens: u64,
    /// Padding inside documents, up to the block boundary.
    pub block_padding: u64,
    /// Tokens of kept conversations that were cut away.
    pub tokens_cut: u64,
    /// Conversations that were longer than a row.
    pub over_long: u64,
    /// Maximal runs of labels.
    pub label_runs: u64,
    /// Runs that do not end in an end-of-turn token: cut by truncation, or a template that writes
    /// none.
    pub unfinished_runs: u64,
    /// Anything else worth counting (control-token strings in text, trimmed turns, …), by name.
    pub notes: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds `other` to this.
    pub fn add(&mut self, other: &Counts) {
        self.rows_read += other.rows_read;
        self.rows_kept += other.rows_kept;
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.response_tokens += other.response_tokens;
        self.block_padding += other.block_padding;
        self.tokens_cut += other.tokens_cut;
        self.over_long += other.over_long;
        self.label_runs += other.label_runs;
        self.unfinished_runs += other.unfinished_runs;
        for (into, from) in [(&mut self.dropped, &other.dropped), (&mut self.notes, &other.notes)] {
            for (k, v) in from {
                *into.entry(k.clone()).or_default() += v;
            }
        }
    }
    /// Conversations left out, all reasons.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// One source of conversations; a document's `source` is an index into the manifest's list of
/// these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// File name, or the recipe's name for it.
    pub name: String,
    /// The rows' `category`, where they have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Dataset repository, for hub sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// The commit it was pinned to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Licences named by the rows or the recipe.
    pub licences: Vec<String>,
    /// What was read and kept.
    pub counts: Counts,
}

/// What a source of a mixture gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MixtureShare {
    /// Its name in the recipe.
    pub source: String,
    /// Document tokens.
    pub tokens: u64,
    /// Their share of all.
    pub share: f64,
}

/// How the rows were filled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Packing {
    /// How documents were put into rows.
    pub strategy: String,
    /// Documents chosen among.
    pub window: usize,
    /// Rows of the train split.
    pub train_rows: usize,
    /// Rows of the eval split.
    pub eval_rows: usize,
    /// Slots after the last document of a row.
    pub row_padding: u64,
}

/// The manifest. See docs/format.md.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the program that wrote it.
    pub code_version: String,
    /// S, tokens per row.
    pub seq_len: usize,
    /// Block size; every document starts and ends on a multiple of it.
    pub bd_size: usize,
    /// Ids below this are in the tokenizer (mask token included).
    pub vocab_size: usize,
    /// The mask token's string.
    pub mask_token: String,
    /// Its id.
    pub mask_token_id: i32,
    /// The pad token's string.
    pub pad_token: String,
    /// Its id.
    pub pad_token_id: i32,
    /// The end-of-text token's string.
    pub eos_token: String,
    /// Its id.
    pub eos_token_id: i32,
    /// Tokens that end a supervised turn, as seen in the template.
    #[serde(default)]
    pub end_of_turn_ids: Vec<i32>,
    /// Block padding policy.
    pub padding: Padding,
    /// Block grid policy.
    #[serde(default)]
    pub alignment: Alignment,
    /// Loss policy.
    pub loss_on: LossOn,
    /// Policy for conversations longer than a row: truncate, drop, turns or split.
    pub over_long: String,
    /// Policy for control-token strings in text: text, as-special or reject.
    pub special_text: String,
    /// sha256 of `tokenizer/tokenizer.json`.
    pub tokenizer_sha256: String,
    /// sha256 of the chat template's text.
    pub template_sha256: String,
    /// Where the template came from.
    pub template_source: String,
    /// The recipe as resolved.
    pub recipe: serde_json::Value,
    /// sha256 over recipe, tokenizer, template, code version and inputs.
    pub recipe_fingerprint: String,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// Sources, in the order in which `documents.source` counts them.
    pub sources: Vec<Source>,
    /// Data files.
    pub files: Vec<FileEntry>,
    /// Totals.
    pub counts: Counts,
    /// Row filling.
    pub packing: Packing,
    /// Outcome of a mixture, one entry per source of the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureShare>,
}

impl Manifest {
    /// A manifest with the given shape and ids and nothing else filled in: a starting point for
    /// writers and tests.
    pub fn new(
        seq_len: usize,
        bd_size: usize,
        vocab_size: usize,
        mask_token_id: i32,
        pad_token_id: i32,
        eos_token_id: i32,
    ) -> Self {
        Manifest {
            format_version: FORMAT_VERSION,
            code_version: env!("CARGO_PKG_VERSION").to_string(),
            seq_len,
            bd_size,
            vocab_size,
            mask_token: "|<MASK>|".to_string(),
            mask_token_id,
            pad_token: String::new(),
            pad_token_id,
            eos_token: String::new(),
            eos_token_id,
            end_of_turn_ids: vec![eos_token_id],
            padding: Padding::Mask,
            alignment: Alignment::Sample,
            loss_on: LossOn::All,
            over_long: "truncate".to_string(),
            special_text: "text".to_string(),
            tokenizer_sha256: String::new(),
            template_sha256: String::new(),
            template_source: String::new(),
            recipe: serde_json::Value::Null,
            recipe_fingerprint: String::new(),
            seed: 0,
            sources: vec![Source::default()],
            files: Vec::new(),
            counts: Counts::default(),
            packing: Packing::default(),
            mixture: Vec::new(),
        }
    }

    /// Reads `dir/manifest.json`.
    pub fn read(dir: &Path) -> Result<Manifest, Error> {
        Self::read_with_hash(dir).map(|(m, _)| m)
    }

    /// Reads `dir/manifest.json` together with the sha256 of its bytes.
    pub fn read_with_hash(dir: &Path) -> Result<(Manifest, String), Error> {
        let path = dir.join(FILE_NAME);
        let bytes = match std::fs::read(&path) {
            Ok(b) => b,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && dir.is_dir() => {
                return Err(Error::NoManifest { path: dir.to_path_buf() });
            }
            Err(e) => return Err(Error::io("reading", &path)(e)),
        };
        let bad = |reason: String| Error::BadManifest {
            path: path.clone(),
            expected: FORMAT_VERSION,
            reason,
        };
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        match value.get("format_version").and_then(|v| v.as_u64()) {
            Some(v) if v == u64::from(FORMAT_VERSION) => {}
            Some(v) => {
                return Err(Error::Version {
                    path,
                    found: v.min(u64::from(u32::MAX)) as u32,
                    expected: FORMAT_VERSION,
                });
            }
            None => return Err(bad("no format_version".to_string())),
        }
        let m: Manifest = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        m.check().map_err(bad)?;
        Ok((m, hash::sha256(&bytes)))
    }

    fn check(&self) -> Result<(), String> {
        let (s, d) = (self.seq_len, self.bd_size);
        if s == 0 || d == 0 || !s.is_multiple_of(d) || s > i32::MAX as usize {
            return Err(format!("seq_len {s} must be a positive multiple of bd_size {d}"));
        }
        for (name, id) in [
            ("mask_token_id", self.mask_token_id),
            ("pad_token_id", self.pad_token_id),
            ("eos_token_id", self.eos_token_id),
        ] {
            if id < 0 || id as usize >= self.vocab_size {
                return Err(format!(
                    "{name} {id} is outside the vocabulary of {}",
                    self.vocab_size
                ));
            }
        }
        for f in &self.files {
            // A manifest can come from anywhere: its files stay inside the folder.
            if f.path.is_empty() || f.path.contains(['/', '\\']) || f.path == ".." {
                return Err(format!(
                    "file name {:?} must name a file in the dataset's own folder",
                    f.path
                ));
            }
        }
        Ok(())
    }
}

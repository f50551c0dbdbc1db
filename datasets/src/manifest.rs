//! `manifest.json`: what a packed dataset is, where it came from, and what was dropped.
//!
//! In: the folder. Out: [`Manifest`]. It is written last and renamed into place, so a folder that
//! has one is whole.

use crate::{Error, hash};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// The format version that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Name of the manifest inside a dataset folder.
pub const FILE_NAME: &str = "manifest.json";

/// The two parts of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Rows used for training.
    Train,
    /// Held-out rows, used for evaluation only.
    Eval,
}

impl Split {
    /// `"train"` or `"eval"`, as used in file names.
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
    /// The mask token, as in the Fast-dLLM v2 paper (section 3.2).
    #[default]
    Mask,
    /// The end-of-text token.
    Eos,
}

/// The grid on which blocks are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alignment {
    /// Blocks are counted from the start of the document, as decoding counts them.
    #[default]
    Sample,
    /// The last response alone is first padded to a multiple of the block size.
    Response,
}

/// Which assistant turns carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// Every assistant turn.
    #[default]
    All,
    /// The last assistant turn only.
    Last,
}

/// A data file of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// File name inside the dataset folder, without any folder part.
    pub path: String,
    /// The split that all rows of the file belong to.
    pub split: Split,
    /// Number of packed rows in the file.
    pub rows: usize,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// sha256 of the file's content, lower-case hexadecimal.
    pub sha256: String,
}

/// What was read, kept, dropped and written. `rows_read` is always `rows_kept` plus the sum over
/// `dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Conversations read from the sources.
    pub rows_read: u64,
    /// Conversations of which at least one document was written.
    pub rows_kept: u64,
    /// Conversations dropped, by reason (docs/format.md lists the reasons).
    pub dropped: BTreeMap<String, u64>,
    /// Documents written; more than `rows_kept` under the `split` policy for over-long
    /// conversations.
    pub documents: u64,
    /// Tokens of documents, not counting block padding.
    pub tokens: u64,
    /// Tokens that carry loss.
    pub response_tokens: u64,
    /// Padding tokens inside documents, up to the block boundary.
    pub block_padding: u64,
    /// Tokens of kept conversations that were cut off.
    pub tokens_cut: u64,
    /// Conversations that were longer than a row.
    pub over_long: u64,
    /// Maximal runs of consecutive labels, that is, supervised turns.
    pub label_runs: u64,
    /// Label runs that do not end in an end-of-turn token, because the turn was cut off or because
    /// the template writes none.
    pub unfinished_runs: u64,
    /// Other counts by name, for example conversations with control-token strings in their text.
    pub notes: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds the counts of `other` to these.
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
    /// Number of conversations dropped, over all reasons.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// A source of conversations. The `source` of a document is an index into the manifest's list of
/// sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// File name, or the name that a recipe gives the source.
    pub name: String,
    /// Value of the rows' `category` column, if they have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Repository on the hub (`ORG/NAME`), for sources from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Commit of that repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Licences named by the rows or by the recipe.
    pub licences: Vec<String>,
    /// Counts over this source alone.
    pub counts: Counts,
}

/// The share of one source in the outcome of a mixture.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MixtureShare {
    /// Name of the source in the recipe.
    pub source: String,
    /// Document tokens taken from it, not counting block padding.
    pub tokens: u64,
    /// Its part of all document tokens, from 0 to 1.
    pub share: f64,
}

/// How documents were packed into rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Packing {
    /// Name of the packing algorithm.
    pub strategy: String,
    /// Number of documents from which the packer chooses.
    pub window: usize,
    /// Number of rows in the train split.
    pub train_rows: usize,
    /// Number of rows in the eval split.
    pub eval_rows: usize,
    /// Positions after the last document of a row, summed over all rows; they hold the pad id.
    pub row_padding: u64,
}

/// The content of `manifest.json` (docs/format.md).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format, see [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the program that wrote the dataset.
    pub code_version: String,
    /// Tokens per row, S.
    pub seq_len: usize,
    /// Tokens per block. Every document starts and ends on a multiple of it.
    pub bd_size: usize,
    /// Number of ids in the tokenizer, including the mask token; every id is below it.
    pub vocab_size: usize,
    /// Text of the mask token.
    pub mask_token: String,
    /// Id of the mask token. It depends on the tokenizer (151665 on Qwen2.5, not on others).
    pub mask_token_id: i32,
    /// Text of the token that fills a row after its last document.
    pub pad_token: String,
    /// Id of the pad token.
    pub pad_token_id: i32,
    /// Text of the end-of-text token.
    pub eos_token: String,
    /// Id of the end-of-text token.
    pub eos_token_id: i32,
    /// Ids of the tokens with which the template ends a supervised turn.
    #[serde(default)]
    pub end_of_turn_ids: Vec<i32>,
    /// The token that fills a document up to its block boundary.
    pub padding: Padding,
    /// The grid on which blocks are counted.
    #[serde(default)]
    pub alignment: Alignment,
    /// The assistant turns that carry loss.
    pub loss_on: LossOn,
    /// Policy for conversations longer than a row: `truncate`, `drop`, `turns` or `split`.
    pub over_long: String,
    /// Policy for control-token strings in message text: `text`, `as-special` or `reject`.
    pub special_text: String,
    /// sha256 of `tokenizer/tokenizer.json`.
    pub tokenizer_sha256: String,
    /// sha256 of the chat template's source.
    pub template_sha256: String,
    /// Where the template came from: a file, a key of tokenizer_config.json, or a built-in name.
    pub template_source: String,
    /// Every setting of the run as resolved, with the recipe's mixture if there was one.
    pub recipe: serde_json::Value,
    /// sha256 over settings, tokenizer, template, code version and inputs.
    pub recipe_fingerprint: String,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// The sources, in the order in which `documents.source` counts them.
    pub sources: Vec<Source>,
    /// The data files of both splits.
    pub files: Vec<FileEntry>,
    /// Counts over all sources.
    pub counts: Counts,
    /// How documents were packed into rows.
    pub packing: Packing,
    /// Outcome of a mixture, one entry for each source of the recipe; empty without a recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureShare>,
    /// The first conversation that was dropped, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drop_examples: BTreeMap<String, DropExample>,
}

/// A conversation that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DropExample {
    /// Name of its input file.
    pub file: String,
    /// Number of the row in the file, from 1.
    pub row: u64,
    /// What was found; empty where the reason says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Manifest {
    /// A manifest with this shape and these ids and nothing else filled in: the starting point of
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
            drop_examples: BTreeMap::new(),
        }
    }

    /// Reads `dir/manifest.json` and checks that its values fit together.
    ///
    /// # Errors
    /// [`Error::NoManifest`], [`Error::BadManifest`], [`Error::Version`] or [`Error::Io`].
    pub fn read(dir: &Path) -> Result<Manifest, Error> {
        Self::read_with_hash(dir).map(|(m, _)| m)
    }

    /// Like [`read`](Self::read), and also returns the sha256 of the file's bytes.
    pub fn read_with_hash(dir: &Path) -> Result<(Manifest, String), Error> {
        let path = dir.join(FILE_NAME);
        let mut bytes = Vec::new();
        match crate::fs::open_file(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && dir.is_dir() => {
                return Err(Error::NoManifest { path: dir.to_path_buf() });
            }
            Err(e) => return Err(Error::io("reading", &path)(e)),
        }
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
            // A manifest can come from anywhere: it must not name files outside its folder.
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

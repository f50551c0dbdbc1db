//! Processed rows into files, with a memory of where the run stands.
//!
//! In: batches in order. Out: `train-*.arrow`, `eval-*.arrow`, at the end the manifest. After every
//! file the state (position in the inputs, documents waiting for a row, counts, files) is written
//! to `prep-state.json`; a killed run goes on from there and, since a file's end depends only on
//! rows, yields the same bytes. The state file goes when the manifest comes.

use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::input::source::Input;
use crate::pack::mixture::{Mixture, MixtureState};
use crate::pack::packer::{Packer, PendingDocument};
use crate::parse::drop_reason::DropReason;
use crate::prepare::plan::PreparePlan;
use crate::run::batch::{BatchPosition, Cursor, ProcessedBatch, ProcessedRow};
use crate::run::executor::{Feed, InputStream};
use dlm_datasets::fs::{PARTIAL, write_atomic};
use dlm_datasets::manifest::{Manifest, MixtureShare, Source, Split};
use dlm_datasets::writer::{DocumentTokens, ShardWriter, shard_name, write_manifest};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The state file's name.
pub const STATE: &str = "prep-state.json";
/// Conversations after which a hopeless run is stopped early.
const EARLY: u64 = 2000;

/// Everything a resumed run needs besides its inputs.
#[derive(Serialize, Deserialize)]
struct SinkState {
    /// What the run is (settings, tokenizer, template, code).
    fingerprint: String,
    /// The inputs as they were: name, length, time of change.
    inputs: Vec<(String, u64, u64)>,
    cursors: Vec<Cursor>,
    given: MixtureState,
    rows_seen: u64,
    manifest: Manifest,
    numbers: [u64; 2],
    waiting: [Vec<PendingDocument>; 2],
    unsupervised: u64,
    /// Fingerprints of what was seen, under `--dedup`.
    seen: Vec<u128>,
}

/// Packs and writes.
pub struct DatasetSink<'a> {
    dir: PathBuf,
    settings: &'a Settings,
    inputs: &'a [Input],
    manifest: Manifest,
    packers: [Packer; 2],
    writers: [Option<ShardWriter>; 2],
    /// Per input: sources by category.
    by_input: Vec<Vec<(Option<String>, usize)>>,
    seen: HashSet<u128>,
    mixture: &'a Mixture,
    streams: Vec<Range<usize>>,
    cursors: Vec<Cursor>,
    given: MixtureState,
    rows_seen: u64,
    unsupervised: u64,
    /// Whether budgets are spent.
    full: bool,
}

fn side(split: Split) -> usize {
    usize::from(split == Split::Eval)
}

fn changed(path: &Path) -> u64 {
    let time = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    time.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |d| d.as_nanos() as u64)
}

impl<'a> DatasetSink<'a> {
    /// Starts in `dir`, or goes on where a killed run of the same kind stopped. The plan's manifest
    /// carries everything but files and counts.
    pub fn open(dir: &Path, plan: &'a PreparePlan, overwrite: bool) -> Result<Self> {
        let PreparePlan { settings, inputs, streams, mixture, manifest, .. } = plan;
        let manifest = manifest.clone();
        let refuse = |reason: String| Error::Output { path: dir.to_path_buf(), reason };
        let create = std::fs::create_dir_all(dir);
        create.map_err(Error::io("making the output folder", dir))?;
        if dir.join(dlm_datasets::manifest::FILE_NAME).exists() {
            if !overwrite {
                return Err(refuse(
                    "holds a finished dataset; give --overwrite to replace it, or another --out"
                        .to_string(),
                ));
            }
            // The manifest goes first: what is left is no dataset.
            let path = dir.join(dlm_datasets::manifest::FILE_NAME);
            std::fs::remove_file(&path).map_err(Error::io("removing", &path))?;
        }
        let new = |m: &Manifest| Packer::new(m.seq_len, m.bd_size, settings.pack_window);
        let mut out = DatasetSink {
            dir: dir.to_path_buf(),
            settings,
            inputs,
            packers: [new(&manifest), new(&manifest)],
            manifest,
            writers: [None, None],
            by_input: vec![Vec::new(); inputs.len()],
            seen: HashSet::new(),
            given: mixture.begin(),
            mixture,
            cursors: streams.iter().map(|s| Cursor { file: s.start, row: 0 }).collect(),
            streams: streams.to_vec(),
            rows_seen: 0,
            unsupervised: 0,
            full: false,
        };
        let state = dir.join(STATE);
        if overwrite {
            out.clear()?;
        } else if state.exists() {
            let text = std::fs::read(&state).map_err(Error::io("reading", &state))?;
            let state: SinkState = serde_json::from_slice(&text).map_err(|e| {
                refuse(format!("{STATE} cannot be read ({e}); give --overwrite to start over"))
            })?;
            out.restore(state).map_err(refuse)?;
        } else if let Some(foreign) = foreign_file(dir)? {
            return Err(refuse(format!(
                "holds {foreign}, which this run did not make; give an empty folder, or --overwrite to remove old data files"
            )));
        }
        out.save()?;
        Ok(out)
    }

    /// Removes what an earlier run left.
    fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir).map_err(Error::io("listing", &self.dir))? {
            let path = entry.map_err(Error::io("listing", &self.dir))?.path();
            let name =
                path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if is_ours(&name) {
                std::fs::remove_file(&path).map_err(Error::io("removing", &path))?;
            }
        }
        Ok(())
    }

    fn inputs_now(&self) -> Vec<(String, u64, u64)> {
        self.inputs.iter().map(|i| (i.name.clone(), i.bytes, changed(&i.path))).collect()
    }

    fn restore(&mut self, s: SinkState) -> std::result::Result<(), String> {
        let again = "give --overwrite to start over, or another --out";
        if s.fingerprint != self.manifest.recipe_fingerprint {
            return Err(format!(
                "holds the unfinished output of another run (other settings, tokenizer, template or version); {again}"
            ));
        }
        if s.inputs != self.inputs_now() {
            return Err(format!(
                "holds the unfinished output of a run over other inputs, or they have changed since; {again}"
            ));
        }
        for f in &s.manifest.files {
            let found = std::fs::metadata(self.dir.join(&f.path)).map(|m| m.len()).unwrap_or(0);
            if found != f.bytes {
                return Err(format!(
                    "{} has {found} bytes, the unfinished run wrote {}; {again}",
                    f.path, f.bytes
                ));
            }
        }
        let [train, eval] = s.waiting;
        if !self.packers[0].restore(s.numbers[0], train)
            || !self.packers[1].restore(s.numbers[1], eval)
        {
            return Err(format!("{STATE} is damaged; {again}"));
        }
        self.manifest = s.manifest;
        if s.cursors.len() != self.cursors.len() {
            return Err(format!("{STATE} is damaged; {again}"));
        }
        self.cursors = s.cursors;
        self.given = s.given;
        self.rows_seen = s.rows_seen;
        self.unsupervised = s.unsupervised;
        self.seen = s.seen.into_iter().collect();
        self.full = self.spent();
        Ok(())
    }

    /// Where to read on.
    pub fn streams(&self) -> Vec<InputStream> {
        self.streams
            .iter()
            .zip(&self.cursors)
            .map(|(inputs, from)| InputStream { inputs: inputs.clone(), from: *from })
            .collect()
    }

    /// Rows read so far, those of an interrupted run included.
    pub fn rows_seen(&self) -> u64 {
        self.rows_seen
    }

    fn save(&self) -> Result<()> {
        let (train, eval) = (self.packers[0].snapshot(), self.packers[1].snapshot());
        let mut seen: Vec<u128> = self.seen.iter().copied().collect();
        seen.sort_unstable();
        let state = SinkState {
            fingerprint: self.manifest.recipe_fingerprint.clone(),
            inputs: self.inputs_now(),
            cursors: self.cursors.clone(),
            given: self.given.clone(),
            rows_seen: self.rows_seen,
            manifest: self.manifest.clone(),
            numbers: [train.0, eval.0],
            waiting: [train.1, eval.1],
            unsupervised: self.unsupervised,
            seen,
        };
        let text = serde_json::to_vec(&state).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(write_atomic(&self.dir.join(STATE), &text)?)
    }

    fn spent(&self) -> bool {
        let (s, c) = (self.settings, &self.manifest.counts);
        let over = |limit: Option<u64>, n: u64| limit.is_some_and(|l| n >= l);
        over(s.max_tokens, c.tokens)
            || over(s.max_response_tokens, c.response_tokens)
            || over(s.max_rows, self.rows_seen)
    }

    /// Takes rows in until the budgets are spent or the sources end.
    pub fn consume(&mut self, feed: &mut Feed) -> Result<()> {
        struct Open {
            batch: ProcessedBatch,
            row: usize,
            at: BatchPosition,
        }
        let mut open: Vec<Option<Open>> = self.cursors.iter().map(|_| None).collect();
        let mut ended = vec![false; open.len()];
        while !self.full {
            let Some(k) = self.mixture.next(&mut self.given, &ended) else {
                break;
            };
            let o = match &mut open[k] {
                Some(o) if o.row < o.batch.rows.len() => o,
                slot => {
                    if let Some(done) = slot.take() {
                        feed.give_back(done.batch);
                    }
                    match feed.next(k)? {
                        Some(batch) if batch.rows.is_empty() => continue,
                        Some(batch) => {
                            slot.insert(Open { batch, row: 0, at: BatchPosition::default() })
                        }
                        None => {
                            ended[k] = true;
                            continue;
                        }
                    }
                }
            };
            let Some(row) = o.batch.rows.get(o.row) else {
                continue;
            };
            let from = o.batch.from;
            if row.key != usize::MAX {
                self.given.tokens[k] += self.row(&o.batch, row, &mut o.at, from.file)?;
            }
            o.row += 1;
            self.cursors[k] = Cursor { file: from.file, row: from.row + o.row as u64 };
            if self.writers.iter().flatten().any(|w| w.rows() >= self.settings.shard_rows) {
                self.close()?;
                self.save()?;
            }
        }
        Ok(())
    }

    /// One row, whose documents begin at `at`; the document tokens it gave.
    fn row(
        &mut self,
        b: &ProcessedBatch,
        row: &ProcessedRow,
        at: &mut BatchPosition,
        file: usize,
    ) -> Result<u64> {
        self.rows_seen += 1;
        let (category, licence) = &b.keys[row.key];
        let source = self.source(file, category, licence);
        let mut dropped = row.dropped;
        if dropped.is_none() && self.settings.dedup && !self.seen.insert(row.fingerprint) {
            dropped = Some(DropReason::Duplicate);
        }
        let c = b.counts(row, *at, dropped);
        match dropped {
            Some(why) => self.unsupervised += u64::from(why.is_unsupervised()),
            None => {
                let split = self.split_of(row.fingerprint);
                for (_, input_ids, loss) in b.documents_from(*at).take(row.documents) {
                    self.document(split, DocumentTokens { input_ids, loss, source })?;
                }
            }
        }
        *at = b.after(row, *at);
        self.manifest.counts.add(&c);
        if let Some(s) = self.manifest.sources.get_mut(source) {
            s.counts.add(&c);
        }
        self.full = self.spent();
        let read = self.manifest.counts.rows_read;
        if read == EARLY && self.unsupervised * 2 > read {
            return Err(self.unfit());
        }
        Ok(c.tokens)
    }

    fn split_of(&self, fingerprint: u128) -> Split {
        // The upper bits as a fraction of one; the seed moves the choice.
        let h = (fingerprint >> 64) as u64 ^ self.settings.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let held_out = self.settings.eval_fraction > 0.0
            && (h as f64 / u64::MAX as f64) < self.settings.eval_fraction;
        if held_out { Split::Eval } else { Split::Train }
    }

    fn source(
        &mut self,
        file: usize,
        category: &Option<String>,
        licence: &Option<String>,
    ) -> usize {
        let (sources, known) = (&mut self.manifest.sources, &mut self.by_input[file]);
        let input = &self.inputs[file];
        let k = match known.iter().find(|(c, _)| c == category) {
            Some((_, k)) => *k,
            None => {
                let same = |s: &Source| s.name == input.label && s.category == *category;
                let k = sources.iter().position(same).unwrap_or_else(|| {
                    let (dataset, revision) = input.origin.clone().unzip();
                    let licences = input.licence.iter().cloned().collect();
                    sources.push(Source {
                        name: input.label.clone(),
                        category: category.clone(),
                        dataset,
                        revision,
                        licences,
                        ..Default::default()
                    });
                    sources.len() - 1
                });
                known.push((category.clone(), k));
                k
            }
        };
        if let (Some(l), Some(s)) = (licence, sources.get_mut(k))
            && !s.licences.contains(l)
        {
            s.licences.push(l.clone());
        }
        k
    }

    fn document(&mut self, split: Split, document: DocumentTokens) -> Result<()> {
        let DatasetSink { packers, writers, manifest, dir, .. } = self;
        packers[side(split)]
            .push(document, |row| write_row(dir, manifest, &mut writers[side(split)], split, row))
    }

    /// Completes the files that are open.
    fn close(&mut self) -> Result<()> {
        for w in self.writers.iter_mut() {
            if let Some(w) = w.take() {
                self.manifest.files.push(w.finish()?);
            }
        }
        Ok(())
    }

    fn unfit(&self) -> Error {
        let c = &self.manifest.counts;
        let n = |d: DropReason| c.dropped.get(d.name()).copied().unwrap_or(0);
        let cause = if n(DropReason::PromptTooLong) * 2 > self.unsupervised {
            format!(
                "{} prompts fill a whole row of {}: raise --seq-len, or use --over-long split",
                n(DropReason::PromptTooLong),
                self.manifest.seq_len
            )
        } else if n(DropReason::NoAssistantSpan) * 2 > self.unsupervised {
            "the chat template does not let the assistant's part be told apart: use one with {% generation %} tags, or --template chatml"
                .to_string()
        } else {
            "no assistant text carries loss: the template may not show it, or --loss-on last meets conversations that end with another role"
                .to_string()
        };
        let share = 100.0 * self.unsupervised as f64 / c.rows_read.max(1) as f64;
        Error::Unfit(format!(
            "{} of {} conversations ({share:.1} %) have no token to learn from, more than the {:.0} % allowed (--max-unsupervised). Likely cause: {cause}",
            self.unsupervised,
            c.rows_read,
            100.0 * self.settings.max_unsupervised
        ))
    }

    /// Closes rows, files and counts, and writes the manifest.
    pub fn finish(mut self) -> Result<Manifest> {
        let c = &self.manifest.counts;
        if c.rows_read == 0 {
            return Err(Error::Unfit("the inputs hold no rows".to_string()));
        }
        let too_long = c.dropped.get(DropReason::PromptTooLong.name()).copied().unwrap_or(0);
        if self.settings.too_many_unsupervised(
            self.unsupervised as f64,
            too_long as f64,
            c.rows_read as f64,
        ) {
            return Err(self.unfit());
        }
        if c.rows_kept == 0 {
            let mut why: Vec<_> = c.dropped.iter().collect();
            why.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let why: Vec<String> = why.iter().map(|(k, n)| format!("{n} {k}")).collect();
            return Err(Error::Unfit(format!(
                "all {} rows were dropped: {}",
                c.rows_read,
                why.join(", ")
            )));
        }
        for split in [Split::Train, Split::Eval] {
            let DatasetSink { packers, writers, manifest, dir, .. } = &mut self;
            packers[side(split)]
                .finish(|row| write_row(dir, manifest, &mut writers[side(split)], split, row))?;
        }
        self.close()?;
        self.manifest.packing.strategy = "exact-fit, larger first".to_string();
        self.manifest.packing.window = self.settings.pack_window;
        let total: u64 = self.given.tokens.iter().sum();
        if self.streams.len() > 1 {
            let outcome =
                self.streams.iter().zip(&self.given.tokens).map(|(s, &tokens)| MixtureShare {
                    source: self.inputs.get(s.start).map(|i| i.label.clone()).unwrap_or_default(),
                    tokens,
                    share: tokens as f64 / total.max(1) as f64,
                });
            self.manifest.mixture = outcome.collect();
        }
        write_manifest(&self.dir, &self.manifest)?;
        let state = self.dir.join(STATE);
        std::fs::remove_file(&state).map_err(Error::io("removing", &state))?;
        Ok(self.manifest)
    }
}

fn write_row(
    dir: &Path,
    manifest: &mut Manifest,
    writer: &mut Option<ShardWriter>,
    split: Split,
    row: &[PendingDocument],
) -> Result<()> {
    let w = match writer {
        Some(w) => w,
        None => {
            let index = manifest.files.iter().filter(|f| f.split == split).count();
            writer.insert(ShardWriter::create(
                dir,
                &shard_name(split, index),
                split,
                manifest.seq_len,
            )?)
        }
    };
    let padding =
        w.push_documents(row.iter().map(PendingDocument::tokens), manifest.pad_token_id)?;
    manifest.packing.row_padding += padding as u64;
    match split {
        Split::Train => manifest.packing.train_rows += 1,
        Split::Eval => manifest.packing.eval_rows += 1,
    }
    Ok(())
}

/// Whether a file name is one dlm-prep writes.
fn is_ours(name: &str) -> bool {
    let bare = name.strip_suffix(PARTIAL).unwrap_or(name);
    let shard = |split: Split| {
        let digits = bare
            .strip_prefix(split.name())
            .and_then(|r| r.strip_prefix('-'))
            .and_then(|r| r.strip_suffix(".arrow"));
        digits.is_some_and(|d| d.len() >= 5 && d.bytes().all(|b| b.is_ascii_digit()))
    };
    bare == STATE
        || bare == dlm_datasets::manifest::FILE_NAME
        || shard(Split::Train)
        || shard(Split::Eval)
}

/// A data file in a folder that has neither manifest nor state: not ours to go on with.
fn foreign_file(dir: &Path) -> Result<Option<String>> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let name =
            entry.map_err(Error::io("listing", dir))?.file_name().to_string_lossy().into_owned();
        if is_ours(&name) && !name.ends_with(PARTIAL) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

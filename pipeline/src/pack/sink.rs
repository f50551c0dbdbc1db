//! Processed rows become packed rows in data files; an unfinished run can be resumed.
//!
//! In: batches of processed rows, in order per stream. Out: `train-*.arrow` and `eval-*.arrow`, and
//! at the end the manifest. After every data file the state of the run is saved (`resume.rs`).

use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::input::source::Input;
use crate::pack::mixture::{Mixture, MixtureState};
use crate::pack::output_folder::prepare_folder;
use crate::pack::packer::{Packer, PendingDocument};
use crate::pack::resume::{InputStamp, RunState, START_OVER, STATE_FILE, remove_state};
use crate::pack::seen::SeenSet;
use crate::pack::source_index::SourceIndex;
use crate::pack::unfit;
use crate::parse::drop_reason::DropReason;
use crate::run::batch::{BatchPosition, Cursor, ProcessedBatch, ProcessedRow};
use crate::run::executor::{Feed, InputStream};
use dlm_datasets::manifest::{DropExample, Manifest, MixtureShare, Split};
use dlm_datasets::writer::{DocumentTokens, ShardWriter, shard_name, write_manifest};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Rows after which a run ends early if more than half of them have no token to learn from.
const EARLY_CHECK_ROWS: u64 = 2000;

/// What a run packs.
#[derive(Clone, Copy)]
pub(crate) struct PackJob<'a> {
    /// Settings of the run.
    pub settings: &'a Settings,
    pub inputs: &'a [Input],
    /// The range of `inputs` that each stream reads.
    pub streams: &'a [Range<usize>],
    /// Which stream the next row is taken from.
    pub mixture: &'a Mixture,
    /// The manifest without files and counts.
    pub manifest: &'a Manifest,
}

/// Packs documents and writes data files.
pub(crate) struct DatasetSink<'a> {
    dir: PathBuf,
    job: PackJob<'a>,
    manifest: Manifest,
    /// For the train and the eval split.
    packers: [Packer; 2],
    writers: [Option<ShardWriter>; 2],
    /// The input files when the run started, looked up once.
    stamps: Vec<InputStamp>,
    sources: SourceIndex,
    seen: SeenSet,
    cursors: Vec<Cursor>,
    mixture: MixtureState,
    rows_seen: u64,
    unsupervised: u64,
    /// Whether a budget (`--max-tokens` and the like) is spent.
    full: bool,
}

fn side(split: Split) -> usize {
    usize::from(split == Split::Eval)
}

impl<'a> DatasetSink<'a> {
    /// Starts in the folder `dir`, or resumes the run that was killed there. `overwrite` removes
    /// the files of earlier runs first.
    pub(crate) fn open(dir: &Path, job: PackJob<'a>, overwrite: bool) -> Result<Self> {
        prepare_folder(dir, overwrite)?;
        let manifest = job.manifest.clone();
        let packer = || Packer::new(manifest.seq_len, manifest.bd_size, job.settings.pack_window);
        let mut sink = DatasetSink {
            dir: dir.to_path_buf(),
            job,
            packers: [packer(), packer()],
            manifest,
            writers: [None, None],
            stamps: InputStamp::of(job.inputs),
            sources: SourceIndex::default(),
            seen: SeenSet::new(dir),
            cursors: job.streams.iter().map(|s| Cursor { file: s.start, row: 0 }).collect(),
            mixture: job.mixture.begin(),
            rows_seen: 0,
            unsupervised: 0,
            full: false,
        };
        if let Some(state) = RunState::read(dir)? {
            let refuse = |reason: String| Error::Output { path: dir.to_path_buf(), reason };
            sink.restore(state).map_err(refuse)?;
        }
        sink.save()?;
        Ok(sink)
    }

    fn restore(&mut self, s: RunState) -> std::result::Result<(), String> {
        s.check(&self.dir, &self.manifest.recipe_fingerprint, self.job.inputs)?;
        let [train, eval] = s.pending;
        if !self.packers[0].restore(s.next_documents[0], train)
            || !self.packers[1].restore(s.next_documents[1], eval)
            || s.cursors.len() != self.cursors.len()
        {
            return Err(format!("{STATE_FILE} is damaged; {START_OVER}"));
        }
        self.seen.restore(s.seen, s.rows_seen).map_err(|e| format!("{e}; {START_OVER}"))?;
        self.manifest = s.manifest;
        self.sources = SourceIndex::default();
        self.cursors = s.cursors;
        self.mixture = s.mixture;
        self.rows_seen = s.rows_seen;
        self.unsupervised = s.unsupervised;
        self.full = self.budget_spent();
        Ok(())
    }

    /// The streams that are still to be read, and where each begins.
    pub(crate) fn streams(&self) -> Vec<InputStream> {
        self.job
            .streams
            .iter()
            .zip(&self.cursors)
            .map(|(inputs, from)| InputStream { inputs: inputs.clone(), from: *from })
            .collect()
    }

    /// Rows read so far, those of the run that was resumed included.
    pub(crate) fn rows_seen(&self) -> u64 {
        self.rows_seen
    }

    fn save(&mut self) -> Result<()> {
        let (train, eval) = (self.packers[0].snapshot(), self.packers[1].snapshot());
        // The side file first: what it holds beyond the mark of the state file is cut off on
        // resume.
        let seen = self.seen.save()?;
        let state = RunState {
            fingerprint: self.manifest.recipe_fingerprint.clone(),
            inputs: self.stamps.clone(),
            cursors: self.cursors.clone(),
            mixture: self.mixture.clone(),
            rows_seen: self.rows_seen,
            manifest: self.manifest.clone(),
            next_documents: [train.0, eval.0],
            pending: [train.1, eval.1],
            unsupervised: self.unsupervised,
            seen,
        };
        state.write(&self.dir)
    }

    fn budget_spent(&self) -> bool {
        let (s, c) = (self.job.settings, &self.manifest.counts);
        let over = |limit: Option<u64>, n: u64| limit.is_some_and(|l| n >= l);
        over(s.max_tokens, c.tokens)
            || over(s.max_response_tokens, c.response_tokens)
            || over(s.max_rows, self.rows_seen)
    }

    /// Packs rows until a budget is spent or the sources end.
    pub(crate) fn consume(&mut self, feed: &mut Feed) -> Result<()> {
        struct Open {
            batch: ProcessedBatch,
            row: usize,
            at: BatchPosition,
        }
        let mut open: Vec<Option<Open>> = self.cursors.iter().map(|_| None).collect();
        let mut ended = vec![false; open.len()];
        while !self.full {
            let Some(k) = self.job.mixture.next(&mut self.mixture, &ended) else {
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
            if let Some(key) = row.key {
                self.mixture.tokens[k] += self.row(&o.batch, o.row, row, key, &mut o.at)?;
            }
            o.row += 1;
            self.cursors[k] = Cursor { file: from.file, row: from.row + o.row as u64 };
            if self.writers.iter().flatten().any(|w| w.rows() >= self.job.settings.shard_rows) {
                self.finish_files()?;
                self.save()?;
            }
        }
        Ok(())
    }

    /// Packs row `index` of a batch, whose documents begin at `at`; the number of document tokens.
    fn row(
        &mut self,
        b: &ProcessedBatch,
        index: usize,
        row: &ProcessedRow,
        key: usize,
        at: &mut BatchPosition,
    ) -> Result<u64> {
        self.rows_seen += 1;
        let file = b.from.file;
        let (category, licence) = &b.keys[key];
        let input = &self.job.inputs[file];
        let source = self.sources.find(&mut self.manifest.sources, input, category, licence);
        let mut dropped = row.dropped;
        if dropped.is_none() && self.job.settings.dedup && !self.seen.insert(row.fingerprint) {
            dropped = Some(DropReason::Duplicate);
        }
        let c = b.counts(row, *at, dropped);
        match dropped {
            Some(reason) => {
                self.unsupervised += u64::from(reason.is_unsupervised());
                let examples = &mut self.manifest.drop_examples;
                if !examples.contains_key(reason.name()) {
                    let known = b.examples.iter().find(|e| (e.0, e.1) == (reason, index));
                    examples.insert(
                        reason.name().to_string(),
                        DropExample {
                            file: self.job.inputs[file].name.clone(),
                            row: b.from.row + index as u64 + 1,
                            message: known.map(|e| e.2.clone()).unwrap_or_default(),
                        },
                    );
                }
            }
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
        self.full = self.budget_spent();
        let read = self.manifest.counts.rows_read;
        if read == EARLY_CHECK_ROWS && self.unsupervised * 2 > read {
            let (settings, m) = (self.job.settings, &self.manifest);
            return Err(unfit::too_many_unsupervised(settings, m, self.unsupervised));
        }
        Ok(c.tokens)
    }

    fn split_of(&self, fingerprint: u128) -> Split {
        // The upper half of the fingerprint, changed by the seed, as a fraction of 1.
        let s = self.job.settings;
        let h = (fingerprint >> 64) as u64 ^ s.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let held_out = s.eval_fraction > 0.0 && (h as f64 / u64::MAX as f64) < s.eval_fraction;
        if held_out { Split::Eval } else { Split::Train }
    }

    fn document(&mut self, split: Split, document: DocumentTokens) -> Result<()> {
        let DatasetSink { packers, writers, manifest, dir, .. } = self;
        packers[side(split)]
            .push(document, |row| write_row(dir, manifest, &mut writers[side(split)], split, row))
    }

    /// Completes the data files that are open.
    fn finish_files(&mut self) -> Result<()> {
        for w in self.writers.iter_mut() {
            if let Some(w) = w.take() {
                self.manifest.files.push(w.finish()?);
            }
        }
        Ok(())
    }

    /// Packs the documents that still wait, completes the files and writes the manifest. Fails if
    /// the totals show that the inputs are not worth training on.
    pub(crate) fn finish(mut self) -> Result<Manifest> {
        unfit::check_totals(self.job.settings, &self.manifest, self.unsupervised)?;
        for split in [Split::Train, Split::Eval] {
            let DatasetSink { packers, writers, manifest, dir, .. } = &mut self;
            packers[side(split)]
                .finish(|row| write_row(dir, manifest, &mut writers[side(split)], split, row))?;
        }
        self.finish_files()?;
        self.manifest.packing.strategy = "exact-fit, larger first".to_string();
        self.manifest.packing.window = self.job.settings.pack_window;
        let total: u64 = self.mixture.tokens.iter().sum();
        if self.job.streams.len() > 1 {
            let outcome = self.job.streams.iter().zip(&self.mixture.tokens).map(|(s, &tokens)| {
                MixtureShare {
                    source: self
                        .job
                        .inputs
                        .get(s.start)
                        .map(|i| i.source.clone())
                        .unwrap_or_default(),
                    tokens,
                    share: tokens as f64 / total.max(1) as f64,
                }
            });
            self.manifest.mixture = outcome.collect();
        }
        write_manifest(&self.dir, &self.manifest)?;
        self.seen.remove_file()?;
        remove_state(&self.dir)?;
        Ok(self.manifest)
    }
}

/// Writes one packed row, into a new data file if none is open.
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

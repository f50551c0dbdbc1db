//! Writing a packed dataset: rows in, Arrow IPC files and a manifest out.
//!
//! A file is written under a temporary name, flushed to disk and renamed when it is complete; its
//! sha256 is computed while it is written. The manifest comes last. [`ShardWriter`] writes one
//! file, [`DatasetWriter`] a whole folder.

use crate::fs::{PARTIAL, create_partial, finish_partial, write_atomic};
use crate::hash::HashWriter;
use crate::manifest::{self, FileEntry, Manifest, Split};
use crate::reader::Document;
pub use crate::schema::LossRun;
use crate::{Error, IGNORE, schema, verify};
use arrow::array::{ArrayRef, FixedSizeListArray, Int32Array, ListArray, RecordBatch, StructArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::ipc::MetadataVersion;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

/// Number of rows in a record batch.
pub const BATCH_ROWS: usize = 128;

/// File name of shard `index` of a split, for example `train-00000.arrow`.
pub fn shard_name(split: Split, index: usize) -> String {
    format!("{}-{index:05}.arrow", split.name())
}

/// Size in bytes of the write buffer in front of the file.
const BUFFER: usize = 64 << 10;
/// Bytes written after which the file is flushed to disk in the background.
const FLUSH_BYTES: usize = 8 << 20;

/// Flushes a file to disk in the background while it is still being written, so that the final
/// flush, for which the whole run waits, is short.
struct EarlyFlush {
    wake: SyncSender<()>,
    thread: JoinHandle<std::io::Result<()>>,
    pending: usize,
}

impl EarlyFlush {
    fn new(file: &File) -> std::io::Result<Self> {
        let file = file.try_clone()?;
        let (wake, woken) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("flush".to_string());
        let thread = thread.spawn(move || woken.into_iter().try_for_each(|()| file.sync_data()))?;
        Ok(EarlyFlush { wake, thread, pending: 0 })
    }

    /// Records that `bytes` more were written, and starts a flush if enough have accumulated.
    fn wrote(&mut self, bytes: usize) {
        self.pending += bytes;
        // If a flush is already running, these bytes wait for the next one.
        if self.pending >= FLUSH_BYTES && self.wake.try_send(()).is_ok() {
            self.pending = 0;
        }
    }

    /// Waits for a running flush. The system reports a failed write to one flush only, so its error
    /// must be returned here.
    fn finish(self) -> std::io::Result<()> {
        drop(self.wake);
        self.thread
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the flushing thread died")))
    }
}

/// A document for [`ShardWriter::push_documents`].
#[derive(Debug, Clone, Copy)]
pub struct DocumentTokens<'a> {
    /// Token ids of the document, block padding included.
    pub input_ids: &'a [i32],
    /// Runs of tokens whose label is their id, in order and without overlap; all other labels are
    /// -100.
    pub loss: &'a [LossRun],
    /// Index into [`Manifest::sources`].
    pub source: usize,
}

/// Writes the rows of one data file.
pub struct ShardWriter {
    dir: PathBuf,
    name: String,
    split: Split,
    seq_len: usize,
    file: FileWriter<HashWriter<BufWriter<File>>>,
    flush: EarlyFlush,
    rows: usize,
    ids: Vec<i32>,
    labels: Vec<i32>,
    documents: [Vec<i32>; 3],
    offsets: Vec<i32>,
}

impl ShardWriter {
    /// Creates `dir/name`, under the name `name.partial` until [`finish`](Self::finish).
    pub fn create(dir: &Path, name: &str, split: Split, seq_len: usize) -> Result<Self, Error> {
        let path = dir.join(format!("{name}{PARTIAL}"));
        let file = create_partial(&path)?;
        let flush = EarlyFlush::new(&file).map_err(Error::io("opening", &path))?;
        let options = IpcWriteOptions::try_new(64, false, MetadataVersion::V5)
            .map_err(Error::arrow(&path))?;
        // The buffer collects small pieces; the body of a batch is larger and bypasses it.
        let sink = HashWriter::new(BufWriter::with_capacity(BUFFER, file));
        let file = FileWriter::try_new_with_options(sink, &schema::schema(seq_len), options)
            .map_err(Error::arrow(&path))?;
        let capacity = BATCH_ROWS * seq_len;
        Ok(ShardWriter {
            dir: dir.to_path_buf(),
            name: name.to_string(),
            split,
            seq_len,
            file,
            flush,
            rows: 0,
            ids: Vec::with_capacity(capacity),
            labels: Vec::with_capacity(capacity),
            documents: Default::default(),
            offsets: vec![0],
        })
    }

    /// Number of rows added so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row given as `seq_len` ids, `seq_len` labels and its documents.
    pub fn push(
        &mut self,
        input_ids: &[i32],
        labels: &[i32],
        documents: &[Document],
    ) -> Result<(), Error> {
        if input_ids.len() != self.seq_len || labels.len() != self.seq_len {
            let reason = format!(
                "{} ids and {} labels for a row of {}",
                input_ids.len(),
                labels.len(),
                self.seq_len
            );
            return Err(Error::WriteRow { reason });
        }
        self.ids.extend_from_slice(input_ids);
        self.labels.extend_from_slice(labels);
        documents.iter().try_for_each(|d| self.document(d))?;
        self.end_row()
    }

    /// Adds a row made of `documents`, placed one after another from position 0, with `pad_id`
    /// after the last. Returns the number of pad ids.
    pub fn push_documents<'a>(
        &mut self,
        documents: impl IntoIterator<Item = DocumentTokens<'a>>,
        pad_id: i32,
    ) -> Result<usize, Error> {
        let from = self.ids.len();
        for d in documents {
            let (start, length) = (self.ids.len() - from, d.input_ids.len());
            self.ids.extend_from_slice(d.input_ids);
            self.labels.resize(self.ids.len(), IGNORE);
            for &(a, b) in d.loss {
                let run = from + start + a as usize..from + start + b as usize;
                match (self.labels.get_mut(run.clone()), self.ids.get(run)) {
                    (Some(labels), Some(ids)) => labels.copy_from_slice(ids),
                    _ => {
                        return Err(Error::WriteRow {
                            reason: format!("loss on tokens {a}..{b} of a document of {length}"),
                        });
                    }
                }
            }
            self.document(&Document { start, length, source: d.source })?;
        }
        let end = self.ids.len() - from;
        let Some(padding) = self.seq_len.checked_sub(end) else {
            return Err(Error::WriteRow {
                reason: format!("documents of {end} tokens for a row of {}", self.seq_len),
            });
        };
        self.ids.resize(from + self.seq_len, pad_id);
        self.labels.resize(from + self.seq_len, IGNORE);
        self.end_row()?;
        Ok(padding)
    }

    fn document(&mut self, d: &Document) -> Result<(), Error> {
        for (column, value) in self.documents.iter_mut().zip([d.start, d.length, d.source]) {
            column.push(
                i32::try_from(value)
                    .map_err(|_| Error::WriteRow { reason: format!("document field {value}") })?,
            );
        }
        Ok(())
    }

    fn end_row(&mut self) -> Result<(), Error> {
        self.offsets.push(self.documents[0].len() as i32);
        self.rows += 1;
        if self.offsets.len() > BATCH_ROWS { self.write_batch() } else { Ok(()) }
    }

    fn write_batch(&mut self) -> Result<(), Error> {
        let rows = self.offsets.len() - 1;
        if rows == 0 {
            return Ok(());
        }
        let path = self.dir.join(format!("{}{PARTIAL}", self.name));
        let list = |column: &mut Vec<i32>| -> Result<(Int32Array, ArrayRef), Error> {
            let values = Int32Array::from(std::mem::take(column));
            let list = FixedSizeListArray::try_new(
                schema::id_item(),
                self.seq_len as i32,
                Arc::new(values.clone()),
                None,
            );
            Ok((values, Arc::new(list.map_err(Error::arrow(&path))?)))
        };
        let ((id_values, ids), (label_values, labels)) =
            (list(&mut self.ids)?, list(&mut self.labels)?);
        let fields: Vec<ArrayRef> = self
            .documents
            .iter_mut()
            .map(|c| Arc::new(Int32Array::from(std::mem::take(c))) as ArrayRef)
            .collect();
        let structs = StructArray::try_new(schema::document_fields(), fields, None)
            .map_err(Error::arrow(&path))?;
        let offsets =
            OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(&mut self.offsets, vec![0])));
        let documents =
            ListArray::try_new(schema::document_item(), offsets, Arc::new(structs), None)
                .map_err(Error::arrow(&path))?;
        let batch = RecordBatch::try_new(
            schema::schema(self.seq_len),
            vec![ids, labels, Arc::new(documents)],
        );
        self.file.write(&batch.map_err(Error::arrow(&path))?).map_err(Error::arrow(&path))?;
        // The batch was dropped, so the memory of its columns can be reused.
        self.ids = emptied(id_values, BATCH_ROWS * self.seq_len);
        self.labels = emptied(label_values, BATCH_ROWS * self.seq_len);
        self.flush.wrote(2 * size_of::<i32>() * rows * self.seq_len);
        Ok(())
    }

    /// Completes the file: writes the footer, flushes to disk, and renames it to its final name.
    pub fn finish(mut self) -> Result<FileEntry, Error> {
        self.write_batch()?;
        let path = self.dir.join(format!("{}{PARTIAL}", self.name));
        self.file.finish().map_err(Error::arrow(&path))?;
        let sink = self.file.into_inner().map_err(Error::arrow(&path))?;
        let (buffered, bytes, sha256) = sink.finish();
        let file =
            buffered.into_inner().map_err(|e| Error::io("writing", &path)(e.into_error()))?;
        self.flush.finish().map_err(Error::io("flushing", &path))?;
        finish_partial(file, &path, &self.dir.join(&self.name))?;
        Ok(FileEntry { path: self.name, split: self.split, rows: self.rows, bytes, sha256 })
    }
}

/// The emptied memory of a column if nothing else refers to it, otherwise new memory.
fn emptied(column: Int32Array, capacity: usize) -> Vec<i32> {
    let mut values = column
        .into_parts()
        .1
        .into_inner()
        .into_vec::<i32>()
        .unwrap_or_else(|_| Vec::with_capacity(capacity));
    values.clear();
    values
}

/// Writes `dir/manifest.json`. All files that it names must be complete by then.
pub fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    let path = dir.join(manifest::FILE_NAME);
    let bad = |e: serde_json::Error| Error::BadManifest {
        path: path.clone(),
        expected: manifest::FORMAT_VERSION,
        reason: e.to_string(),
    };
    let mut text = serde_json::to_vec_pretty(manifest).map_err(bad)?;
    text.push(b'\n');
    write_atomic(&path, &text)
}

/// Writes a whole dataset, one file for each run of rows of the same split. For small datasets and
/// tests; dlm-prep, which writes many files and can resume, uses [`ShardWriter`] directly.
pub struct DatasetWriter {
    dir: PathBuf,
    manifest: Manifest,
    open: Option<ShardWriter>,
}

impl DatasetWriter {
    /// Starts a dataset in `dir`, which is created if missing. `manifest` gives shape, ids and
    /// sources; files and counts are filled in.
    pub fn create(dir: &Path, manifest: Manifest) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(Error::io("making", dir))?;
        Ok(DatasetWriter { dir: dir.to_path_buf(), manifest, open: None })
    }

    /// Checks a row against the format and adds it to a split.
    pub fn push(
        &mut self,
        split: Split,
        input_ids: &[i32],
        labels: &[i32],
        documents: &[Document],
    ) -> Result<(), Error> {
        if self.open.as_ref().is_some_and(|w| w.split != split) {
            self.close()?;
        }
        let summary = verify::check_row(input_ids, labels, documents, &self.manifest)
            .map_err(|reason| Error::WriteRow { reason })?;
        let index = self.manifest.files.iter().filter(|f| f.split == split).count();
        let writer = match &mut self.open {
            Some(w) => w,
            none => none.insert(ShardWriter::create(
                &self.dir,
                &shard_name(split, index),
                split,
                self.manifest.seq_len,
            )?),
        };
        writer.push(input_ids, labels, documents)?;
        let (c, p) = (&mut self.manifest.counts, &mut self.manifest.packing);
        c.rows_read += documents.len() as u64;
        c.rows_kept += documents.len() as u64;
        summary.add_to(c);
        p.row_padding += summary.row_padding;
        match split {
            Split::Train => p.train_rows += 1,
            Split::Eval => p.eval_rows += 1,
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Error> {
        if let Some(w) = self.open.take() {
            self.manifest.files.push(w.finish()?);
        }
        Ok(())
    }

    /// Closes the last file and writes the manifest.
    pub fn finish(mut self) -> Result<Manifest, Error> {
        self.close()?;
        write_manifest(&self.dir, &self.manifest)?;
        Ok(self.manifest)
    }
}

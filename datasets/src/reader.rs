//! Memory-mapped access to a packed dataset: rows are slices of the mapped files; nothing is
//! copied.
//!
//! In: the dataset's folder. Out: [`Row`]s in constant time. Opening checks the manifest and every
//! file's length, schema and row count; content hashes are checked by `dlm-prep verify` only. The
//! files must not be changed while they are mapped.

#![allow(unsafe_code, reason = "packed files are mapped into memory")]

use crate::manifest::{Manifest, Split};
use crate::{Error, schema};
use arrow::array::{Array, ArrayData, AsArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Int32Type};
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

/// A conversation inside a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document {
    /// Position of its first token in the row.
    pub start: usize,
    /// Number of positions, block padding included.
    pub length: usize,
    /// Index into [`Manifest::sources`].
    pub source: usize,
}

/// A packed row of S = `seq_len` positions.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// Token ids, `[S]`.
    pub input_ids: &'a [i32],
    /// Labels, `[S]`: the token id where loss is taken, -100 elsewhere.
    pub labels: &'a [i32],
    /// The conversations in the row, in order of position.
    pub documents: Vec<Document>,
}

/// An open dataset. It can be shared between threads.
pub struct Dataset {
    dir: PathBuf,
    manifest: Manifest,
    fingerprint: String,
    train: Part,
    eval: Part,
    zero_copy: bool,
}

/// A view of one split of a dataset.
#[derive(Clone, Copy)]
pub struct SplitView<'a> {
    dataset: &'a Dataset,
    split: Split,
}

#[derive(Default)]
struct Part {
    /// Record batches in file order.
    batches: Vec<RecordBatch>,
    /// Number of the first row of each batch, and the total number of rows as one more entry.
    starts: Vec<usize>,
}

impl Part {
    fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }
    fn push(&mut self, batch: RecordBatch) {
        if self.starts.is_empty() {
            self.starts.push(0);
        }
        self.starts.push(self.rows() + batch.num_rows());
        self.batches.push(batch);
    }
}

impl Dataset {
    /// Opens the dataset in `dir` and maps its files.
    ///
    /// # Errors
    /// Any [`Error`] that says what is missing or damaged.
    pub fn open(dir: &Path) -> Result<Dataset, Error> {
        let (manifest, fingerprint) = Manifest::read_with_hash(dir)?;
        let (mut train, mut eval, mut zero_copy) = (Part::default(), Part::default(), true);
        for f in &manifest.files {
            let path = dir.join(&f.path);
            let mapped = MappedFile::open(&path, Some(f.bytes))?;
            let batches = mapped.batches(&path, manifest.seq_len)?;
            let found: usize = batches.iter().map(RecordBatch::num_rows).sum();
            if found != f.rows {
                return Err(Error::RowCount { path, found, expected: f.rows });
            }
            zero_copy &= batches.iter().all(|b| mapped.holds(b));
            let part = if f.split == Split::Train { &mut train } else { &mut eval };
            batches.into_iter().for_each(|b| part.push(b));
        }
        Ok(Dataset { dir: dir.to_path_buf(), manifest, fingerprint, train, eval, zero_copy })
    }

    /// The folder of the dataset.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest as read when the dataset was opened.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// sha256 of the manifest, which holds the hashes of all files: it changes whenever any content
    /// of the dataset changes.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Whether every column lies in the mapped files, so that no row was copied.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// A view of one split.
    pub fn split(&self, split: Split) -> SplitView<'_> {
        SplitView { dataset: self, split }
    }

    /// Number of rows in a split.
    pub fn rows(&self, split: Split) -> usize {
        self.part(split).rows()
    }

    fn part(&self, split: Split) -> &Part {
        match split {
            Split::Train => &self.train,
            Split::Eval => &self.eval,
        }
    }

    /// Row `i` of a split, counted from 0 in file order.
    ///
    /// # Errors
    /// [`Error::RowRange`] past the end, [`Error::BadRow`] for documents outside the row.
    pub fn row(&self, split: Split, i: usize) -> Result<Row<'_>, Error> {
        let part = self.part(split);
        let rows = part.rows();
        if i >= rows {
            return Err(Error::RowRange { split: split.name(), row: i, rows });
        }
        let b = part.starts.partition_point(|&s| s <= i) - 1;
        let (batch, at) = (&part.batches[b], i - part.starts[b]);
        let s = self.manifest.seq_len;
        let ids = |column: usize| -> &[i32] {
            let list = batch.column(column).as_fixed_size_list();
            let from = list.value_offset_at(at);
            &list.values().as_primitive::<Int32Type>().values()[from..from + s]
        };
        let list = batch.column(2).as_list::<i32>();
        let (from, to) = (list.value_offsets()[at] as usize, list.value_offsets()[at + 1] as usize);
        if from > to {
            // offsets were checked when the file was opened
            let reason =
                format!("documents {from}..{to}: the file was changed while it was mapped");
            return Err(Error::BadRow { split: split.name(), row: i, reason });
        }
        let fields = list.values().as_struct();
        let field = |k: usize| -> &[i32] {
            &fields.column(k).as_primitive::<Int32Type>().values()[from..to]
        };
        let (start, length, source) = (field(0), field(1), field(2));
        let mut documents = Vec::with_capacity(to - from);
        for k in 0..to - from {
            let bad = |reason: String| Error::BadRow { split: split.name(), row: i, reason };
            let (a, n, src) = (start[k], length[k], source[k]);
            if a < 0 || n < 0 || i64::from(a) + i64::from(n) > s as i64 || src < 0 {
                return Err(bad(format!(
                    "document {k} spans {a}..{} of {s}, source {src}",
                    i64::from(a) + i64::from(n)
                )));
            }
            documents.push(Document {
                start: a as usize,
                length: n as usize,
                source: src as usize,
            });
        }
        Ok(Row { input_ids: ids(0), labels: ids(1), documents })
    }
}

impl<'a> SplitView<'a> {
    /// Number of rows in the split.
    pub fn len(&self) -> usize {
        self.dataset.rows(self.split)
    }
    /// Whether the split has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Row `i` of the split, see [`Dataset::row`].
    pub fn row(&self, i: usize) -> Result<Row<'a>, Error> {
        self.dataset.row(self.split, i)
    }
    /// All rows in file order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Row<'a>, Error>> + use<'a> {
        let (dataset, split) = (self.dataset, self.split);
        (0..dataset.rows(split)).map(move |i| dataset.row(split, i))
    }
}

/// A memory-mapped Arrow IPC file.
pub struct MappedFile {
    buffer: Buffer,
}

impl MappedFile {
    /// Maps the file at `path`. With `expected`, the file must have exactly that many bytes.
    pub fn open(path: &Path, expected: Option<u64>) -> Result<MappedFile, Error> {
        let file = crate::fs::open_file(path).map_err(Error::io("opening", path))?;
        let found = file.metadata().map_err(Error::io("reading", path))?.len();
        if let Some(expected) = expected.filter(|&e| e != found) {
            return Err(Error::FileSize { path: path.to_path_buf(), found, expected });
        }
        if found == 0 {
            return Err(Error::BadFile {
                path: path.to_path_buf(),
                reason: "empty file".to_string(),
            });
        }
        // SAFETY: the mapping is read-only and private to this process's view; the format requires
        // (docs/format.md) that files are never changed in place once the manifest exists, and
        // writers rename whole files over.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("mapping", path))?;
        let (ptr, len) = (map.as_ptr() as *mut u8, map.len());
        let Some(ptr) = NonNull::new(ptr) else {
            return Err(Error::BadFile {
                path: path.to_path_buf(),
                reason: "the mapping has no address".to_string(),
            });
        };
        // SAFETY: `ptr..ptr+len` is the mapping, kept alive by the Arc for as long as any Buffer
        // refers to it.
        let buffer = unsafe { Buffer::from_custom_allocation(ptr, len, Arc::new(map)) };
        Ok(MappedFile { buffer })
    }

    /// The record batches of the file, whose schema must be that of rows of `seq_len` tokens.
    ///
    /// Lengths and offsets in the file are checked against its size before Arrow trusts them.
    pub fn batches(&self, path: &Path, seq_len: usize) -> Result<Vec<RecordBatch>, Error> {
        let bad = |reason: &str| Error::BadFile {
            path: path.to_path_buf(),
            reason: format!("not a packed Arrow file: {reason}"),
        };
        let len = self.buffer.len();
        let trailer: [u8; 10] = len
            .checked_sub(10)
            .and_then(|t| self.buffer[t..].try_into().ok())
            .ok_or_else(|| bad("too short"))?;
        let footer_len = read_footer_length(trailer).map_err(|e| bad(&e.to_string()))?;
        let start = (len - 10)
            .checked_sub(footer_len)
            .ok_or_else(|| bad("its footer is longer than the file"))?;
        let footer = arrow::ipc::root_as_footer(&self.buffer[start..len - 10])
            .map_err(|e| bad(&e.to_string()))?;
        let found = footer.schema().ok_or_else(|| bad("no schema"))?;
        let found = Arc::new(
            arrow::ipc::convert::try_fb_to_schema(found).map_err(|e| bad(&e.to_string()))?,
        );
        let wanted = schema::schema(seq_len);
        for (k, want) in wanted.fields().iter().enumerate() {
            match found.fields().get(k) {
                Some(f)
                    if f.name() == want.name() && same_type(f.data_type(), want.data_type()) => {}
                Some(f) => {
                    let reason = format!(
                        "column {k} is {} {}, expected {} {}",
                        f.name(),
                        f.data_type(),
                        want.name(),
                        want.data_type()
                    );
                    return Err(Error::BadFile { path: path.to_path_buf(), reason });
                }
                None => return Err(bad(&format!("no column {}", want.name()))),
            }
        }
        let decoder = FileDecoder::new(found, footer.version()).with_require_alignment(true);
        let mut out = Vec::new();
        for block in footer.recordBatches().into_iter().flatten() {
            let whole = i64::from(block.metaDataLength()).checked_add(block.bodyLength());
            let inside = |n: i64| usize::try_from(n).ok().filter(|&n| n <= start);
            let (Some(at), Some(n)) = (inside(block.offset()), whole.and_then(inside)) else {
                return Err(bad("a record batch lies outside the file"));
            };
            if at + n > start || block.metaDataLength() < 8 {
                return Err(bad("a record batch lies outside the file"));
            }
            // The decoder trusts the lengths in the metadata: check them against the bytes present.
            let meta = &self.buffer[at + 8..at + block.metaDataLength() as usize];
            let header =
                arrow::ipc::root_as_message(meta).ok().and_then(|m| m.header_as_record_batch());
            let header = header.ok_or_else(|| bad("a block holds no record batch"))?;
            let fits = |n: i64| (0..=block.bodyLength()).contains(&n);
            let lengths = fits(header.length().saturating_mul(4 * seq_len as i64))
                && header.nodes().iter().flatten().all(|n| fits(n.length()));
            let places = header.buffers().iter().flatten().all(|b| {
                b.offset() % 8 == 0
                    && fits(b.offset())
                    && fits(b.length())
                    && fits(b.offset() + b.length())
            });
            // Buffers come in schema order; these hold 32-bit values, the others validity bits.
            let whole = |k: usize| {
                header.buffers().is_some_and(|all| k < all.len() && all.get(k).length() % 4 == 0)
            };
            let places = places
                && (at + block.metaDataLength() as usize).is_multiple_of(8)
                && [2, 5, 7, 10, 12, 14].into_iter().all(whole);
            if !lengths || !places {
                return Err(bad("a record batch claims more than its bytes can hold"));
            }
            let batch = decoder
                .read_record_batch(block, &self.buffer.slice_with_length(at, n))
                .map_err(Error::arrow(path))?;
            let batch = batch.ok_or_else(|| bad("a block holds no record batch"))?;
            if batch.columns().iter().any(|c| has_nulls(&c.to_data())) {
                return Err(bad("it has null values"));
            }
            out.push(batch);
        }
        Ok(out)
    }

    /// Whether every buffer of `batch` lies inside this mapping, that is, nothing was copied.
    pub fn holds(&self, batch: &RecordBatch) -> bool {
        let from = self.buffer.as_ptr() as usize;
        let to = from + self.buffer.len();
        batch.columns().iter().all(|c| inside(&c.to_data(), from, to))
    }
}

fn inside(data: &ArrayData, from: usize, to: usize) -> bool {
    let here = |b: &Buffer| {
        b.is_empty() || (b.as_ptr() as usize >= from && b.as_ptr() as usize + b.len() <= to)
    };
    data.buffers().iter().all(here) && data.child_data().iter().all(|c| inside(c, from, to))
}

fn has_nulls(data: &ArrayData) -> bool {
    data.null_count() > 0 || data.child_data().iter().any(has_nulls)
}

/// Whether two types are the same, ignoring the names of list item fields, in which writers differ.
fn same_type(a: &DataType, b: &DataType) -> bool {
    match (a, b) {
        (DataType::FixedSizeList(x, n), DataType::FixedSizeList(y, m)) => {
            n == m && same_type(x.data_type(), y.data_type())
        }
        (DataType::List(x), DataType::List(y)) => same_type(x.data_type(), y.data_type()),
        (DataType::Struct(x), DataType::Struct(y)) => {
            x.len() == y.len()
                && x.iter()
                    .zip(y)
                    .all(|(f, g)| f.name() == g.name() && same_type(f.data_type(), g.data_type()))
        }
        _ => a == b,
    }
}

//! Files to raw rows.
//!
//! In: local files and folders: parquet, JSONL (`.jsonl`, `.json`, `.ndjson`, plain, `.gz` or
//! `.zst`), Arrow IPC files and streams. Out: batches of about a quarter of a megabyte, in order,
//! each knowing which row of which file it starts at, so that a run can go on anywhere. Memory: a
//! batch is bounded by bytes, a line by [`MAX_LINE`](crate::input::json_lines::MAX_LINE); a parquet
//! file is read page by page.

use crate::error::{Error, Result};
use crate::input::json_lines::JsonRows;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Fields, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::RowGroupMetaData;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes a batch aims at.
pub(crate) const BATCH_BYTES: usize = 256 << 10;
/// Rows a batch has at most.
pub(crate) const BATCH_ROWS: usize = 1024;
/// Columns a conversation can be made of; others are not read.
const COLUMNS: [&str; 20] = [
    "messages",
    "conversations",
    "conversation",
    "input",
    "output",
    "system_prompt",
    "system",
    "instruction",
    "prompt",
    "completion",
    "response",
    "chosen",
    "question",
    "answer",
    "tools",
    "category",
    "license",
    "licence",
    "text",
    "id",
];

/// A file that is being fetched.
#[derive(Clone)]
pub struct Remote {
    /// What fetches it.
    pub ahead: std::sync::Arc<crate::input::hub::fetch::DownloadAhead>,
    /// Its number in the listing.
    pub index: usize,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "remote file {}", self.index)
    }
}

/// One input file.
#[derive(Debug, Clone)]
pub struct Input {
    /// Where it is.
    pub path: PathBuf,
    /// What the manifest calls it.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What fetches it, if it is not here yet.
    pub remote: Option<Remote>,
    /// The source it belongs to, as the manifest calls it.
    pub label: String,
    /// Hub dataset and commit.
    pub origin: Option<(String, String)>,
    /// Licence of rows that name none.
    pub licence: Option<String>,
    /// Columns under other names: (ours, the file's).
    pub columns: Vec<(String, String)>,
}

impl Input {
    /// A local file.
    pub fn local(path: PathBuf, name: String, bytes: u64) -> Input {
        Input {
            label: name.clone(),
            path,
            name,
            bytes,
            remote: None,
            origin: None,
            licence: None,
            columns: Vec::new(),
        }
    }

    /// Its local path; waits for a download.
    pub fn ready(&self) -> Result<PathBuf> {
        match &self.remote {
            None => Ok(self.path.clone()),
            Some(r) => r.ahead.wait(r.index),
        }
    }
}

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Parquet.
    Parquet,
    /// One JSON object a line, or one array of objects.
    Json,
    /// Arrow IPC, file or stream.
    Arrow,
}

/// The kind of a file, by its name without `.gz` or `.zst`.
pub fn kind(path: &Path) -> Option<FileFormat> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let bare = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match bare.rsplit_once('.')?.1 {
        "parquet" if bare == name => Some(FileFormat::Parquet),
        "arrow" | "feather" if bare == name => Some(FileFormat::Arrow),
        "jsonl" | "json" | "ndjson" => Some(FileFormat::Json),
        _ => None,
    }
}

/// The files meant by `--input` arguments: files as they are, folders searched through, sorted by
/// name.
pub fn expand(arguments: &[PathBuf]) -> Result<Vec<Input>> {
    let mut out: Vec<Input> = Vec::new();
    for a in arguments {
        let meta = std::fs::metadata(a).map_err(Error::io("reading", a))?;
        if meta.is_dir() {
            let mut files = Vec::new();
            walk(a, 0, &mut files)?;
            files.sort();
            if files.is_empty() {
                return Err(Error::Usage(format!(
                    "{}: no parquet, JSONL or Arrow file in this folder",
                    a.display()
                )));
            }
            for path in files {
                let name =
                    path.strip_prefix(a).unwrap_or(&path).to_string_lossy().replace('\\', "/");
                let bytes = std::fs::metadata(&path).map_err(Error::io("reading", &path))?.len();
                out.push(Input::local(path, name, bytes));
            }
        } else {
            if kind(a).is_none() {
                let reason = "unknown kind of file; expected .parquet, .jsonl, .json, .ndjson (also .gz, .zst) or .arrow";
                return Err(Error::Usage(format!("{}: {reason}", a.display())));
            }
            let name = a.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            out.push(Input::local(a.clone(), name, meta.len()));
        }
    }
    // Two files of one name are told apart by where they are.
    for i in 0..out.len() {
        if out.iter().enumerate().any(|(j, o)| j != i && o.name == out[i].name) {
            out[i].name = out[i].path.to_string_lossy().replace('\\', "/");
            out[i].label = out[i].name.clone();
        }
    }
    Ok(out)
}

/// Small JSON files that describe something and hold no rows.
pub fn is_metadata(path: &str) -> bool {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    let known = [
        "dataset_infos.json",
        "dataset_info.json",
        "state.json",
        "config.json",
        "metadata.json",
        "manifest.json",
        "vocab.json",
        "added_tokens.json",
    ];
    known.contains(&name)
        || name.starts_with('.')
        || (name.ends_with(".json")
            && (name.starts_with("tokenizer") || name.starts_with("special_tokens")))
}

fn walk(dir: &Path, depth: usize, out: &mut Vec<PathBuf>) -> Result<()> {
    if depth > 32 {
        return Err(Error::Usage(format!(
            "{}: more than 32 folders deep; give the folder that holds the files",
            dir.display()
        )));
    }
    for entry in std::fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let path = entry.map_err(Error::io("listing", dir))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(['.', '_']));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, depth + 1, out)?;
        } else if kind(&path).is_some() && !is_metadata(&path.to_string_lossy()) {
            out.push(path);
        }
    }
    Ok(())
}

/// Rows as they come from a file.
#[derive(Debug)]
pub enum RawRows {
    /// Lines of JSON: all their bytes, and where each ends. A line that was too long is empty.
    Lines {
        /// The lines, one after another.
        bytes: Vec<u8>,
        /// One past each line's last byte.
        ends: Vec<usize>,
    },
    /// A piece of a table.
    Table(RecordBatch),
}

impl RawRows {
    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            RawRows::Lines { ends, .. } => ends.len(),
            RawRows::Table(b) => b.num_rows(),
        }
    }
    /// Line `i`, if these are lines; none for one that was too long.
    pub fn line(&self, i: usize) -> Option<&[u8]> {
        match self {
            RawRows::Lines { bytes, ends } => {
                let from = if i == 0 { 0 } else { ends[i - 1] };
                Some(&bytes[from..ends[i]]).filter(|l| !l.is_empty())
            }
            RawRows::Table(_) => None,
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A file's batches, from row `skip` on.
pub fn open(input: &Input, skip: u64) -> Result<Box<dyn Iterator<Item = Result<RawRows>> + Send>> {
    let bad = |reason: String| Error::Input { path: input.path.display().to_string(), reason };
    let local = Input { path: input.ready()?, remote: None, ..input.clone() };
    match kind(&input.path) {
        Some(FileFormat::Parquet) => parquet(&local, skip),
        Some(FileFormat::Json) => Ok(Box::new(JsonRows::open(&local.path, skip)?)),
        Some(FileFormat::Arrow) => arrow_file(&local, skip),
        None => Err(bad("unknown kind of file".to_string())),
    }
}

/// Rows of a parquet file, and their bytes before compression.
pub fn parquet_size(path: &Path) -> Result<(u64, u64)> {
    let file = File::open(path).map_err(Error::io("opening", path))?;
    let meta =
        ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(|e| Error::Input {
            path: path.display().to_string(),
            reason: format!("not readable as parquet: {e}"),
        })?;
    let groups = meta.metadata().row_groups();
    let sum = |of: fn(&RowGroupMetaData) -> i64| groups.iter().map(|g| of(g).max(0) as u64).sum();
    Ok((sum(RowGroupMetaData::num_rows), sum(RowGroupMetaData::total_byte_size)))
}

fn parquet(input: &Input, skip: u64) -> Result<Box<dyn Iterator<Item = Result<RawRows>> + Send>> {
    let path = input.path.clone();
    let file = File::open(&path).map_err(Error::io("opening", &path))?;
    let bad = {
        let path = path.display().to_string();
        move |e: String| Error::Input {
            path: path.clone(),
            reason: format!("not readable as parquet: {e}"),
        }
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| bad(e.to_string()))?;
    let meta = builder.metadata();
    let rows = meta.file_metadata().num_rows().max(0) as u64;
    let size: i64 = meta.row_groups().iter().map(|g| g.total_byte_size()).sum();
    let per_row = (size.max(0) as u64 / rows.max(1)).max(1) as usize;
    let batch = (BATCH_BYTES / per_row).clamp(1, BATCH_ROWS);
    let schema = builder.parquet_schema();
    let wanted: Vec<usize> = (0..schema.num_columns())
        .filter(|&c| {
            let name = schema.get_column_root(c).name();
            COLUMNS.contains(&name) || input.columns.iter().any(|(_, theirs)| theirs == name)
        })
        .collect();
    if wanted.is_empty() {
        let found: Vec<&str> = schema.root_schema().get_fields().iter().map(|f| f.name()).collect();
        return Err(bad(format!(
            "none of its columns {found:?} can hold a conversation; expected one of messages, conversations, input, instruction, prompt, question"
        )));
    }
    let mask = ProjectionMask::leaves(schema, wanted);
    if skip >= rows {
        return Ok(Box::new(std::iter::empty()));
    }
    // Strings stay where the pages are decoded to, where this reader can do that.
    let schema =
        Arc::new(Schema::new(builder.schema().fields().iter().map(as_views).collect::<Fields>()));
    let views = ArrowReaderMetadata::try_new(
        builder.metadata().clone(),
        ArrowReaderOptions::new().with_schema(schema),
    );
    let builder = match (views, File::open(&path)) {
        (Ok(views), Ok(file)) => ParquetRecordBatchReaderBuilder::new_with_metadata(file, views),
        _ => builder,
    };
    // Whole row groups before the first row wanted are not even opened.
    let (mut first, mut skip) = (0, skip);
    for group in builder.metadata().row_groups() {
        let n = group.num_rows().max(0) as u64;
        if skip < n {
            break;
        }
        (first, skip) = (first + 1, skip - n);
    }
    let groups = (first..builder.metadata().num_row_groups()).collect();
    let reader = builder
        .with_batch_size(batch)
        .with_projection(mask)
        .with_row_groups(groups)
        .with_offset(skip as usize);
    let reader = reader.build().map_err(|e| bad(e.to_string()))?;
    Ok(Box::new(reader.map(move |b| b.map(RawRows::Table).map_err(|e| bad(e.to_string())))))
}

/// A field with all strings in it as views.
fn as_views(f: &FieldRef) -> FieldRef {
    let to = match f.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::List(item) => DataType::List(as_views(item)),
        DataType::LargeList(item) => DataType::LargeList(as_views(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(as_views).collect()),
        _ => return f.clone(),
    };
    Arc::new(f.as_ref().clone().with_data_type(to))
}

fn arrow_file(
    input: &Input,
    skip: u64,
) -> Result<Box<dyn Iterator<Item = Result<RawRows>> + Send>> {
    let path = &input.path;
    let display = path.display().to_string();
    let bad = move |e: arrow::error::ArrowError| Error::Input {
        path: display.clone(),
        reason: format!("not readable as Arrow IPC: {e}"),
    };
    let mut magic = [0u8; 6];
    let mut file = File::open(path).map_err(Error::io("opening", path))?;
    let _ = file.read(&mut magic).map_err(Error::io("reading", path))?;
    let file =
        BufReader::with_capacity(1 << 20, File::open(path).map_err(Error::io("opening", path))?);
    let batches: Box<
        dyn Iterator<Item = std::result::Result<RecordBatch, arrow::error::ArrowError>> + Send,
    > = if &magic == b"ARROW1" {
        Box::new(arrow::ipc::reader::FileReader::try_new(file, None).map_err(&bad)?)
    } else {
        Box::new(arrow::ipc::reader::StreamReader::try_new(file, None).map_err(&bad)?)
    };
    let mut left = skip as usize;
    let pieces = batches.flat_map(move |b| -> Vec<Result<RawRows>> {
        let b = match b {
            Ok(b) => b,
            Err(e) => return vec![Err(bad(e))],
        };
        let from = left.min(b.num_rows());
        left -= from;
        let step = BATCH_ROWS
            .min((BATCH_BYTES * b.num_rows().max(1) / b.get_array_memory_size().max(1)).max(1));
        (from..b.num_rows())
            .step_by(step)
            .map(|at| Ok(RawRows::Table(b.slice(at, step.min(b.num_rows() - at)))))
            .collect()
    });
    Ok(Box::new(pieces))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row from where it is asked for, whatever row group that is in.
    #[test]
    fn parquet_from_any_row() {
        use arrow::array::{ArrayRef, AsArray, StringArray};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let text = |k: &str| -> ArrayRef {
            Arc::new((0..17).map(|i| Some(format!("{k}{i}"))).collect::<StringArray>())
        };
        let batch =
            RecordBatch::try_from_iter([("input", text("q")), ("output", text("a"))]).unwrap();
        let five = parquet::file::properties::WriterProperties::builder()
            .set_max_row_group_row_count(Some(5))
            .build();
        let mut w = parquet::arrow::ArrowWriter::try_new(
            File::create(&path).unwrap(),
            batch.schema(),
            Some(five),
        )
        .unwrap();
        w.write(&batch).unwrap();
        w.close().unwrap();
        assert_eq!(parquet_size(&path).unwrap().0, 17);
        let input = Input::local(path, "a".to_string(), 0);
        for skip in 0..=18 {
            let mut found = Vec::new();
            for b in open(&input, skip).unwrap() {
                let RawRows::Table(b) = b.unwrap() else { panic!("not a table") };
                assert_eq!(b.column(1).data_type(), &DataType::Utf8View);
                found.extend(b.column(1).as_string_view().iter().flatten().map(String::from));
            }
            assert_eq!(found, (skip..17).map(|i| format!("a{i}")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn kinds() {
        for (name, k) in [
            ("a.parquet", Some(FileFormat::Parquet)),
            ("a.JSONL.gz", Some(FileFormat::Json)),
            ("a.parquet.gz", None),
            ("a.txt", None),
            ("a.arrow", Some(FileFormat::Arrow)),
        ] {
            assert_eq!(kind(Path::new(name)), k, "{name}");
        }
    }
}

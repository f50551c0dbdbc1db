//! Rows of a parquet file.
//!
//! In: a file, the columns that a recipe renames, and the row to begin with. Out: batches
//! ([`RawRows::Table`]) of the columns a conversation can be made of. Row groups are read page by
//! page, so memory does not depend on their size.

use crate::error::{Error, Result};
use crate::input::parquet_pages::{Budget, CheckedGroups};
use crate::input::parquet_thrift::check_footer;
use crate::input::raw_rows::{BATCH_BYTES, BATCH_ROWS, RawRows, RowBatches};
use arrow::datatypes::{DataType, FieldRef, Fields, Schema};
use parquet::arrow::arrow_reader::RowGroups;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowSelection, RowSelector,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::file::metadata::RowGroupMetaData;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// Columns that a conversation can be made of. Other columns are not read, unless a recipe names
/// them.
const COLUMNS: [&str; 22] = [
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
    "functions",
    "loss_mask",
    "category",
    "license",
    "licence",
    "text",
    "id",
];

/// Columns that are read too, if no column holds whole conversations.
const MORE_COLUMNS: [&str; 7] =
    ["problem", "solution", "query", "context", "history", "label", "rejected"];

/// Values of a list with a fixed length, and those of all such lists in a batch.
const FIXED_VALUES: u64 = 1 << 16;
const BATCH_VALUES: u64 = 1 << 22;

/// Number of rows of a parquet file, and their bytes before compression.
pub(crate) fn size(path: &Path) -> Result<(u64, u64)> {
    let (_, meta) = described(path)?;
    let groups = meta.metadata().row_groups();
    let sum = |of: fn(&RowGroupMetaData) -> i64| {
        groups.iter().map(|g| of(g).max(0) as u64).fold(0, u64::saturating_add)
    };
    Ok((sum(RowGroupMetaData::num_rows), sum(RowGroupMetaData::total_byte_size)))
}

/// An open file and its description, which was checked before it was read.
fn described(path: &Path) -> Result<(File, ArrowReaderMetadata)> {
    let mut file = File::open(path).map_err(Error::io("opening", path))?;
    let footer = footer(&mut file).map_err(Error::io("reading", path))?;
    footer.map_or(Ok(()), |footer| check_footer(&footer)).map_err(|e| unreadable(path, &e))?;
    let meta = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
        .map_err(|e| unreadable(path, &e.to_string()))?;
    Ok((file, meta))
}

/// The description at the end of a file; none where the file does not end as a parquet file does,
/// which the reader says better.
fn footer(file: &mut File) -> std::io::Result<Option<Vec<u8>>> {
    let length = file.metadata()?.len();
    let Some(end) = length.checked_sub(8) else { return Ok(None) };
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(end))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    let bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
    let Some(from) = end.checked_sub(bytes).filter(|_| magic == *b"PAR1") else {
        return Ok(None);
    };
    file.seek(SeekFrom::Start(from))?;
    let mut footer = vec![0; bytes as usize];
    file.read_exact(&mut footer)?;
    Ok(Some(footer))
}

/// The rows of `path` from row `skip` on; `renames` lists pairs of (name used by this program, name
/// in the file).
pub(crate) fn open(path: &Path, renames: &[(String, String)], skip: u64) -> Result<RowBatches> {
    let (file, described) = described(path)?;
    let bad = {
        let path = path.to_path_buf();
        move |e: String| unreadable(&path, &e)
    };
    let meta = described.metadata().clone();
    let rows = meta.file_metadata().num_rows().max(0) as u64;
    check_sizes(meta.row_groups(), path).map_err(&bad)?;
    let sizes = meta.row_groups().iter().map(|g| g.total_byte_size());
    let size = sizes.fold(0i64, i64::saturating_add);
    let per_row = (size.max(0) as u64 / rows.max(1)).max(1) as usize;
    let schema = described.parquet_schema();
    let whole = ["messages", "conversations", "conversation"];
    let whole = schema.root_schema().get_fields().iter().any(|f| whole.contains(&f.name()));
    let selected: Vec<usize> = (0..schema.num_columns())
        .filter(|&c| {
            let name = schema.get_column_root(c).name();
            COLUMNS.contains(&name)
                || !whole && MORE_COLUMNS.contains(&name)
                || renames.iter().any(|(_, theirs)| theirs == name)
        })
        .collect();
    if selected.is_empty() {
        let names: Vec<&str> = schema.root_schema().get_fields().iter().map(|f| f.name()).collect();
        return Err(bad(format!(
            "none of its columns {names:?} can hold a conversation; expected one of messages, conversations, input, instruction, prompt, question; say which it is with --columns, for example --columns messages=NAME"
        )));
    }
    let own = described.schema().clone();
    let fixed = |c: &usize| own.fields().get(schema.get_column_root_idx(*c));
    let fixed = selected.iter().filter_map(fixed).map(|f| fixed_values(f.data_type())).max();
    let fixed = fixed.unwrap_or(1);
    if fixed > FIXED_VALUES {
        return Err(bad(format!(
            "a column holds lists of exactly {fixed} values; at most {FIXED_VALUES} are read: store them as lists of any length"
        )));
    }
    let batch = (BATCH_BYTES / per_row).min((BATCH_VALUES / fixed) as usize).clamp(1, BATCH_ROWS);
    let mask = ProjectionMask::leaves(schema, selected);
    if skip >= rows {
        return Ok(Box::new(std::iter::empty()));
    }
    // As views, strings stay in the buffers of the decoded pages and are not copied. Where the
    // reader does not support that for a column, the file is read with its own schema.
    let views = Arc::new(Schema::new(own.fields().iter().map(as_views).collect::<Fields>()));
    let options = ArrowReaderOptions::new().with_schema(views.clone());
    let views = ArrowReaderMetadata::try_new(meta.clone(), options).map_or(own, |_| views);
    let levels = parquet_to_arrow_field_levels(schema, mask, Some(views.fields()))
        .map_err(|e| bad(e.to_string()))?;
    // Row groups that end before row `skip` are not opened.
    let (mut first, mut skip) = (0, skip);
    for group in meta.row_groups() {
        let n = group.num_rows().max(0) as u64;
        if skip < n {
            break;
        }
        (first, skip) = (first + 1, skip - n);
    }
    let budget = Budget::default();
    let groups = CheckedGroups {
        file: Arc::new(file),
        groups: (first..meta.num_row_groups()).collect(),
        metadata: meta,
        budget: budget.clone(),
    };
    let selection = (skip > 0).then(|| {
        let rest = groups.num_rows() - skip as usize;
        RowSelection::from(vec![RowSelector::skip(skip as usize), RowSelector::select(rest)])
    });
    let mut reader =
        ParquetRecordBatchReader::try_new_with_row_groups(&levels, &groups, batch, selection)
            .map_err(|e| bad(e.to_string()))?;
    Ok(Box::new(std::iter::from_fn(move || {
        budget.begin_batch();
        let batch = reader.next()?;
        Some(batch.map(RawRows::Table).map_err(|e| bad(e.to_string())))
    })))
}

/// Values that a row of a type has even where it is null: lists of a fixed length are filled up.
fn fixed_values(kind: &DataType) -> u64 {
    match kind {
        DataType::FixedSizeList(item, length) => {
            u64::from(length.unsigned_abs()).saturating_mul(fixed_values(item.data_type())).max(1)
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::Map(item, _) => fixed_values(item.data_type()),
        DataType::Struct(fields) => {
            fields.iter().map(|f| fixed_values(f.data_type())).max().unwrap_or(1)
        }
        _ => 1,
    }
}

/// Refuses column chunks that lie outside of the file, and counts below zero.
fn check_sizes(groups: &[RowGroupMetaData], path: &Path) -> std::result::Result<(), String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    for (k, group) in groups.iter().enumerate() {
        let counts = [group.num_rows(), group.total_byte_size()];
        if let Some(n) = counts.into_iter().find(|n| *n < 0) {
            return Err(format!("row group {k} claims a size of {n}"));
        }
        for column in group.columns() {
            let first = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let first = first.min(column.data_page_offset());
            let place = u64::try_from(first).ok().zip(u64::try_from(column.compressed_size()).ok());
            let end = place.and_then(|(from, bytes)| from.checked_add(bytes));
            if column.num_values() < 0 || end.is_none_or(|end| end > length) {
                return Err(format!(
                    "column {} of row group {k} claims {} bytes from byte {first} on, but the file has {length}",
                    column.column_path(),
                    column.compressed_size()
                ));
            }
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &str) -> Error {
    Error::Input {
        path: path.display().to_string(),
        reason: format!("not readable as parquet: {error}"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};

    /// All rows from the one asked for, whichever row group it is in.
    #[test]
    fn parquet_from_any_row() {
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
        assert_eq!(size(&path).unwrap().0, 17);
        for skip in 0..=18 {
            let mut read = Vec::new();
            for b in open(&path, &[], skip).unwrap() {
                let RawRows::Table(b) = b.unwrap() else { panic!("not a table") };
                assert_eq!(b.column(1).data_type(), &DataType::Utf8View);
                read.extend(b.column(1).as_string_view().iter().flatten().map(String::from));
            }
            assert_eq!(read, (skip..17).map(|i| format!("a{i}")).collect::<Vec<_>>());
        }
    }
}

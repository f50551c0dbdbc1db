//! Parquet files that claim more than they hold: every claim is refused by name before memory is
//! set aside for it, and files of every encoding, codec and form are read as the parquet crate
//! reads them.

use crate::input::files::list_files;
use crate::input::raw_rows::RawRows;
use crate::input::selection::FileSelection;
use crate::input::source::Input;
use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, ListArray, RecordBatch};
use arrow::array::{StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Int32Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use std::path::Path;
use std::sync::Arc;

/// Texts that repeat, share beginnings, are empty, null, or long.
fn texts(rows: usize) -> StringArray {
    let text = |i: usize| match i % 11 {
        3 => None,
        5 => Some(String::new()),
        7 => Some(format!("the same beginning {} and {i}", "word ".repeat(i % 300))),
        n => Some(format!("{} {i}", ["yes", "no", "Grüße", "猫"][n % 4])),
    };
    (0..rows).map(text).collect()
}

fn table(rows: usize) -> RecordBatch {
    let texts = texts(rows);
    let offsets = (0..=rows).map(|i| (i * i / rows.max(1)) as i32).collect::<Vec<_>>();
    let role = Arc::new(Field::new("role", DataType::Utf8, true));
    let messages = StructArray::from(vec![
        (role.clone(), Arc::new(texts.clone()) as ArrayRef),
        (Arc::new(Field::new("content", DataType::Utf8, true)), Arc::new(texts.clone()) as _),
    ]);
    let item = Arc::new(Field::new("item", messages.data_type().clone(), true));
    let lists = ListArray::new(
        item,
        arrow::buffer::OffsetBuffer::new(offsets.into()),
        Arc::new(messages),
        None,
    );
    let columns: [(&str, ArrayRef); 2] = [("messages", Arc::new(lists)), ("id", Arc::new(texts))];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn written(table: &RecordBatch, options: WriterPropertiesBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    let options = Some(options.build());
    let mut writer = ArrowWriter::try_new(&mut bytes, table.schema(), options).unwrap();
    writer.write(table).unwrap();
    writer.close().unwrap();
    bytes
}

/// The rows from `skip` on as text, by this program.
fn ours(path: &Path, skip: u64) -> Result<Vec<String>, String> {
    let said = |e: crate::Error| e.to_string();
    let files = list_files(&[path.to_path_buf()], &FileSelection::default()).map_err(said)?;
    let input = Input::from(files.0.into_iter().next().unwrap());
    let mut rows = Vec::new();
    for batch in input.open(skip).map_err(said)? {
        match batch.map_err(said)? {
            RawRows::Table(batch) => rows.extend(printed(&batch)),
            RawRows::Lines { .. } => panic!("not a table"),
        }
    }
    Ok(rows)
}

fn printed(batch: &RecordBatch) -> Vec<String> {
    let rows = (0..batch.num_rows()).map(|row| {
        let columns = batch
            .columns()
            .iter()
            .map(|column| arrow::util::display::array_value_to_string(column, row).unwrap());
        columns.collect::<Vec<_>>().join(" | ")
    });
    rows.collect()
}

#[test]
fn every_encoding_codec_and_form_is_read_as_the_parquet_crate_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ];
    let encodings = [
        None,
        Some(Encoding::PLAIN),
        Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
        Some(Encoding::DELTA_BYTE_ARRAY),
    ];
    let (table, mut files) = (table(700), 0);
    for (n, codec) in codecs.into_iter().enumerate() {
        for encoding in encodings {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                let mut options = WriterProperties::builder()
                    .set_compression(codec)
                    .set_writer_version(version)
                    .set_dictionary_enabled(encoding.is_none())
                    .set_write_batch_size(32)
                    .set_data_page_size_limit([200, 1 << 20][n % 2])
                    .set_max_row_group_row_count(Some([300, 1000][n % 2]));
                if let Some(encoding) = encoding {
                    options = options.set_encoding(encoding);
                }
                std::fs::write(&path, written(&table, options)).unwrap();
                let file = std::fs::File::open(&path).unwrap();
                let theirs = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
                let theirs = theirs.build().unwrap().flat_map(|batch| printed(&batch.unwrap()));
                let theirs: Vec<String> = theirs.collect();
                assert_eq!(theirs.len(), 700);
                for skip in [0, 1, 299, 300, 650, 700] {
                    let rows = ours(&path, skip).unwrap();
                    let expected = theirs.iter().skip(skip as usize);
                    assert!(rows.iter().eq(expected), "{codec:?} {encoding:?} {version:?} {skip}");
                }
                files += 1;
            }
        }
    }
    assert_eq!(files, 56);
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Replaces the number at `at` by another one, of any length.
fn claim(bytes: &mut Vec<u8>, at: usize, number: u64) {
    let end = at + bytes[at..].iter().position(|b| b & 0x80 == 0).unwrap() + 1;
    bytes.splice(at..end, varint(number));
}

fn one_column(rows: usize) -> RecordBatch {
    RecordBatch::try_from_iter([("input", Arc::new(texts(rows)) as ArrayRef)]).unwrap()
}

/// Position of the first page's header.
fn first_page(bytes: &[u8]) -> usize {
    let meta = ParquetMetaDataReader::new()
        .parse_and_finish(&bytes::Bytes::copy_from_slice(bytes))
        .unwrap();
    let column = meta.row_group(0).column(0).clone();
    column.dictionary_page_offset().unwrap_or(column.data_page_offset()) as usize
}

fn refused(bytes: &[u8], expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("claims.parquet");
    std::fs::write(&path, bytes).unwrap();
    let said = ours(&path, 0).unwrap_err();
    assert!(said.contains(expected) && said.contains("claims.parquet"), "{expected}: {said}");
}

/// A header says how large a page becomes once it is decompressed.
#[test]
fn a_page_cannot_claim_more_than_its_codec_makes() {
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let options = WriterProperties::builder().set_compression(codec);
        let options = options.set_dictionary_enabled(false);
        let mut bytes = written(&one_column(500), options);
        let at = first_page(&bytes);
        // Kind, then size, each behind a byte that names the field.
        assert_eq!((bytes[at], bytes[at + 2]), (0x15, 0x15));
        claim(&mut bytes, at + 3, 2 * 0x7fff_fff0);
        refused(&bytes, "bytes become 2147483632 once they are decompressed");
        claim(&mut bytes, at + 3, 2 * 0x7fff_fff0 + 1);
        refused(&bytes, "claims to have -2147483633 bytes");
    }
}

/// A dictionary's header says how many values it has.
#[test]
fn a_dictionary_cannot_claim_more_values_than_it_has_bytes_for() {
    let mut bytes = written(&one_column(500), WriterProperties::builder());
    let at = first_page(&bytes);
    let head = memchr::memmem::find(&bytes[at..], &[0x4c, 0x15]).unwrap();
    claim(&mut bytes, at + head + 2, 2 * 90_000_000);
    refused(&bytes, "claims 90000000 values of a dictionary");
    claim(&mut bytes, at + head + 2, 2 * 0x7fff_ffff);
    refused(&bytes, "at most 2147483648 are read");
}

/// The data of a page in a delta encoding say once more how many values there are.
#[test]
fn delta_encoded_data_cannot_claim_more_values_than_their_page() {
    for (encoding, lists) in
        [(Encoding::DELTA_LENGTH_BYTE_ARRAY, 1), (Encoding::DELTA_BYTE_ARRAY, 2)]
    {
        let options =
            WriterProperties::builder().set_encoding(encoding).set_dictionary_enabled(false);
        let whole = written(&one_column(2_000), options);
        let values = 2_000 - one_column(2_000).column(0).null_count() as u64;
        // Blocks of 128 numbers in 4 parts, then the number of numbers.
        let head = [&[0x80, 0x01, 0x04][..], &varint(values)].concat();
        let places: Vec<usize> = memchr::memmem::find_iter(&whole, &head).collect();
        assert_eq!(places.len(), lists, "{encoding:?}");
        for at in places {
            let mut bytes = whole.clone();
            bytes.splice(at + 3..at + 5, varint(16_000));
            refused(&bytes, "has 2000 values, but its data claim 16000");
        }
    }
}

/// The schema says how many columns each group has.
#[test]
fn a_schema_cannot_claim_more_columns_than_it_lists() {
    let mut bytes = written(&one_column(5), WriterProperties::builder());
    let before = bytes.len();
    let name = b"arrow_schema\x15";
    let at = memchr::memmem::rfind(&bytes, name).unwrap() + name.len();
    claim(&mut bytes, at, 2 * 0x7fff_ffff);
    let end = bytes.len() - 8;
    let length = u32::from_le_bytes(bytes[end..end + 4].try_into().unwrap());
    let length = length + (bytes.len() - before) as u32;
    bytes[end..end + 4].copy_from_slice(&length.to_le_bytes());
    refused(&bytes, "its schema has 2 elements, and one claims 2147483647");
}

/// Null lists of a fixed length are filled up, whatever their length.
#[test]
fn lists_of_a_huge_fixed_length_are_refused() {
    let null = |length: i32| -> RecordBatch {
        let item = Arc::new(Field::new("item", DataType::Utf8, true));
        let values = arrow::array::new_null_array(&DataType::Utf8, length as usize);
        let list = FixedSizeListArray::new(item, length, values, Some(vec![false].into()));
        RecordBatch::try_from_iter([("messages", Arc::new(list) as ArrayRef)]).unwrap()
    };
    refused(&written(&null(70_000), WriterProperties::builder()), "lists of exactly 70000 values");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list.parquet");
    std::fs::write(&path, written(&null(3), WriterProperties::builder())).unwrap();
    assert_eq!(ours(&path, 0).unwrap().len(), 1);
}

/// A dictionary of integers and a column without nulls go the same ways.
#[test]
fn numbers_are_read_as_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("numbers.parquet");
    let numbers: arrow::array::Int32Array = (0..1000).map(|i| i % 7).collect();
    let batch = RecordBatch::try_from_iter([("id", Arc::new(numbers) as ArrayRef)]).unwrap();
    for encoding in [None, Some(Encoding::DELTA_BINARY_PACKED)] {
        let options = WriterProperties::builder().set_dictionary_enabled(encoding.is_none());
        let options = encoding.into_iter().fold(options, |options, e| options.set_encoding(e));
        std::fs::write(&path, written(&batch, options)).unwrap();
        let expected: Vec<String> = batch
            .column(0)
            .as_primitive::<Int32Type>()
            .values()
            .iter()
            .map(i32::to_string)
            .collect();
        assert_eq!(ours(&path, 0).unwrap(), expected);
    }
}

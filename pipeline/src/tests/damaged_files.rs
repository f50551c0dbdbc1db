//! Files with flipped, missing and foreign bytes: every one gives rows or an error that names it.

use crate::input::arrow_check;
use crate::input::files::list_files;
use crate::input::selection::FileSelection;
use crate::input::source::Input;
use crate::parse::rows::RowParser;
use arrow::array::{ArrayRef, DictionaryArray, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

fn table() -> RecordBatch {
    let text = |k: &str| -> ArrayRef {
        Arc::new(
            (0..60)
                .map(|i| Some(format!("{k} {i} {}", "word ".repeat(i))))
                .collect::<StringArray>(),
        )
    };
    let role: ArrayRef =
        Arc::new((0..60).map(|i| ["a", "b"][i % 2]).collect::<DictionaryArray<Int32Type>>());
    RecordBatch::try_from_iter([("input", text("Q")), ("output", text("A")), ("category", role)])
        .unwrap()
}

/// The files that are damaged, by name.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let (table, mut out) = (table(), Vec::new());
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for (name, codec) in [("s.parquet", Compression::SNAPPY), ("z.parquet", zstd)] {
        let options = WriterProperties::builder().set_compression(codec).build();
        let mut bytes = Vec::new();
        let mut w = ArrowWriter::try_new(&mut bytes, table.schema(), Some(options)).unwrap();
        w.write(&table).unwrap();
        w.close().unwrap();
        out.push((name, bytes));
    }
    for (name, codec) in [
        ("p.arrow", None),
        ("l.arrow", Some(CompressionType::LZ4_FRAME)),
        ("z.arrow", Some(CompressionType::ZSTD)),
    ] {
        let options = || IpcWriteOptions::default().try_with_compression(codec).unwrap();
        let mut bytes = Vec::new();
        let mut w =
            FileWriter::try_new_with_options(&mut bytes, &table.schema(), options()).unwrap();
        w.write(&table).unwrap();
        w.finish().unwrap();
        out.push((name, bytes));
        let mut bytes = Vec::new();
        let mut w =
            StreamWriter::try_new_with_options(&mut bytes, &table.schema(), options()).unwrap();
        w.write(&table).unwrap();
        w.finish().unwrap();
        drop(w);
        out.push((["ps.arrow", "ls.arrow", "zs.arrow"][out.len() / 2 - 1], bytes));
    }
    let lines: String = (0..60)
        .map(|i| format!("{{\"prompt\": \"Q {i}\", \"completion\": \"A {i}\"}}\n"))
        .collect();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(lines.as_bytes()).unwrap();
    out.push(("a.jsonl.gz", gz.finish().unwrap()));
    out.push(("a.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap()));
    out
}

/// Number of rows of a file, or its error.
fn read(path: &Path) -> Result<usize, String> {
    let files =
        list_files(&[path.to_path_buf()], &FileSelection::default()).map_err(|e| e.to_string())?;
    let input = Input::from(files.0.into_iter().next().unwrap());
    let mut n = 0;
    for batch in input.open(0).map_err(|e| e.to_string())? {
        let batch = batch.map_err(|e| e.to_string())?;
        let rows = RowParser::new(&batch, &[]);
        for i in 0..batch.len().min(2_000) {
            let _ = rows.parse(i, Vec::new());
            n += 1;
        }
        // A damaged count of rows without columns could go on for long.
        if n > 10_000 {
            break;
        }
    }
    Ok(n)
}

#[test]
fn damage_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut state, mut cases, mut errors) = (7u64, 0, 0);
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for (name, bytes) in files() {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path), Ok(60), "{name}");
        for round in 0..120 {
            let mut damaged = bytes.clone();
            let at = random(bytes.len());
            match round % 6 {
                0 => damaged.truncate(at),
                1 => damaged[at] = 0xff,
                2 => damaged[at] ^= 1 << random(8),
                3 => damaged[at..].iter_mut().take(8).for_each(|b| *b = 0xff),
                4 => damaged[at..].iter_mut().take(8).for_each(|b| *b = 0x7f),
                _ => drop(damaged.splice(at..at, *b"damaged!")),
            }
            std::fs::write(&path, &damaged).unwrap();
            cases += 1;
            if let Err(said) = read(&path) {
                errors += 1;
                assert!(said.contains(name), "{name} {round} at {at}: {said}");
                assert!(!said.contains("internal error"), "{name} {round} at {at}: {said}");
            }
        }
    }
    assert!(cases == 1200 && errors > 500, "{cases} {errors}");
}

#[test]
fn claimed_sizes_are_compared_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files() {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
        if name.contains(".arrow") || name.contains(".parquet") {
            let said = read(&path).unwrap_err();
            assert!(said.contains(name) && said.contains("not readable as"), "{said}");
        }
    }
}

/// Equal bytes compress by the most that a codec can; a claim beyond that is refused before the
/// memory for it is asked for.
#[test]
fn compressed_buffers_cannot_claim_more_than_their_codec_makes() {
    let dir = tempfile::tempdir().unwrap();
    let zeros: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![0; 5_000_001]));
    let batch = RecordBatch::try_from_iter([("zeros", zeros)]).unwrap();
    for codec in [CompressionType::ZSTD, CompressionType::LZ4_FRAME] {
        let options = IpcWriteOptions::default().try_with_compression(Some(codec)).unwrap();
        let mut bytes = Vec::new();
        let mut writer =
            FileWriter::try_new_with_options(&mut bytes, &batch.schema(), options).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        let check = |bytes: &[u8]| {
            let path = dir.path().join("zeros.arrow");
            std::fs::write(&path, bytes).unwrap();
            arrow_check::check(std::fs::File::open(path).unwrap(), true)
        };
        assert_eq!(check(&bytes), Ok(()), "{codec:?}");
        let length = (8 * 5_000_001i64).to_le_bytes();
        let at = memchr::memmem::find(&bytes, &length).unwrap();
        bytes[at..at + 8].copy_from_slice(&((2i64 << 30) - 8).to_le_bytes());
        let said = check(&bytes).unwrap_err();
        assert!(said.contains("claims that a buffer of"), "{codec:?}: {said}");
    }
}

/// The reader takes the place and the sizes of a message from the footer: each of them, changed in
/// any way, is refused, because the check would look at other bytes than the reader.
#[test]
fn a_footer_that_names_another_place_than_its_message_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.arrow");
    let mut whole = Vec::new();
    let mut writer = FileWriter::try_new(&mut whole, &table().schema()).unwrap();
    writer.write(&table()).unwrap();
    writer.finish().unwrap();
    drop(writer);
    let check = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        arrow_check::check(std::fs::File::open(&path).unwrap(), true)
    };
    assert_eq!(check(&whole), Ok(()));
    let end = whole.len() - 10;
    let length = u32::from_le_bytes(whole[end..end + 4].try_into().unwrap()) as usize;
    let footer = arrow::ipc::root_as_footer(&whole[end - length..end]).unwrap();
    let blocks = footer.dictionaries().into_iter().chain(footer.recordBatches());
    let blocks: Vec<_> = blocks.flat_map(|b| b.iter().copied().collect::<Vec<_>>()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        // As it stands in the file: offset (8 bytes), description (4, then 4 unused), body (8).
        let at = end - length + memchr::memmem::find(&whole[end - length..end], &block.0).unwrap();
        for (field, size) in [(0, 8), (8, 4), (16, 8)] {
            for change in [8i64, -8, 64, 1, -1, i64::from(i32::MAX)] {
                let mut bytes = whole.clone();
                let field = &mut bytes[at + field..at + field + size];
                let mut value = [0; 8];
                value[..size].copy_from_slice(field);
                let value = i64::from_le_bytes(value).wrapping_add(change).to_le_bytes();
                field.copy_from_slice(&value[..size]);
                assert!(check(&bytes).is_err(), "{block:?}: {size} bytes changed by {change}");
            }
        }
    }
}

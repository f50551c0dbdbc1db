//! Rows of a JSON file: one per line, in arrays, or one after another over several lines
//! (`json_form.rs` finds out which); plain, gzip or zstd.
//!
//! In: a file and the row to begin with. Out: batches of unparsed lines ([`RawRows::Lines`]). A row
//! longer than [`MAX_LINE`] comes as an empty line, which parsing drops and counts. Empty lines of
//! the file are not rows.

use crate::error::{Error, Result};
use crate::input::json_form::JsonForm;
use crate::input::raw_rows::{BATCH_BYTES, BATCH_ROWS, RawRows};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Length in bytes of the longest row that is read. Longer rows are dropped as `line_too_long`.
pub(crate) const MAX_LINE: usize = 64 << 20;

/// Iterator over the batches of a JSON file.
pub(crate) struct JsonRows {
    reader: Box<dyn BufRead + Send>,
    path: PathBuf,
    form: JsonForm,
    /// Whether an array was opened and not yet closed.
    in_array: bool,
    /// Rows that are still to be skipped.
    skip: u64,
    done: bool,
    consumed: Arc<AtomicU64>,
}

/// A file that counts the bytes read from it, and whose end is an error before its length.
struct CountingFile {
    file: File,
    count: Arc<AtomicU64>,
    /// Its length when it was opened.
    length: u64,
}

impl Read for CountingFile {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buf)?;
        let read = self.count.fetch_add(n as u64, Ordering::Relaxed) + n as u64;
        if n == 0 && !buf.is_empty() && read < self.length {
            return Err(std::io::Error::other(format!(
                "it became shorter while it was read, to {read} bytes of {}",
                self.length
            )));
        }
        Ok(n)
    }
}

impl JsonRows {
    /// The rows of `path` from row `skip` on. Files named `.gz` and `.zst` are decompressed.
    pub(crate) fn open(path: &Path, skip: u64) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let consumed = Arc::new(AtomicU64::new(0));
        let length = file.metadata().map_err(Error::io("reading", path))?.len();
        let file = CountingFile { file, count: consumed.clone(), length };
        let name = path.to_string_lossy().to_ascii_lowercase();
        let mut reader: Box<dyn BufRead + Send> = if name.ends_with(".gz") {
            Box::new(BufReader::with_capacity(
                1 << 18,
                flate2::read::MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file)),
            ))
        } else if name.ends_with(".zst") {
            let decoder =
                zstd::stream::read::Decoder::new(file).map_err(Error::io("reading", path))?;
            Box::new(BufReader::with_capacity(1 << 18, decoder))
        } else {
            Box::new(BufReader::with_capacity(1 << 18, file))
        };
        let head = reader.fill_buf().map_err(|e| unreadable(path, e))?;
        if head.starts_with(&[0xEF, 0xBB, 0xBF]) {
            reader.consume(3);
        }
        let head = reader.fill_buf().map_err(|e| unreadable(path, e))?;
        let (form, begin) = JsonForm::of(head)
            .map_err(|reason| Error::Input { path: path.display().to_string(), reason })?;
        reader.consume(begin);
        let (path, in_array) = (path.to_path_buf(), begin > 0);
        Ok(JsonRows { reader, path, form, in_array, skip, done: false, consumed })
    }

    /// The rows after the first line end from byte `at` on; none if the file is compressed or one
    /// array, where rows cannot be found from the middle.
    pub(crate) fn from_byte(path: &Path, at: u64) -> Result<Option<Self>> {
        let name = path.to_string_lossy().to_ascii_lowercase();
        let rows = Self::open(path, 0)?;
        if rows.form != JsonForm::Lines || name.ends_with(".gz") || name.ends_with(".zst") {
            return Ok(None);
        }
        if at == 0 {
            return Ok(Some(rows));
        }
        let mut file = File::open(path).map_err(Error::io("opening", path))?;
        file.seek(SeekFrom::Start(at - 1)).map_err(Error::io("reading", path))?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        loop {
            let buffer = reader.fill_buf().map_err(|e| unreadable(path, e))?;
            let (newline, n) = (memchr::memchr(b'\n', buffer), buffer.len());
            reader.consume(newline.map_or(n, |at| at + 1));
            if newline.is_some() || n == 0 {
                return Ok(Some(JsonRows { reader: Box::new(reader), ..rows }));
            }
        }
    }

    /// Bytes read from the file so far (of a compressed file: before decompression), those that
    /// wait in a buffer included.
    pub(crate) fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    /// Appends the bytes of the next row to `out`; false at the end of the file. Of a row longer
    /// than [`MAX_LINE`] nothing is appended.
    fn next_row(&mut self, out: &mut Vec<u8>) -> std::io::Result<bool> {
        if self.form == JsonForm::Lines { self.next_line(out) } else { self.next_element(out) }
    }

    fn next_line(&mut self, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let start = out.len();
        loop {
            let (mut any, mut over, mut ended) = (false, false, false);
            while !ended {
                let buffer = self.reader.fill_buf()?;
                if buffer.is_empty() {
                    break;
                }
                any = true;
                let newline = memchr::memchr(b'\n', buffer);
                ended = newline.is_some();
                let take = newline.unwrap_or(buffer.len());
                if !over && out.len() - start + take > MAX_LINE {
                    over = true;
                    out.truncate(start);
                }
                if !over {
                    out.extend_from_slice(&buffer[..take]);
                }
                self.reader.consume(take + usize::from(ended));
            }
            if !any || over || !out[start..].iter().all(u8::is_ascii_whitespace) {
                return Ok(any);
            }
            out.truncate(start); // an empty line is not a row
        }
    }

    /// The next element of an array, or the next object of a file of objects over several lines.
    /// Only brackets and strings are tracked to find its end. Arrays may follow each other.
    fn next_element(&mut self, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let start = out.len();
        let (mut depth, mut string, mut escaped, mut begun, mut over) =
            (0usize, false, false, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                if self.in_array || depth > 0 || string {
                    return Err(std::io::Error::other(if self.in_array {
                        "the JSON array in it is not closed by ]"
                    } else {
                        "its last JSON object is not closed by }"
                    }));
                }
                return Ok(begun);
            }
            let mut used = 0;
            let mut finished = false;
            for &b in buffer {
                used += 1;
                if !begun {
                    match b {
                        b']' if self.in_array => {
                            self.in_array = false;
                            continue;
                        }
                        b'[' if !self.in_array && self.form == JsonForm::Array => {
                            self.in_array = true;
                            continue;
                        }
                        b'}' if !self.in_array && self.form == JsonForm::Wrapped => continue,
                        b',' if self.in_array => continue,
                        b if b.is_ascii_whitespace() => continue,
                        b'{' if self.form == JsonForm::Objects => begun = true,
                        _ if self.in_array => begun = true,
                        b => {
                            return Err(std::io::Error::other(format!(
                                "{:?} stands where {} is expected",
                                char::from(b),
                                self.form.next_row()
                            )));
                        }
                    }
                }
                if string {
                    string = escaped || b != b'"';
                    escaped = !escaped && b == b'\\';
                } else {
                    match b {
                        b'"' => string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' if depth == 1 && self.form == JsonForm::Objects => {
                            out.push(b);
                            finished = true;
                            break;
                        }
                        b'}' | b']' if depth > 0 => depth -= 1,
                        b',' | b']' if depth == 0 => {
                            used -= usize::from(b == b']');
                            finished = true;
                            break;
                        }
                        _ => {}
                    }
                }
                over |= out.len() - start >= MAX_LINE;
                if !over {
                    out.push(b);
                }
            }
            self.reader.consume(used);
            if finished {
                break;
            }
        }
        if over {
            out.truncate(start);
        }
        Ok(true)
    }
}

impl Iterator for JsonRows {
    type Item = Result<RawRows>;

    fn next(&mut self) -> Option<Result<RawRows>> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        while !self.done && ends.len() < BATCH_ROWS && bytes.len() < BATCH_BYTES {
            match self.next_row(&mut bytes) {
                Ok(true) if self.skip > 0 => {
                    self.skip -= 1;
                    bytes.clear();
                }
                Ok(true) => ends.push(bytes.len()),
                Ok(false) => self.done = true,
                Err(e) => {
                    self.done = true;
                    return Some(Err(unreadable(&self.path, e)));
                }
            }
        }
        (!ends.is_empty()).then_some(Ok(RawRows::Lines { bytes, ends }))
    }
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    // zstd's words for a window larger than its decoders allow unasked.
    let reason = if e.to_string().contains("too much memory for decoding") {
        "is compressed with zstd --long and a window of more than 2^27 bytes, which takes as much memory to read; compress it with zstd --long=27 or less".to_string()
    } else {
        format!(
            "cannot be read to its end: {e}; the file is damaged, or its name does not say how it is compressed"
        )
    };
    Error::Input { path: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn rows(name: &str, content: &[u8], skip: u64) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let mut out = Vec::new();
        for b in JsonRows::open(&path, skip).unwrap() {
            let RawRows::Lines { bytes, ends } = b.unwrap() else { panic!() };
            let mut from = 0;
            for e in ends {
                out.push(String::from_utf8(bytes[from..e].to_vec()).unwrap());
                from = e;
            }
        }
        out
    }

    #[test]
    fn lines_and_arrays() {
        assert_eq!(
            rows("a.jsonl", b"\xEF\xBB\xBF{\"a\":1}\r\n\n  \n{\"b\":2}", 0),
            ["{\"a\":1}\r", "{\"b\":2}"]
        );
        assert_eq!(rows("a.jsonl", b"1\n2\n3\n", 1), ["2", "3"]);
        assert_eq!(
            rows("a.json", b" [ {\"a\": \"],\\\"}\"} ,\n{\"b\": [1, {}]}, 3 ] ", 0),
            ["{\"a\": \"],\\\"}\"} ", "{\"b\": [1, {}]}", "3 "]
        );
        assert_eq!(rows("a.json", b"[1, 2]\n[3]\n[]", 0), ["1", "2", "3"]);
        assert_eq!(
            rows("a.json", b"{\n \"a\": \"}\"\n}\n{\n  \"b\": [\n{}]}\n", 0),
            ["{\n \"a\": \"}\"\n}", "{\n  \"b\": [\n{}]}"]
        );
        assert_eq!(
            rows("a.json", b"{\"data\": [{\"a\": 1},\n {\"b\": 2}]}\n", 0),
            ["{\"a\": 1}", "{\"b\": 2}"]
        );
        let lists = "[{\"role\": \"user\"}]\n[{\"role\": \"x\"}]";
        assert_eq!(rows("a.jsonl", lists.as_bytes(), 0), lists.lines().collect::<Vec<_>>());
        assert_eq!(rows("a.json", b"[]", 0), [] as [&str; 0]);
        assert_eq!(rows("a.json", b"", 0), [] as [&str; 0]);
    }

    #[test]
    fn unfinished_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for (content, says) in [
            (&b"[1, 2"[..], "not closed by ]"),
            (b"[{\"a\": 1}\n", "not closed by ]"),
            (b"{\n \"a\": 1\n}\n{\n", "not closed by }"),
            (b"[1] x", "'x' stands where"),
            (b"{\"data\": [{\"a\": 1}], \"more\": 1}", "',' stands where"),
            (b"\xFF\xFE{\0}\0", "UTF-16"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = match JsonRows::open(&path, 0) {
                Ok(mut rows) => rows.find_map(Result::err).map(|e| e.to_string()),
                Err(e) => Some(e.to_string()),
            };
            assert!(error.as_ref().is_some_and(|e| e.contains(says)), "{error:?}");
        }
    }

    /// A log that is rotated, or an editor that saves: the rows that are gone are noticed.
    #[test]
    fn a_file_that_shrinks_while_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "{\"a\": 10}\n".repeat(200_000)).unwrap();
        let mut rows = JsonRows::open(&path, 0).unwrap();
        assert!(rows.next().unwrap().is_ok());
        File::options().write(true).open(&path).unwrap().set_len(1_000_000).unwrap();
        let e = rows.find_map(Result::err).unwrap().to_string();
        assert!(e.contains("became shorter") && e.contains("to 1000000 bytes of 2000000"), "{e}");
    }

    /// `zstd --long` is read up to the window that any decoder allows, and named above.
    #[test]
    fn long_windows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl.zst");
        let first_error = |window: u32| {
            let mut w = zstd::Encoder::new(Vec::new(), 1).unwrap();
            w.long_distance_matching(true).unwrap();
            w.window_log(window).unwrap();
            w.write_all(b"1\n2\n").unwrap();
            std::fs::write(&path, w.finish().unwrap()).unwrap();
            match JsonRows::open(&path, 0) {
                Ok(mut rows) => rows.find_map(Result::err).map(|e| e.to_string()),
                Err(e) => Some(e.to_string()),
            }
        };
        assert_eq!(first_error(27), None);
        let e = first_error(28).unwrap();
        assert!(e.contains("zstd --long=27"), "{e}");
    }

    #[test]
    fn compressed() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"1\n2\n").unwrap();
        let mut gz = gz.finish().unwrap();
        assert_eq!(rows("a.jsonl.gz", &gz, 0), ["1", "2"]);
        assert_eq!(
            rows("a.jsonl.zst", &zstd::encode_all(&b"1\n2\n"[..], 1).unwrap(), 0),
            ["1", "2"]
        );
        gz.truncate(gz.len() - 5);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl.gz");
        std::fs::write(&path, &gz).unwrap();
        let mut batches = JsonRows::open(&path, 0).unwrap();
        assert!(batches.any(|b| b.is_err_and(|e| e.to_string().contains("damaged"))));
    }
}

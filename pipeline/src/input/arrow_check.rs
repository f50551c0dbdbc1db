//! What an Arrow IPC file says about its own sizes, compared with the file before it is read.
//!
//! In: a file. Out: nothing, or what is wrong with it. The reader allocates what the file asks for,
//! so a few damaged bytes could ask for more memory than there is.

use arrow::ipc::{Block, CompressionType, Message, RecordBatch, root_as_footer, root_as_message};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

/// Bytes of a message's description, or of a file's footer.
const DESCRIPTION_BYTES: u64 = 64 << 20;
/// Bytes of a record batch after decompression.
pub(crate) const BATCH_MEMORY: u64 = 2 << 30;

/// Bytes that one byte of a compressed buffer can become: zstd stores a block of 128 KiB of equal
/// bytes in 4, LZ4 255 bytes of a repetition in 1.
pub(super) const ZSTD_GROWTH: u64 = 1 << 15;
pub(super) const LZ4_GROWTH: u64 = 255;
/// Bytes that come to it for an unfinished block.
pub(super) const BLOCK: u64 = 128 << 10;

/// Checks all messages of a file (`is_file`) or stream.
pub(crate) fn check(file: File, is_file: bool) -> Result<(), String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut checked = Checked { file: BufReader::with_capacity(1 << 13, file), length };
    if is_file { checked.footer() } else { checked.stream() }
}

struct Checked {
    file: BufReader<File>,
    length: u64,
}

impl Checked {
    fn read(&mut self, at: u64, bytes: u64) -> Result<Vec<u8>, String> {
        if at.checked_add(bytes).is_none_or(|end| end > self.length) {
            return Err(format!(
                "it ends at byte {} within what should have {bytes} bytes from byte {at} on",
                self.length
            ));
        }
        let mut out = vec![0; bytes as usize];
        self.file.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
        self.file.read_exact(&mut out).map_err(|e| e.to_string())?;
        Ok(out)
    }

    fn number(&mut self, at: u64) -> Result<u32, String> {
        let bytes = self.read(at, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn stream(&mut self) -> Result<(), String> {
        let mut at = 0;
        while at < self.length {
            match self.message(at)? {
                Some(body) => at = body.end,
                None => break,
            }
        }
        Ok(())
    }

    fn footer(&mut self) -> Result<(), String> {
        let end = self.length.checked_sub(10).ok_or("it is too short")?;
        if self.read(end + 4, 6)? != *b"ARROW1" {
            return Err("it does not end with ARROW1: it was not written to its end".to_string());
        }
        let bytes = u64::from(self.number(end)?);
        let from = end.checked_sub(bytes).filter(|_| bytes <= DESCRIPTION_BYTES);
        let from = from.ok_or_else(|| format!("its footer claims to have {bytes} bytes"))?;
        let footer = self.read(from, bytes)?;
        let footer = root_as_footer(&footer).map_err(|e| format!("its footer is damaged: {e}"))?;
        let blocks = footer.dictionaries().into_iter().chain(footer.recordBatches());
        let blocks: Vec<Block> =
            blocks.flat_map(|b| b.iter().copied().collect::<Vec<_>>()).collect();
        for b in blocks {
            let size =
                |n: i64| u64::try_from(n).map_err(|_| format!("a size in its footer is {n}"));
            let (at, body) = (size(b.offset())?, size(b.bodyLength())?);
            let description = size(i64::from(b.metaDataLength()))?;
            let bytes = description.saturating_add(body);
            if at.checked_add(bytes).is_none_or(|end| end > self.length) {
                return Err(format!(
                    "its footer names {bytes} bytes from byte {at} on, but the file has {}",
                    self.length
                ));
            }
            // The reader takes the sizes of the footer, so they must be those of the message.
            let found = self.message(at)?;
            if found != Some(at + description..at + bytes) {
                return Err(format!(
                    "its footer names {description} and {body} bytes from byte {at} on, which are not those of the message there"
                ));
            }
        }
        Ok(())
    }

    /// Checks the message at a position. Out: the place of its body; none at the end of a stream.
    fn message(&mut self, at: u64) -> Result<Option<Range<u64>>, String> {
        let (mut bytes, mut from) = (self.number(at)?, at + 4);
        if bytes == u32::MAX {
            (bytes, from) = (self.number(from)?, from + 4);
        }
        if bytes == 0 {
            return Ok(None);
        }
        if u64::from(bytes) > DESCRIPTION_BYTES {
            return Err(format!("the message at byte {at} claims a description of {bytes} bytes"));
        }
        let description = self.read(from, bytes.into())?;
        let message = root_as_message(&description)
            .map_err(|e| format!("the message at byte {at} is damaged: {e}"))?;
        let body = from + u64::from(bytes);
        let end = u64::try_from(message.bodyLength()).ok().and_then(|n| body.checked_add(n));
        let end = end.filter(|end| *end <= self.length).ok_or_else(|| {
            let claimed = message.bodyLength();
            format!(
                "the message at byte {at} claims {claimed} bytes, but the file has {}",
                self.length
            )
        })?;
        if let Some(batch) = batch_of(&message) {
            self.buffers(at, body..end, &batch)?;
        }
        Ok(Some(body..end))
    }

    fn buffers(&mut self, at: u64, body: Range<u64>, batch: &RecordBatch) -> Result<(), String> {
        let codec = batch.compression().map(|compression| compression.codec());
        let growth =
            if codec == Some(CompressionType::LZ4_FRAME) { LZ4_GROWTH } else { ZSTD_GROWTH };
        let mut decoded = 0u64;
        for b in batch.buffers().into_iter().flat_map(|b| b.iter()) {
            let place = u64::try_from(b.offset()).ok().zip(u64::try_from(b.length()).ok());
            let place = place.and_then(|(o, n)| Some((body.start.checked_add(o)?, n)));
            let place = place.filter(|(o, n)| o.checked_add(*n).is_some_and(|end| end <= body.end));
            let (from, bytes) = place.ok_or_else(|| {
                format!("the message at byte {at} names a buffer that lies outside of it")
            })?;
            if codec.is_some() && bytes >= 8 {
                let head = self.read(from, 8)?;
                let claimed = head.try_into().map_or(-2, i64::from_le_bytes);
                let claimed = if claimed == -1 { bytes as i64 - 8 } else { claimed };
                let claimed = u64::try_from(claimed).map_err(|_| {
                    format!("the message at byte {at} has a buffer of {claimed} bytes")
                })?;
                if claimed > (bytes - 8).saturating_mul(growth).saturating_add(BLOCK) {
                    return Err(format!(
                        "the message at byte {at} claims that a buffer of {bytes} bytes becomes {claimed} once it is decompressed"
                    ));
                }
                decoded = decoded.saturating_add(claimed);
            }
        }
        if decoded > BATCH_MEMORY {
            return Err(format!(
                "the record batch at byte {at} has {decoded} bytes once it is decompressed; at most {BATCH_MEMORY} are read: write it in smaller batches"
            ));
        }
        Ok(())
    }
}

fn batch_of<'a>(message: &Message<'a>) -> Option<RecordBatch<'a>> {
    let of_dictionary = || message.header_as_dictionary_batch()?.data();
    message.header_as_record_batch().or_else(of_dictionary)
}

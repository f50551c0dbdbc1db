//! The storage of a hub, as far as uploads need it: xorbs (packs of compressed chunks) and shards
//! (which chunks make up a file), read by an own reader of the published formats.
//!
//! A xorb is a sequence of chunks, each behind 8 bytes: version 0, the stored length (3 bytes,
//! little-endian), how it is stored (0 as it is, 1 LZ4 frame, 2 LZ4 frame of the bytes in four
//! groups), its length (3 bytes). A shard is a header of 48 bytes and records of 48 bytes: for each
//! file its hash, flags and number of segments; per segment a xorb's hash, flags, bytes, first and
//! last chunk; verification records; and the file's sha256.

use std::collections::BTreeMap;

const MAGIC: &[u8] = b"HFRepoMetaData\0";
const RECORD: usize = 48;
const WITH_VERIFICATION: u32 = 1 << 31;
const WITH_SHA256: u32 = 1 << 30;

/// What has been uploaded.
#[derive(Debug, Default)]
pub struct Store {
    /// Chunks of each xorb.
    xorbs: BTreeMap<String, Vec<Vec<u8>>>,
    /// Content by sha256.
    files: BTreeMap<String, Vec<u8>>,
}

impl Store {
    /// The content with this sha256.
    pub fn file(&self, sha256: &str) -> Option<Vec<u8>> {
        self.files.get(sha256).cloned()
    }

    /// Whether a xorb is there.
    pub fn has_xorb(&self, hash: &str) -> bool {
        self.xorbs.contains_key(hash)
    }

    /// Adds a xorb; whether it was not there yet.
    pub fn add_xorb(&mut self, hash: &str, bytes: &[u8]) -> Result<bool, String> {
        let mut chunks = Vec::new();
        let mut rest = bytes;
        // A footer may follow the chunks.
        while !rest.is_empty() && !rest.starts_with(b"XETBLOB") {
            let (head, tail) = rest.split_at_checked(8).ok_or("half a chunk header")?;
            let three = |at: usize| {
                usize::from(head[at])
                    | usize::from(head[at + 1]) << 8
                    | usize::from(head[at + 2]) << 16
            };
            let (stored, length) = (three(1), three(5));
            let (data, behind) = tail.split_at_checked(stored).ok_or("half a chunk")?;
            let chunk = match (head[0], head[4]) {
                (0, 0) => data.to_vec(),
                (0, 1) => lz4_frame(data)?,
                (0, 2) => regroup(&lz4_frame(data)?),
                other => return Err(format!("a chunk of the kind {other:?}")),
            };
            if chunk.len() != length {
                return Err(format!("a chunk of {} bytes, {length} promised", chunk.len()));
            }
            chunks.push(chunk);
            rest = behind;
        }
        Ok(self.xorbs.insert(hash.to_string(), chunks).is_none())
    }

    /// Adds the files of a shard.
    pub fn add_shard(&mut self, bytes: &[u8]) -> Result<(), String> {
        if !bytes.starts_with(MAGIC) {
            return Err("no shard".to_string());
        }
        let mut records = bytes[RECORD..].chunks_exact(RECORD);
        loop {
            let header = records.next().ok_or("a shard without an end")?;
            if header[..32] == [0xff; 32] {
                return Ok(());
            }
            let (flags, segments) = (number(header, 32), number(header, 36));
            let mut content = Vec::new();
            for _ in 0..segments {
                let segment = records.next().ok_or("a file without its segments")?;
                let (xorb, bytes) = (hash(&segment[..32]), number(segment, 36) as usize);
                let (from, to) = (number(segment, 40) as usize, number(segment, 44) as usize);
                let chunks = self.xorbs.get(&xorb).ok_or_else(|| format!("no xorb {xorb}"))?;
                let chunks = chunks.get(from..to).ok_or("chunks that the xorb does not have")?;
                let segment = chunks.concat();
                if segment.len() != bytes {
                    return Err(format!("a segment of {} bytes, {bytes} promised", segment.len()));
                }
                content.extend(segment);
            }
            if flags & WITH_VERIFICATION != 0 {
                for _ in 0..segments {
                    records.next().ok_or("no verification")?;
                }
            }
            if flags & WITH_SHA256 == 0 {
                return Err("a file without a sha256".to_string());
            }
            let told = hash(&records.next().ok_or("no sha256")?[..32]);
            if told != dlm_datasets::hash::sha256(&content) {
                return Err("a file that is not what its sha256 says".to_string());
            }
            self.files.insert(told, content);
        }
    }
}

fn number(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
}

/// Four little-endian numbers of 64 bits, as their digits stand in addresses.
fn hash(bytes: &[u8]) -> String {
    let digits = |eight: &[u8]| eight.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
    bytes.chunks_exact(8).map(digits).collect()
}

/// Bytes that were put into four groups by their place modulo 4.
fn regroup(grouped: &[u8]) -> Vec<u8> {
    let n = grouped.len();
    let mut out = vec![0; n];
    let mut from = 0;
    for group in 0..4 {
        for at in (group..n).step_by(4) {
            out[at] = grouped[from];
            from += 1;
        }
    }
    out
}

/// An LZ4 frame without checking its checksums.
fn lz4_frame(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let cut = || "half an LZ4 frame".to_string();
    if bytes.get(..4) != Some(&[0x04, 0x22, 0x4d, 0x18]) {
        return Err("no LZ4 frame".to_string());
    }
    let flags = *bytes.get(4).ok_or_else(cut)?;
    let has = |bit: u8| flags & bit != 0;
    let mut at = 7 + if has(8) { 8 } else { 0 } + if has(1) { 4 } else { 0 };
    let mut out = Vec::new();
    loop {
        let size = bytes.get(at..at + 4).ok_or_else(cut)?;
        let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]);
        at += 4;
        if size == 0 {
            return Ok(out);
        }
        let length = (size & 0x7fff_ffff) as usize;
        let block = bytes.get(at..at + length).ok_or_else(cut)?;
        match size >> 31 {
            1 => out.extend_from_slice(block),
            _ => lz4_block(block, &mut out)?,
        }
        at += length + if has(16) { 4 } else { 0 };
    }
}

/// An LZ4 block, whose matches may reach back into earlier blocks.
fn lz4_block(block: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let cut = || "half an LZ4 block".to_string();
    let mut at = 0;
    let next = |at: &mut usize| {
        let byte = block.get(*at).copied().ok_or_else(cut);
        *at += 1;
        byte
    };
    loop {
        let token = next(&mut at)?;
        let long = |at: &mut usize, short: u8| {
            let mut length = usize::from(short);
            let mut more = if short == 15 { 255 } else { 0 };
            while more == 255 {
                more = next(at)?;
                length += usize::from(more);
            }
            Ok::<usize, String>(length)
        };
        let literals = long(&mut at, token >> 4)?;
        out.extend_from_slice(block.get(at..at + literals).ok_or_else(cut)?);
        at += literals;
        if at == block.len() {
            return Ok(());
        }
        let back = usize::from(next(&mut at)?) | usize::from(next(&mut at)?) << 8;
        let length = long(&mut at, token & 15)? + 4;
        let from =
            out.len().checked_sub(back).filter(|_| back > 0).ok_or("a match before the start")?;
        for k in 0..length {
            out.push(out[from + k]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: five literals, then a match that overlaps itself, then the last literals.
    #[test]
    fn lz4_by_hand() {
        let block = [0x54, b'a', b'b', b'c', b'd', b'e', 2, 0, 0x10, b'!'];
        let mut frame = vec![0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0];
        frame.extend((block.len() as u32).to_le_bytes());
        frame.extend(block);
        frame.extend([0; 4]);
        assert_eq!(lz4_frame(&frame).unwrap(), b"abcdedededede!");
        assert!(lz4_frame(&frame[..14]).is_err());
        assert_eq!(regroup(b"aebfcd"), b"abcdef");
    }
}

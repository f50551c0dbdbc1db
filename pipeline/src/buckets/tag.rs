//! Tags (ETag) of objects: where they are an MD5, they are compared with the content.
//!
//! S3 and what speaks its protocol give the MD5 of an object that was written at once, and
//! `MD5(MD5 of each part…)-PARTS` of one that was written in parts; Google gives the former. Other
//! tags, Azure's among them, say nothing of the content. With encryption by keys of a key service a
//! tag looks like an MD5 and is none, so that a difference alone proves nothing.

use md5::{Digest, Md5};

/// What a tag says of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Same,
    Differs,
    /// The tag is no MD5.
    Silent,
}

/// The MD5s of a content that arrives in pieces: of the whole, and of parts of equal length.
pub(crate) struct ContentMd5 {
    whole: Md5,
    part: Md5,
    part_bytes: u64,
    in_part: u64,
    parts: Vec<[u8; 16]>,
}

impl ContentMd5 {
    /// Parts have `part_bytes` each, the last one the rest.
    pub(crate) fn new(part_bytes: u64) -> ContentMd5 {
        let part_bytes = part_bytes.max(1);
        ContentMd5 {
            whole: Md5::new(),
            part: Md5::new(),
            part_bytes,
            in_part: 0,
            parts: Vec::new(),
        }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.whole.update(bytes);
        while !bytes.is_empty() {
            let room = (self.part_bytes - self.in_part).min(bytes.len() as u64);
            let (now, rest) = bytes.split_at(room as usize);
            self.part.update(now);
            self.in_part += room;
            bytes = rest;
            if self.in_part == self.part_bytes {
                self.end_part();
            }
        }
    }

    fn end_part(&mut self) {
        let done = std::mem::take(&mut self.part);
        self.parts.push(done.finalize().into());
        self.in_part = 0;
    }

    /// The two tags that the content can have.
    pub(crate) fn finish(mut self) -> ContentTags {
        if self.in_part > 0 {
            self.end_part();
        }
        let parts = self.parts.concat();
        ContentTags {
            whole: hex(&self.whole.finalize()),
            parted: format!("{}-{}", hex(&Md5::digest(parts)), self.parts.len()),
        }
    }
}

/// The tags that a content has where tags are MD5s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContentTags {
    whole: String,
    parted: String,
}

impl ContentTags {
    /// Compares a tag as the bucket gives it. Where its parts are others than ours, it is silent.
    pub(crate) fn compare(&self, tag: Option<&str>) -> Comparison {
        let tag = tag.unwrap_or_default().trim_start_matches("W/").trim_matches('"');
        let tag = tag.to_ascii_lowercase();
        let is_hex = |t: &str| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit());
        let same_parts = tag.rsplit_once('-').is_some_and(|(sum, parts)| {
            is_hex(sum) && self.parted.rsplit_once('-').is_some_and(|(_, own)| own == parts)
        });
        match () {
            () if tag == self.whole || tag == self.parted => Comparison::Same,
            () if is_hex(&tag) || same_parts => Comparison::Differs,
            () => Comparison::Silent,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(content: &[u8], part_bytes: u64, step: usize) -> ContentTags {
        let mut md5 = ContentMd5::new(part_bytes);
        content.chunks(step).for_each(|c| md5.update(c));
        md5.finish()
    }

    #[test]
    fn tags_are_those_of_the_rfc_and_of_s3() {
        let t = tags(b"message digest", 1 << 20, 3);
        assert_eq!(t.whole, "f96b697d7cb7938d525a2f31aaf161d0");
        assert_eq!(t.compare(Some("\"F96B697D7CB7938D525A2F31AAF161D0\"")), Comparison::Same);
        // The slow form: each part alone, whatever the pieces were in which it arrived.
        let content: Vec<u8> = (0..1000u32).map(|k| (k * 7) as u8).collect();
        let sums: Vec<u8> =
            content.chunks(256).flat_map(|c| <[u8; 16]>::from(Md5::digest(c))).collect();
        let expected = format!("{}-4", hex(&Md5::digest(sums)));
        for step in [1, 100, 256, 300, 1000] {
            assert_eq!(tags(&content, 256, step).parted, expected);
        }
        assert_eq!(tags(b"", 256, 1).whole, "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn what_is_no_md5_is_silent() {
        let t = tags(&[7; 600], 256, 600);
        assert_eq!(t.compare(Some(&format!("\"{}\"", t.parted))), Comparison::Same);
        for (tag, says) in [
            (Some("\"00000000000000000000000000000000\""), Comparison::Differs),
            (Some("\"00000000000000000000000000000000-3\""), Comparison::Differs),
            (Some("\"00000000000000000000000000000000-5\""), Comparison::Silent),
            (Some("\"0x8DC123\""), Comparison::Silent),
            (Some("\"CJCmu5rN7oYDEAE=\""), Comparison::Silent),
            (Some(""), Comparison::Silent),
            (None, Comparison::Silent),
        ] {
            assert_eq!(t.compare(tag), says, "{tag:?}");
        }
    }
}

//! git's id of a file's content, by which hubs name files that are not stored as large ones: SHA-1
//! of `blob LENGTH\0` and the content (FIPS 180-4). It tells whether a file has changed and
//! protects nothing.

/// A SHA-1 that is being computed.
pub(crate) struct GitId {
    state: [u32; 5],
    block: [u8; 64],
    /// Bytes so far, of which the last `length % 64` wait in `block`.
    length: u64,
}

impl GitId {
    /// For content of `bytes` bytes.
    pub(crate) fn new(bytes: u64) -> GitId {
        let mut id = GitId::empty();
        id.update(format!("blob {bytes}\0").as_bytes());
        id
    }

    fn empty() -> GitId {
        let state = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0];
        GitId { state, block: [0; 64], length: 0 }
    }

    /// Adds bytes.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = (self.length % 64) as usize;
            let take = bytes.len().min(64 - at);
            let (now, later) = bytes.split_at(take);
            self.block[at..at + take].copy_from_slice(now);
            self.length += take as u64;
            bytes = later;
            if self.length.is_multiple_of(64) {
                self.compress();
            }
        }
    }

    /// 40 hexadecimal digits.
    pub(crate) fn finish(mut self) -> String {
        let bits = self.length * 8;
        self.update(&[0x80]);
        while self.length % 64 != 56 {
            self.update(&[0]);
        }
        self.update(&bits.to_be_bytes());
        self.state.iter().map(|word| format!("{word:08x}")).collect()
    }

    fn compress(&mut self) {
        let mut w = [0u32; 80];
        for (word, four) in w.iter_mut().zip(self.block.chunks_exact(4)) {
            *word = four.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
        }
        for t in 16..80 {
            w[t] = (w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.state;
        for (t, word) in w.into_iter().enumerate() {
            let (f, k) = match t {
                0..20 => (b & c | !b & d, 0x5a827999),
                20..40 => (b ^ c ^ d, 0x6ed9eba1),
                40..60 => (b & c | b & d | c & d, 0x8f1bbcdc),
                _ => (b ^ c ^ d, 0xca62c1d6u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e);
            let next = next.wrapping_add(k).wrapping_add(word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (state, new) in self.state.iter_mut().zip([a, b, c, d, e]) {
            *state = state.wrapping_add(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of FIPS 180-4, and ids as `git hash-object` prints them.
    #[test]
    fn published_values() {
        let sha1 = |bytes: &[u8], step: usize| {
            let mut id = GitId::empty();
            bytes.chunks(step).for_each(|part| id.update(part));
            id.finish()
        };
        let long = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let million = "a".repeat(1_000_000);
        for (text, id) in [
            ("abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (long, "84983e441c3bd26ebaae4aa1f95129e5e54670f1"),
            (&million, "34aa973cd4c4daa4f61eeb2bdbad27316534016f"),
        ] {
            for step in [1, 7, 64, 65, 1 << 20] {
                assert_eq!(sha1(text.as_bytes(), step), id);
            }
        }
        let git = |text: &str| {
            let mut id = GitId::new(text.len() as u64);
            id.update(text.as_bytes());
            id.finish()
        };
        assert_eq!(git(""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(git("test content\n"), "d670460b4b4aece5915caf5c68d12f560a9fe3e4");
    }
}

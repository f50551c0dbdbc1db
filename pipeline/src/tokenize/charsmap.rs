//! Check of a `Precompiled` normalizer's charsmap, whose reader in the tokenizers crates trusts it.
//!
//! In: the `precompiled_charsmap` of a `tokenizer.json`. It is Base64 of: the length of a double
//! array in bytes (u32), the double array (u32 units, as SentencePiece's Darts writes them), and
//! replacement strings that each end in a zero byte. Out: how much longer a replacement can be than
//! what it replaces.

/// The most bytes of a replacement for each byte that it replaces, rounded up, or what is damaged.
pub(crate) fn largest_growth(charsmap: &str) -> Result<usize, String> {
    let bytes = base64(charsmap).ok_or("its precompiled_charsmap is not Base64")?;
    let (length, rest) =
        bytes.split_first_chunk::<4>().ok_or("its precompiled_charsmap is empty")?;
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || length > rest.len() {
        return Err(format!(
            "its precompiled_charsmap says that its table has {length} bytes, of which {} are there",
            rest.len()
        ));
    }
    let (table, text) = rest.split_at(length / 4 * 4);
    let text = std::str::from_utf8(text)
        .map_err(|_| "the text of its precompiled_charsmap is not UTF-8")?;
    let units: Vec<u32> =
        table.chunks_exact(4).map(|u| u32::from_le_bytes([u[0], u[1], u[2], u[3]])).collect();
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let inside = |base: usize| {
        // A search looks at `base` with any byte in its low bits.
        if base | 0xFF < units.len() {
            return Ok(base);
        }
        Err(format!(
            "the table of its precompiled_charsmap points to unit {base} of {}",
            units.len()
        ))
    };
    let mut seen = vec![false; units.len()];
    let first = units.first().copied().ok_or("its table is empty")?;
    // Places to look on from, with the number of bytes that lead there.
    let mut left = vec![(inside(offset(first))?, 0usize)];
    let mut largest = 0;
    while let Some((base, bytes)) = left.pop() {
        for byte in 1..=255usize {
            let at = base ^ byte;
            let unit = units[at];
            // The label of a unit is its low byte; the highest bit marks a value.
            if (unit & (1 << 31 | 0xFF)) as usize != byte || std::mem::replace(&mut seen[at], true)
            {
                continue;
            }
            let next = inside(at ^ offset(unit))?;
            if unit >> 8 & 1 == 1 {
                let value = (units[next] & !(1 << 31)) as usize;
                let replacement = text.get(value..).ok_or_else(|| {
                    format!(
                        "the table of its precompiled_charsmap points to byte {value} of {} of its text",
                        text.len()
                    )
                })?;
                let length = replacement.find('\0').unwrap_or(replacement.len());
                largest = largest.max(length.div_ceil(bytes + 1));
            }
            left.push((next, bytes + 1));
        }
    }
    Ok(largest)
}

/// The bytes that Base64 stands for; None if it is not Base64.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.len() - text.iter().rev().take(2).filter(|b| **b == b'=').count();
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for b in &text[..digits] {
        let digit = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_others_write_it() {
        for (text, want) in [
            ("", Some("")),
            ("TQ==", Some("M")),
            ("TWE=", Some("Ma")),
            ("TWFu", Some("Man")),
            ("TWF", None),
            ("TW u", None),
            ("T===", None),
        ] {
            assert_eq!(base64(text), want.map(|w| w.as_bytes().to_vec()), "{text}");
        }
    }

    /// One replacement: `a` becomes `xyz`. The root's children stand at 256 ^ byte; the value of
    /// `a` at 512.
    fn table() -> Vec<u32> {
        let mut units = vec![0u32; 1024];
        units[0] = 256 << 10;
        units[256 ^ 0x61] = ((256 ^ 0x61 ^ 512) << 10) | 1 << 8 | 0x61;
        units[512] = 1 << 31 | 2;
        units
    }

    fn charsmap(units: &[u32], text: &[u8]) -> String {
        let mut bytes = ((units.len() * 4) as u32).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|u| u.to_le_bytes()));
        bytes.extend(text);
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::new();
        for three in bytes.chunks(3) {
            let bits =
                three.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - three.len()));
            for k in 0..4 {
                let digit = digits[(bits >> (18 - 6 * k) & 63) as usize] as char;
                out.push(if k <= three.len() { digit } else { '=' });
            }
        }
        out
    }

    #[test]
    fn a_table_that_points_outside_is_refused() {
        let good = charsmap(&table(), b"\0\0xyz\0");
        assert_eq!(largest_growth(&good), Ok(3));
        // Two bytes `ab` that become five: three bytes for each.
        let mut deep = table();
        deep[256 ^ 0x61] = ((256 ^ 0x61 ^ 512) << 10) | 0x61;
        deep[512] = 0;
        deep[512 ^ 0x62] = ((512 ^ 0x62 ^ 768) << 10) | 1 << 8 | 0x62;
        deep[768] = 1 << 31 | 2;
        assert_eq!(largest_growth(&charsmap(&deep, b"\0\0vwxyz\0")), Ok(3));
        let mut far = table();
        far[512] = 1 << 31 | 99;
        let mut outside = table();
        outside[0] = 4096 << 10;
        let mut split = table();
        split[512] = 1 << 31 | 1;
        for (charsmap, says) in [
            (charsmap(&far, b"\0\0xyz\0"), "points to byte 99 of 6"),
            (charsmap(&outside, b"\0\0xyz\0"), "points to unit 4096 of 1024"),
            (charsmap(&split, "é\0".as_bytes()), "points to byte 1 of 3"),
            (charsmap(&table(), b"\xff"), "not UTF-8"),
            (good[..good.len() / 8 * 4].to_string(), "says that its table has 4096 bytes"),
            ("AAAA".to_string(), "is empty"),
            (String::new(), "is empty"),
            ("?".to_string(), "not Base64"),
        ] {
            let error = largest_growth(&charsmap).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}

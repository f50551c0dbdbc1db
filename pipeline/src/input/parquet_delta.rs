//! Lengths of texts in parquet's delta encodings, read to know how much memory they take.
//!
//! In: the data of a page. Out: bytes of its texts. DELTA_LENGTH_BYTE_ARRAY stores the length of
//! each text and then all texts; DELTA_BYTE_ARRAY stores how many bytes each text shares with the
//! one before it, the lengths of the rests, and the rests. Both store numbers as blocks of
//! differences (parquet-format, Encodings.md, DELTA_BINARY_PACKED).

/// Bytes of the texts of a page with at most `most` of them, written out. `lists` is the number of
/// lists of lengths: 1 for DELTA_LENGTH_BYTE_ARRAY, 2 for DELTA_BYTE_ARRAY.
pub(super) fn expanded_bytes(data: &[u8], most: u64, lists: usize) -> Result<u64, String> {
    if data.is_empty() {
        return Ok(0);
    }
    if lists == 1 {
        // All texts lie in the page, one behind another.
        return head(&mut &*data, most).map(|_| 0);
    }
    let (first, behind) = numbers(data, most)?;
    let (rests, texts) = numbers(behind, most)?;
    let (mut length, mut sum) = (0u64, 0u64);
    for (shared, rest) in first.iter().zip(&rests) {
        let rest = u64::try_from(*rest).unwrap_or(0);
        if rest > texts.len() as u64 {
            return Err(format!("claims a text of {rest} bytes, but has {}", texts.len()));
        }
        // A decoder takes a negative number as a large one.
        length = length.min(u64::try_from(*shared).unwrap_or(u64::MAX)) + rest;
        sum += length;
    }
    Ok(sum)
}

const ENDS: &str = "ends within the lengths of its texts";

/// What stands before a list of numbers.
struct Head {
    /// Blocks have so many parts, each with a width in bits of its own.
    parts: u64,
    /// Numbers in a part.
    part: u64,
    count: u64,
    first: i32,
}

/// Reads the head of a list of at most `most` numbers.
fn head(data: &mut &[u8], most: u64) -> Result<Head, String> {
    let mut next = || varint(data).ok_or(ENDS);
    let (block, parts, count, first) = (next()?, next()?, next()?, next()?);
    if count > most {
        return Err(format!("has {most} values, but its data claim {count}"));
    }
    let part = block.checked_div(parts).unwrap_or(0);
    if part == 0 || part % 32 != 0 || part > 1 << 30 {
        return Err(format!("claims blocks of {block} lengths in {parts} parts"));
    }
    Ok(Head { parts, part, count, first: zigzag(first) as i32 })
}

/// At most `most` numbers of 32 bits from the front of `data`, and what comes behind them.
fn numbers(data: &[u8], most: u64) -> Result<(Vec<i32>, &[u8]), String> {
    let mut rest = data;
    let Head { parts, part, count, first } = head(&mut rest, most)?;
    let mut out = Vec::new();
    let mut value = first;
    if count > 0 {
        out.push(value);
    }
    while (out.len() as u64) < count {
        let least = zigzag(varint(&mut rest).ok_or(ENDS)?) as i32;
        let at = usize::try_from(parts).ok().filter(|n| *n <= rest.len()).ok_or(ENDS)?;
        let (widths, behind) = rest.split_at(at);
        rest = behind;
        for width in widths.iter().map(|w| u64::from(*w)) {
            let left = count - out.len() as u64;
            if left == 0 {
                break;
            }
            if width > 32 {
                return Err(format!("claims lengths of {width} bits"));
            }
            if rest.len() as u64 * 8 < width * left.min(part) {
                return Err(ENDS.to_string());
            }
            // Some writers leave out what the last part has no numbers for.
            let (packed, behind) = rest.split_at(rest.len().min((width * part / 8) as usize));
            rest = behind;
            let mut bits = Bits { bytes: packed, held: 0, count: 0 };
            for _ in 0..left.min(part) {
                value = value.wrapping_add(least).wrapping_add(bits.next(width as u32) as i32);
                out.push(value);
            }
        }
    }
    Ok((out, rest))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Numbers of a few bits each, the lowest bits first.
struct Bits<'a> {
    bytes: &'a [u8],
    held: u64,
    /// Bits in `held`.
    count: u32,
}

impl Bits<'_> {
    /// The next number of at most 32 bits; zeros follow the last byte.
    fn next(&mut self, width: u32) -> u32 {
        while self.count < width {
            let byte = self.bytes.split_first().map_or(0, |(first, rest)| {
                self.bytes = rest;
                *first
            });
            self.held |= u64::from(byte) << self.count;
            self.count += 8;
        }
        let number = self.held & ((1u64 << width) - 1);
        self.held >>= width;
        self.count -= width;
        number as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal numbers as the format stores them: blocks of 128 in 4 parts of width 0.
    fn equal(count: u64, first: i64, step: i64) -> Vec<u8> {
        let number = |mut n: u64, out: &mut Vec<u8>| {
            while n >= 0x80 {
                out.push(n as u8 | 0x80);
                n >>= 7;
            }
            out.push(n as u8);
        };
        let signed = |n: i64| ((n << 1) ^ (n >> 63)) as u64;
        let mut out = Vec::new();
        for n in [128, 4, count, signed(first)] {
            number(n, &mut out);
        }
        for _ in 0..count.saturating_sub(1).div_ceil(128) {
            number(signed(step), &mut out);
            out.extend([0; 4]);
        }
        out
    }

    /// A text that each of many others repeats takes little room in the page, and much behind it.
    #[test]
    fn repeated_texts_are_counted_as_often_as_they_are_written() {
        let text = [b'x'; 1000];
        // Shared with the text before: 0, then as much as a negative number takes: all of it.
        for step in [0, -1] {
            let shared = equal(100, if step == 0 { 1000 } else { 0 }, step);
            let rests = equal(100, 1000, -1000);
            let page = [&shared[..], &rests, &text].concat();
            let (lengths, _) = numbers(&rests, 100).unwrap();
            assert_eq!((lengths.len(), lengths[0], lengths[1]), (100, 1000, 0));
            let expanded = expanded_bytes(&page, 100, 2).unwrap();
            // The rests after the second one go below zero and count as none.
            assert_eq!(expanded, 100_000, "{step}");
        }
    }

    #[test]
    fn ends_and_claims_are_errors() {
        let whole = equal(300, 5, 1);
        assert_eq!(numbers(&whole, 300).unwrap().0, (5..305).collect::<Vec<i32>>());
        assert!(numbers(&whole, 299).unwrap_err().contains("claim 300"));
        for end in 0..whole.len() {
            assert!(numbers(&whole[..end], 300).is_err(), "{end}");
        }
        assert!(expanded_bytes(&whole, 300, 1).is_ok());
        assert!(expanded_bytes(&whole, 299, 1).is_err());
        assert_eq!(expanded_bytes(&[], 0, 2), Ok(0));
    }
}

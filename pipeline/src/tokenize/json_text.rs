//! Byte ranges of values in JSON text, found without building a JSON tree.
//!
//! In: text that is known to be valid JSON. Out: byte ranges, with which parts of a large
//! `tokenizer.json` can be replaced as text.

use std::ops::Range;

#[cfg(test)]
thread_local! {
    /// Bytes of JSON that this thread has passed over.
    pub(crate) static BYTES_READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts bytes of JSON for tests that costs grow with size only.
pub(crate) fn count_bytes(_bytes: usize) {
    #[cfg(test)]
    BYTES_READ.set(BYTES_READ.get() + _bytes);
}

/// Byte ranges of the values of `keys` in a JSON object. None if a key is missing or occurs twice.
pub(crate) fn values_of<const N: usize>(json: &str, keys: [&str; N]) -> Option<[Range<usize>; N]> {
    let bytes = json.as_bytes();
    count_bytes(bytes.len());
    let (mut depth, mut i) = (0usize, 0);
    // The last string at depth 1, and the key whose value has started, with its start.
    let (mut last, mut open) = (0..0, None);
    let mut values: [Option<Range<usize>>; N] = [const { None }; N];
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                let start = i + 1;
                i = string_end(bytes, start)?;
                if depth == 1 {
                    last = start..i;
                }
            }
            b'[' | b'{' => depth += 1,
            b':' if depth == 1 => {
                let key = json.get(last.clone())?;
                open = keys.iter().position(|k| *k == key).map(|k| (k, i + 1));
            }
            b @ (b',' | b'}' | b']') => {
                if depth == 1
                    && let Some((k, from)) = open.take()
                {
                    let value = &json[from..i];
                    let from = from + value.len() - value.trim_start().len();
                    if values[k].replace(from..from + value.trim().len()).is_some() {
                        return None;
                    }
                }
                if b != b',' {
                    depth = depth.checked_sub(1)?;
                } else if depth == 1 {
                    last = 0..0;
                }
            }
            _ => {}
        }
        i += 1;
    }
    let mut out = [const { 0..0 }; N];
    for (o, f) in out.iter_mut().zip(values) {
        *o = f?;
    }
    Some(out)
}

/// The index of the closing quote of a JSON string whose first byte after the opening quote is at
/// `from`.
pub(crate) fn string_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut i = from;
    loop {
        i += memchr::memchr2(b'"', b'\\', bytes.get(i..)?)?;
        if bytes[i] == b'"' {
            return Some(i);
        }
        i += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_key() {
        for (json, want) in [
            (
                r#"{"a": "k", "k": [ {"id": 1, "k": "]"} ] , "z": []}"#,
                Some(r#"[ {"id": 1, "k": "]"} ]"#),
            ),
            (r#"{"k":[]}"#, Some("[]")),
            (r#"{"m": {"k": [1]}, "k": "x\"y,"}"#, Some(r#""x\"y,""#)),
            (r#"{"k": 1, "k": 2}"#, None),
            (r#"{"b": ["k", {"k": 1}]}"#, None),
        ] {
            assert_eq!(values_of(json, ["k"]).map(|[r]| &json[r]), want, "{json}");
        }
    }
}

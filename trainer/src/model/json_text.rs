//! JSON as Python writes it: `NaN`, `Infinity` and `-Infinity` are accepted, and a byte order mark
//! at the start is skipped.
//!
//! Such a number becomes a string of the same letters, so that a key which needs a number refuses
//! it by name instead of taking a default.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use dlm_datasets::fs::open_file;
use serde_json::Value;

/// The words that Python's `json` writes and JSON does not know; longer ones first.
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Most MiB of a JSON file. A parsed file takes up to 16 times its size in memory.
fn most_mib(path: &Path) -> u64 {
    match path.file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        // that of a large vocabulary has about 40 MB
        "tokenizer.json" | "vocab.json" => 256,
        // a line for each tensor
        "model.safetensors.index.json" => 64,
        // lists every added token
        "tokenizer_config.json" | "added_tokens.json" => 64,
        _ => 8,
    }
}

/// The text of a JSON file; one that is too large is an error of the kind
/// [`ErrorKind::FileTooLarge`], before it is in memory.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let (mut text, most) = (String::new(), most_mib(path));
    let bytes = open_file(path)?.take((most << 20) + 1).read_to_string(&mut text)?;
    match bytes as u64 > most << 20 {
        true => Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("more than {most} MiB; expected a JSON file of a model folder"),
        )),
        false => Ok(text),
    }
}

/// Parses a JSON document.
pub(crate) fn parse(text: &str) -> serde_json::Result<Value> {
    let text = text.trim_start_matches('\u{feff}');
    serde_json::from_str(text).or_else(|error| {
        let quoted = quote_numbers(text);
        if quoted == text { Err(error) } else { serde_json::from_str(&quoted) }
    })
}

/// Puts quotation marks around the words that stand outside strings.
fn quote_numbers(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 16);
    let (mut inside, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !inside && rest.starts_with(**word));
        if let Some(word) = word {
            quoted += &format!("\"{word}\"");
            rest = &rest[word.len()..];
            continue;
        }
        if c == '"' && !escaped {
            inside = !inside;
        }
        escaped = inside && c == '\\' && !escaped;
        quoted.push(c);
        rest = &rest[c.len_utf8()..];
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_python_are_read_outside_strings_only() {
        let text =
            "\u{feff}{\"a\": NaN, \"b\": [-Infinity, Infinity], \"c\": \"NaN \\\" Infinity\"}";
        let value = parse(text).unwrap();
        assert_eq!(value["a"], "NaN");
        assert_eq!(value["b"][0], "-Infinity");
        assert_eq!(value["b"][1], "Infinity");
        assert_eq!(value["c"], "NaN \" Infinity");
        assert!(parse("{\"a\": nan}").is_err());
    }
}

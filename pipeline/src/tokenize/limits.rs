//! Limits of what a `tokenizer.json` may ask of the engines: they follow it without bounds of their
//! own.
//!
//! In: the file's normalizer, pre-tokenizer, decoder and post-processor as JSON, its ids. Out:
//! errors that name the part, what was found, and the limit.

use crate::tokenize::charsmap::largest_growth;
use serde_json::Value;

/// Largest size of the file; the largest published ones have 35 MB.
pub(crate) const FILE_BYTES: u64 = 512 << 20;
/// Largest depth of parts in parts (`Sequence` in `Sequence`).
const DEPTH: usize = 16;
/// Largest number of steps in one part.
const STEPS: usize = 256;
/// Most bytes that a part may make of one byte of text, by a bound over its steps.
/// ALBERT's NFKD, lower case, SentencePiece's NFKC and joined spaces have 484.
const GROWTH: usize = 1024;
/// Largest length in bytes of a regular expression or of a string that is added to every word.
const PATTERN_BYTES: usize = 64 << 10;
/// Largest length in bytes of a string that the model adds to words or characters.
const AFFIX_BYTES: usize = 256;
/// Largest length in bytes of an added token.
const TOKEN_BYTES: usize = 1024;
/// Largest length of a word in characters that a WordPiece model is asked for; published ones say
/// 100. The engine sets aside memory for it, and its time grows with the square.
const WORD_CHARACTERS: u64 = 10_000;
/// How far above twice the number of entries an id may be.
const ID_GAP: usize = 65_536;

/// Checks a part of the file, for example its `normalizer`. `name` is its key.
pub(crate) fn check_part(name: &str, part: &Value) -> Result<(), String> {
    let mut steps = 0;
    let growth = growth(name, part, 0, &mut steps)?;
    check_text_of_template(part)?;
    // A post-processor changes no text.
    if name != "post_processor" && growth > GROWTH {
        return Err(format!(
            "its {name} may make {growth} bytes of one byte of text; the limit is {GROWTH}"
        ));
    }
    Ok(())
}

/// A `TemplateProcessing` must have the text once, because the engines apply it to every text.
fn check_text_of_template(part: &Value) -> Result<(), String> {
    for step in part["processors"].as_array().into_iter().flatten() {
        check_text_of_template(step)?;
    }
    if part["type"].as_str() != Some("TemplateProcessing") {
        return Ok(());
    }
    let pieces = part["single"].as_array().into_iter().flatten();
    match pieces.filter(|piece| piece["Sequence"].is_object()).count() {
        1 => Ok(()),
        n => Err(format!(
            "its post_processor (TemplateProcessing) has the text {n} times in \"single\"; expected once"
        )),
    }
}

/// The most bytes that `part` makes of one byte, and the number of its steps.
fn growth(name: &str, part: &Value, depth: usize, steps: &mut usize) -> Result<usize, String> {
    *steps += 1;
    if depth > DEPTH {
        return Err(format!("its {name} has parts in parts more than {DEPTH} deep"));
    }
    if *steps > STEPS {
        return Err(format!("its {name} has more than {STEPS} steps"));
    }
    let bytes_of = |v: &Value| v.as_str().map_or(0, str::len);
    let pattern = &part["pattern"];
    for text in [&pattern["Regex"], &pattern["String"], &part["content"], &part["prepend"]] {
        if bytes_of(text) > PATTERN_BYTES {
            let found = bytes_of(text);
            return Err(format!(
                "its {name} has a string of {found} bytes; the limit is {PATTERN_BYTES}"
            ));
        }
    }
    let own: usize = match part["type"].as_str().unwrap_or("") {
        "Replace" => {
            let (new, old) = (bytes_of(&part["content"]), bytes_of(&pattern["String"]));
            // What an expression matches may be empty.
            if old == 0 { 1 + new } else { new.div_ceil(old).max(1) }
        }
        "Prepend" => 1 + bytes_of(&part["prepend"]),
        "NFC" | "NFD" => 4,
        "NFKC" | "NFKD" => 11,
        "BertNormalizer" => 4,
        "Lowercase" | "ByteLevel" | "Nmt" => 2,
        "Precompiled" if name == "normalizer" => {
            let charsmap = part["precompiled_charsmap"].as_str().unwrap_or("");
            largest_growth(charsmap)
                .map_err(|e| format!("its {name} (Precompiled) is damaged: {e}"))?
                .max(1)
        }
        _ => 1,
    };
    let mut product = own;
    for key in ["normalizers", "pretokenizers", "decoders", "processors"] {
        for step in part[key].as_array().into_iter().flatten() {
            product = product.saturating_mul(growth(name, step, depth + 1, steps)?);
        }
    }
    Ok(product)
}

/// Checks strings that the model adds to each word or character. `name` is the model's key.
pub(crate) fn check_affix(name: &str, text: Option<&str>) -> Result<(), String> {
    match text.map_or(0, str::len) {
        n if n > AFFIX_BYTES => {
            Err(format!("its model has a {name} of {n} bytes; the limit is {AFFIX_BYTES}"))
        }
        _ => Ok(()),
    }
}

/// Checks the longest word that the model takes apart.
pub(crate) fn check_word(characters: Option<u64>) -> Result<(), String> {
    match characters.filter(|characters| *characters > WORD_CHARACTERS) {
        Some(n) => Err(format!(
            "its model has a max_input_chars_per_word of {n}; the limit is {WORD_CHARACTERS}"
        )),
        None => Ok(()),
    }
}

/// Checks the string of an added token.
pub(crate) fn check_content(content: &str) -> Result<(), String> {
    if content.len() <= TOKEN_BYTES {
        return Ok(());
    }
    let start: String = content.chars().take(20).collect();
    Err(format!(
        "its added token {start:?}… has {} bytes; the limit is {TOKEN_BYTES}",
        content.len()
    ))
}

/// Checks the largest id, that of `token`, against the number of entries.
pub(crate) fn check_largest_id(id: u32, token: &str, entries: usize) -> Result<(), String> {
    let token: String = token.chars().take(40).collect();
    if id > i32::MAX as u32 - 1 {
        return Err(format!(
            "its token {token:?} has the id {id}; the largest possible one is {}",
            i32::MAX - 1
        ));
    }
    let limit = entries.saturating_mul(2).saturating_add(ID_GAP);
    if id as usize > limit {
        return Err(format!(
            "its token {token:?} has the id {id}, but it has {entries} tokens; an id above {limit} \
             would make a model of as many rows"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_that_multiply_are_bounded() {
        let replace = |n: usize| json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(n)});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
        let nested = |n: usize| (0..n).fold(replace(2), |inner, _| sequence(vec![inner]));
        let metaspace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let llama = sequence(vec![json!({"type": "Prepend", "prepend": "▁"}), metaspace]);
        for (part, says) in [
            (Value::Null, ""),
            (llama, ""),
            (replace(200), ""),
            (nested(16), ""),
            (sequence(vec![replace(2); 10]), ""),
            (replace(2000), "2000 bytes of one byte"),
            (sequence(vec![replace(10), replace(20), replace(10)]), "2000 bytes of one byte"),
            (sequence(vec![replace(2); 11]), "2048 bytes of one byte"),
            (json!({"type": "Prepend", "prepend": "a".repeat(2000)}), "2001 bytes of one byte"),
            (
                json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "a".repeat(2000)}),
                "2001",
            ),
            (nested(17), "more than 16 deep"),
            (sequence(vec![json!({"type": "Strip"}); 300]), "more than 256 steps"),
            (
                json!({"type": "Replace", "pattern": {"Regex": "a".repeat(70_000)}, "content": ""}),
                "70000 bytes",
            ),
        ] {
            match check_part("normalizer", &part) {
                Ok(()) => assert_eq!(says, "", "{part}"),
                Err(e) => assert!(!says.is_empty() && e.contains(says), "{says}: {e}"),
            }
        }
    }

    #[test]
    fn ids_stay_near_the_number_of_entries() {
        assert!(check_largest_id(151_665, "<m>", 151_666).is_ok());
        assert!(check_largest_id(60_000, "<m>", 10).is_ok());
        for (id, says) in [(1_000_000, "1000000, but it has 2000 tokens"), (u32::MAX, "4294967295")]
        {
            let error = check_largest_id(id, "<m>", 2000).unwrap_err();
            assert!(error.contains(says) && error.contains("<m>"), "{error}");
        }
    }
}

//! The patterns of `modules_to_not_convert`, as transformers 5 reads them: a pattern names a module
//! where it matches the start of the module's name as a regular expression, or where the name ends
//! with the pattern as it is written.
//!
//! Of regular expressions `.`, `\d`, `\w`, `\.`, and `*` and `+` after one of these or a character
//! are understood; a pattern with other signs is refused.

use crate::error::{Error, Result};

/// One element of a pattern: what a character must be, and how often.
#[derive(Clone, Copy)]
struct Element {
    class: Class,
    /// Smallest number of characters.
    least: usize,
    /// Whether more characters than `least` may follow.
    more: bool,
}

#[derive(Clone, Copy)]
enum Class {
    Any,
    Digit,
    Word,
    Exactly(char),
}

impl Class {
    fn holds(self, c: char) -> bool {
        match self {
            Class::Any => true,
            Class::Digit => c.is_ascii_digit(),
            Class::Word => c.is_alphanumeric() || c == '_',
            Class::Exactly(own) => own == c,
        }
    }
}

/// Refuses a pattern that uses signs of regular expressions which are not understood.
pub(super) fn check(pattern: &str) -> Result<()> {
    match elements(pattern) {
        Some(_) => Ok(()),
        None => Err(Error::Model(format!(
            "quantization_config.modules_to_not_convert holds the pattern {pattern:?}, which is not understood; write out the names of the modules"
        ))),
    }
}

/// Whether `pattern` names the module `name`.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let characters: Vec<char> = name.chars().collect();
    name.ends_with(pattern)
        || elements(pattern).is_some_and(|elements| starts_with(&elements, &characters))
}

fn elements(pattern: &str) -> Option<Vec<Element>> {
    let mut elements: Vec<Element> = Vec::new();
    let mut rest = pattern.strip_prefix('^').unwrap_or(pattern).chars();
    while let Some(c) = rest.next() {
        let class = match c {
            '*' | '+' => {
                let last = elements.last_mut().filter(|last| !last.more)?;
                last.more = true;
                last.least = usize::from(c == '+');
                continue;
            }
            '.' => Class::Any,
            '\\' => match rest.next()? {
                'd' => Class::Digit,
                'w' => Class::Word,
                escaped if !escaped.is_alphanumeric() => Class::Exactly(escaped),
                _ => return None,
            },
            '[' | ']' | '(' | ')' | '{' | '}' | '|' | '?' | '^' | '$' => return None,
            other => Class::Exactly(other),
        };
        elements.push(Element { class, least: 1, more: false });
    }
    Some(elements)
}

/// Whether `elements` match a beginning of `text`.
fn starts_with(elements: &[Element], text: &[char]) -> bool {
    let Some((first, others)) = elements.split_first() else { return true };
    let run = text.iter().take_while(|c| first.class.holds(**c)).count();
    let most = if first.more { run } else { run.min(1) };
    (first.least..=most).any(|taken| starts_with(others, &text[taken..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_a_beginning_or_an_end() {
        let name = "model.layers.1.self_attn.q_proj";
        for pattern in [
            "self_attn.q_proj",
            "q_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1",
            "model.layers.*",
            r"model\.layers\.\d+\.self_attn",
            r".*\.q_proj",
            "^model",
        ] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in ["self_attn", "layers.1", "k_proj", "model.layers.2", r"model\.\d"] {
            assert!(!matches(pattern, name), "{pattern}");
        }
        assert!(matches("model.layers.1", "model.layers.12.mlp.up_proj"));
        assert!(check("lm_head").is_ok());
        for pattern in ["layers.(1|2)", "a**", "*", "x{2}", "[ab]"] {
            let error = check(pattern).unwrap_err().to_string();
            assert!(error.contains("not understood"), "{error}");
        }
    }
}

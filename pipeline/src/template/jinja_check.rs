//! Bounds of a template's source, and what an expression is made of.
//!
//! In: the source. Out: nothing, or why the template is refused. The engine reads and frees a
//! template by recursion, so what nests without end must be refused before.

use crate::template::limits::{ELIF_TAGS, SIGNS_IN_A_ROW, SOURCE_BYTES, TAG_TOKENS};

/// Refuses source that is too long.
pub(crate) fn check_source(source: &str) -> Result<(), String> {
    if source.len() > SOURCE_BYTES {
        let (found, most) = (source.len(), SOURCE_BYTES >> 20);
        return Err(format!("its source has {found} bytes; at most {most} MiB are read"));
    }
    Ok(())
}

/// What the tags of a template add up to.
#[derive(Default)]
pub(crate) struct TagCheck {
    elif: usize,
}

impl TagCheck {
    /// Refuses a tag that nests too deeply. `inside` is its text without the signs around it.
    pub(crate) fn tag(&mut self, inside: &str) -> Result<(), String> {
        let refused = |reason: String| {
            let shown: String = inside.trim().chars().take(60).collect();
            Err(format!("{reason}; the tag begins with: {shown}"))
        };
        self.elif += usize::from(inside.trim_start().starts_with("elif"));
        if self.elif > ELIF_TAGS {
            return refused(format!("it has more than {ELIF_TAGS} elif tags"));
        }
        let (mut rest, mut tokens, mut signs) = (inside.trim_start(), 0, 0);
        while let Some(c) = rest.chars().next() {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let end = match c {
                '"' | '\'' => string_end(rest).unwrap_or(rest.len()),
                c if word(c) => rest.find(|c| !word(c)).unwrap_or(rest.len()),
                c => c.len_utf8(),
            };
            signs = if matches!(&rest[..end], "-" | "+" | "not") { signs + 1 } else { 0 };
            tokens += 1;
            if tokens > TAG_TOKENS {
                return refused(format!("a tag has more than {TAG_TOKENS} words and signs"));
            }
            if signs > SIGNS_IN_A_ROW {
                return refused(format!("more than {SIGNS_IN_A_ROW} signs or not in a row"));
            }
            rest = rest[end..].trim_start();
        }
        Ok(())
    }
}

/// Whether an expression consists of texts, numbers and lists of them, which the engine computes
/// when it reads the template.
pub(crate) fn is_constant(text: &str) -> bool {
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let end = match c {
            '"' | '\'' => match string_end(rest) {
                Some(end) => end,
                None => return false,
            },
            '[' | ']' | '{' | '}' | '(' | ')' | ',' | ':' | '-' | '.' => 1,
            c if c.is_whitespace() => c.len_utf8(),
            c if c.is_alphanumeric() => {
                let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.');
                let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
                let known = ["true", "false", "none", "True", "False", "None"];
                if !c.is_ascii_digit() && !known.contains(&&rest[..end]) {
                    return false;
                }
                end
            }
            _ => return false,
        };
        rest = &rest[end..];
    }
    true
}

/// Whether an index is a number for sure: a count of a loop, with a number added or subtracted.
pub(crate) fn is_count(index: &str) -> bool {
    let index = index.trim();
    let name = ["loop.index0", "loop.index"].into_iter().find(|name| index.starts_with(name));
    name.is_some_and(|name| {
        let rest = index[name.len()..].trim_start();
        rest.is_empty()
            || rest
                .strip_prefix(['+', '-'])
                .is_some_and(|n| !n.is_empty() && n.trim().bytes().all(|b| b.is_ascii_digit()))
    })
}

/// The position behind the string at the start of a text.
pub(crate) fn string_end(rest: &str) -> Option<usize> {
    let quote = rest.chars().next()?;
    let mut escaped = false;
    let end = rest[1..].find(|c| {
        let end = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        end
    })?;
    Some(end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants() {
        for text in ["'a'", "[1, 2.5, 'x\\'y']", "{'a': [none, True]}", "-1", "(1, 'in x')"] {
            assert!(is_constant(text), "{text}");
        }
        for text in ["a", "[a]", "'x", "{'a': b}", "f()", "1 + a"] {
            assert!(!is_constant(text), "{text}");
        }
        assert!(is_count("loop.index0 - 1") && is_count("loop.index") && !is_count("loop.x"));
        assert!(!is_count("loop.index0 - a") && !is_count("loop.index0x"));
    }

    #[test]
    fn tags_have_bounds() {
        let refused = |tag: String| TagCheck::default().tag(&tag).is_err();
        assert!(!refused("a + ".repeat(2000) + "a") && refused("a + ".repeat(3000) + "a"));
        assert!(!refused("'".to_string() + &"a + ".repeat(3000) + "'"));
        assert!(!refused("not ".repeat(40) + "a") && refused("not ".repeat(60) + "a"));
        assert!(refused("- ".repeat(60) + "1"));
        let mut check = TagCheck::default();
        assert!((0..ELIF_TAGS).all(|_| check.tag(" elif a").is_ok()));
        assert!(check.tag("elif a").is_err());
    }
}

//! Rewrites template source so that minijinja can run it.
//!
//! In: the source of a chat template. Out: source in which `{% generation %}` blocks, a tag that
//! transformers adds to jinja2, are marked blocks of their own scope, `{% for %}` loops check their
//! operand as Python does, and operators with other rules than Python's are calls of functions that
//! follow Python (`jinja_expression.rs`). Text, strings, comments and `{% raw %}` keep their bytes.

use crate::template::jinja_expression::rewrite_expression;
use crate::template::placeholder::{GENERATION_END, GENERATION_START};

/// Context variable; if true, `{% generation %}` blocks are enclosed in [`GENERATION_START`] and
/// [`GENERATION_END`].
pub(crate) const MARK_GENERATION: &str = "__dlm_mark_generation";

/// The template in minijinja's dialect. White-space control (`{%-`, `-%}`) is kept.
pub(crate) fn rewrite(template: &str) -> String {
    let mut out = String::with_capacity(template.len() + template.len() / 4);
    let mut rest = template;
    while let Some((at, kind)) = next_tag(rest) {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(len) = tag_length(tag, kind) else {
            rest = tag;
            break;
        };
        let (tag, behind) = tag.split_at(len);
        rest = behind;
        let tag = Tag::of(tag);
        match kind {
            '#' => out.push_str(tag.source),
            '{' => out.extend([tag.start, &rewrite_expression(tag.inside), tag.end]),
            _ if tag.body() == "raw" => {
                // Everything up to the tag that ends it is text.
                let end = rest.match_indices("{%").find_map(|(at, _)| {
                    let len = tag_length(&rest[at..], '%')?;
                    (Tag::of(&rest[at..at + len]).body() == "endraw").then_some(at + len)
                });
                let (raw, behind) = rest.split_at(end.unwrap_or(rest.len()));
                out.extend([tag.source, raw]);
                rest = behind;
            }
            _ => out.push_str(&statement(&tag)),
        }
    }
    out.push_str(rest);
    out
}

/// Whether a template marks the assistant's text itself, with `{% generation %}` blocks.
pub(crate) fn has_generation(template: &str) -> bool {
    rewrite(template).contains(MARK_GENERATION)
}

/// A tag and its parts.
struct Tag<'a> {
    source: &'a str,
    /// `{%` with its white-space control.
    start: &'a str,
    inside: &'a str,
    /// `%}` with its white-space control.
    end: &'a str,
}

impl<'a> Tag<'a> {
    /// `source` begins with two characters that start a tag and ends with two that end it.
    fn of(source: &'a str) -> Self {
        let inside = source.get(2..source.len() - 2).unwrap_or("");
        let controls = |c: Option<char>| usize::from(matches!(c, Some('-' | '+')));
        let open = controls(inside.chars().next());
        let close = controls(inside[open..].chars().last());
        let (from, to) = (2 + open, (source.len() - 2 - close).max(2 + open));
        Tag { source, start: &source[..from], inside: &source[from..to], end: &source[to..] }
    }

    fn body(&self) -> &'a str {
        self.inside.trim()
    }
}

/// The position and the kind (`{`, `%`, `#`) of the first tag.
fn next_tag(text: &str) -> Option<(usize, char)> {
    text.match_indices('{').find_map(|(at, _)| {
        let kind = text[at + 1..].chars().next().filter(|c| matches!(c, '{' | '%' | '#'))?;
        Some((at, kind))
    })
}

/// Length in bytes of the tag at the start of `tag`; what ends a tag does not end it inside a
/// string, nor `}}` inside brackets.
fn tag_length(tag: &str, kind: char) -> Option<usize> {
    if kind == '#' {
        return Some(tag.find("#}")? + 2);
    }
    let close: &[u8] = if kind == '{' { b"}}" } else { b"%}" };
    let bytes = tag.as_bytes();
    let (mut i, mut quote, mut depth) = (2, None, 0usize);
    while i < bytes.len() {
        match (bytes[i], quote) {
            (b'\\', Some(_)) => i += 1,
            (c, Some(q)) if c == q => quote = None,
            (_, Some(_)) => {}
            (c @ (b'"' | b'\''), None) => quote = Some(c),
            _ if depth == 0 && bytes[i..].starts_with(close) => return Some(i + 2),
            (b'(' | b'[' | b'{', None) => depth += 1,
            (b')' | b']' | b'}', None) => depth = depth.saturating_sub(1),
            _ => {}
        }
        i += 1;
    }
    None
}

/// A `{% … %}` tag in minijinja's dialect.
fn statement(tag: &Tag) -> String {
    let (start, end) = (tag.start, tag.end);
    match tag.body() {
        // In jinja2 a block has its own scope.
        "generation" => {
            format!("{start} if {MARK_GENERATION} %}}{GENERATION_START}{{% endif %}}{{% with {end}")
        }
        "endgeneration" => format!(
            "{start} endwith %}}{{% if {MARK_GENERATION} %}}{GENERATION_END}{{% endif {end}"
        ),
        body => {
            let (word, operand) = body.split_at(body.find(is_space).unwrap_or(body.len()));
            let rewritten = match word {
                "for" => guard_for(operand),
                "if" | "elif" => Some(rewrite_expression(operand)),
                "set" => position_outside(operand, "=").map(|at| {
                    let (target, value) = operand.split_at(at + 1);
                    format!("{target}{}", rewrite_expression(value))
                }),
                _ => None,
            };
            match rewritten {
                Some(operand) => format!("{start} {word} {} {end}", operand.trim()),
                None => tag.source.to_string(),
            }
        }
    }
}

fn is_space(c: char) -> bool {
    c.is_ascii_whitespace()
}

/// The operand `x in y if z` of a for tag, with `y` piped through `__iter`, which refuses values
/// that Python cannot iterate over.
fn guard_for(operand: &str) -> Option<String> {
    let at = position_outside(operand, "in")?;
    let behind = &operand[at + 2..];
    let end = ["if", "recursive"].iter().filter_map(|w| position_outside(behind, w)).min();
    let (values, tail) = behind.split_at(end.unwrap_or(behind.len()));
    let tail = match tail.strip_prefix("if") {
        Some(condition) => match position_outside(condition, "recursive") {
            Some(at) => {
                format!("if {} {}", rewrite_expression(condition[..at].trim()), &condition[at..])
            }
            None => format!("if {}", rewrite_expression(condition.trim())),
        },
        None => tail.to_string(),
    };
    let values = rewrite_expression(values.trim());
    Some(format!("{} in ({values}) | __iter {tail}", operand[..at].trim()))
}

/// The position of a word or sign that stands alone and outside strings and brackets.
fn position_outside(text: &str, word: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0i32, None);
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let alone = || {
            let name = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
            let end = i + word.len();
            if word == "=" {
                return bytes.get(end) != Some(&b'=');
            }
            !name(i.checked_sub(1).and_then(|i| bytes.get(i))) && !name(bytes.get(end))
        };
        match (bytes[i], quote) {
            (b'\\', Some(_)) => i += 1,
            (c, Some(q)) if c == q => quote = None,
            (_, Some(_)) => {}
            (c @ (b'"' | b'\''), None) => quote = Some(c),
            (b'(' | b'[' | b'{', None) => depth += 1,
            (b')' | b']' | b'}', None) => depth -= 1,
            _ if depth == 0 && bytes[i..].starts_with(word.as_bytes()) && alone() => {
                return Some(i);
            }
            _ => {}
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_comments_and_raw_text_keep_their_bytes() {
        for text in [
            "{{ '{% for x in y %}' }}{# {% for x in y %} #}",
            "{% raw %}{% for x in y %}{{ a % b }}{% generation %}{%- endraw %}{{ '}}' }}",
            "{{ {'a': {'b': 1}} }} {{ \"{%- for x in y -%}\" }}",
            "a { b } {",
        ] {
            assert_eq!(rewrite(text), text);
            assert!(!has_generation(text));
        }
        assert_eq!(
            rewrite("{%- for x in y if x < 1 %}{{ a % b }}"),
            "{%- for x in (y) | __iter if __lt(x, 1) %}{{ __mod(a, b) }}"
        );
        assert_eq!(rewrite("{% set a.b = c % d -%}"), "{% set a.b = __mod(c, d) -%}");
        assert!(has_generation("{{ '{#' }}{%- generation %}"));
    }
}

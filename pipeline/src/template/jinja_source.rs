//! Rewrites template source so that minijinja can run it.
//!
//! In: the source of a chat template. Out: source in which `{% generation %}` blocks, a tag that
//! transformers adds to jinja2, are marked blocks of their own scope, `{% for %}` loops check their
//! operand as Python does, and operators with other rules than Python's are calls of functions that
//! follow Python (`jinja_expression.rs`). Text, strings, comments and `{% raw %}` keep their bytes.

use crate::template::jinja_check::{TagCheck, check_source, is_constant, string_end};
use crate::template::jinja_expression::rewrite_expression;
use crate::template::placeholder::{GENERATION_END, GENERATION_START};
use std::collections::HashSet;

/// Context variable; if true, `{% generation %}` blocks are enclosed in [`GENERATION_START`] and
/// [`GENERATION_END`].
pub(crate) const MARK_GENERATION: &str = "__dlm_mark_generation";

/// The template in minijinja's dialect. White-space control (`{%-`, `-%}`) is kept.
///
/// # Errors
/// What is not understood, or is larger than templates may be.
pub(crate) fn rewrite(template: &str) -> Result<String, String> {
    check_source(template)?;
    let mut check = TagCheck::default();
    let mut out = String::with_capacity(template.len() + template.len() / 4);
    let mut rest = template;
    while let Some((at, kind)) = next_tag(rest) {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(len) = tag_length(tag, kind) else {
            let shown: String = tag.chars().take(40).collect();
            return Err(format!("a tag is not closed: {shown}"));
        };
        let (tag, behind) = tag.split_at(len);
        rest = behind;
        let tag = Tag::of(tag);
        if kind != '#' {
            check.tag(tag.inside)?;
        }
        match kind {
            '#' => out.push_str(tag.source),
            '{' => out.extend([tag.start, &rewrite_expression(tag.inside)?, tag.end]),
            _ if tag.body() == "raw" => {
                // Everything up to the tag that ends it is text.
                let end =
                    rest.match_indices("{%").find_map(|(at, _)| Some(at + endraw(&rest[at..])?));
                let (raw, behind) = rest.split_at(end.unwrap_or(rest.len()));
                out.extend([tag.source, raw]);
                rest = behind;
            }
            _ => out.push_str(&statement(&tag)?),
        }
    }
    out.push_str(rest);
    // minijinja has a list where jinja2 has a tuple.
    if out.contains(".arguments") {
        let heads = template.split("macro ").skip(1).filter_map(|m| m.split('(').next());
        let macros: HashSet<&str> = heads.map(str::trim).collect();
        let word = |c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.'));
        let mut owners = out.split(".arguments").filter_map(|o| o.rsplit(word).next());
        if let Some(name) = owners.find(|name| macros.contains(name)) {
            return Err(format!("the arguments of a macro as a value: {name}.arguments"));
        }
    }
    Ok(out)
}

/// The length of the tag `{% endraw %}` at the start of a text.
fn endraw(tag: &str) -> Option<usize> {
    let control = |text: &'_ str| text.len() - text.trim_start_matches(['-', '+']).len();
    let mut at = 2 + control(&tag[2..]).min(1);
    at += tag[at..].len() - tag[at..].trim_start().len();
    at += tag[at..].starts_with("endraw").then_some("endraw".len())?;
    at += tag[at..].len() - tag[at..].trim_start().len();
    at += control(&tag[at..]).min(1);
    tag[at..].starts_with("%}").then_some(at + 2)
}

/// Whether a template marks the assistant's text itself, with `{% generation %}` blocks.
pub(crate) fn has_generation(template: &str) -> bool {
    rewrite(template).is_ok_and(|t| t.contains(MARK_GENERATION))
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
fn statement(tag: &Tag) -> Result<String, String> {
    let (start, end) = (tag.start, tag.end);
    let body = tag.body();
    // `{% if(x) %}` needs no space
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let (word, operand) = body.split_at(body.find(|c| !in_word(c)).unwrap_or(body.len()));
    let not_understood = || format!("a tag is not understood: {}", tag.source);
    let operand = match word {
        // In jinja2 a block has its own scope.
        "generation" => {
            return Ok(format!(
                "{start} if {MARK_GENERATION} %}}{GENERATION_START}{{% endif %}}{{% with {end}"
            ));
        }
        "endgeneration" => {
            return Ok(format!(
                "{start} endwith %}}{{% if {MARK_GENERATION} %}}{GENERATION_END}{{% endif {end}"
            ));
        }
        "for" => guard_for(operand)?.ok_or_else(not_understood)?,
        "if" | "elif" | "do" | "autoescape" => rewrite_expression(operand)?,
        "set" => match position_outside(operand, "=") {
            Some(at) => {
                let (target, value) = operand.split_at(at + 1);
                format!("{target} {}", kept(value, target.contains('.'))?)
            }
            None => match position_outside(operand, "|") {
                Some(at) => {
                    let rewritten = rewrite_expression(&format!("x{}", &operand[at..]))?;
                    format!("{}{}", &operand[..at], rewritten.strip_prefix('x').unwrap_or(""))
                }
                None => return Ok(tag.source.to_string()),
            },
        },
        "with" => assignments(operand)?,
        "macro" | "call" => return with_parameters(tag, word, operand.trim()),
        "filter" => {
            let rewritten = rewrite_expression(&format!("x|{}", operand.trim()))?;
            rewritten.strip_prefix("x|").ok_or_else(not_understood)?.to_string()
        }
        "include" | "import" | "from" | "extends" => {
            return Err(format!("{word} is not known in chat templates: {}", tag.source));
        }
        _ => return Ok(tag.source.to_string()),
    };
    Ok(format!("{start} {word} {} {end}", operand.trim()))
}

/// The value of a variable, or of an attribute, behind its guard.
fn kept(value: &str, attribute: bool) -> Result<String, String> {
    let filter = if attribute { "__attr" } else { "__set" };
    let several = position_outside(value, ",").is_some();
    let value = rewrite_expression(value.trim())?;
    Ok(match (is_constant(&value), several) {
        (true, _) => value,
        (false, true) => format!("(({value})|__box)|{filter}"),
        (false, false) => format!("({value})|{filter}"),
    })
}

/// The operand `a = x, b = y` of a with tag.
fn assignments(operand: &str) -> Result<String, String> {
    let mut out = Vec::new();
    let mut rest = operand;
    while !rest.trim().is_empty() {
        let at = position_outside(rest, "=")
            .ok_or_else(|| format!("a with tag is not understood: {operand}"))?;
        let (target, behind) = rest.split_at(at + 1);
        let end = position_outside(behind, ",").unwrap_or(behind.len());
        out.push(format!("{} {}", target.trim(), kept(&behind[..end], false)?));
        rest = behind[end..].trim_start_matches(',');
    }
    Ok(out.join(", "))
}

/// A macro or call tag, with guards for the parameters behind it.
fn with_parameters(tag: &Tag, word: &str, operand: &str) -> Result<String, String> {
    let not_understood = || format!("a tag is not understood: {}", tag.source);
    let (list, head) = match word {
        "macro" => {
            let open = operand.find('(').ok_or_else(not_understood)?;
            let list = operand[open + 1..].trim_end().strip_suffix(')');
            (list.ok_or_else(not_understood)?, rewrite_expression(operand)?)
        }
        _ if operand.starts_with('(') => {
            let close = position_outside(&operand[1..], ")").ok_or_else(not_understood)?;
            let (list, call) = operand[1..].split_at(close);
            (list, format!("({list}) {}", rewrite_expression(call[1..].trim())?))
        }
        _ => ("", rewrite_expression(operand)?),
    };
    let (mut guards, mut names) = (String::new(), Vec::<&str>::new());
    let mut rest = list;
    while !rest.trim().is_empty() {
        let end = position_outside(rest, ",").unwrap_or(rest.len());
        let parameter = &rest[..end];
        let name = parameter[..position_outside(parameter, "=").unwrap_or(end)].trim();
        if let Some(other) = names.iter().find(|n| mentions(&parameter[name.len()..], n)) {
            return Err(format!("a default that names the parameter {other}: {}", tag.source));
        }
        names.push(name);
        if !name.is_empty() {
            guards.push_str(&format!("{{% set {name} = {name}|__set %}}"));
        }
        rest = rest[end..].trim_start_matches(',');
    }
    Ok(match guards.is_empty() {
        true => format!("{} {word} {head} {}", tag.start, tag.end),
        // The white-space control of the tag's end belongs to what follows the guards.
        false => {
            let last = guards.len() - 2;
            format!("{} {word} {head} %}}{}{}", tag.start, &guards[..last], tag.end)
        }
    })
}

/// Whether an expression has a name outside its strings.
fn mentions(mut text: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(c) = text.chars().next() {
        let end = match c {
            '"' | '\'' => string_end(text).unwrap_or(text.len()),
            c if word(c) => text.find(|c| !word(c)).unwrap_or(text.len()),
            c => c.len_utf8(),
        };
        if &text[..end] == name {
            return true;
        }
        text = &text[end..];
    }
    false
}

/// The operand `x in y if z` of a for tag, with `y` piped through `__iter`, which refuses values
/// that Python cannot iterate over.
fn guard_for(operand: &str) -> Result<Option<String>, String> {
    let Some(at) = position_outside(operand, "in") else { return Ok(None) };
    let behind = &operand[at + 2..];
    let end = ["if", "recursive"].iter().filter_map(|w| position_outside(behind, w)).min();
    let (values, tail) = behind.split_at(end.unwrap_or(behind.len()));
    let tail = match tail.strip_prefix("if") {
        Some(condition) => match position_outside(condition, "recursive") {
            Some(at) => {
                format!("if {} {}", rewrite_expression(condition[..at].trim())?, &condition[at..])
            }
            None => format!("if {}", rewrite_expression(condition.trim())?),
        },
        None => tail.to_string(),
    };
    let values = rewrite_expression(values.trim())?;
    Ok(Some(format!("{} in ({values}) | __iter {tail}", operand[..at].trim())))
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
            if matches!(word, "=" | "," | ")" | "|") {
                return word != "=" || bytes.get(end) != Some(&b'=');
            }
            !name(i.checked_sub(1).and_then(|i| bytes.get(i))) && !name(bytes.get(end))
        };
        match (bytes[i], quote) {
            (b'\\', Some(_)) => i += 1,
            (c, Some(q)) if c == q => quote = None,
            (_, Some(_)) => {}
            (c @ (b'"' | b'\''), None) => quote = Some(c),
            (b'(' | b'[' | b'{', None) => depth += 1,
            _ if depth == 0 && bytes[i..].starts_with(word.as_bytes()) && alone() => {
                return Some(i);
            }
            (b')' | b']' | b'}', None) => depth -= 1,
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
            assert_eq!(rewrite(text).unwrap(), text);
            assert!(!has_generation(text));
        }
        assert_eq!(
            rewrite("{%- for x in y if x < 1 %}{{ a % b }}").unwrap(),
            "{%- for x in (y) | __iter if __lt(x, 1) %}{{ __mod(a, b) }}"
        );
        for (from, to) in [
            ("{% set a.b = c % d -%}", "{% set a.b = (__mod(c, d))|__attr -%}"),
            ("{% set a = ['x', 1] %}", "{% set a = ['x', 1] %}"),
            ("{% set a, b = c, [d] %}", "{% set a, b = ((c, ([d]|__box))|__box)|__set %}"),
            ("{{ [a, {'k': b}] }}", "{{ ([a, ({'k': b}|__box)]|__box) }}"),
            ("{{ (a, b) == (c) }}", "{{ ((((a, b)|__box))|__eq((c))) }}"),
            ("{{ a.b == 'x' and a[-1:] }}", "{{ a.b == 'x' and ((a|__of)[(-1):]|__own) }}"),
            ("{{ a[b] ~ c ~ 'd' }}", "{{ ((__item(a, b))|__cat(c, 'd')) }}"),
            ("{{ a['b'] ~ a['items'] }}", "{{ ((a['b'])|__cat(__item(a, 'items'))) }}"),
            ("{{ m[loop.index0 - 1] * 2 }}", "{{ ((m[loop.index0 - 1] * 2)|__own) }}"),
            ("{{ a == b != c }}", "{{ ((a)|__chain('==', b, '!=', c)) }}"),
            ("{%- with a = b, c = 1 -%}", "{%- with a = (b)|__set, c = 1 -%}"),
            (
                "{%- macro m(a, b=[c]) -%}",
                "{%- macro m(a, b=([c]|__box)) %}{% set a = a|__set %}{% set b = b|__set -%}",
            ),
            ("{% call(x) f(y) %}", "{% call (x) f(y) %}{% set x = x|__set %}"),
            ("{% filter upper %}", "{% filter upper %}"),
            ("{% if(a[-1:]) %}", "{% if (((a|__of)[(-1):]|__own)) %}"),
        ] {
            assert_eq!(rewrite(from).as_deref(), Ok(to), "{from}");
        }
        for refused in ["{{ a $ b }}", "{% for %}", "{% include 'x' %}", "{{ a", "{% with a %}"] {
            assert!(rewrite(refused).is_err(), "{refused}");
        }
        assert!(has_generation("{{ '{#' }}{%- generation %}"));
    }
}

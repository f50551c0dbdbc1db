//! Python's text functions for templates: `str.strip`, `json.dumps`, `repr`, `indent`.
//!
//! In: minijinja values. Out: the text that Python and jinja2 make of them, byte for byte.
//! docs/templates.md lists the known limits.

use crate::template::limits::VALUE_DEPTH;
use crate::template::placeholder::METHOD_MARK;
use crate::template::python_guards::{fits, is_container, is_group, room, too_long, walk};
use crate::template::python_objects::{ADDRESS, is_no_json, viewed};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Whether Python's `str.strip` treats `c` as white space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The `tojson` filter of transformers: `json.dumps` with `ensure_ascii=False` and keys in
/// insertion order; takes `ensure_ascii`, `indent`, `separators` and `sort_keys` by name or in this
/// order.
pub(crate) fn tojson(
    state: &State,
    value: &Value,
    given: Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let argument = |i: usize, name: &str| -> Result<Option<Value>, Error> {
        match given.get(i) {
            Some(v) => Ok(Some(v.clone())),
            None => kwargs.get::<Option<Value>>(name),
        }
    };
    if given.len() > 4 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let set = |v: Option<Value>| v.filter(|v| !v.is_none() && !v.is_undefined());
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = match set(argument(1, "indent")?) {
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(i64::try_from(v)?.clamp(0, 1000) as usize),
        }),
        None => None,
    };
    let separators = match set(argument(2, "separators")?) {
        Some(v) => Some(v.try_iter()?.take(3).map(|s| python_str(&s)).collect::<Vec<_>>()),
        None => None,
    };
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|v| v.is_true());
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair"));
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_string(), ": ".to_string()),
    };
    let room = room(state);
    let style = JsonStyle { indent, item_separator, key_separator, sort_keys, ensure_ascii, room };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

/// The arguments of `json.dumps`.
struct JsonStyle {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
    /// Bytes that the result may have.
    room: usize,
}

impl JsonStyle {
    fn write(&self, v: &Value, level: usize, out: &mut String) -> Result<(), Error> {
        if out.len() > self.room {
            return Err(too_long());
        }
        if level > VALUE_DEPTH {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("JSON nested deeper than {VALUE_DEPTH} levels"),
            ));
        }
        let new_line = |out: &mut String, level: usize| {
            if let Some(indent) = &self.indent {
                if out.len().saturating_add(indent.len().saturating_mul(level)) > self.room {
                    return Err(too_long());
                }
                out.push('\n');
                out.extend(std::iter::repeat_n(indent.as_str(), level));
            }
            Ok(())
        };
        match v.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if v.is_true() { "true" } else { "false" }),
            ValueKind::Number if v.is_integer() => out.push_str(&v.to_string()),
            ValueKind::Number => out.push_str(&float_repr(f64::try_from(v.clone())?)),
            ValueKind::String => self.write_string(v.as_str().unwrap_or(""), out),
            ValueKind::Seq | ValueKind::Iterable if !is_no_json(v) => {
                out.push('[');
                let mut empty = true;
                for x in v.try_iter()? {
                    if !empty {
                        out.push_str(&self.item_separator);
                    }
                    empty = false;
                    new_line(out, level + 1)?;
                    self.write(&x, level + 1, out)?;
                }
                if !empty {
                    new_line(out, level)?;
                }
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = v.try_iter()?.collect();
                if self.sort_keys {
                    let texts = keys.iter().filter(|k| k.kind() == ValueKind::String).count();
                    if texts > 0 && texts < keys.len() {
                        let reason = "keys of different types have no order";
                        return Err(Error::new(ErrorKind::InvalidOperation, reason));
                    }
                    keys.sort();
                }
                out.push('{');
                for (i, k) in keys.iter().enumerate() {
                    if i > 0 {
                        out.push_str(&self.item_separator);
                    }
                    new_line(out, level + 1)?;
                    self.write_string(&json_key(k)?, out);
                    out.push_str(&self.key_separator);
                    self.write(&v.get_item(k)?, level + 1, out)?;
                }
                if !keys.is_empty() {
                    new_line(out, level)?;
                }
                out.push('}');
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("a value of kind {kind} is not JSON serializable"),
                ));
            }
        }
        Ok(())
    }

    fn write_string(&self, s: &str, out: &mut String) {
        out.push('"');
        for c in s.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
                c if self.ensure_ascii && (c as u32) > 0x7e => {
                    for unit in c.encode_utf16(&mut [0u16; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// The text of a key in JSON.
fn json_key(k: &Value) -> Result<String, Error> {
    Ok(match k.kind() {
        ValueKind::String => k.to_string(),
        ValueKind::None => "null".to_string(),
        ValueKind::Bool => (if k.is_true() { "true" } else { "false" }).to_string(),
        ValueKind::Number if k.is_integer() => k.to_string(),
        ValueKind::Number => float_repr(f64::try_from(k.clone())?),
        kind => {
            let reason = format!("a key of kind {kind} is not JSON serializable");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
    })
}

/// The `indent` filter of jinja2.
pub(crate) fn indent(
    state: &State,
    text: &Value,
    given: Rest<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    if given.len() > 3 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |i: usize, name: &str| -> Result<Option<Value>, Error> {
        let value = match given.get(i) {
            Some(v) => Some(v.clone()),
            None => kwargs.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let pad = match argument(0, "width")? {
        None => "    ".to_string(),
        Some(w) => {
            w.as_str().map_or_else(|| " ".repeat(w.as_usize().unwrap_or(4).min(1000)), String::from)
        }
    };
    let flag = |i, name| Ok::<_, Error>(argument(i, name)?.is_some_and(|v| v.is_true()));
    let (first, blank) = (flag(1, "first")?, flag(2, "blank")?);
    kwargs.assert_all_used()?;
    let text = self::text(state, text)? + "\n";
    let lines = text.matches(is_line_end).count() + 1;
    fits(state, text.len().saturating_add(pad.len().saturating_mul(lines)))?;
    let mut out = if first { pad.clone() } else { String::new() };
    for (i, line) in split_lines(&text, false).into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&pad);
            }
        }
        out.push_str(line);
    }
    Ok(out)
}

fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// Python's `str.splitlines`.
pub(crate) fn split_lines(s: &str, keep_ends: bool) -> Vec<&str> {
    let (mut out, mut rest) = (Vec::new(), s);
    while !rest.is_empty() {
        let at = rest.find(is_line_end).unwrap_or(rest.len());
        let end = match &rest[at..] {
            tail if tail.starts_with("\r\n") => at + 2,
            tail => at + tail.chars().next().map_or(0, char::len_utf8),
        };
        out.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    out
}

/// Whether a value is a floating-point number, which minijinja writes differently.
pub(crate) fn has_float(v: &Value) -> bool {
    v.kind() == ValueKind::Number && !v.is_integer()
}

/// Python's `str(value)`, paid for.
pub(crate) fn text(state: &State, v: &Value) -> Result<String, Error> {
    if is_container(v) {
        fits(state, usize::try_from(walk(state, v)?.bytes).unwrap_or(usize::MAX))?;
    }
    Ok(python_str(v))
}

/// Python's `str(value)`. For a list or map, [`text`] checks first how long it will be.
pub(crate) fn python_str(v: &Value) -> String {
    match v.as_str() {
        Some(s) => s.to_string(),
        None => {
            let mut out = String::new();
            repr(v, 0, &mut out);
            out
        }
    }
}

/// The text of values that are neither data nor have a text of their own in minijinja: objects of
/// the engine, generators, views, ranges.
fn object_text(v: &Value) -> Option<String> {
    let object = v.as_object()?;
    let name = object.type_name();
    let attribute = |name: &str| python_str(&v.get_attr(name).unwrap_or_default());
    if let Some((name, values)) = viewed(v) {
        return Some(format!("{name}({})", python_str(&Value::from(values.to_vec()))));
    }
    if is_no_json(v) {
        return Some(v.to_string());
    }
    if name.ends_with("::Loop") {
        return Some(format!("<LoopContext {}/{}>", attribute("index"), attribute("length")));
    }
    if name.ends_with("::Macro") {
        let name = v.get_attr("name").unwrap_or_default();
        return Some(format!("<Macro {}>", python_repr(&name)));
    }
    if name.contains("Namespace") {
        let keys = v.try_iter().into_iter().flatten();
        let pairs = keys.map(|k| {
            let item = v.get_item(&k).unwrap_or_default();
            (k, item)
        });
        return Some(format!("<Namespace {}>", python_str(&Value::from_pairs(pairs))));
    }
    let plain = v.kind() == ValueKind::Plain && !name.ends_with("::Method");
    plain.then(|| format!("<{name} object at {ADDRESS}{METHOD_MARK}>"))
}

/// Python's `repr(value)`.
pub(crate) fn python_repr(v: &Value) -> String {
    let mut out = String::new();
    repr(v, 0, &mut out);
    out
}

/// Whether Python's `repr` writes `c` itself, not its number.
fn is_printable(c: char) -> bool {
    let hidden = matches!(c as u32,
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e
        | 0x2060..=0x206f | 0xd800..=0xf8ff | 0xfdd0..=0xfdef | 0xfeff | 0xfff0..=0xfffb
        | 0xfffe | 0xffff | 0x1d173..=0x1d17a | 0xe0000.. );
    c == ' ' || !(c.is_control() || is_space(c) || hidden)
}

fn repr(v: &Value, depth: usize, out: &mut String) {
    if let Some(text) = object_text(v) {
        return out.push_str(&text);
    }
    match v.kind() {
        _ if depth > VALUE_DEPTH => out.push_str("..."),
        ValueKind::Number if !v.is_integer() => match f64::try_from(v.clone()) {
            Ok(f) => out.push_str(&float_repr(f).replace("Infinity", "inf").replace("NaN", "nan")),
            Err(_) => out.push_str(&v.to_string()),
        },
        ValueKind::Undefined if depth > 0 => out.push_str("Undefined"),
        ValueKind::String => {
            let s = v.as_str().unwrap_or("");
            let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
            out.push(quote);
            for c in s.chars() {
                match c {
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    c if c == quote => out.extend(['\\', c]),
                    c if !is_printable(c) => out.push_str(&match c as u32 {
                        n @ ..0x100 => format!("\\x{n:02x}"),
                        n @ ..0x10000 => format!("\\u{n:04x}"),
                        n => format!("\\U{n:08x}"),
                    }),
                    c => out.push(c),
                }
            }
            out.push(quote);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = v.is_tuple() || is_group(v);
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for x in v.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                repr(&x, depth + 1, out);
                count += 1;
            }
            out.push_str(match (tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                _ => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, k) in v.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&k, depth + 1, out);
                out.push_str(": ");
                repr(&v.get_item(&k).unwrap_or_default(), depth + 1, out);
            }
            out.push('}');
        }
        _ => out.push_str(&v.to_string()),
    }
}

/// Python's `repr(float)`: the shortest digits that read back as the same number, with an exponent
/// from 1e16 up and below 1e-4.
fn float_repr(f: f64) -> String {
    if f.is_nan() {
        return "NaN".to_string();
    }
    if f.is_infinite() {
        return (if f < 0.0 { "-Infinity" } else { "Infinity" }).to_string();
    }
    let scientific = format!("{f:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if f == 0.0 || (-4..16).contains(&exponent) {
        let s = format!("{f}");
        if s.contains('.') { s } else { s + ".0" }
    } else {
        format!("{digits}e{}{:02}", if exponent < 0 { "-" } else { "+" }, exponent.abs())
    }
}

/// Digits of the world's scripts stand in blocks of ten whose value `to_digit` does not know.
pub(crate) fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 22] = [
        0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66,
        0xe50, 0xed0, 0xf20, 0x1040, 0x17e0, 0x1810, 0xa620, 0xff10, 0x1d7ce,
    ];
    ZEROS.iter().any(|z| (*z..z + 10).contains(&(c as u32)))
}

/// Whether `c` is a digit that stands above or below a line, or in a circle.
pub(crate) fn is_superscript(c: char) -> bool {
    matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}' | '\u{2074}'..='\u{2079}' | '\u{2080}'..='\u{2089}' | '\u{2460}'..='\u{2468}')
}

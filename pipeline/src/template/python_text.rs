//! Python's text functions for templates: `str.strip`, `json.dumps`, `repr`, `indent`.
//!
//! In: minijinja values. Out: the text that Python and jinja2 make of them, byte for byte.
//! docs/templates.md lists the known limits.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Whether Python's `str.strip` treats `c` as white space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The `tojson` filter of transformers: `json.dumps` with `ensure_ascii=False` and keys in
/// insertion order; takes `indent`, `separators`, `sort_keys` and `ensure_ascii`.
pub(crate) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair"));
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_string(), ": ".to_string()),
    };
    let style = JsonStyle {
        indent,
        item_separator,
        key_separator,
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

/// The arguments of `json.dumps`.
struct JsonStyle {
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl JsonStyle {
    fn write(&self, v: &Value, level: usize, out: &mut String) -> Result<(), Error> {
        if level > 100 {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "JSON nested deeper than 100 levels",
            ));
        }
        let new_line = |out: &mut String, level: usize| {
            if let Some(n) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', n * level));
            }
        };
        match v.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if v.is_true() { "true" } else { "false" }),
            ValueKind::Number if v.is_integer() => out.push_str(&v.to_string()),
            ValueKind::Number => out.push_str(&float_repr(f64::try_from(v.clone())?)),
            ValueKind::String => self.write_string(v.as_str().unwrap_or(""), out),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut empty = true;
                for x in v.try_iter()? {
                    if !empty {
                        out.push_str(&self.item_separator);
                    }
                    empty = false;
                    new_line(out, level + 1);
                    self.write(&x, level + 1, out)?;
                }
                if !empty {
                    new_line(out, level);
                }
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = v.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                out.push('{');
                for (i, k) in keys.iter().enumerate() {
                    if i > 0 {
                        out.push_str(&self.item_separator);
                    }
                    new_line(out, level + 1);
                    self.write_string(&k.to_string(), out);
                    out.push_str(&self.key_separator);
                    self.write(&v.get_item(k)?, level + 1, out)?;
                }
                if !keys.is_empty() {
                    new_line(out, level);
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

/// The `indent` filter of jinja2.
pub(crate) fn indent(text: String, width: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let width = match width {
        Some(w) => Some(w),
        None => kwargs.get("width")?,
    };
    let pad = match width {
        None => "    ".to_string(),
        Some(w) => {
            w.as_str().map_or_else(|| " ".repeat(w.as_usize().unwrap_or(4).min(1000)), String::from)
        }
    };
    let first = kwargs.get::<Option<bool>>("first")?.unwrap_or(false);
    let blank = kwargs.get::<Option<bool>>("blank")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut out = if first { pad.clone() } else { String::new() };
    for (i, line) in text.split('\n').enumerate() {
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

/// Whether a value is or contains a floating-point number, which minijinja writes differently.
pub(crate) fn has_float(v: &Value, depth: usize) -> bool {
    match v.kind() {
        ValueKind::Number => !v.is_integer(),
        ValueKind::Seq if depth < 64 => {
            v.try_iter().is_ok_and(|mut i| i.any(|x| has_float(&x, depth + 1)))
        }
        ValueKind::Map if depth < 64 => v
            .try_iter()
            .is_ok_and(|mut i| i.any(|k| v.get_item(&k).is_ok_and(|x| has_float(&x, depth + 1)))),
        _ => false,
    }
}

/// Python's `str(value)`.
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

/// Python's `repr(value)`.
fn repr(v: &Value, depth: usize, out: &mut String) {
    match v.kind() {
        _ if depth > 64 => out.push_str("..."),
        ValueKind::Number if !v.is_integer() => match f64::try_from(v.clone()) {
            Ok(f) => out.push_str(&float_repr(f).replace("Infinity", "inf").replace("NaN", "nan")),
            Err(_) => out.push_str(&v.to_string()),
        },
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
                    c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                        out.push_str(&format!("\\x{:02x}", c as u32))
                    }
                    c => out.push(c),
                }
            }
            out.push(quote);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, x) in v.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&x, depth + 1, out);
            }
            out.push(']');
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

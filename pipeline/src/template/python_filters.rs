//! Filters, tests and functions of jinja2 that minijinja lacks or defines differently.
//!
//! In: minijinja values. Out: what jinja2 gives. What minijinja has and jinja2 does not is removed,
//! so that a template fails here as it fails there.

use crate::template::python_arguments::Arguments;
use crate::template::python_counters::add_counters;
use crate::template::python_guards::{
    fits, is_container, is_namespace, nested, own, pay, type_error, walk,
};
use crate::template::python_methods::pairs;
use crate::template::python_objects::{generator, is_engine_object};
use crate::template::python_operators::{defined, printf};
use crate::template::python_text::{indent, is_space, python_str, split_lines, text, tojson};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};

/// Adds everything to an environment.
pub(crate) fn add_filters(env: &mut Environment) {
    for name in ["split", "lines", "bool", "chain", "zip"] {
        env.remove_filter(name);
    }
    for name in ["startingwith", "endingwith", "safe", "int"] {
        env.remove_test(name);
    }
    env.remove_global("debug");
    env.add_filter("tojson", tojson);
    env.add_filter("indent", indent);
    env.add_filter("trim", trim);
    env.add_filter("string", |state: &State, v: Value| -> Result<Value, Error> {
        if v.as_str().is_some() { Ok(v) } else { text(state, &v).map(Value::from) }
    });
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("items", |state: &State, v: &Value| -> Result<Value, Error> {
        match v.kind() {
            ValueKind::Undefined => generator("do_items", &Value::from(Vec::<Value>::new())),
            ValueKind::Map => {
                generator("do_items", &nested(state, pairs(v)?.into_iter().collect())?)
            }
            _ => Err(type_error("Can only get item pairs from a mapping.".to_string())),
        }
    });
    env.add_filter("dictsort", dictsort);
    env.add_filter("format", |state: &State, v: &Value, values: Rest<Value>, kwargs: Kwargs| {
        let names: Vec<&str> = kwargs.args().collect();
        let named = names.iter().map(|name| Ok((*name, kwargs.get::<Value>(name)?)));
        let named: Vec<(&str, Value)> = named.collect::<Result<_, Error>>()?;
        let values = match (named.is_empty(), values.is_empty()) {
            (true, _) => values.to_vec(),
            (false, true) => vec![Value::from_pairs(named)],
            _ => return Err(type_error("can't handle positional and keyword arguments".into())),
        };
        printf(state, &text(state, defined(v)?)?, values)
    });
    env.add_filter("wordcount", |state: &State, v: &Value| -> Result<usize, Error> {
        let text = text_or_empty(state, v)?;
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        Ok(words.filter(|w| !w.is_empty()).count())
    });
    env.add_filter("wordwrap", wordwrap);
    env.add_filter("center", |state: &State, v: &Value, width: Option<usize>| {
        let (text, width) = (text_or_empty(state, v)?, width.unwrap_or(80));
        fits(state, width)?;
        let missing = width.saturating_sub(text.chars().count());
        let left = missing / 2 + (missing & width & 1);
        Ok::<_, Error>(format!("{}{text}{}", " ".repeat(left), " ".repeat(missing - left)))
    });
    env.add_filter("truncate", truncate);
    env.add_filter("filesizeformat", filesizeformat);
    env.add_filter("striptags", striptags);
    env.add_filter("urlencode", urlencode);
    env.add_filter("list", |state: &State, v: Value| -> Result<Value, Error> {
        match v.as_str() {
            Some(s) => {
                fits(state, s.len().saturating_mul(32))?;
                Ok(s.chars().map(|c| Value::from(c.to_string())).collect())
            }
            None => {
                let v = own(state, iterable(v)?)?;
                pay(state, v.len().unwrap_or(0))?;
                Ok(v.try_iter()?.collect())
            }
        }
    });
    env.add_filter("__iter", iterable);
    env.add_test("iterable", |v: &Value| -> bool { is_iterable(v) });
    env.add_test("sequence", |v: &Value| -> bool {
        matches!(
            v.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined
        ) && !is_namespace(v)
            && !is_engine_object(v)
    });
    env.add_test("mapping", |v: &Value| -> bool {
        v.kind() == ValueKind::Map && !is_namespace(v) && !is_engine_object(v)
    });
    env.add_test("callable", |v: &Value| -> bool {
        v.as_object().is_some_and(|o| o.repr() == minijinja::value::ObjectRepr::Plain)
            || v.is_undefined()
            || is_engine_object(v)
    });
    add_counters(env);
}

fn is_iterable(v: &Value) -> bool {
    !matches!(v.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) && !is_namespace(v)
}

/// Refuses what Python cannot iterate over.
fn iterable(v: Value) -> Result<Value, Error> {
    match is_iterable(&v) {
        // A loop over the text itself does not know which character is the last.
        true if v.as_str().is_some() => v.try_iter().map(|characters| characters.collect()),
        true => Ok(v),
        false => Err(type_error(format!("a value of kind {} is not iterable", v.kind()))),
    }
}

fn text_or_empty(state: &State, v: &Value) -> Result<String, Error> {
    if v.is_undefined() { Ok(String::new()) } else { text(state, v) }
}

fn trim(state: &State, v: &Value, chars: Option<&str>) -> Result<Value, Error> {
    let text = match is_container(v) {
        true => text(state, v)?,
        false => v.to_string(),
    };
    Ok(Value::from(match chars {
        Some(c) => text.trim_matches(|x| c.contains(x)).to_string(),
        None => text.trim_matches(is_space).to_string(),
    }))
}

/// A number as Python's `int(text)` reads it: white space around it, a sign, underscores.
fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) if text.starts_with('-') => ("-", digits),
        Some(digits) => ("", digits),
        None => ("", text),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)]
        .into_iter()
        .find(|(prefix, b)| lower.starts_with(prefix) && (base == *b || base == 0));
    let (digits, base) = match prefixed {
        Some((_, base)) => (&digits[2..], base),
        None => (digits, if base == 0 { 10 } else { base }),
    };
    let plain = digits.replace('_', "");
    let underscores_ok =
        !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    if plain.starts_with(['+', '-']) || !underscores_ok || !(2..=36).contains(&base) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{plain}"), base).ok()
}

/// A number as Python's `float(text)` reads it.
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let plain = text.replace('_', "");
    plain.parse().ok().filter(|_| !text.starts_with('_') && !text.ends_with('_'))
}

fn int(v: &Value, given: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let a = Arguments::new(given, kwargs);
    let (default, base) = (a.get(0, "default")?, a.number(1, "base", 10)?);
    let base = u32::try_from(base).unwrap_or(1);
    a.no_others()?;
    let truncated = |f: f64| (f.is_finite() && f.abs() < 1e38).then_some(f as i128);
    let number = match v.kind() {
        ValueKind::Undefined => defined(v).map(|_| None)?,
        ValueKind::Bool => Some(i128::from(v.is_true())),
        ValueKind::Number if v.is_integer() => return Ok(v.clone()),
        ValueKind::Number => truncated(f64::try_from(v.clone())?),
        ValueKind::String => {
            let text = v.as_str().unwrap_or("");
            parse_int(text, base).or_else(|| parse_float(text).and_then(truncated))
        }
        _ => None,
    };
    Ok(number.map(Value::from).or(default).unwrap_or_else(|| Value::from(0)))
}

fn float(v: &Value, given: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let a = Arguments::new(given, kwargs);
    let default = a.get(0, "default")?;
    a.no_others()?;
    let number = match v.kind() {
        ValueKind::Undefined => defined(v).map(|_| None)?,
        ValueKind::Bool => Some(f64::from(u8::from(v.is_true()))),
        ValueKind::Number => Some(f64::try_from(v.clone())?),
        ValueKind::String => parse_float(v.as_str().unwrap_or("")),
        _ => None,
    };
    Ok(number.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0)))
}

fn dictsort(state: &State, v: &Value, given: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let a = Arguments::new(given, kwargs);
    let case_sensitive = a.flag(0, "case_sensitive", false)?;
    let by = a.text(1, "by")?.unwrap_or_else(|| "key".to_string());
    let reverse = a.flag(2, "reverse", false)?;
    a.no_others()?;
    let part = match by.as_str() {
        "key" => 0,
        "value" => 1,
        _ => return Err(type_error("You can only sort by either \"key\" or \"value\"".into())),
    };
    if v.kind() != ValueKind::Map {
        return Err(type_error("dictsort sorts a dict".into()));
    }
    let found = walk(state, v)?;
    state.consume_fuel(found.items + found.bytes / 8)?;
    let key = |pair: &Value| {
        let k = pair.get_item_by_index(part).unwrap_or_default();
        match k.as_str() {
            Some(s) if !case_sensitive => Value::from(s.to_lowercase()),
            _ => k,
        }
    };
    let mut keyed: Vec<(Value, Value)> = pairs(v)?.into_iter().map(|p| (key(&p), p)).collect();
    let kinds: Vec<ValueKind> = keyed.iter().map(|k| k.0.kind()).collect();
    let number = |k: &ValueKind| matches!(k, ValueKind::Number | ValueKind::Bool);
    if kinds.windows(2).any(|w| w[0] != w[1] && !(number(&w[0]) && number(&w[1]))) {
        return Err(type_error("the values have no order".into()));
    }
    if kinds.len() > 1 && matches!(kinds[0], ValueKind::None | ValueKind::Map) {
        return Err(type_error("the values have no order".into()));
    }
    keyed.sort_by(|a, b| if reverse { b.0.cmp(&a.0) } else { a.0.cmp(&b.0) });
    Ok(keyed.into_iter().map(|k| k.1).collect())
}

/// jinja2's `wordwrap`: lines of at most `width` characters, broken at white space, long words cut.
fn wordwrap(state: &State, v: &Value, given: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let a = Arguments::new(given, kwargs);
    let width = usize::try_from(a.number(0, "width", 79)?).unwrap_or(0);
    let break_long = a.flag(1, "break_long_words", true)?;
    let wrap = a.text(2, "wrapstring")?.unwrap_or_else(|| "\n".to_string());
    if !a.flag(3, "break_on_hyphens", true)? {
        return Err(type_error("break_on_hyphens=false is not supported".into()));
    }
    a.no_others()?;
    let text = text(state, defined(v)?)?;
    fits(state, text.len().saturating_mul(wrap.len() + 1))?;
    pay(state, text.len())?;
    if width == 0 || text.contains('-') {
        return Err(type_error("wordwrap of text with hyphens is not supported".into()));
    }
    let wrapped = |line: &str| {
        let (mut lines, mut current, mut length) = (Vec::new(), String::new(), 0);
        let mut rest = line;
        while !rest.is_empty() {
            let space = rest.starts_with(is_space);
            let end = rest.find(|c| is_space(c) != space).unwrap_or(rest.len());
            let (mut chunk, behind) = rest.split_at(end);
            rest = behind;
            if space && current.is_empty() && !lines.is_empty() {
                continue;
            }
            let mut n = chunk.chars().count();
            if length + n > width && (space || n <= width) {
                lines.push(current.trim_end_matches(is_space).to_string());
                (current, length) = (String::new(), 0);
                if space {
                    continue;
                }
            }
            while break_long && n > width - length.min(width) {
                let room = (width - length).max(usize::from(length == 0));
                let at = chunk.char_indices().nth(room).map_or(chunk.len(), |(i, _)| i);
                current.push_str(&chunk[..at]);
                lines.push(std::mem::take(&mut current));
                chunk = &chunk[at..];
                (n, length) = (n - room, 0);
            }
            current.push_str(chunk);
            length += n;
        }
        let last = current.trim_end_matches(is_space);
        if !last.is_empty() {
            lines.push(last.to_string());
        }
        lines.join(&wrap)
    };
    Ok(split_lines(&text, false).into_iter().map(wrapped).collect::<Vec<_>>().join(&wrap))
}

fn truncate(state: &State, v: &Value, given: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let a = Arguments::new(given, kwargs);
    let number = |i, name, default| Ok::<_, Error>(a.number(i, name, default)?.max(0) as usize);
    let (length, killwords) = (number(0, "length", 255)?, a.flag(1, "killwords", false)?);
    let end = a.text(2, "end")?.unwrap_or_else(|| "...".to_string());
    let leeway = number(3, "leeway", 5)?;
    a.no_others()?;
    let text = text(state, defined(v)?)?;
    let end_length = end.chars().count();
    if length < end_length {
        return Err(type_error(format!("expected length >= {end_length}, got {length}")));
    }
    if text.chars().count() <= length + leeway {
        return Ok(text);
    }
    let cut: String = text.chars().take(length - end_length).collect();
    Ok(match killwords {
        true => cut + &end,
        false => cut.rsplit_once(' ').map_or(cut.as_str(), |(kept, _)| kept).to_string() + &end,
    })
}

fn filesizeformat(v: &Value, binary: Option<bool>) -> Result<String, Error> {
    let no_names = Kwargs::from_iter(Vec::<(String, Value)>::new());
    let number = float(v, Rest(Vec::new()), no_names)?;
    let bytes = f64::try_from(number)?;
    let binary = binary.unwrap_or(false);
    let (base, units) = match binary {
        true => (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]),
        false => (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]),
    };
    if bytes == 1.0 {
        return Ok("1 Byte".to_string());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes as i64));
    }
    let mut unit = base * base;
    for (i, name) in units.iter().enumerate() {
        if bytes < unit || i + 1 == units.len() {
            return Ok(format!("{:.1} {name}", base * bytes / unit));
        }
        unit *= base;
    }
    Ok(String::new())
}

/// Text without `<tags>` and comments, white space in it as one space.
fn striptags(state: &State, v: &Value) -> Result<String, Error> {
    let text = text(state, v)?;
    fits(state, text.len().saturating_mul(8))?;
    let text = without(&without(&text, "<!--", "-->"), "<", ">");
    if text.contains('&') {
        return Err(type_error("striptags of text with entities (&amp;) is not supported".into()));
    }
    Ok(text.split(is_space).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" "))
}

/// A text without what stands between two signs, the signs included.
fn without(text: &str, open: &str, close: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(open) {
        let Some(end) = rest[at..].find(close) else { break };
        out.push_str(&rest[..at]);
        rest = &rest[at + end + close.len()..];
    }
    out + rest
}

/// A text, or the pairs of a map or list, for a URL.
fn urlencode(state: &State, v: &Value) -> Result<String, Error> {
    let bytes = walk(state, v)?.bytes;
    fits(state, usize::try_from(bytes.saturating_mul(3)).unwrap_or(usize::MAX))?;
    let quoted = |text: &str, in_query: bool| {
        let mut out = String::new();
        for b in text.bytes() {
            match b {
                b' ' if in_query => out.push('+'),
                b'/' if !in_query => out.push('/'),
                b if b.is_ascii_alphanumeric() || b"_.-~".contains(&b) => out.push(b as char),
                b => out.push_str(&format!("%{b:02X}")),
            }
        }
        out
    };
    let pairs = match v.kind() {
        ValueKind::Map => pairs(v)?,
        ValueKind::Seq | ValueKind::Iterable => v.try_iter()?.collect(),
        _ => return Ok(quoted(&python_str(defined(v)?), false)),
    };
    let mut out = Vec::new();
    for pair in pairs {
        let part = |i| Ok::<_, Error>(quoted(&python_str(&pair.get_item_by_index(i)?), true));
        out.push(format!("{}={}", part(0)?, part(1)?));
    }
    Ok(out.join("&"))
}

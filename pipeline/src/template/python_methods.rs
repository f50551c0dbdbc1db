//! Methods of Python's `str`, `list`, `tuple` and `dict` on template values.
//!
//! In: a value, the name of a method, its arguments. Out: what Python gives. Methods that change a
//! value are refused, as in the sandbox of transformers.

use crate::template::python_arguments::Arguments;
use crate::template::python_format::str_format;
use crate::template::python_guards::{fits, is_container, pay, type_error, walk};
use crate::template::python_objects::dict_view;
use crate::template::python_text::{is_decimal, is_space, is_superscript, python_str, split_lines};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// The method `name` of `value`.
pub(crate) fn python_method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    for v in args.iter().filter(|v| is_container(v)) {
        // It may be compared, hashed or written as text.
        fits(state, usize::try_from(walk(state, v)?.bytes).unwrap_or(usize::MAX))?;
    }
    let known = match value.kind() {
        ValueKind::String => string_method(state, value.as_str().unwrap_or(""), name, args)?,
        ValueKind::Seq => list_method(state, value, name, args)?,
        ValueKind::Map => dict_method(state, value, name, args)?,
        ValueKind::Number => number_method(value, name)?,
        _ => None,
    };
    match known {
        Some(v) => Ok(v),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The part `from..to` of a text in characters, as Python's `find(x, from, to)` counts them: its
/// first character and the text. None if `from` is behind the end.
fn window(s: &str, from: i64, to: i64) -> Option<(usize, &str)> {
    let count = s.chars().count() as i64;
    let place = |n: i64| if n < 0 { (n + count).max(0) } else { n };
    let (from, to) = (place(from), place(to).min(count));
    if from > to {
        return None;
    }
    let byte = |n: i64| s.char_indices().nth(n as usize).map_or(s.len(), |(i, _)| i);
    Some((from as usize, &s[byte(from)..byte(to)]))
}

/// Python's `split` and `rsplit`; `most` counts the cuts.
fn split(s: &str, separator: Option<&str>, most: i64, from_right: bool) -> Vec<String> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut out: Vec<&str> = Vec::new();
    match (separator, from_right) {
        (Some(x), false) => out.extend(s.splitn(most.saturating_add(1), x)),
        (Some(x), true) => {
            out.extend(s.rsplitn(most.saturating_add(1), x));
            out.reverse();
        }
        (None, false) => {
            let mut rest = s.trim_start_matches(is_space);
            while !rest.is_empty() {
                let end = rest.find(is_space).unwrap_or(rest.len());
                if out.len() == most {
                    out.push(rest);
                    break;
                }
                out.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
        }
        (None, true) => {
            let mut rest = s.trim_end_matches(is_space);
            while !rest.is_empty() {
                let start = rest
                    .char_indices()
                    .rev()
                    .find(|(_, c)| is_space(*c))
                    .map_or(0, |(i, c)| i + c.len_utf8());
                if out.len() == most {
                    out.push(rest);
                    break;
                }
                out.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            out.reverse();
        }
    }
    out.into_iter().map(String::from).collect()
}

/// Python's `str.title` and, with `swap`, `str.swapcase`.
fn recased(s: &str, swap: bool) -> String {
    let (mut out, mut inside) = (String::with_capacity(s.len()), false);
    let lower = s.to_lowercase();
    let same_length = lower.chars().count() == s.chars().count();
    let lowered: Vec<char> = if same_length { lower.chars().collect() } else { Vec::new() };
    for (i, c) in s.chars().enumerate() {
        let cased = c.is_lowercase() || c.is_uppercase();
        let push_lower = |out: &mut String| match lowered.get(i) {
            Some(l) => out.push(*l),
            None => out.extend(c.to_lowercase()),
        };
        if swap {
            if c.is_uppercase() { push_lower(&mut out) } else { out.extend(c.to_uppercase()) }
        } else if inside {
            push_lower(&mut out);
        } else {
            push_title(c, &mut out);
        }
        inside = cased || is_title(c);
    }
    out
}

/// Letters that are written as two, with a form for the start of a word.
fn is_title(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
}

fn push_title(c: char, out: &mut String) {
    match c {
        '\u{1c4}'..='\u{1c6}' => out.push('\u{1c5}'),
        '\u{1c7}'..='\u{1c9}' => out.push('\u{1c8}'),
        '\u{1ca}'..='\u{1cc}' => out.push('\u{1cb}'),
        '\u{1f1}'..='\u{1f3}' => out.push('\u{1f2}'),
        _ => {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
    }
}

/// A text between filling characters; `left` and `right` are the shares of the width.
fn padded(state: &State, s: &str, a: &Arguments, side: char) -> Result<String, Error> {
    let given = a.get(0, "width")?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let width = usize::try_from(i64::try_from(given)?).unwrap_or(0);
    fits(state, width.saturating_mul(4))?;
    let fill = a.text(1, "fillchar")?.unwrap_or_else(|| " ".to_string());
    if fill.chars().count() != 1 {
        return Err(type_error("the fill character must be exactly one character long".into()));
    }
    let missing = width.saturating_sub(s.chars().count());
    let left = match side {
        'l' => 0,
        'r' => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(fill.repeat(left) + s + &fill.repeat(missing - left))
}

fn string_method(
    state: &State,
    s: &str,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    // A list of the parts of a text takes more memory than the text.
    let parts = |n: usize| fits(state, n.saturating_mul(40).saturating_add(s.len()));
    let by_name = ["split", "rsplit", "splitlines", "expandtabs", "format", "replace"];
    if args.last().is_some_and(Value::is_kwargs) && !by_name.contains(&name) {
        return Err(type_error(format!("str.{name}() takes no keyword arguments")));
    }
    let a = |most: usize| Arguments::of(args, most);
    let all = |f: &dyn Fn(char) -> bool| Value::from(!s.is_empty() && s.chars().all(f));
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = a(1)?.text(0, "chars")?;
            let cut = |c: char| chars.as_ref().map_or(is_space(c), |chars| chars.contains(c));
            Value::from(match name {
                "strip" => s.trim_matches(cut),
                "lstrip" => s.trim_start_matches(cut),
                _ => s.trim_end_matches(cut),
            })
        }
        "split" | "rsplit" => {
            let a = a(2)?;
            let separator = a.text(0, "sep")?;
            if separator.as_deref() == Some("") {
                return Err(type_error("empty separator".into()));
            }
            if a.get(1, "maxsplit")?.is_some_and(|v| v.is_none()) {
                return Err(type_error("maxsplit must be a number, not none".into()));
            }
            let most = a.number(1, "maxsplit", -1)?;
            parts(match &separator {
                Some(x) => s.matches(x.as_str()).count(),
                None => s.matches(is_space).count(),
            })?;
            Value::from(split(s, separator.as_deref(), most, name == "rsplit"))
        }
        "splitlines" => {
            let keep = a(1)?.get(0, "keepends")?.is_some_and(|v| v.is_true());
            parts(s.chars().filter(|c| c.is_control() || *c > '\u{7f}').count())?;
            split_lines(s, keep).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let x = a(1)?.required(0, "sep")?;
            if x.is_empty() {
                return Err(type_error("empty separator".into()));
            }
            let parts = if name == "partition" {
                s.split_once(&x).map_or([s, "", ""], |(l, r)| [l, &x, r])
            } else {
                s.rsplit_once(&x).map_or(["", "", s], |(l, r)| [l, &x, r])
            };
            Value::from_object(Tuple::from(parts.map(Value::from)))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let a = a(3)?;
            let (x, from, to) =
                (a.required(0, "sub")?, a.number(1, "start", 0)?, a.number(2, "end", i64::MAX)?);
            let part = window(s, from, to);
            if name == "count" {
                return Ok(Some(Value::from(part.map_or(0, |p| match x.is_empty() {
                    true => p.1.chars().count() + 1,
                    false => p.1.matches(x.as_str()).count(),
                }))));
            }
            let found = part.and_then(|(at, text)| {
                let byte = if name.starts_with('r') { text.rfind(&x) } else { text.find(&x) };
                Some(at + text[..byte?].chars().count())
            });
            match found {
                Some(at) => Value::from(at),
                None if name.ends_with("find") => Value::from(-1),
                None => return Err(type_error("substring not found".into())),
            }
        }
        "startswith" | "endswith" => {
            let a = a(3)?;
            let x = a.get(0, "prefix")?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let part = window(s, a.number(1, "start", 0)?, a.number(2, "end", i64::MAX)?);
            let wanted: Vec<Value> = match x.is_tuple() {
                true => x.try_iter()?.collect(),
                false => vec![x],
            };
            let mut any = false;
            for w in &wanted {
                let w = w.as_str().ok_or_else(|| {
                    type_error(format!("{name} first arg must be str or a tuple of str"))
                })?;
                any |= part.is_some_and(|(_, text)| match name {
                    "startswith" => text.starts_with(w),
                    _ => text.ends_with(w),
                });
            }
            Value::from(any)
        }
        "replace" => {
            let a = a(3)?;
            let (old, new) = (a.required(0, "old")?, a.required(1, "new")?);
            if new.len() > old.len() {
                let found = s.matches(old.as_str()).count();
                fits(state, s.len().saturating_add(found.saturating_mul(new.len())))?;
            }
            match usize::try_from(a.number(2, "count", -1)?) {
                Ok(count) => Value::from(s.replacen(&old, &new, count)),
                Err(_) => Value::from(s.replace(&old, &new)),
            }
        }
        "removeprefix" => {
            let x = a(1)?.required(0, "prefix")?;
            Value::from(s.strip_prefix(&x).unwrap_or(s))
        }
        "removesuffix" => {
            let x = a(1)?.required(0, "suffix")?;
            Value::from(s.strip_suffix(&x).unwrap_or(s))
        }
        "join" => {
            let items = a(1)?.get(0, "iterable")?.unwrap_or_default();
            let mut out = String::new();
            for (i, v) in items.try_iter()?.enumerate() {
                let text = v.as_str().ok_or_else(|| {
                    type_error(format!("sequence item {i}: expected str instance"))
                })?;
                fits(state, out.len().saturating_add(s.len()).saturating_add(text.len()))?;
                out.extend([if i > 0 { s } else { "" }, text]);
            }
            Value::from(out)
        }
        "center" => Value::from(padded(state, s, &a(2)?, 'c')?),
        "ljust" => Value::from(padded(state, s, &a(2)?, 'l')?),
        "rjust" => Value::from(padded(state, s, &a(2)?, 'r')?),
        "zfill" => {
            let width = usize::try_from(a(1)?.number(0, "width", 0)?).unwrap_or(0);
            fits(state, width)?;
            let (sign, digits) = match s.strip_prefix(['+', '-']) {
                Some(digits) => s.split_at(s.len() - digits.len()),
                None => ("", s),
            };
            let missing = width.saturating_sub(s.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        "expandtabs" => {
            let size = usize::try_from(a(1)?.number(0, "tabsize", 8)?).unwrap_or(0);
            fits(state, s.len().saturating_add(s.matches('\t').count().saturating_mul(size)))?;
            let (mut out, mut column) = (String::new(), 0);
            for c in s.chars() {
                match c {
                    '\t' => {
                        let n = if size == 0 { 0 } else { size - column % size };
                        out.extend(std::iter::repeat_n(' ', n));
                        column += n;
                    }
                    c => {
                        out.push(c);
                        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            Value::from(out)
        }
        "format" => Value::from(str_format(state, s, args)?),
        "title" => a(0).map(|_| Value::from(recased(s, false)))?,
        "swapcase" => a(0).map(|_| Value::from(recased(s, true)))?,
        "casefold" => {
            a(0)?;
            Value::from(s.replace(['ß', 'ẞ'], "ss").to_lowercase().replace('ς', "σ"))
        }
        "isspace" => all(&is_space),
        "isdigit" | "isdecimal" => all(&|c| match name {
            "isdecimal" => c.is_numeric() && is_decimal(c),
            _ => c.is_numeric() && (is_decimal(c) || is_superscript(c)),
        }),
        "isnumeric" => all(&|c| c.is_numeric()),
        "isprintable" => {
            Value::from(s.chars().all(|c| !c.is_control() && (c == ' ' || !is_space(c))))
        }
        "isidentifier" => Value::from(
            s.starts_with(|c: char| c.is_alphabetic() || c == '_')
                && s.chars().all(|c| c.is_alphanumeric() || c == '_'),
        ),
        "istitle" => {
            let cased = s.chars().any(|c| c.is_lowercase() || c.is_uppercase());
            Value::from(cased && recased(s, false) == s)
        }
        _ => return Ok(None),
    }))
}

fn list_method(
    state: &State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "index" => {
            let a = Arguments::of(args, 3)?;
            let x = a.get(0, "value")?.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
            let (from, to) = (a.number(1, "start", 0)?, a.number(2, "stop", i64::MAX)?);
            let length = value.len().unwrap_or(0) as i64;
            pay(state, length as usize)?;
            if is_container(&x) {
                walk(state, value)?;
            }
            let place = |n: i64| if n < 0 { (n + length).max(0) } else { n } as usize;
            let found = value
                .try_iter()?
                .enumerate()
                .find(|(i, v)| (place(from)..place(to)).contains(i) && *v == x);
            match found {
                Some((i, _)) => Value::from(i),
                None => {
                    return Err(type_error(format!("{} is not in list", python_str(&x))));
                }
            }
        }
        "copy" if args.is_empty() && !value.is_tuple() => {
            pay(state, value.len().unwrap_or(0))?;
            value.try_iter()?.collect()
        }
        "count" => {
            pay(state, value.len().unwrap_or(0))?;
            if args.iter().any(is_container) {
                walk(state, value)?;
            }
            return Ok(None);
        }
        _ => return Ok(None),
    }))
}

fn dict_method(
    state: &State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    // A key of that name that can be called wins, as an attribute does in jinja2.
    Ok(Some(match name {
        "items" if args.is_empty() => {
            pay(state, value.len().unwrap_or(0))?;
            dict_view("dict_items", pairs(value)?)
        }
        "keys" if args.is_empty() => {
            pay(state, value.len().unwrap_or(0))?;
            dict_view("dict_keys", value.try_iter()?.collect())
        }
        "values" if args.is_empty() => {
            pay(state, value.len().unwrap_or(0))?;
            let values = value.try_iter()?.map(|k| value.get_item(&k));
            dict_view("dict_values", values.collect::<Result<_, _>>()?)
        }
        "copy" if args.is_empty() => {
            pay(state, value.len().unwrap_or(0))?;
            let pairs = value.try_iter()?.map(|k| {
                let v = value.get_item(&k).unwrap_or_default();
                (k, v)
            });
            Value::from_pairs(pairs.collect::<Vec<_>>())
        }
        _ => return Ok(None),
    }))
}

/// The entries of a map as pairs.
pub(crate) fn pairs(map: &Value) -> Result<Vec<Value>, Error> {
    let pair = |k: Value| {
        let v = map.get_item(&k)?;
        Ok(Value::from_object(Tuple::from([k, v])))
    };
    map.try_iter()?.map(pair).collect()
}

fn number_method(value: &Value, name: &str) -> Result<Option<Value>, Error> {
    Ok(match (name, value.is_integer()) {
        ("is_integer", true) => Some(Value::from(true)),
        ("is_integer", false) => Some(Value::from(f64::try_from(value.clone())?.fract() == 0.0)),
        ("bit_length", true) => {
            let n = i128::try_from(value.clone())?.unsigned_abs();
            Some(Value::from(128 - n.leading_zeros()))
        }
        _ => None,
    })
}

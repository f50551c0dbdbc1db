//! Jinja as transformers runs it: the environment chat templates expect, on minijinja.
//!
//! In: template source. Out: an [`Environment`] whose renders equal Python's byte for byte
//! (docs/templates.md lists the exceptions). Reference: `apply_chat_template` in
//! transformers/utils/chat_template_utils.py, an ImmutableSandboxedEnvironment with trim_blocks,
//! lstrip_blocks, loop controls, `raise_exception`, `strftime_now`, `tojson` =
//! json.dumps(ensure_ascii=False).

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

/// Marks around `{% generation %}` blocks, written when the context sets [`MARK_VARIABLE`]. Unicode
/// noncharacters: they never occur in text meant for interchange.
pub const GENERATION_START: char = '\u{FDEC}';
/// The closing mark.
pub const GENERATION_END: char = '\u{FDED}';
/// Name of the context variable that switches the marks on.
pub const MARK_VARIABLE: &str = "__dlm_mark_generation";

/// An environment with one template, `chat`, in it. `now` is what `strftime_now` tells.
pub fn environment(
    source: &str,
    now: jiff::civil::DateTime,
) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(method);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template raises: {message}")))
    });
    env.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        jiff::fmt::strtime::format(&format, now).map_err(|e| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
        })
    });
    env.add_function(
        "__generation",
        |state: &mut State, _positional: Rest<Value>, kwargs: Kwargs| -> Result<Value, Error> {
            let caller: Value = kwargs.get("caller")?;
            let inner = caller.call(state, &[])?;
            match state.lookup(MARK_VARIABLE) {
                Some(v) if v.is_true() => {
                    Ok(Value::from(format!("{GENERATION_START}{inner}{GENERATION_END}")))
                }
                _ => Ok(inner),
            }
        },
    );
    env.add_filter("tojson", tojson);
    env.add_filter("trim", |s: Value, chars: Option<String>| -> Result<Value, Error> {
        let text = s.to_string();
        Ok(Value::from(match chars {
            Some(c) => text.trim_matches(|x| c.contains(x)).to_string(),
            None => text.trim_matches(is_space).to_string(),
        }))
    });
    env.add_filter("indent", indent);
    env.add_filter("string", |v: Value| -> Value {
        if v.as_str().is_some() { v } else { Value::from(text_of(&v)) }
    });
    env.add_filter("__iter", |v: Value| -> Result<Value, Error> {
        match v.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number => Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("a value of kind {} is not iterable", v.kind()),
            )),
            _ => Ok(v),
        }
    });
    env.add_test("iterable", |v: &Value| -> bool {
        !matches!(v.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
    });
    env.set_formatter(|out, state, v| match v.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
            if has_float(v, 0) =>
        {
            out.write_str(&text_of(v)).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, v),
    });
    // jinja2 normalises the line ends of template source (not of values).
    let source = rewrite(&source.replace("\r\n", "\n").replace('\r', "\n"));
    env.add_template_owned("chat", source)?;
    Ok(env)
}

/// Whitespace as Python's `str.strip` knows it.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Methods of Python's built-in types.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(s), true) = (value.as_str(), args.is_empty()) {
        match name {
            "strip" => return Ok(Value::from(s.trim_matches(is_space))),
            "lstrip" => return Ok(Value::from(s.trim_start_matches(is_space))),
            "rstrip" => return Ok(Value::from(s.trim_end_matches(is_space))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// What minijinja lacks, put into its words: `{% generation %}` … `{% endgeneration %}` becomes a
/// call block, and `{% for x in y %}` refuses a `y` that Python cannot iterate over. White space
/// marks are kept.
fn rewrite(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        // A comment may hold anything.
        if let Some(comment) = rest[..at].find("{#") {
            let end = rest[comment..].find("#}").map_or(rest.len(), |n| comment + n + 2);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let Some(len) = tag_end(&rest[at..]) else {
            break;
        };
        let end = at + len;
        let inner = rest.get(at + 2..end - 2).unwrap_or("");
        out.push_str(&rest[..at]);
        let mark = |c: Option<char>| {
            c.filter(|&c| c == '-' || c == '+').map(String::from).unwrap_or_default()
        };
        let (open, close) = (mark(inner.chars().next()), mark(inner.chars().last()));
        let body = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match body {
            "generation" => out.push_str(&format!("{{%{open} call __generation() {close}%}}")),
            "endgeneration" => out.push_str(&format!("{{%{open} endcall {close}%}}")),
            _ => match body.strip_prefix("for ").and_then(guard_for) {
                Some(guarded) => out.push_str(&format!("{{%{open} for {guarded} {close}%}}")),
                None => out.push_str(&rest[at..end]),
            },
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Length of a `{% … %}` tag, strings in it respected.
fn tag_end(tag: &str) -> Option<usize> {
    let mut quote = None;
    let bytes = tag.as_bytes();
    let mut i = 2;
    while i < bytes.len() {
        match (bytes[i], quote) {
            (b'\\', Some(_)) => i += 1,
            (c, Some(q)) if c == q => quote = None,
            (_, Some(_)) => {}
            (c @ (b'"' | b'\''), None) => quote = Some(c),
            (b'%', None) if bytes.get(i + 1) == Some(&b'}') => return Some(i + 2),
            _ => {}
        }
        i += 1;
    }
    None
}

/// `x in y if z` with `y` guarded.
fn guard_for(body: &str) -> Option<String> {
    let word = |w: &str, from: usize| -> Option<usize> {
        let (mut depth, mut quote) = (0i32, None);
        let bytes = body.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            match (bytes[i], quote) {
                (b'\\', Some(_)) => i += 1,
                (c, Some(q)) if c == q => quote = None,
                (_, Some(_)) => {}
                (c @ (b'"' | b'\''), None) => quote = Some(c),
                (b'(' | b'[' | b'{', None) => depth += 1,
                (b')' | b']' | b'}', None) => depth -= 1,
                (b' ' | b'\n' | b'\t', None) if depth == 0 && i >= from => {
                    let tail = body.get(i + 1..)?;
                    if tail
                        .strip_prefix(w)
                        .is_some_and(|t| t.is_empty() || t.starts_with([' ', '\n', '\t', '(', '[']))
                    {
                        return Some(i);
                    }
                }
                _ => {}
            }
            i += 1;
        }
        None
    };
    let at = word("in", 0)?;
    let after = at + 3;
    let end = [word("if", after), word("recursive", after)]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(body.len());
    let (target, iter, tail) = (body.get(..at)?, body.get(after..end)?, body.get(end..)?);
    Some(format!("{target} in ({}) | __iter{tail}", iter.trim()))
}

/// Whether a template marks the assistant's part itself.
pub fn has_generation(template: &str) -> bool {
    rewrite(template).contains("call __generation()")
}

/// json.dumps as transformers binds it: ensure_ascii off, insertion order, `indent`, `separators`,
/// `sort_keys`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([i, k]) => (i.clone(), k.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair"));
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_string(), ": ".to_string()),
    };
    let style = Json {
        indent,
        item,
        key,
        sort: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(Value::from(out))
}

struct Json {
    indent: Option<usize>,
    item: String,
    key: String,
    sort: bool,
    ascii: bool,
}

impl Json {
    fn write(&self, v: &Value, level: usize, out: &mut String) -> Result<(), Error> {
        if level > 100 {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "JSON nested deeper than 100 levels",
            ));
        }
        let line = |out: &mut String, level: usize| {
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
            ValueKind::String => self.string(v.as_str().unwrap_or(""), out),
            ValueKind::Seq | ValueKind::Iterable => {
                out.push('[');
                let mut empty = true;
                for x in v.try_iter()? {
                    if !empty {
                        out.push_str(&self.item);
                    }
                    empty = false;
                    line(out, level + 1);
                    self.write(&x, level + 1, out)?;
                }
                if !empty {
                    line(out, level);
                }
                out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = v.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                out.push('{');
                for (i, k) in keys.iter().enumerate() {
                    if i > 0 {
                        out.push_str(&self.item);
                    }
                    line(out, level + 1);
                    self.string(&k.to_string(), out);
                    out.push_str(&self.key);
                    self.write(&v.get_item(k)?, level + 1, out)?;
                }
                if !keys.is_empty() {
                    line(out, level);
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

    fn string(&self, s: &str, out: &mut String) {
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
                c if self.ascii && (c as u32) > 0x7e => {
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

/// jinja2's `indent` filter.
fn indent(text: String, width: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
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

fn has_float(v: &Value, depth: usize) -> bool {
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
fn text_of(v: &Value) -> String {
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

/// Python's `repr(float)`: shortest digits, exponent from 1e16 up and below 1e-4.
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str, context: serde_json::Value) -> String {
        let env = environment(template, jiff::civil::datetime(2025, 7, 10, 12, 0, 0, 0)).unwrap();
        let t = env.get_template("chat").unwrap();
        t.render(Value::from(minijinja::value::Serde(&context))).unwrap()
    }

    #[test]
    fn json_as_python_writes_it() {
        let v = json!({"b": [1, 2.0, 1e20, 1e-7, true, null], "a": "é<&'\"\u{1f}"});
        assert_eq!(
            render("{{ v | tojson }}", json!({"v": v})),
            r#"{"b": [1, 2.0, 1e+20, 1e-07, true, null], "a": "é<&'\"\u001f"}"#
        );
        assert_eq!(
            render("{{ v | tojson(indent=2, sort_keys=true) }}", json!({"v": {"b": [], "a": [1]}})),
            "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}"
        );
        assert_eq!(
            render(
                "{{ v | tojson(separators=(',', ':'), ensure_ascii=true) }}",
                json!({"v": ["é😀", 1]})
            ),
            "[\"\\u00e9\\ud83d\\ude00\",1]"
        );
    }

    #[test]
    fn generation_marks_only_on_request() {
        let t = "a\n  {%- generation -%}\n b {% endgeneration %}\n c";
        assert_eq!(render(t, json!({})), "ab  c");
        assert_eq!(render(t, json!({MARK_VARIABLE: true})), "a\u{FDEC}b \u{FDED} c");
        assert!(has_generation(t) && !has_generation("{% if generation %}{% endif %}"));
    }

    #[test]
    fn dates_and_strip() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}", json!({})), "10 Jul 2025");
        assert_eq!(
            render("{{ v.strip() }}|{{ v | trim }}", json!({"v": "\u{1c} x \u{a0}"})),
            "x|x"
        );
    }
}

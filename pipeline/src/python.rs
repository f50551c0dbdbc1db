//! Jinja as transformers runs it: the environment chat templates expect, on minijinja.
//!
//! In: template source. Out: an [`Environment`] whose renders equal Python's byte for byte (docs/templates.md lists the
//! exceptions). Reference: `apply_chat_template` in transformers/utils/chat_template_utils.py, an ImmutableSandboxedEnvironment
//! with trim_blocks, lstrip_blocks, loop controls, `raise_exception`, `strftime_now`, `tojson` = json.dumps(ensure_ascii=False).

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

/// Marks around `{% generation %}` blocks, written when the context sets [`MARK_VARIABLE`]. Unicode noncharacters: they never
/// occur in text meant for interchange.
pub const GENERATION_START: char = '\u{FDEC}';
/// The closing mark.
pub const GENERATION_END: char = '\u{FDED}';
/// Name of the context variable that switches the marks on.
pub const MARK_VARIABLE: &str = "__dlm_mark_generation";

/// An environment with one template, `chat`, in it. `now` is what `strftime_now` tells.
pub fn environment(source: &str, now: jiff::civil::DateTime) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(method);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template raises: {message}")))
    });
    env.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        jiff::fmt::strtime::format(&format, now).map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
    });
    env.add_function("__generation", |state: &mut State, _positional: Rest<Value>, kwargs: Kwargs| -> Result<Value, Error> {
        let caller: Value = kwargs.get("caller")?;
        let inner = caller.call(state, &[])?;
        match state.lookup(MARK_VARIABLE) {
            Some(v) if v.is_true() => Ok(Value::from(format!("{GENERATION_START}{inner}{GENERATION_END}"))),
            _ => Ok(inner),
        }
    });
    env.add_filter("tojson", tojson);
    env.add_filter("trim", |s: Value, chars: Option<String>| -> Result<Value, Error> {
        let text = s.to_string();
        Ok(Value::from(match chars {
            Some(c) => text.trim_matches(|x| c.contains(x)).to_string(),
            None => text.trim_matches(is_space).to_string(),
        }))
    });
    // jinja2 normalises the line ends of template source (not of values).
    let source = rewrite_generation(&source.replace("\r\n", "\n").replace('\r', "\n"));
    // … and removes one newline at its end (keep_trailing_newline is off).
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

/// `{% generation %}` … `{% endgeneration %}` as a call block; whitespace marks are kept.
fn rewrite_generation(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let Some(len) = rest[at..].find("%}") else { break };
        let end = at + len + 2;
        let inner = rest.get(at + 2..end - 2).unwrap_or("");
        out.push_str(&rest[..at]);
        let mark = |c: Option<char>| c.filter(|&c| c == '-' || c == '+').map(String::from).unwrap_or_default();
        let (open, close) = (mark(inner.chars().next()), mark(inner.chars().last()));
        match inner.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&format!("{{%{open} call __generation() {close}%}}")),
            "endgeneration" => out.push_str(&format!("{{%{open} endcall {close}%}}")),
            _ => out.push_str(&rest[at..end]),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Whether a template marks the assistant's part itself.
pub fn has_generation(template: &str) -> bool {
    rewrite_generation(template).contains("call __generation()")
}

/// json.dumps as transformers binds it: ensure_ascii off, insertion order, `indent`, `separators`, `sort_keys`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([i, k]) => (i.clone(), k.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair")),
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
            return Err(Error::new(ErrorKind::InvalidOperation, "JSON nested deeper than 100 levels"));
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
            kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("a value of kind {kind} is not JSON serializable"))),
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
        assert_eq!(render("{{ v | tojson }}", json!({"v": v})), r#"{"b": [1, 2.0, 1e+20, 1e-07, true, null], "a": "é<&'\"\u001f"}"#);
        assert_eq!(render("{{ v | tojson(indent=2, sort_keys=true) }}", json!({"v": {"b": [], "a": [1]}})), "{\n  \"a\": [\n    1\n  ],\n  \"b\": []\n}");
        assert_eq!(render("{{ v | tojson(separators=(',', ':'), ensure_ascii=true) }}", json!({"v": ["é😀", 1]})), "[\"\\u00e9\\ud83d\\ude00\",1]");
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
        assert_eq!(render("{{ v.strip() }}|{{ v | trim }}", json!({"v": "\u{1c} x \u{a0}"})), "x|x");
    }
}

//! The Jinja environment that chat templates expect, on minijinja.
//!
//! In: template source. Out: an [`Environment`] whose output equals that of Python byte for byte:
//! jinja2's whitespace and filters, Python's string methods (`strip`, `split`, …), number
//! formatting and `json.dumps`, and the functions that transformers adds. docs/templates.md lists
//! the exceptions. Reference: `apply_chat_template` in transformers/utils/chat_template_utils.py,
//! an ImmutableSandboxedEnvironment with trim_blocks, lstrip_blocks, loop controls,
//! `raise_exception`, `strftime_now` and `tojson` = json.dumps(ensure_ascii=False).

use crate::template::jinja_source::rewrite;
use crate::template::placeholder::{GENERATION_END, GENERATION_START};
use crate::template::python_text::{has_float, indent, is_space, python_str, tojson};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

/// Context variable; if true, `{% generation %}` blocks are enclosed in [`GENERATION_START`] and
/// [`GENERATION_END`].
pub(crate) const MARK_GENERATION: &str = "__dlm_mark_generation";

/// An environment that contains one template, named `chat`. `strftime_now` formats the time `now`.
pub(crate) fn environment(
    source: &str,
    now: jiff::civil::DateTime,
) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(python_method);
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
            match state.lookup(MARK_GENERATION) {
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
        if v.as_str().is_some() { v } else { Value::from(python_str(&v)) }
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
            out.write_str(&python_str(v)).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, v),
    });
    // jinja2 normalizes the line ends of template source, but not those of values.
    let source = rewrite(&source.replace("\r\n", "\n").replace('\r', "\n"));
    env.add_template_owned("chat", source)?;
    Ok(env)
}

/// Methods of Python's built-in types on template values.
fn python_method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::jinja_source::has_generation;
    use serde_json::json;

    fn render(template: &str, context: serde_json::Value) -> String {
        let env = environment(template, jiff::civil::datetime(2025, 7, 10, 12, 0, 0, 0)).unwrap();
        let t = env.get_template("chat").unwrap();
        t.render(Value::from(minijinja::value::Serde(&context))).unwrap()
    }

    #[test]
    fn tojson_equals_json_dumps() {
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
        assert_eq!(render(t, json!({MARK_GENERATION: true})), "a\u{FDEC}b \u{FDED} c");
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

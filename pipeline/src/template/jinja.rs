//! The Jinja environment that chat templates expect, on minijinja.
//!
//! In: template source. Out: an [`Environment`] whose output equals that of Python byte for byte:
//! jinja2's whitespace and filters, Python's string methods (`strip`, `split`, …), number
//! formatting and `json.dumps`, and the functions that transformers adds. docs/templates.md lists
//! the exceptions. Reference: `apply_chat_template` in transformers/utils/chat_template_utils.py,
//! an ImmutableSandboxedEnvironment with trim_blocks, lstrip_blocks, loop controls,
//! `raise_exception`, `strftime_now` and `tojson` = json.dumps(ensure_ascii=False).

use crate::template::budget::{self, on_known_stack};
use crate::template::guarded_filters::add_guards;
use crate::template::jinja_source::rewrite;
use crate::template::limits::{COMPILE_STACK, FUEL, TIME_FORMAT_BYTES};
use crate::template::more_filters::add_more_filters;
use crate::template::python_attributes::add_attributes;
use crate::template::python_filters::add_filters;
use crate::template::python_guards::{is_container, walk};
use crate::template::python_methods::python_method;
use crate::template::python_operators::add_operators;
use crate::template::python_sort::add_order;
use crate::template::python_text::{has_float, python_str, text};
use crate::template::python_views::add_views;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

/// An environment that contains one template, named `chat`. `strftime_now` formats the time `now`.
pub(crate) fn environment(
    source: &str,
    now: jiff::civil::DateTime,
) -> Result<Environment<'static>, Error> {
    // Reading, compiling and freeing a template recurses.
    on_known_stack(COMPILE_STACK, || compile(source, now)).unwrap_or_else(|| {
        Err(Error::new(ErrorKind::InvalidOperation, "no memory for another thread"))
    })
}

fn compile(source: &str, now: jiff::civil::DateTime) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_fuel(Some(FUEL));
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(python_method);
    env.add_function("raise_exception", |state: &State, message: Value| -> Result<Value, Error> {
        budget::note(state);
        let message = text(state, &message)?;
        Err(Error::new(ErrorKind::InvalidOperation, format!("the template raises: {message}")))
    });
    env.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        if format.len() > TIME_FORMAT_BYTES {
            let reason = format!("a time format is longer than {TIME_FORMAT_BYTES} bytes");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        python_time(format, now).map_err(|e| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
        })
    });
    add_filters(&mut env);
    add_operators(&mut env);
    add_attributes(&mut env);
    add_more_filters(&mut env);
    add_guards(&mut env);
    add_views(&mut env);
    add_order(&mut env);
    env.set_formatter(|out, state, v| {
        budget::note(state);
        match v.kind() {
            ValueKind::Number if has_float(v) => out.write_str(&python_str(v)).map_err(Error::from),
            _ if is_container(v) && matches!(state.auto_escape(), AutoEscape::None) => {
                out.write_str(&text(state, v)?).map_err(Error::from)
            }
            _ => {
                if is_container(v) {
                    walk(state, v)?;
                }
                minijinja::escape_formatter(out, state, v)
            }
        }
    });
    // jinja2 normalizes the line ends of template source, but not those of values.
    let source = rewrite(&source.replace("\r\n", "\n").replace('\r', "\n"))
        .map_err(|reason| Error::new(ErrorKind::SyntaxError, reason))?;
    env.add_template_owned("chat", source)?;
    Ok(env)
}

/// Python's `strftime` of a time without a zone: what it does not know stays as it is.
fn python_time(format: &str, time: jiff::civil::DateTime) -> Result<String, jiff::Error> {
    let (mut out, mut rest) = (String::new(), format);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let flags = rest[at + 1..].chars().take_while(|c| matches!(c, '-' | '_' | '0' | '^' | '#'));
        let end = at + 1 + flags.count();
        let kind = rest[end..].chars().next();
        let directive = &rest[at..end + kind.map_or(0, char::len_utf8)];
        match kind {
            Some('Z' | 'z') => {}
            Some('c') => out.push_str(&jiff::fmt::strtime::format("%a %b %e %H:%M:%S %Y", time)?),
            Some('x') => out.push_str(&jiff::fmt::strtime::format("%m/%d/%y", time)?),
            Some('X') => out.push_str(&jiff::fmt::strtime::format("%H:%M:%S", time)?),
            Some('f') => out.push_str(&format!("{:06}", time.subsec_nanosecond() / 1000)),
            Some('s') => {
                let zoned = time.to_zoned(jiff::tz::TimeZone::UTC)?;
                out.push_str(&zoned.timestamp().as_second().to_string());
            }
            Some(k) if "aAbBCdDeFgGhHIjklmMnpPrRStTuUVwWyY%".contains(k) => {
                out.push_str(&jiff::fmt::strtime::format(directive, time)?)
            }
            _ => out.push_str(directive),
        }
        rest = &rest[at + directive.len()..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::jinja_source::{MARK_GENERATION, has_generation};
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

    /// What Python gives, or None where it raises an error.
    #[test]
    fn python_in_templates() {
        let context = json!({"s": "héllo Wörld", "d": {"b": 1, "a": [1.5, null]}, "l": [3, 1, 2]});
        let now = jiff::civil::datetime(2025, 7, 10, 12, 0, 0, 0);
        for (template, want) in [
            ("{{ '%s=%r %05.1f%%' % ('a', 'b', 2.25) }}", Some("a='b' 002.2%")),
            (
                "{{ 'abc'.removeprefix('a') }}{{ s.partition('l') }}",
                Some("bc('hé', 'l', 'lo Wörld')"),
            ),
            ("{{ s.swapcase() }}{{ s.rsplit('l', 1) }}", Some("HÉLLO wÖRLD['héllo Wör', 'd']")),
            ("{{ 'a\\x0bb\\r\\nc'.splitlines() }}{{ '7'.zfill(3) }}", Some("['a', 'b', 'c']007")),
            ("{{ l.index(1) }}{{ d.items()|list }}", Some("1[('b', 1), ('a', [1.5, None])]")),
            ("{{ d|tojson(true, '-') }}", Some("{\n-\"b\": 1,\n-\"a\": [\n--1.5,\n--null\n-]\n}")),
            ("{{ {none: 1, true: 2}|tojson }}", Some("{\"null\": 1, \"true\": 2}")),
            ("{{ s is sequence }}{{ namespace() is mapping }}", Some("TrueFalse")),
            ("{{ '0x1f'|int(0, 16) }}{{ 'x'|int(9) }}{{ s|wordcount }}", Some("3192")),
            (
                "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
                Some("aba"),
            ),
            ("{% set j = joiner() %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", Some("3, 1, 2")),
            ("{{ 'aaa bbb ccc'|wordwrap(7) }}{{ -7 % 3 }}{{ +5 }}", Some("aaa bbb\nccc25")),
            ("{{ strftime_now('%q %-d %') }}", Some("%q 10 %")),
            ("{{ ['\\u200b', '\\xa0'] }}", Some("['\\u200b', '\\xa0']")),
            (
                "{% set ns = namespace(n=0) %}{% generation %}{% set ns.n = 1 %}{% set x = 2 %}{% endgeneration %}{{ ns.n }}{{ x }}",
                Some("1"),
            ),
            (
                "{{ '%s 9999999999' % 1 }}{{ '{} 99999999999'.format(2) }}",
                Some("1 99999999992 99999999999"),
            ),
            ("{{ none < 1 }}", None),
            ("{{ 'a' < 1 }}", None),
            ("{{ 1 in 'abc' }}", None),
            ("{{ 'a' in none }}", None),
            ("{{ s.index('q') }}", None),
            ("{{ l|zip(l)|list }}", None),
            ("{{ '%s %s' % 'a' }}", None),
        ] {
            let got = environment(template, now).and_then(|env| {
                let context = Value::from(minijinja::value::Serde(&context));
                env.get_template("chat")?.render(context)
            });
            assert_eq!(got.ok().as_deref(), want, "{template}");
        }
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

//! Templates of one feature each, against what jinja2 gives in the sandbox of transformers: equal,
//! or refused by both. The larger set is third-party test data (skipped with a message where it is
//! missing).

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::config::policies::default_now;
use crate::parse::conversation::Message;
use crate::parse::json_value::{WithIntegers, parse_json};
use crate::template::chat::{ChatTemplate, ContextSize};
use dlm_test_support::{fixtures, shared};
use minijinja::value::{Serde, Value};
use serde_json::{Value as Json, json};

/// What a template gives; None where it is refused.
fn render(source: &str, context: &Json, now: jiff::civil::DateTime) -> Option<String> {
    let template = ChatTemplate::new(source.to_string(), None, "probe", Default::default(), now);
    template
        .ok()?
        .render_context(Value::from(Serde(WithIntegers(context))), false, ContextSize::default())
        .ok()
}

/// The text of a method that is not called, as jinja2 writes it, with an address.
fn method(name: &str) -> String {
    format!("<built-in method {name} object at 0x7f0000000000>")
}

#[test]
fn methods_that_are_not_called() {
    let items = method("items of dict");
    let upper = method("upper of str");
    let joined = format!("{upper}x");
    let context = json!({"d": {"items": {"type": "x"}, "b": 1}, "l": [1], "s": "ab"});
    for (source, want) in [
        ("{{ d.items }}", Some(items.as_str())),
        ("{{ s|attr('upper') }}", Some(&upper)),
        ("{{ s.upper ~ 'x' }}", Some(&joined)),
        // A list holds data alone, so that what a template builds stays within the limits.
        ("{{ [l.count] }}", None),
        ("{{ d.items|string }}", Some(&items)),
        ("{{ s.format }}", Some("<function str.format at 0x7f0000000000>")),
        ("{{ s.upper|length }}", None),
        ("{{ d.items|list }}", None),
        ("{{ d.items|tojson }}", None),
        ("{{ '%s' % d.items }}", Some(&items)),
        ("{{ d.items == d.items }}{{ d.items is callable }}", Some("TrueTrue")),
        // Methods that change a value do not exist in the sandbox.
        ("{{ l.append }}{{ d.update is defined }}", Some("False")),
        ("{{ l.append(1) }}", None),
        ("{% if d.items %}x{% endif %}", Some("x")),
        ("{{ d.items is defined }}{{ d.items is mapping }}", Some("TrueFalse")),
        ("{{ d.items.type is defined }}", Some("False")),
        ("{{ d['items'].type }}{{ d['items']['type'] }}", Some("xx")),
        ("{% set f = d.keys %}{{ f()|list }}", Some("['items', 'b']")),
        ("{{ d|attr('b') }}", Some("")),
        ("{{ s.upper() }}{{ d.items()|length }}", Some("AB2")),
        ("{% set ns = namespace(items=1) %}{% set ns.items = 2 %}{{ ns.items }}", Some("2")),
        (
            "{% for c in s %}{{ c }}{% if not loop.last %},{% endif %}{{ loop.length }}{% endfor %}",
            Some("a,2b2"),
        ),
    ] {
        assert_eq!(render(source, &context, default_now()).as_deref(), want, "{source}");
    }
}

/// A text with all addresses in memory replaced by the one that is used here: they differ from one
/// run of Python to the next.
fn with_one_address(text: &str) -> String {
    let mut parts = text.split(" object at 0x");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        out += " object at 0x7f0000000000";
        out += part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out
}

/// A conversation in which a template prints an address is dropped, with a message that says why.
#[test]
fn conversations_without_addresses() {
    let source = "{% for m in messages %}{{ m.items }}{{ m.content }}{% endfor %}";
    let template =
        ChatTemplate::new(source.to_string(), None, "probe", Default::default(), default_now());
    let refused = template.unwrap().render(&[Message::new("user", "hi")], false).unwrap_err();
    assert!(refused.to_string().contains("<built-in method items of dict"), "{refused}");
}

#[test]
fn probes_equal_python() {
    let Some(path) = shared("cases/prep/probes.json") else { return };
    let probes = parse_json(&std::fs::read_to_string(path).unwrap()).unwrap();
    let now = jiff::civil::datetime(2025, 7, 10, 12, 0, 0, 0);
    let (mut same, mut wrong) = (0, Vec::new());
    for probe in probes["probes"].as_array().unwrap() {
        let source = probe["template"].as_str().unwrap();
        let got = render(source, &probes["context"], now);
        let want = probe["text"].as_str().filter(|_| probe["ok"] == true).map(with_one_address);
        match got == want {
            true => same += 1,
            false => wrong.push(format!("{source}\n  Python {want:?}\n  ours   {got:?}")),
        }
    }
    println!("{same} equal or refused by both");
    assert!(wrong.is_empty() && same > 100, "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// The probes of `tests/python/template_probes.py`. A text with an address in memory is one that no
/// conversation may have, whatever stands around the address.
#[test]
fn own_probes_equal_python() {
    let probes = std::fs::read_to_string(fixtures().join("template_probes.json")).unwrap();
    let probes = parse_json(&probes).unwrap();
    let now = jiff::civil::datetime(2025, 7, 10, 12, 5, 9, 0);
    let (mut same, mut refused, mut wrong) = (0, 0, Vec::new());
    for probe in probes["probes"].as_array().unwrap() {
        let source = probe["template"].as_str().unwrap();
        let got = render(source, &probes["context"], now);
        let want = probe["text"].as_str().filter(|_| probe["refused"] != true);
        let address = |text: Option<&str>| text.is_some_and(|t| t.contains(" at 0x"));
        refused += u32::from(probe["refused"] == true);
        match got.as_deref() == want || address(got.as_deref()) && address(want) {
            true => same += 1,
            false => wrong.push(format!("{source}\n  Python {want:?}\n  ours   {got:?}")),
        }
    }
    println!("{same} as they should be, {refused} of them refused here");
    assert!(wrong.is_empty() && same > 500, "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

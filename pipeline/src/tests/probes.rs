//! Templates of one feature each, against what jinja2 gives in the sandbox of transformers: equal,
//! or refused by both. The larger set is third-party test data (skipped with a message where it is
//! missing).

use crate::config::policies::default_now;
use crate::parse::json_value::{WithIntegers, parse_with_integers};
use crate::template::chat::ChatTemplate;
use dlm_test_support::shared;
use minijinja::value::{Serde, Value};
use serde_json::{Value as Json, json};

/// What a template gives; None where it is refused.
fn render(source: &str, context: &Json, now: jiff::civil::DateTime) -> Option<String> {
    let template = ChatTemplate::new(source.to_string(), None, "probe", Default::default(), now);
    template.ok()?.render_context(Value::from(Serde(WithIntegers(context))), false).ok()
}

/// jinja2 prints the address of a method that is not called. That is refused.
#[test]
fn methods_that_are_not_called() {
    let context = json!({"d": {"items": {"type": "x"}, "b": 1}, "l": [1], "s": "ab"});
    for (source, want) in [
        ("{{ d.items }}", None),
        ("{{ s|attr('upper') }}", None),
        ("{{ s.upper ~ 'x' }}", None),
        ("{{ [l.count] }}", None),
        ("{{ d.items|string }}", None),
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

/// Templates whose output in Python contains an address, which no other program can equal.
const ADDRESSES: [&str; 2] = ["{{ d.items }}", "{{ 'a'|attr('upper') }}"];

#[test]
fn probes_equal_python() {
    let Some(path) = shared("cases/prep/probes.json") else { return };
    let probes = parse_with_integers(&std::fs::read_to_string(path).unwrap()).unwrap();
    let now = jiff::civil::datetime(2025, 7, 10, 12, 0, 0, 0);
    let (mut same, mut wrong) = (0, Vec::new());
    for probe in probes["probes"].as_array().unwrap() {
        let source = probe["template"].as_str().unwrap();
        let got = render(source, &probes["context"], now);
        let python = probe["text"].as_str().filter(|_| probe["ok"] == true);
        let want = python.filter(|_| !ADDRESSES.contains(&source));
        match got.as_deref() == want {
            true => same += 1,
            false => wrong.push(format!("{source}\n  Python {want:?}\n  ours   {got:?}")),
        }
    }
    println!("{same} equal or refused by both");
    assert!(wrong.is_empty() && same > 100, "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

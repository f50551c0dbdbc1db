//! Conversations of every kind under many templates, against an independent computation in Python
//! (`tests/python/check_template_parity.py`): the same text and the same characters with loss, or
//! one of the differences that docs/templates.md and docs/data.md describe.
//!
//! The results for the script's own templates are in `tests/fixtures/template_parity.json` too, so
//! that they are tested where Python is missing. Published templates are third-party test data,
//! skipped with a message where it is missing.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::config::policies::{LostText, SpecialText, default_now};
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::spans::SpanFinder;
use crate::tests::calls::{control, conversation};
use dlm_test_support::{capture, fixtures, python, repository, shared};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::Command;

/// What the Python script prints last.
fn script(python: &Path, arguments: &[&Path]) -> Value {
    let mut command = Command::new(python);
    command.arg(repository().join("tests/python/check_template_parity.py")).args(arguments);
    let run = capture(&mut command).unwrap();
    println!("{}", run.stdout);
    let run = run.ok().unwrap();
    run.stdout.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
}

/// The text of a row and the spans that carry loss, in characters.
fn rendered(template: &ChatTemplate, control: &ControlTokens, row: &Value) -> Value {
    let drop = |reason: &str| json!({"dropped": reason});
    let c = match conversation(row.clone()) {
        Ok(c) => c,
        Err(why) => return drop(why.name()),
    };
    let mut finder = SpanFinder::new(template, control, SpecialText::Text, LostText::Drop);
    let r = match finder.render(&c) {
        Ok(r) => r,
        Err(why) => return drop(why.name()),
    };
    let at = |byte: usize| r.text[..byte].chars().count();
    let spans = r.spans.iter().filter(|s| s.loss).map(|s| [at(s.start), at(s.end)]);
    json!({"text": r.text, "spans": spans.collect::<Vec<_>>()})
}

/// The results of all conversations under all templates of `cases`.
fn results(cases: &Value) -> Map<String, Value> {
    let mut out = Map::new();
    for (name, source) in cases["templates"].as_object().unwrap() {
        let source = source.as_str().unwrap();
        let specials = cases["specials"].as_object().unwrap().iter();
        let specials = specials.map(|(k, v)| (k.clone(), v.as_str().unwrap().to_string()));
        let template =
            ChatTemplate::new(source.to_string(), None, "t", specials.collect(), default_now());
        let template = template.unwrap();
        let control = control(source);
        let mut results = Map::new();
        for (kind, row) in cases["conversations"].as_object().unwrap() {
            results.insert(kind.clone(), rendered(&template, &control, row));
        }
        let tokens: Vec<&str> = control.tokens().iter().map(|(t, _)| t.as_str()).collect();
        out.insert(name.clone(), json!({"results": results, "control": tokens}));
    }
    out
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A result in the form of the goldens: the text with ⟦ and ⟧ around what carries loss.
fn golden(result: &Value) -> String {
    let Some(text) = result["text"].as_str() else {
        return format!("dropped: {}", result["dropped"].as_str().unwrap());
    };
    let (mut out, mut at) = (String::new(), 0);
    let text: Vec<char> = text.chars().collect();
    let piece = |from: usize, to: usize| text[from..to].iter().collect::<String>();
    for span in result["spans"].as_array().unwrap() {
        let (from, to) = (span[0].as_u64().unwrap() as usize, span[1].as_u64().unwrap() as usize);
        out += &format!("{}⟦{}⟧", piece(at, from), piece(from, to));
        at = to;
    }
    out + &piece(at, text.len())
}

#[test]
fn texts_and_turns_equal_the_goldens() {
    let goldens = read(&fixtures().join("template_parity.json"));
    let results = results(&goldens);
    let (mut equal, mut kept) = (0, 0);
    for (name, kinds) in goldens["results"].as_object().unwrap() {
        for (kind, want) in kinds.as_object().unwrap() {
            let got = golden(&results[name]["results"][kind]);
            assert_eq!(got, want.as_str().unwrap(), "{name} | {kind}");
            equal += 1;
            kept += u32::from(got.contains('⟦'));
        }
    }
    assert!(equal > 350 && kept > 250, "{equal} {kept}");
}

#[test]
fn texts_and_turns_equal_pythons() {
    let Some(python) = python::with(&["jinja2"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = vec![Path::new("cases"), dir.path()];
    let published = shared("assets/template_goldens.json");
    arguments.extend(published.as_deref());
    script(&python, &arguments);
    let ours = results(&read(&dir.path().join("cases.json")));
    std::fs::write(dir.path().join("ours.json"), Value::Object(ours).to_string()).unwrap();
    let found = script(&python, &[Path::new("check"), dir.path()]);
    assert_eq!(found["wrong"], 0, "{found}");
    assert!(found["same"].as_u64() > Some(if published.is_some() { 1500 } else { 200 }), "{found}");
    let (written, kept) =
        (dir.path().join("goldens.json"), fixtures().join("template_parity.json"));
    if std::env::var_os("DLM_WRITE_PARITY").is_some() {
        std::fs::copy(&written, &kept).unwrap();
    }
    assert!(read(&written) == read(&kept), "goldens have changed: DLM_WRITE_PARITY=1 writes them");
}

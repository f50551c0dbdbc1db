//! 1,399 renders by Python of 80 published templates (third-party test data, skipped with a message
//! where it is missing): every text that Python renders is byte-equal here, and what Python refuses
//! is refused. The exceptions are listed with reasons in docs/templates.md; this test reads them
//! from there.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::template::chat::{ChatTemplate, ContextSize};
use dlm_test_support::{repository, shared};
use minijinja::value::{Serde, Value};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// `template | conversation` pairs in the code block of docs/templates.md.
fn exceptions() -> BTreeSet<(String, String)> {
    let path = repository().join("docs/templates.md");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let block = text
        .split("```exceptions\n")
        .nth(1)
        .and_then(|t| t.split("```").next())
        .unwrap_or("")
        .to_string();
    block
        .lines()
        .filter_map(|l| l.split_once(" | "))
        .map(|(a, b)| (a.trim().to_string(), b.trim().to_string()))
        .collect()
}

#[test]
fn renders_equal_python() {
    let Some(path) = shared("assets/template_goldens.json") else { return };
    let text = std::fs::read_to_string(&path).unwrap();
    let goldens: Json = serde_json::from_str(&text).unwrap();
    let now = jiff::civil::datetime(2025, 7, 10, 12, 0, 0, 0);
    let templates: HashMap<&str, Result<ChatTemplate, String>> = goldens["templates"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, source)| {
            let t = ChatTemplate::new(
                source.as_str().unwrap().to_string(),
                None,
                name,
                BTreeMap::new(),
                now,
            );
            (name.as_str(), t.map_err(|e| e.to_string()))
        })
        .collect();
    let known = exceptions();
    let (mut equal, mut refused, mut wrong) = (0, 0, Vec::new());
    for r in goldens["renders"].as_array().unwrap() {
        let (template, conversation) =
            (r["template"].as_str().unwrap(), r["conversation"].as_str().unwrap());
        let got = match &templates[template] {
            Ok(t) => t
                .render_context(Value::from(Serde(&r["context"])), false, ContextSize::default())
                .map_err(|e| e.to_string()),
            Err(e) => Err(e.clone()),
        };
        let complaint = match (r["ok"].as_bool().unwrap(), got) {
            (true, Ok(text)) if text == r["rendered"].as_str().unwrap() => {
                equal += 1;
                None
            }
            (false, Err(_)) => {
                refused += 1;
                None
            }
            (true, Ok(text)) => {
                let want = r["rendered"].as_str().unwrap();
                let at = text.bytes().zip(want.bytes()).take_while(|(a, b)| a == b).count();
                let show = |s: &str| {
                    s.chars()
                        .skip(s.get(..at).map_or(0, |h| h.chars().count()).saturating_sub(20))
                        .take(60)
                        .collect::<String>()
                };
                Some(format!("differs at byte {at}: {:?} instead of {:?}", show(&text), show(want)))
            }
            (true, Err(e)) => Some(format!("refused: {e}")),
            (false, Ok(_)) => Some(format!(
                "rendered what Python refuses: {}",
                r["error"].as_str().unwrap_or(r["rendered"].as_str().unwrap_or(""))
            )),
        };
        if let Some(c) = complaint {
            wrong.push((template.to_string(), conversation.to_string(), c));
        }
    }
    println!(
        "{equal} equal, {refused} refused by both, {} other ({} of them listed as exceptions)",
        wrong.len(),
        known.len()
    );
    let unlisted: Vec<_> =
        wrong.iter().filter(|w| !known.contains(&(w.0.clone(), w.1.clone()))).collect();
    for (t, c, why) in &unlisted {
        println!("{t} | {c}\n    {why}");
    }
    let gone: Vec<_> =
        known.iter().filter(|k| !wrong.iter().any(|w| (&w.0, &w.1) == (&k.0, &k.1))).collect();
    assert!(
        unlisted.is_empty(),
        "{} renders differ from Python's and are not listed in docs/templates.md",
        unlisted.len()
    );
    assert!(gone.is_empty(), "listed as exceptions but fine: {gone:?}");
    assert!(equal > 1000, "{equal}");
}

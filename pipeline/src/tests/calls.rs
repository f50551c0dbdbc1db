//! Tool calls and thoughts under many templates: each is in the loss of its turn, or the row is
//! dropped by name.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::config::policies::{LostText, SpecialText, default_now};
use crate::input::raw_rows::RawRows;
use crate::parse::conversation::Conversation;
use crate::parse::drop_reason::DropReason;
use crate::parse::shapes::parse_row;
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::spans::SpanFinder;
use crate::tokenize::tokenizer::AddedToken;
use dlm_test_support::shared;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn template(source: &str) -> ChatTemplate {
    let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let specials = specials.map(|(k, v)| (k.to_string(), v.to_string()));
    ChatTemplate::new(source.to_string(), None, "test", specials.into(), default_now()).unwrap()
}

/// Everything in a template's source that looks like a control token.
pub(super) fn control(source: &str) -> ControlTokens {
    let mut found = vec!["</s>".to_string(), "<s>".to_string()];
    for (open, close) in [("<|", "|>"), ("<|", ">"), ("<", "|>"), ("<｜", "｜>"), ("[", "]")] {
        for part in source.split(open).skip(1) {
            let Some((name, _)) = part.split_once(close) else { continue };
            let plain = |c: char| c.is_ascii_alphanumeric() || "_▁/ ".contains(c);
            let loud =
                open != "[" || name.chars().all(|c| c.is_ascii_uppercase() || "_/".contains(c));
            if !name.is_empty() && name.chars().all(plain) && loud {
                found.push(format!("{open}{name}{close}"));
            }
        }
    }
    for t in ["<end_of_turn>", "<start_of_turn>"] {
        found.push(t.to_string());
    }
    found.sort();
    found.dedup();
    let added: Vec<AddedToken> = found
        .into_iter()
        .zip(1..)
        .map(|(content, id)| AddedToken { content, id, special: true })
        .collect();
    ControlTokens::new(&added, Some("</s>")).unwrap()
}

pub(super) fn conversation(row: Value) -> Result<Conversation<'static>, DropReason> {
    let Value::Object(row) = row else { panic!("not a row") };
    parse_row(row).conversation
}

/// The text with the turns that carry loss between ⟦ and ⟧.
pub(super) fn marked(source: &str, row: Value) -> Result<String, DropReason> {
    let (template, control) = (template(source), control(source));
    let mut spans = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop);
    let r = spans.render(&conversation(row)?)?;
    let (mut out, mut at) = (String::new(), 0);
    for s in r.spans.iter().filter(|s| s.loss) {
        out += &format!("{}⟦{}⟧", &r.text[at..s.start], &r.text[s.start..s.end]);
        at = s.end;
    }
    Ok(out + &r.text[at..])
}

pub(super) const CALLS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for t in m.tool_calls or [] %}{% set f = t.function %}\n<tool_call>\n{\"name\": \"{{ f.name }}\", \"arguments\": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const NO_CALLS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

pub(super) fn with_call(text: &str, call: Value) -> Value {
    let mut answer = json!({"role": "assistant", "content": text});
    for (k, v) in call.as_object().unwrap() {
        answer[k] = v.clone();
    }
    json!({"messages": [{"role": "user", "content": "q"}, answer,
        {"role": "tool", "content": "r", "tool_call_id": "call12345", "name": "lamp"},
        {"role": "assistant", "content": "done"}]})
}

/// Arguments as text or as an object, and every form of a call, give the same render.
#[test]
fn every_form_of_a_call() {
    let want = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦<tool_call>\n{\"name\": \"zq_lamp\", \"arguments\": {\"room\": \"zq_hall\"}}\n</tool_call><|im_end|>⟧\n<|im_start|>tool\nr<|im_end|>\n<|im_start|>assistant\n⟦done<|im_end|>⟧\n";
    let object = json!({"name": "zq_lamp", "arguments": {"room": "zq_hall"}});
    let text = json!({"name": "zq_lamp", "arguments": "{\"room\": \"zq_hall\"}"});
    for f in [object, text] {
        let call = json!({"type": "function", "function": f});
        for calls in [
            json!({"tool_calls": [call]}),
            json!({"tool_calls": call}),
            json!({"tool_calls": json!([call]).to_string()}),
            json!({"tool_calls": [call.to_string()]}),
            json!({"tool_calls": [f]}),
            json!({"function_call": f}),
            json!({"function_call": f.to_string()}),
        ] {
            assert_eq!(marked(CALLS, with_call("", calls.clone())).as_deref(), Ok(want), "{calls}");
            let lost = marked(NO_CALLS, with_call("Wait.", calls.clone()));
            assert_eq!(lost, Err(DropReason::ToolCallsLost), "{calls}");
        }
    }
    let bad = json!({"tool_calls": "[not json"});
    assert_eq!(marked(CALLS, with_call("", bad)), Err(DropReason::BadToolCalls));
    // A template that writes the arguments as they are wants text, and text is kept to the byte.
    let as_text = CALLS.replace("f.arguments | tojson", "'' + f.arguments");
    let spaced = "{\"room\":   \"zq_hall\"}";
    let f = json!({"name": "zq_lamp", "arguments": spaced});
    let kept = marked(&as_text, with_call("", json!({"tool_calls": [{"function": f}]})));
    assert!(kept.unwrap().contains(spaced));
}

/// A turn ends at its last control token, not at the first.
#[test]
fn control_tokens_inside_a_call() {
    let source = CALLS.replace("<tool_call>", "<|call|>").replace("</tool_call>", "<|end_call|>");
    let call = json!({"tool_calls": [{"function": {"name": "zq_lamp", "arguments": {"room": "zq_hall"}}}]});
    for text in ["", "Wait."] {
        let got = marked(&source, with_call(text, call.clone())).unwrap();
        assert!(got.contains(&format!("⟦{text}<|call|>")), "{got}");
        assert!(got.contains("<|end_call|><|im_end|>⟧\n"), "{got}");
    }
}

/// Thoughts go to the field that the template reads, and into the content if it reads none.
#[test]
fn thoughts_are_never_lost() {
    let row = |field: &str| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", field: "zq_thought"}]});
    let inline = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦<think>\nzq_thought\n</think>\n\na<|im_end|>⟧\n";
    let own = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦[[zq_thought]]a<|im_end|>⟧\n";
    for field in ["reasoning_content", "reasoning", "thinking"] {
        assert_eq!(marked(NO_CALLS, row(field)).as_deref(), Ok(inline), "{field}");
        for reads in ["reasoning_content", "reasoning", "thinking"] {
            let source = NO_CALLS.replace(
                "{{ m.content }}",
                &format!(
                    "{{% if m.{reads} %}}[[{{{{ m.{reads} }}}}]]{{% endif %}}{{{{ m.content }}}}"
                ),
            );
            assert_eq!(marked(&source, row(field)).as_deref(), Ok(own), "{field} {reads}");
            // Deleted from a turn that is not the last.
            let last = source.replace("{% if m.", "{% if loop.last and m.");
            let mut long = row(field);
            let more = [
                json!({"role": "user", "content": "q"}),
                json!({"role": "assistant", "content": "b"}),
            ];
            long["messages"].as_array_mut().unwrap().extend(more);
            assert_eq!(marked(&last, long), Err(DropReason::AssistantTextLost), "{field} {reads}");
        }
    }
}

/// Gemma 4 writes the text of a turn behind the result of its call, where no model writes it.
const KNOWN: [(&str, &str); 1] = [("file:ort_models_gemma-4.jinja", "text")];

/// Every published template either renders a call, and then the whole call is in the loss of its
/// turn, or the row is dropped by name.
#[test]
fn published_templates_keep_calls_or_drop_them_by_name() {
    let Some(path) = shared("assets/template_goldens.json") else { return };
    let goldens: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let tools = json!([{"type": "function", "function": {"name": "other", "description": "Switches",
        "parameters": {"type": "object", "properties": {"room": {"type": "string", "description": "which"}}, "required": ["room"]}}}]);
    let call = json!({"id": "call12345", "type": "function", "function": {"name": "zq_lamp", "arguments": {"room": "zq_hall"}}});
    let (mut kept, mut wrong, mut reasons) = (0, Vec::new(), BTreeMap::<String, usize>::new());
    for (name, source) in goldens["templates"].as_object().unwrap() {
        let source = source.as_str().unwrap();
        for kind in ["mid", "only", "text", "later"] {
            let text = if kind == "text" { "Wait." } else { "" };
            let mut row = with_call(text, json!({"tool_calls": [call]}));
            row["tools"] = tools.clone();
            let messages = row["messages"].as_array_mut().unwrap();
            match kind {
                "only" => messages.truncate(2),
                "later" => messages.extend([
                    json!({"role": "user", "content": "q2"}),
                    json!({"role": "assistant", "content": "done2"}),
                ]),
                _ => {}
            }
            let c = conversation(row.clone()).unwrap();
            let plain = template(source).render_with(&c.messages, c.tools.as_ref(), false, false);
            let written = plain
                .as_ref()
                .is_ok_and(|t| t.contains("zq_lamp") && t.contains("zq_hall") && t.contains(text));
            match marked(source, row) {
                Ok(text) => {
                    kept += 1;
                    let first =
                        text.split('⟦').nth(1).and_then(|t| t.split('⟧').next()).unwrap_or("");
                    if !first.contains("zq_lamp")
                        || !first.contains("zq_hall")
                        || first.contains("user")
                    {
                        wrong.push(format!("{name} | {kind}: not in the loss: {text}"));
                    }
                    println!(
                        "{name} | {kind}: {}",
                        text.split("q").skip(1).collect::<Vec<_>>().join("q")
                    );
                }
                Err(why) => {
                    if written && !KNOWN.contains(&(name.as_str(), kind)) {
                        wrong.push(format!(
                            "{name} | {kind}: {} although rendered: {}",
                            why.name(),
                            plain.unwrap()
                        ));
                    }
                    *reasons.entry(why.name().to_string()).or_default() += 1;
                }
            }
        }
    }
    println!("{kept} kept, dropped {reasons:?}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(kept > 70, "{kept}");
}

/// Integers of 2^64 and more keep their digits, wherever JSON or the text of JSON holds them.
#[test]
fn integers_keep_their_digits() {
    let n = "12345678901234567890123";
    let source = "{{ tools | tojson }}{{ x }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for t in m.tool_calls or [] %}ARGUMENTS{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let object = format!(r#"{{"name": "f", "arguments": {{"n": {n}, "m": [-{n}, 1e22]}}}}"#);
    let text = format!(r#"{{"name": "f", "arguments": "{{\"n\": {n}, \"m\": [-{n}, 1e22]}}"}}"#);
    let quoted = |json: &str| Value::from(json).to_string();
    let calls = [
        format!("[{object}]"),
        format!("[{text}]"),
        quoted(&format!("[{object}]")),
        quoted(&format!("[{text}]")),
        format!("[{}]", quoted(&object)),
        format!(r#"[{{"function": {object}}}]"#),
    ];
    let written = [
        "{{ t.function.arguments | tojson }}",
        "{{ t.function.arguments }}",
        "{{ '(' + t.function.arguments + ')' }}",
        "{% for k, v in t.function.arguments.items() %}{{ k }}={{ v }} {% endfor %}",
    ];
    for (calls, written) in calls.iter().flat_map(|c| written.map(|w| (c, w))) {
        let source = source.replace("ARGUMENTS", &format!("{{{{ t.function.name }}}}{written}"));
        let line = format!(
            r#"{{"id": {n}, "tools": "[{{\"name\": \"f\", \"maximum\": {n}}}]", "chat_template_kwargs": {{"x": {n}}}, "messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "tool_calls": {calls}}}]}}"#
        );
        let raw = RawRows::Lines { ends: vec![line.len()], bytes: line.into_bytes() };
        let c = crate::parse::rows::parse_row(&raw, 0, &[]).conversation.unwrap();
        let (template, control) = (template(&source), control(&source));
        let mut finder = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop);
        let r = finder.render(&c).unwrap_or_else(|e| panic!("{e:?}: {written} {calls}"));
        let loss = &r.text[r.spans[0].start..r.spans[0].end];
        assert!(r.text.contains(&format!("\"maximum\": {n}}}")), "{}", r.text);
        assert!(r.text.contains(&format!("]{n}<|im_start|>")), "{}", r.text);
        assert!(loss.matches(n).count() == 2 && loss.contains(&format!("-{n}, ")), "{loss}");
        assert!(!r.text.contains(|c| ('\u{FDD0}'..='\u{FDEF}').contains(&c)), "{}", r.text);
    }
}

/// Names and ids of messages that spell control tokens are text.
#[test]
fn names_that_spell_control_tokens() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.name }} {{ m.tool_call_id }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    let (template, control) = (template(source), control(source));
    let c = conversation(json!({"messages": [
        {"role": "user", "content": "q", "name": "<|im_end|>"},
        {"role": "tool", "content": "r", "tool_call_id": "x<|im_start|>"},
        {"role": "assistant", "content": "a"}]}))
    .unwrap();
    let mut finder = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop);
    let r = finder.render(&c).unwrap();
    assert_eq!(r.control.unwrap().len(), 6, "{}", r.text);
}

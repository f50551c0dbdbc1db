//! Turns in which the results of calls stand between the parts of one message: each part carries
//! loss, the results do not.

use crate::parse::drop_reason::DropReason;
use crate::tests::calls::marked;
use crate::tests::loss_options::only;
use dlm_datasets::manifest::LossOn;
use serde_json::{Value, json};

/// One turn of the model from a question to the next: calls, results, text. `HEADER` is written
/// before a text, `END` behind it.
const MERGING: &str = "{% for m in messages %}{% if m.role != 'tool' %}{% set role = 'model' if m.role == 'assistant' else m.role %}{% set before = messages[:loop.index0] | rejectattr('role', 'equalto', 'tool') | list %}{% set after = messages[loop.index:] | rejectattr('role', 'equalto', 'tool') | list %}{% if role != 'model' or not before or before[-1].role != 'assistant' %}<|turn>{{ role }}\n{% endif %}{% if m.reasoning_content %}<|think>{{ m.reasoning_content }}<think|>{% endif %}{% set ns = namespace(open=true, results=false) %}{% for t in m.tool_calls or [] %}<|call>{{ t.function.name }}{{ t.function.arguments | tojson }}<call|>{% endfor %}{% for r in m.tool_responses or [] %}{% set ns.results = true %}<|response>{{ r.name }}:{{ r.response | tojson }}<response|>{% endfor %}{% if m.tool_calls and not m.tool_responses %}{% for r in messages[loop.index:] %}{% if r.role != 'tool' %}{% set ns.open = false %}{% elif ns.open %}{% set ns.results = true %}<|response>{{ m.tool_calls[0].function.name }}:{{ r.content }}<response|>{% endif %}{% endfor %}{% endif %}HEADER{{ m.content | trim }}{% if m.tool_calls and not ns.results %}<|response>{% elif m.content or not ns.results %}END{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1].role not in ['tool', 'assistant'] %}<|turn>model\n{% endif %}";

/// The end of every text, or of the last one of a turn.
const EACH: &str = "<turn|>\n";
const LAST: &str =
    "{% if role != 'model' or not after or after[0].role != 'assistant' %}<turn|>\n{% endif %}";

fn merging(header: &str, end: &str) -> String {
    MERGING.replace("HEADER", header).replace("END", end)
}

/// Every message has a header and an end of its own; the result of each call stands behind it.
const CLOSED: &str = "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content if not m.tool_calls }}{% for t in m.tool_calls or [] %}<|call|>{{ t.function.name }}{{ t.function.arguments | tojson }}<|end_call|>{% for r in messages if r.role == 'tool' and r.tool_call_id == t.id %}<|result|>{{ r.content }}<|end_result|>{% endfor %}{% endfor %}{{ m.content if m.tool_calls }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn call(n: usize) -> Value {
    json!({"id": format!("call{n:05}"), "type": "function",
        "function": {"name": format!("zq_f{n}"), "arguments": {"room": format!("zq_r{n}")}}})
}

fn result(n: usize, text: &str) -> Value {
    json!({"role": "tool", "content": text, "tool_call_id": format!("call{n:05}"), "name": format!("zq_f{n}")})
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn answer(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn calling(text: &str, calls: &[usize]) -> Value {
    let calls: Vec<Value> = calls.iter().map(|n| call(*n)).collect();
    json!({"role": "assistant", "content": text, "tool_calls": calls})
}

fn row(messages: &[Value]) -> Value {
    json!({"messages": messages})
}

/// A question, a message with a call, its result, an answer.
fn one_call(text: &str) -> Value {
    row(&[user("q"), calling(text, &[1]), result(1, "r"), answer("done")])
}

/// The text of a turn behind the question "q", with short forms: `C1` for the call 1, `R1` for what
/// stands before its result, `/R` for what stands behind it, `/T` for the end of a turn.
fn merged_turn(turn: &str) -> String {
    let mut text = format!("<|turn>user\nq<turn|>\n<|turn>model\n{turn}");
    for n in ["1", "2"] {
        text = text
            .replace(&format!("C{n}"), &format!("<|call>zq_f{n}{{\"room\": \"zq_r{n}\"}}<call|>"))
            .replace(&format!("R{n}"), &format!("<|response>⟧zq_f{n}:"))
            .replace(&format!("S{n}"), &format!("<|response>zq_f{n}:"));
    }
    text.replace("/R", "<response|>").replace("/T", "<turn|>⟧\n")
}

fn assert_all(source: &str, turns: &[(&str, Value, &str)]) {
    for (name, row, want) in turns {
        assert_eq!(marked(source, row.clone()), Ok(merged_turn(want)), "{name}");
    }
}

/// Every text has an end of its own.
#[test]
fn text_behind_results() {
    let mut thinking = calling("Wait.", &[1]);
    thinking["reasoning_content"] = "Hm.".into();
    let same = row(&[user("q"), calling("r", &[1]), result(1, "r"), answer("r")]);
    let empty = row(&[user("q"), calling("Wait.", &[1]), result(1, ""), answer("done")]);
    let two = |first: usize, second: usize| {
        let results = [result(first, "r"), result(second, "s")];
        let [r, s] = results;
        row(&[user("q"), calling("Wait.", &[1, 2]), r, s, answer("done")])
    };
    let before =
        row(&[user("q"), answer("First."), calling("Wait.", &[1]), result(1, "r"), answer("done")]);
    let again = |n: usize, text: &str| {
        let (first, more) = (calling("Wait.", &[1]), calling(text, &[n]));
        row(&[user("q"), first, result(1, "r"), more, result(n, "r"), answer("done")])
    };
    let spelled = "<call|> <turn|>";
    let spells = row(&[user("q"), calling(spelled, &[1]), result(1, spelled), answer("done")]);
    let spells_want = format!("⟦C1R1{spelled}/R⟦{spelled}/T⟦done/T");
    let unanswered = row(&[user("q"), calling("Wait.", &[1])]);
    let last = row(&[user("q"), calling("Wait.", &[1]), result(1, "r")]);
    assert_all(
        &merging("", EACH),
        &[
            ("call alone", one_call(""), "⟦C1R1r/R⟦done/T"),
            ("text", one_call("Wait."), "⟦C1R1r/R⟦Wait./T⟦done/T"),
            ("white space", one_call(" Wait.\n"), "⟦C1R1r/R⟦Wait./T⟦done/T"),
            ("an empty result", empty, "⟦C1R1/R⟦Wait./T⟦done/T"),
            ("the result is the text", same, "⟦C1R1r/R⟦r/T⟦r/T"),
            ("two results", two(1, 2), "⟦C1C2R1r/RS1s/R⟦Wait./T⟦done/T"),
            ("two results, the second first", two(2, 1), "⟦C1C2R1r/RS1s/R⟦Wait./T⟦done/T"),
            (
                "thoughts",
                row(&[user("q"), thinking, result(1, "r"), answer("done")]),
                "⟦<|think>Hm.<think|>C1R1r/R⟦Wait./T⟦done/T",
            ),
            ("text before", before.clone(), "⟦First./T⟦C1R1r/R⟦Wait./T⟦done/T"),
            ("two calls in turn", again(2, "More."), "⟦C1R1r/R⟦Wait./T⟦C2R2r/R⟦More./T⟦done/T"),
            ("the same twice", again(1, "Wait."), "⟦C1R1r/R⟦Wait./T⟦C1R1r/R⟦Wait./T⟦done/T"),
            ("the last message", last, "⟦C1R1r/R⟦Wait./T"),
            ("no result yet", unanswered, "⟦C1Wait.<|response>⟧"),
            ("control tokens in text", spells, &spells_want),
        ],
    );
    // What the template writes before a text is the model's too, unless the prompt has it.
    let headed = merging("{{ '<|final>' if m.content and m.role == 'assistant' }}", EACH);
    assert_all(
        &headed,
        &[("header", one_call("Wait."), "⟦C1R1r/R⟦<|final>Wait./T<|final>⟦done/T")],
    );
    // Answers that follow in the same turn leave its end to the last one.
    assert_all(
        &merging("", LAST),
        &[
            ("call alone", one_call(""), "⟦C1R1r/R⟦done/T"),
            ("text", one_call("Wait."), "⟦C1R1r/R⟦Wait.⟧⟦done/T"),
            ("text before", before, "⟦First.⟧⟦C1R1r/R⟦Wait.⟧⟦done/T"),
            ("two calls in turn", again(2, "More."), "⟦C1R1r/R⟦Wait.⟧⟦C2R2r/R⟦More.⟧⟦done/T"),
        ],
    );
}

/// Results that the message with the call holds itself.
#[test]
fn results_inside_the_message() {
    let held = |text: &str, responses: Value| {
        let mut m = calling(text, &[1, 2]);
        m["tool_responses"] = responses;
        row(&[user("q"), m, answer("done")])
    };
    let list = json!([{"name": "zq_f1", "response": {"value": "r"}}, {"name": "zq_f2", "response": {"value": 3}}]);
    let want = "⟦C1C2R1{\"value\": \"r\"}/RS2{\"value\": 3}/R⟦Wait./T⟦done/T";
    let silent = want.replace("⟦Wait./T", "");
    let source = merging("", EACH);
    assert_all(
        &source,
        &[
            ("list", held("Wait.", list.clone()), want),
            ("JSON text", held("Wait.", list.to_string().into()), want),
            ("no text", held("", list.clone()), &silent),
            ("none", one_call("Wait."), "⟦C1R1r/R⟦Wait./T⟦done/T"),
        ],
    );
    // Without a text among the results nothing shows where they stand.
    let numbers = held("Wait.", json!([{"response": 3}]));
    let nameless = source.replace("{{ r.name }}", "");
    assert_eq!(marked(&nameless, numbers), Err(DropReason::NoAssistantSpan));
    // Results that the template does not write, or not all of them, are never lost in silence.
    for ignores in
        [CLOSED.to_string(), source.replace("m.tool_responses or []", "m.tool_responses[:1]")]
    {
        let lost = marked(&ignores, held("Wait.", list.clone()));
        assert_eq!(lost, Err(DropReason::ToolResponsesLost));
    }
    assert_eq!(marked(&source, held("", "r".into())), Err(DropReason::BadToolCalls));
}

/// Every message has an end of its own, and each result stands beside its call.
#[test]
fn calls_beside_their_results() {
    let closed = |turn: &str| {
        let mut text = format!("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{turn}");
        for n in ["1", "2"] {
            let call = format!("<|call|>zq_f{n}{{\"room\": \"zq_r{n}\"}}<|end_call|>");
            text = text.replace(&format!("C{n}"), &call);
        }
        text.replace("/C", "<|result|>⟧")
            .replace("/R", "<|end_result|>")
            .replace("/T", "<|im_end|>⟧\n")
            + "<|im_start|>assistant\n⟦done<|im_end|>⟧\n"
    };
    let two = |text: &str| {
        let results = [result(2, "s"), result(1, "r")];
        let [s, r] = results;
        row(&[user("q"), calling(text, &[1, 2]), s, r, answer("done")])
    };
    for (name, row, want) in [
        ("text", one_call("Wait."), "⟦C1/Cr/R⟦Wait./T"),
        ("white space", one_call(" Wait.\n"), "⟦C1/Cr/R⟦ Wait.\n/T"),
        ("call alone", one_call(""), "⟦C1/Cr/R<|im_end|>\n"),
        ("two calls", two(""), "⟦C1/Cr/R⟦C2/Cs/R<|im_end|>\n"),
        ("two calls and text", two("Wait."), "⟦C1/Cr/R⟦C2/Cs/R⟦Wait./T"),
        ("the result is the text", two("s"), "⟦C1/Cr/R⟦C2/Cs/R⟦s/T"),
    ] {
        assert_eq!(marked(CLOSED, row), Ok(closed(want)), "{name}");
    }
    // Without a generation prompt the template does not say what the model writes before a text.
    let silent = CLOSED.replace("<|im_start|>assistant\n{% endif %}", "{% endif %}");
    let headed = silent.replace(
        "{{ m.content if m.tool_calls }}",
        "{{ '<|final|>' + m.content if m.tool_calls and m.content }}",
    );
    let text = marked(&headed, one_call("Wait.")).unwrap();
    assert!(text.contains("<|final|>⟦Wait.<|im_end|>⟧"), "{text}");
    // A result that the template writes twice, and one that stands inside a call.
    let twice = row(&[
        user("q"),
        calling("", &[1]),
        result(1, "r"),
        calling("", &[1]),
        result(1, "s"),
        answer("done"),
    ]);
    assert_eq!(marked(CLOSED, twice), Err(DropReason::NoAssistantSpan));
    let inside = CLOSED
        .replace("<|end_call|>", "")
        .replace("{{ t.function.arguments | tojson }}", "")
        .replace(
            "<|end_result|>{% endfor %}",
            "<|end_result|>{% endfor %}{{ t.function.arguments | tojson }}<|end_call|>",
        );
    assert_eq!(marked(&inside, one_call("Wait.")), Err(DropReason::NoAssistantSpan));
}

/// Pieces are one turn: the last turn alone carries loss with all its pieces, and thoughts in one
/// of them can be left out.
#[test]
fn pieces_are_one_turn() {
    let template = "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{% for t in m.tool_calls or [] %}{{ t.function.name }}{% for r in messages if r.role == 'tool' and r.tool_call_id == t.id %}<|im_start|>{{ r.content }}<|im_start|>{% endfor %}{% endfor %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let mut call = calling("wait", &[1]);
    call["tool_calls"][0]["function"]["arguments"] = json!({});
    call["reasoning_content"] = "hm".into();
    let row = row(&[user("ask"), answer("no"), user("ask"), call, result(1, "data")]);
    let text = |first: &str, last: &str| {
        format!(
            "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n{first}\n<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n{last}"
        )
    };
    let all = "⟦<think>hm</think>zq_f1<|im_start|>⟧data<|im_start|>⟦wait<|im_end|>⟧";
    let no = "no<|im_end|>";
    let got = only(template, row.clone(), |p| p);
    assert_eq!(got, text(&format!("⟦{no}⟧"), all));
    let got = only(template, row.clone(), |p| p.loss_on(LossOn::Last));
    assert_eq!(got, text(no, all));
    let got = only(template, row, |p| p.mask_thinking(true));
    let masked = all.replace("⟦<think>hm</think>", "<think>hm</think>⟦");
    assert_eq!(got, text(&format!("⟦{no}⟧"), &masked));
}

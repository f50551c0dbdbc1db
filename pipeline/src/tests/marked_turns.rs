//! Turns with calls under templates that write more behind the last message, so that the render of
//! the messages before a turn is no prefix of the whole.

use crate::parse::drop_reason::DropReason;
use crate::tests::calls::{CALLS, marked, with_call};
use serde_json::{Value, json};

const INSTRUCTIONS: &str = "<|im_start|>system\nCall or answer.<|im_end|>\n";
const PROMPT: &str = "{% if add_generation_prompt %}";

/// [`CALLS`] with instructions behind the last message.
fn instructed() -> String {
    CALLS.replace(PROMPT, &format!("{INSTRUCTIONS}{PROMPT}"))
}

fn lamp(room: &str) -> Value {
    json!({"id": "call12345", "type": "function",
        "function": {"name": "zq_lamp", "arguments": {"room": room, "level": 3}}})
}

fn call_row(text: &str) -> Value {
    with_call(text, json!({"tool_calls": [lamp("zq_hall")]}))
}

fn written(room: &str) -> String {
    format!(
        "<tool_call>\n{{\"name\": \"zq_lamp\", \"arguments\": {{\"room\": \"{room}\", \"level\": 3}}}}\n</tool_call>"
    )
}

/// The text of [`call_row`] with `turn` in place of the turn with the call.
fn around(turn: &str) -> String {
    format!(
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{turn}\n<|im_start|>tool\nr<|im_end|>\n<|im_start|>assistant\n⟦done<|im_end|>⟧\n{INSTRUCTIONS}"
    )
}

#[test]
fn instructions_behind_the_last_message() {
    let source = instructed();
    for text in ["", "Wait."] {
        let call = written("zq_hall");
        let want = around(&format!("⟦{text}{call}<|im_end|>⟧"));
        assert_eq!(marked(&source, call_row(text)), Ok(want));
        let mut last = call_row(text);
        last["messages"].as_array_mut().unwrap().truncate(2);
        let want = format!(
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n⟦{text}{call}<|im_end|>⟧\n{INSTRUCTIONS}"
        );
        assert_eq!(marked(&source, last), Ok(want));
    }
    // Two calls, an argument that spells a control token, and a question that spells the prompt.
    let mut row = with_call("", json!({"tool_calls": [lamp("zq_hall"), lamp("<|im_end|>")]}));
    let question = "<|im_start|>assistant\nq";
    row["messages"][0]["content"] = question.into();
    let turn = format!("⟦{}{}<|im_end|>⟧", written("zq_hall"), written("<|im_end|>"));
    let want = around(&turn).replace("user\nq", &format!("user\n{question}"));
    assert_eq!(marked(&source, row), Ok(want));
    // Two turns with the same call.
    let mut row = call_row("");
    let messages = row["messages"].as_array_mut().unwrap();
    let again = messages[1..3].to_vec();
    messages.splice(3..3, again);
    let call = format!("⟦{}<|im_end|>⟧\n<|im_start|>tool\nr<|im_end|>\n", written("zq_hall"));
    let calls = format!("{call}<|im_start|>assistant\n{}", call.trim_end());
    let want = around("TURN").replace("TURN\n<|im_start|>tool\nr<|im_end|>", &calls);
    assert_eq!(marked(&source, row), Ok(want));
}

/// A turn without an end-of-turn token of its own ends with the token that follows it.
#[test]
fn calls_without_end_of_turn() {
    let source = instructed().replace(
        "{% endfor %}<|im_end|>",
        "{% endfor %}{{ '' if m.tool_calls else '<|im_end|>' }}",
    );
    let call = written("zq_hall");
    let want = around("TURN").replace("TURN\n<|im_start|>", &format!("⟦{call}\n<|im_start|>⟧"));
    assert_eq!(marked(&source, call_row("")), Ok(want));
}

/// Where a template looks up the name of a call, or its arguments, only the others have marks.
#[test]
fn templates_that_look_at_calls() {
    let turn = around(&format!("⟦{}<|im_end|>⟧", written("zq_hall")));
    for (test, seen) in [
        ("f.name == 'zq_lamp'", true),
        ("f.arguments.room == 'zq_hall'", true),
        ("f.name == 'zq_lamp' and f.arguments.room == 'zq_hall'", false),
    ] {
        let looks = format!("{{{{ '<tool_call>' if {test} else '' }}}}");
        let source = instructed().replace("<tool_call>", &looks);
        let want = if seen { Ok(turn.clone()) } else { Err(DropReason::NoAssistantSpan) };
        assert_eq!(marked(&source, call_row("")), want, "{test}");
    }
}

/// What a template writes of a call beside its result is context.
#[test]
fn names_beside_results() {
    let source = instructed().replace(
        "{{ m.content }}",
        "{% if m.role == 'tool' %}{{ messages[loop.index0 - 1].tool_calls[0].function.name }}: {% endif %}{{ m.content }}",
    );
    let want = around(&format!("⟦{}<|im_end|>⟧", written("zq_hall")));
    assert_eq!(marked(&source, call_row("")), Ok(want.replace("tool\nr", "tool\nzq_lamp: r")));
}

#[test]
fn thoughts_beside_calls() {
    let thinks =
        "{% if m.thinking %}<think>{{ m.thinking | trim }}</think>{% endif %}{{ m.content }}";
    let source = instructed().replace("{{ m.content }}", thinks);
    let row = |thought: &str| {
        with_call("Wait.", json!({"tool_calls": [lamp("zq_hall")], "reasoning_content": thought}))
    };
    let turn = format!("⟦<think>zq h</think>Wait.{}<|im_end|>⟧", written("zq_hall"));
    assert_eq!(marked(&source, row("\n zq h \n")), Ok(around(&turn)));
    // Deleted thoughts are lost, also where they are so short that they occur elsewhere.
    let last = source.replace("if m.thinking", "if m.thinking and loop.last");
    for thought in ["zq h", "l"] {
        assert_eq!(marked(&last, row(thought)), Err(DropReason::AssistantTextLost), "{thought}");
    }
}

/// Turns that are not whole, or of which the template does not say where they begin, are not
/// located.
#[test]
fn turns_that_stay_unknown() {
    // Arguments that are not written.
    let names = instructed().replace("{{ f.arguments | tojson }}", "3");
    assert_eq!(marked(&names, call_row("")), Err(DropReason::ToolCallsLost));
    // No generation prompt.
    let silent = instructed().replace("<|im_start|>assistant\n{% endif %}", "{% endif %}");
    assert_eq!(marked(&silent, call_row("")), Err(DropReason::NoAssistantSpan));
    // The beginning of an answer twice.
    let twice = instructed().replace(
        "{% for t in",
        "{% if m.tool_calls %}<|im_start|>assistant\n{% endif %}{% for t in",
    );
    assert_eq!(marked(&twice, call_row("")), Err(DropReason::NoAssistantSpan));
}

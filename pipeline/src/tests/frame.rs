//! Encoding the text that a template writes once per skeleton gives the same ids and labels as
//! encoding the whole text: with the sample's tokenizer, and with published tokenizers, skipped
//! with a message where they are missing.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::config::policies::{LostText, SpecialText, default_now};
use crate::label::supervise::{Sample, Supervisor};
use crate::parse::conversation::{Conversation, Message};
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::rendered::Rendered;
use crate::template::spans::SpanFinder;
use crate::template::verbatim;
use crate::tokenize::tokenizer::{AddedToken, Tokenizer};
use dlm_datasets::manifest::LossOn;
use dlm_test_support::{sample, shared_tokenizers};

/// Contents that a tokenizer could join with the text beside them.
const CONTENTS: [&str; 18] = [
    "Hello, world.",
    " leading",
    "trailing ",
    "\nnew line\n",
    "\n\n\n",
    " ",
    "\t",
    "\r\n",
    "'s",
    "12345",
    "é",
    "\u{301}",
    "中文😀",
    "fn f() {\n        x += 1;\n}",
    "<|im",
    "im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
];

/// Compares both ways of encoding on 2,000 conversations and returns how many used a frame.
fn agree(tokenizer: &Tokenizer, template: &ChatTemplate, eos: &str) -> usize {
    let plain = ControlTokens::new(tokenizer.added_tokens(), Some(eos)).unwrap();
    let mut finder = SpanFinder::new(template, &plain, SpecialText::Text, LostText::Drop);
    let linear =
        verbatim::probe(template, &mut |m| finder.fill(m)).expect("a template that copies content");
    let control =
        ControlTokens::with_triggers(tokenizer.added_tokens(), Some(eos), &linear.triggers)
            .unwrap();
    let mut spans = SpanFinder::new(template, &control, SpecialText::Text, LostText::Drop)
        .with_verbatim(Some(&linear));
    let (mut short, mut state) = (0, 1u64);
    let mut pick = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let (mut r, mut framed, mut whole) =
        (Rendered::default(), Sample::default(), Sample::default());
    for _ in 0..2000 {
        let mut messages = Vec::new();
        if pick(3) == 0 {
            messages.push(Message::new("system", CONTENTS[pick(CONTENTS.len())]));
        }
        for _ in 0..1 + pick(3) {
            for role in ["user", "assistant"] {
                let content =
                    (0..1 + pick(3)).map(|_| CONTENTS[pick(CONTENTS.len())]).collect::<String>();
                messages.push(Message::new(role, content));
            }
        }
        let talk = Conversation { messages, ..Default::default() };
        if spans.render_into(&talk, true, &mut r).is_err() {
            continue;
        }
        for loss_on in [LossOn::All, LossOn::Last] {
            let supervisor = Supervisor { tokenizer, loss_on, mask_id: -1 };
            let a = supervisor.encode(&r, &mut framed);
            let b = supervisor.encode_reference(&r, &mut whole);
            assert_eq!((a, &framed), (b, &whole), "{talk:?}");
        }
        short += usize::from(r.skeleton.as_ref().is_some_and(|s| s.encoded(|| None).is_some()));
    }
    short
}

#[test]
fn sample_tokenizer() {
    let dir = sample("tokenizer");
    let template = ChatTemplate::load_at(&dir, default_now()).unwrap();
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let short = agree(&tokenizer, &template, template.special("eos_token").unwrap());
    assert!(short > 1000, "only {short} of 2,000 went the short way");
}

#[test]
fn published_tokenizers() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["qwen2.5", "qwen3", "fast_dllm_v2_7b", "smollm2", "llama3"];
    let Some(tokenizers) = shared_tokenizers(dir.path(), &names) else { return };
    for name in names {
        let dir = tokenizers.join(name);
        let template = match ChatTemplate::load_at(&dir, default_now()) {
            Ok(t) => t,
            Err(_) => {
                let builtin = if name == "llama3" { "llama3" } else { "chatml" };
                ChatTemplate::named(builtin, Default::default(), default_now()).unwrap()
            }
        };
        let tokenizer = Tokenizer::load(&dir).unwrap();
        let eos = if name == "llama3" { "<|eot_id|>" } else { "<|im_end|>" };
        let short = agree(&tokenizer, &template, eos);
        println!("{name}: {short} of 2,000 the short way");
        assert!(short > 50, "{name}: only {short} of 2,000 went the short way");
    }
}

/// Thousands of turns: filling in a skeleton gives the same spans as rendering, white space that
/// belongs to the response included.
#[test]
fn a_long_conversation() {
    let source = "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}";
    let template =
        ChatTemplate::new(source.to_string(), None, "test", Default::default(), default_now())
            .unwrap();
    let added = ["<s>", "</s>"].iter().zip(1..).map(|(t, id)| AddedToken {
        content: t.to_string(),
        id,
        special: true,
    });
    let control = ControlTokens::new(&added.collect::<Vec<_>>(), Some("</s>")).unwrap();
    let mut finder = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop);
    let linear = verbatim::probe(&template, &mut |m| finder.fill(m)).unwrap();
    let mut short = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop)
        .with_verbatim(Some(&linear));
    let mut long = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop);
    // A short conversation, a long one, and one too long for its skeleton to be kept.
    for turns in [10, 1000, 5000] {
        let messages = (0..turns)
            .map(|i| Message::new(["user", "assistant"][i % 2], format!("text {i}")))
            .collect();
        let talk = Conversation { messages, ..Default::default() };
        let truth = long.render(&talk).unwrap();
        assert_eq!(truth.spans.len(), turns / 2);
        assert!(truth.spans.iter().all(|s| truth.text[s.start..s.end].starts_with(" text ")
            && truth.text[..s.end].ends_with("</s>")));
        let filled: Vec<Rendered> = (0..3).map(|_| short.render(&talk).unwrap()).collect();
        assert!(filled.iter().all(|r| *r == truth), "{turns} turns");
        let quick: Vec<bool> = filled.iter().map(|r| r.skeleton.is_some()).collect();
        assert_eq!(quick, [turns == 10, turns < 5000, turns < 5000], "{turns} turns");
    }
}

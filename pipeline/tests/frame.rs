//! What a template writes, encoded once, gives the ids and labels of the text encoded whole: on the
//! shipped tokenizer, and on those of ../shared (or DLM_SHARED), skipped loudly where they are
//! missing.

use dlm_datasets::manifest::LossOn;
use dlm_prep::config::policies::{LostText, SpecialText, default_now};
use dlm_prep::label::supervise::{Sample, Supervisor};
use dlm_prep::parse::conversation::{Conversation, Message};
use dlm_prep::template::chat::ChatTemplate;
use dlm_prep::template::control::ControlTokens;
use dlm_prep::template::rendered::Rendered;
use dlm_prep::template::spans::SpanFinder;
use dlm_prep::template::verbatim;
use dlm_prep::tokenize::tokenizer::{AddedToken, Tokenizer};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Contents whose edges a tokenizer could join with what stands beside them.
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

/// Tries a tokenizer with a template; how many texts went the short way.
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
        let talk = Conversation { messages, tools: None };
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
fn shipped_tokenizer() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
    let template = ChatTemplate::load_at(&dir, default_now()).unwrap();
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let short = agree(&tokenizer, &template, template.special("eos_token").unwrap());
    assert!(short > 1000, "only {short} of 2,000 went the short way");
}

#[test]
fn shared_tokenizers() {
    let shared = std::env::var_os("DLM_SHARED")
        .map_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let archive = shared.join("assets/tokenizers.tar.xz");
    if !archive.exists() {
        drop(
            std::io::stderr()
                .write_all(format!("SKIP: {} is not here\n", archive.display()).as_bytes()),
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    if !Command::new("tar")
        .arg("-xJf")
        .arg(&archive)
        .arg("-C")
        .arg(dir.path())
        .status()
        .is_ok_and(|s| s.success())
    {
        drop(
            std::io::stderr()
                .write_all(format!("SKIP: tar cannot unpack {}\n", archive.display()).as_bytes()),
        );
        return;
    }
    for name in ["qwen2.5", "qwen3", "fast_dllm_v2_7b", "smollm2", "llama3"] {
        let dir = dir.path().join("tokenizers").join(name);
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

/// Thousands of turns: the same spans filled in as rendered, white space that is the response's own
/// among them.
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
    // Not long, long, and too long to be remembered.
    for turns in [10, 1000, 5000] {
        let messages = (0..turns)
            .map(|i| Message::new(["user", "assistant"][i % 2], format!("text {i}")))
            .collect();
        let talk = Conversation { messages, tools: None };
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

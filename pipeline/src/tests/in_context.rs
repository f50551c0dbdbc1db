//! Tokenizers that treat text by its position: every piece of a conversation has the ids that the
//! tokenizers library gives for the whole text.

use crate::config::policies::{LostText, SpecialText, default_now};
use crate::label::supervise::{Sample, Supervisor};
use crate::parse::conversation::{Conversation, Message};
use crate::parse::drop_reason::DropReason;
use crate::template::chat::{CHATML, ChatTemplate};
use crate::template::control::ControlTokens;
use crate::template::spans::SpanFinder;
use crate::tokenize::tokenizer::{Tokenizer, TokenizerSource};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const WORDS: [&str; 12] = [
    "hello",
    "world",
    "user",
    "assistant",
    "▁hello",
    "▁world",
    "▁he",
    "Ġhello",
    "Ġworld",
    "▁ok",
    "▁▁",
    "Ċ",
];

/// A tokenizer with a vocabulary of letters and [`WORDS`].
fn tokenizer(kind: &str, normalizer: Value, pre_tokenizer: Value, flags: Value) -> Value {
    let letters = "abcdefghijklmnopqrstuvwxyz▁Ġ Ċ\n<>|_/.";
    let words: Vec<String> = letters
        .chars()
        .map(String::from)
        .chain(letters.chars().map(|c| format!("##{c}")))
        .chain(WORDS.map(String::from))
        .collect();
    let vocab: BTreeMap<&str, usize> = words.iter().map(String::as_str).zip(3..).collect();
    let ids: BTreeMap<&str, usize> =
        vocab.into_iter().chain([("<unk>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2)]).collect();
    let merges: Vec<[&str; 2]> = [
        ["h", "e"],
        ["he", "l"],
        ["hel", "l"],
        ["hell", "o"],
        ["▁", "hello"],
        ["Ġ", "hello"],
        ["▁", "▁"],
        ["o", "k"],
        ["▁", "ok"],
    ]
    .to_vec();
    let pieces = merges.iter().map(|m| m.concat());
    let mut all: Vec<String> = ids.keys().map(|k| k.to_string()).collect();
    all.sort_by_key(|k| ids[k.as_str()]);
    all.extend(pieces.filter(|p| !ids.contains_key(p.as_str())));
    let vocab: serde_json::Map<String, Value> =
        all.iter().enumerate().map(|(i, k)| (k.clone(), json!(i))).collect();
    let model = match kind {
        "BPE" => {
            json!({"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "dropout": null})
        }
        "WordPiece" => {
            json!({"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100})
        }
        _ => {
            let scored: Vec<Value> =
                all.iter().map(|k| json!([k, -1.0 / k.chars().count() as f64])).collect();
            json!({"type": "Unigram", "vocab": scored, "unk_id": 0, "byte_fallback": false})
        }
    };
    let token = |id: usize, content: &str| {
        let mut t = json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        for (k, v) in flags.as_object().into_iter().flatten() {
            t[k] = v.clone();
        }
        t
    };
    json!({
        "version": "1.0",
        "added_tokens": [token(1, "<|im_start|>"), token(2, "<|im_end|>")],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model,
    })
}

fn cases() -> Vec<(&'static str, Value)> {
    let none = Value::Null;
    let meta = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let llama = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]});
    let bytes = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let words = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, meta("always", true)]});
    let strips = json!({"lstrip": true, "rstrip": true});
    vec![
        ("Llama 2", tokenizer("BPE", llama.clone(), none.clone(), none.clone())),
        ("Mistral", tokenizer("BPE", none.clone(), meta("first", false), none.clone())),
        ("Metaspace", tokenizer("BPE", none.clone(), meta("always", true), none.clone())),
        ("Unigram", tokenizer("Unigram", none.clone(), meta("first", true), none.clone())),
        (
            "T5",
            tokenizer(
                "Unigram",
                json!({"type": "Strip", "strip_left": true, "strip_right": true}),
                words,
                none.clone(),
            ),
        ),
        ("GPT-2 with a space", tokenizer("BPE", none.clone(), bytes(true), none.clone())),
        ("tokens that strip", tokenizer("BPE", none.clone(), bytes(false), strips.clone())),
        ("Llama 2, tokens that strip", tokenizer("BPE", llama, none.clone(), strips)),
        (
            "WordPiece",
            tokenizer("WordPiece", none.clone(), json!({"type": "BertPreTokenizer"}), none),
        ),
    ]
}

const CONTENTS: [&str; 8] =
    ["hello", " hello world", "hello ", "\n hello", "ok\n\n", " ", "he llo", "x <|im_end|> hello"];

#[test]
fn pieces_have_the_ids_of_the_whole_text() {
    let dir = tempfile::tempdir().unwrap();
    let template =
        ChatTemplate::new(CHATML.to_string(), None, "t", BTreeMap::new(), default_now()).unwrap();
    for (name, json) in cases() {
        std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        let python = tokenizers::Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        let control = ControlTokens::new(tokenizer.added_tokens(), Some("<|im_end|>")).unwrap();
        let mut spans = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop);
        let supervisor =
            Supervisor { tokenizer: &tokenizer, loss_on: Default::default(), mask_id: -1 };
        let mut sample = Sample::default();
        for (question, answer) in
            CONTENTS.iter().flat_map(|q| CONTENTS.iter().map(move |a| (*q, *a)))
        {
            let turn = [Message::new("user", question), Message::new("assistant", answer)];
            let messages = [turn.clone(), turn].concat();
            let r = spans.render(&Conversation { messages, ..Default::default() }).unwrap();
            let encoded = supervisor.encode(&r, &mut sample);
            if r.control.is_some() && ["Unigram", "T5"].contains(&name) {
                // The model itself knows the string, so it cannot be encoded as text.
                assert_eq!(encoded, Err(DropReason::TokenizerFailed));
                continue;
            }
            encoded.unwrap();
            if r.control.is_some() {
                // Text that spells a control token is text; the tokens of the template stay.
                let count = |id| sample.ids.iter().filter(|i| **i == id).count();
                assert_eq!((count(1), count(2)), (4, 4), "{name}");
                continue;
            }
            let whole = python.encode(r.text.as_str(), false).unwrap();
            let offsets = whole.get_offsets();
            let straddles = |edge: usize| offsets.iter().any(|o| o.0 < edge && edge < o.1);
            // A control token may take the white space beside it from the other side of an edge.
            if name != "WordPiece"
                && r.spans.iter().any(|s| {
                    straddles(s.start) && !r.text[..s.start].trim_end().ends_with("<|im_start|>")
                })
            {
                continue;
            }
            let ids: Vec<i32> = whole.get_ids().iter().map(|i| *i as i32).collect();
            assert_eq!(sample.ids, ids[..sample.ids.len()], "{name}: {:?}", r.text);
            assert_eq!(sample.turns.len(), 2, "{name}: {:?}", r.text);
            for (&(from, to), span) in sample.turns.iter().zip(&r.spans) {
                assert!(offsets[from].0 >= span.start || from == to, "{name}: {:?}", r.text);
                assert_eq!(sample.ids[to - 1], 2, "{name}: {:?}", r.text);
            }
        }
    }
}

#[test]
fn merges_are_not_left_out_by_chance() {
    let dir = tempfile::tempdir().unwrap();
    let mut json = tokenizer("BPE", Value::Null, Value::Null, Value::Null);
    json["model"]["dropout"] = json!(0.5);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let source = TokenizerSource::read(dir.path()).unwrap();
    for t in [source.fast().unwrap(), source.stable("test".to_string()).unwrap()] {
        let mut ids = Vec::new();
        (0..50).for_each(|_| t.encode("hello", &mut ids).unwrap());
        assert!(ids.windows(2).all(|w| w[0] == w[1]) && ids.len() == 50, "{ids:?}");
        assert!(!t.json().contains("0.5"));
    }
}

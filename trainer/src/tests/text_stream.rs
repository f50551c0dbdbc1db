//! Text as it becomes final against the text of all tokens, with tokenizers of every kind.

use std::path::Path;
use std::sync::Arc;

use dlm_datasets::rng;
use serde_json::{Value, json};

use crate::decode::TextStream;
use crate::decode::prompt::{Prompt, PromptCodec};

/// Text whose characters have one to four bytes.
const TEXTS: [&str; 9] = [
    "The quick brown fox jumps over the lazy dog, twice.",
    "naïve café — “déjà vu” …",
    "漢字かな交じり文、全角スペース　も。",
    "Привет, мир! Съешь ещё этих мягких французских булок.",
    "👩‍👩‍👧‍👦🏳️‍🌈 emoji 🎉🎉",
    "مرحبا بالعالم שלום עולם",
    "   many   spaces\n\n\ttabs \r\n",
    "한국어 텍스트",
    "\u{fffd} is a character too \u{fffd}\u{fffd}",
];

/// The sample's tokenizer: bytes as tokens.
pub(super) fn sample() -> Arc<PromptCodec> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
    Arc::new(PromptCodec::load(&dir).unwrap())
}

/// A tokenizer of its own, from the parts of its tokenizer.json.
fn made(model: Value, normalizer: Value, pre: Value, decoder: Value) -> Arc<PromptCodec> {
    let special = json!({
        "id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true
    });
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": null,
        "decoder": decoder, "model": model
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    Arc::new(PromptCodec::load(dir.path()).unwrap())
}

/// As SentencePiece models with byte tokens are converted: spaces as ▁, one before the text.
pub(super) fn sentence_piece() -> Arc<PromptCodec> {
    let mut tokens: Vec<String> = ["<s>", "<unk>"].map(String::from).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend("▁abcdefghijklmnopqrstuvwxyzéïПривет漢字。".chars().map(String::from));
    tokens.extend(["▁▁", "▁t", "th", "▁th"].map(String::from));
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
        "merges": ["▁ ▁", "▁ t", "t h", "▁ th"]
    });
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    ]});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]});
    made(model, normalizer, Value::Null, decoder)
}

fn metaspace() -> Arc<PromptCodec> {
    let mut vocab = vec![json!(["<s>", 0.0]), json!(["<unk>", -9.0])];
    for piece in ["▁", "▁the", "▁a", "a", "b", "é", "漢", "▁▁", ".", "s", "👩"] {
        vocab.push(json!([piece, -2.0]));
    }
    let model = json!({"type": "Unigram", "unk_id": 1, "vocab": vocab, "byte_fallback": false});
    let space = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true
    });
    made(model, Value::Null, space.clone(), space)
}

fn word_piece() -> Arc<PromptCodec> {
    let tokens = [
        "<s>", "[UNK]", "the", "##s", "##ing", "do", "n", "'", "t", ".", ",", "!", "a", "n't",
        "##é",
    ];
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
    let model = json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab
    });
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    made(model, Value::Null, json!({"type": "BertPreTokenizer"}), decoder)
}

/// BPE with a mark at the end of words.
fn end_of_word() -> Arc<PromptCodec> {
    let tokens = ["<s>", "a", "b", "a</w>", "b</w>", "ab", "é</w>", "漢"];
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
        "merges": ["a b"]
    });
    let decoder = json!({"type": "BPEDecoder", "suffix": "</w>"});
    made(model, Value::Null, json!({"type": "Whitespace"}), decoder)
}

struct Tokenizer {
    name: String,
    codec: Arc<PromptCodec>,
    /// Ids below this are drawn.
    ids: usize,
}

fn tokenizers() -> Vec<Tokenizer> {
    let own = [
        ("sample", sample(), 820),
        ("SentencePiece", sentence_piece(), 320),
        ("Metaspace", metaspace(), 13),
        ("WordPiece", word_piece(), 15),
        ("end of word", end_of_word(), 8),
    ];
    let mut all: Vec<Tokenizer> = own
        .into_iter()
        .map(|(name, codec, ids)| Tokenizer { name: name.into(), codec, ids })
        .collect();
    let published = ["smollm2", "qwen2.5"];
    let dir = tempfile::tempdir().unwrap();
    if let Some(folder) = dlm_test_support::shared_tokenizers(dir.path(), &published) {
        for name in published {
            let codec = Arc::new(PromptCodec::load(&folder.join(name)).unwrap());
            all.push(Tokenizer { name: name.into(), codec, ids: 49_152 });
        }
    }
    all
}

/// Random ids: text of several scripts, with tokens drawn at random between it, control tokens
/// among them.
fn ids(tokenizer: &Tokenizer, seed: u64) -> Vec<i64> {
    let (key, mut drawn) = (rng::key(&[seed]), 0);
    let mut below = |n: usize| {
        drawn += 1;
        (rng::uniform(key, drawn) * n as f64) as usize
    };
    let mut ids = Vec::new();
    for _ in 0..1 + below(12) {
        match below(7) {
            // control tokens, in a row
            0 => ids.extend(vec![0; below(30)]),
            1 | 2 => {
                let text = TEXTS[below(TEXTS.len())];
                let text: String = text.chars().skip(below(8)).take(1 + below(30)).collect();
                ids.extend(tokenizer.codec.encode_raw(&Prompt::Text(text)).unwrap());
            }
            3 | 4 => ids.extend((0..below(9)).map(|_| below(tokenizer.ids) as i64)),
            // tokens cut out of text: parts of characters
            _ => {
                let text = Prompt::Text(TEXTS[below(TEXTS.len())].into());
                let all = tokenizer.codec.encode_raw(&text).unwrap();
                let from = below(all.len().max(1));
                ids.extend(all.into_iter().skip(from).take(1 + below(5)));
            }
        }
    }
    ids
}

/// Whatever the tokens, the pieces together are the text of all of them, and pieces are final: the
/// text of more tokens begins with the pieces before.
#[test]
fn pieces_together_are_the_text_of_all_tokens() {
    for tokenizer in tokenizers() {
        for seed in 0..300 {
            let ids = ids(&tokenizer, seed);
            let mut stream = TextStream::new(tokenizer.codec.clone(), Vec::new());
            let mut text = String::new();
            for id in &ids {
                text.push_str(&stream.push(*id).unwrap());
            }
            text.push_str(&stream.finish().unwrap());
            let whole = tokenizer.codec.decode(&ids).unwrap();
            assert_eq!(text, whole, "{}, seed {seed}: {ids:?}", tokenizer.name);
            assert_eq!(stream.given(), whole.len());
        }
    }
}

/// Ordinary text is handed out with its token, not later.
#[test]
fn text_is_not_held_back_without_reason() {
    let codec = sample();
    let mut stream = TextStream::new(codec.clone(), vec!["zebra".into()]);
    let ids = codec.encode_raw(&Prompt::Text("name: Ada é zebu zebr".into())).unwrap();
    let mut told = 0;
    for (i, id) in ids.iter().enumerate() {
        told += stream.push(*id).unwrap().len();
        let text = codec.decode(&ids[..=i]).unwrap();
        let mut whole = text.trim_end_matches('\u{fffd}');
        for held in ["zebr", "zeb", "ze", "z"] {
            whole = whole.strip_suffix(held).unwrap_or(whole);
        }
        assert_eq!(told, whole.len(), "{text:?}");
    }
    assert_eq!(stream.finish().unwrap(), "zebr");
}

/// The text ends before the first stop string, at the first token that makes one sure, against a
/// search of the whole text after every token.
#[test]
fn stop_strings_are_found_across_tokens() {
    for tokenizer in tokenizers() {
        let mut found = 0;
        for seed in 0..200 {
            let ids = ids(&tokenizer, 1000 + seed);
            let whole = tokenizer.codec.decode(&ids).unwrap();
            let places: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
            let key = rng::key(&[seed, 1]);
            let cut = |i: u64| {
                let at = |j| places[(rng::uniform(key, j) * places.len() as f64) as usize];
                let from = at(2 * i);
                let length = 1 + (rng::uniform(key, 2 * i + 1) * 6.0) as usize;
                whole[from..].chars().take(length).collect::<String>()
            };
            if places.is_empty() {
                continue;
            }
            let stops = vec![cut(0), "not in any text".to_string(), cut(1)];
            let mut stream = TextStream::new(tokenizer.codec.clone(), stops.clone());
            let (mut text, mut taken) = (String::new(), 0);
            for id in &ids {
                text.push_str(&stream.push(*id).unwrap());
                taken += 1;
                if stream.is_stopped() {
                    break;
                }
            }
            text.push_str(&stream.finish().unwrap());
            assert!(stream.is_stopped(), "{}: {stops:?} in {whole:?}", tokenizer.name);
            // the search of the text so far, as far as more tokens leave it as it is
            let sure = |taken: usize| {
                let mut text = tokenizer.codec.decode(&ids[..taken]).unwrap();
                for end in taken + 1..=ids.len() {
                    let longer = tokenizer.codec.decode(&ids[..end]).unwrap();
                    let same = text.chars().zip(longer.chars()).take_while(|(a, b)| a == b);
                    let same = same.map(|(c, _)| c.len_utf8()).sum();
                    text.truncate(same);
                }
                text
            };
            let end = |text: &str| stops.iter().filter_map(|stop| text.find(stop)).min();
            let first = (1..=ids.len()).find(|taken| end(&sure(*taken)).is_some()).unwrap();
            assert!(taken >= first, "{}: {taken} of {first}", tokenizer.name);
            let known = sure(taken);
            assert_eq!(end(&known), Some(text.len()), "{}, seed {seed}", tokenizer.name);
            assert_eq!(text, whole[..text.len()]);
            found += usize::from(taken == first);
        }
        // a token that might still undo it comes first only with bytes as tokens
        assert!(found > 150 || tokenizer.name == "SentencePiece", "{}: {found}", tokenizer.name);
    }
}

#[test]
fn a_stop_string_that_spells_a_control_token_is_known() {
    let codec = sample();
    assert_eq!(codec.control_token("<|im_end|>"), Some(2));
    for text in ["a", " ", "<|im_end|><|im_end|>", "word", ""] {
        assert_eq!(codec.control_token(text), None, "{text:?}");
    }
    assert_eq!(sentence_piece().control_token(" "), None);
}

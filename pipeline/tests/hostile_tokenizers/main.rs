//! Damaged and hostile `tokenizer.json` files, made from the sample's: each is prepared or refused
//! by an error that names the file or what is wrong in the rows. None panics, hangs, or prints.
//!
//! Panics are counted by a hook of this test: a panic that the program turns into an error quietly
//! does not reach it.

#![allow(clippy::print_stderr, reason = "what a test measured")]

mod parts;

use dlm_prep::{Error, Prepare, verify};
use dlm_test_support::sample;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Longest time of one case before it counts as hanging; they take milliseconds.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// Panics that somebody would have seen on stderr.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// A case: its name, the bytes of its tokenizer.json, and what its error says; `None` where it may
/// be usable, too.
struct Case(String, Vec<u8>, Option<&'static str>);

fn tokenizer() -> Value {
    serde_json::from_slice(&std::fs::read(sample("tokenizer/tokenizer.json")).unwrap()).unwrap()
}

/// The sample's tokenizer.json with `value` at the JSON pointer `at`.
fn with(at: &str, value: Value) -> Vec<u8> {
    let mut t = tokenizer();
    match t.pointer_mut(at) {
        Some(place) => *place = value,
        None => {
            let (parent, key) = at.rsplit_once('/').unwrap();
            t.pointer_mut(parent).unwrap()[key] = value;
        }
    }
    t.to_string().into_bytes()
}

fn added(id: u64, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

/// The sample's tokenizer with more added tokens.
fn with_added(tokens: Vec<Value>) -> Vec<u8> {
    let mut t = tokenizer();
    t["added_tokens"].as_array_mut().unwrap().extend(tokens);
    t.to_string().into_bytes()
}

/// Numbers that look random and are the same in each run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }
}

/// Prepares three rows with the tokenizer and checks the outcome; says what is wrong with it.
fn outcome(bytes: &[u8], says: Option<&str>, input: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("foreign");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("tokenizer.json"), bytes).unwrap();
    let config = sample("tokenizer/tokenizer_config.json");
    std::fs::copy(config, folder.join("tokenizer_config.json")).unwrap();
    let out = dir.path().join("out");
    let prepare = Prepare::new(&folder).input(input).seq_len(256).workers(1);
    match (prepare.run(&out), says) {
        (Ok(_), Some(says)) => Err(format!("usable, but it should say {says:?}")),
        (Ok(_), None) => verify(&out).map(|_| ()).map_err(|e| format!("not whole: {e}")),
        (Err(e), _) => {
            let text = e.to_string();
            let named = match e {
                // Its rows are the problem: one is named.
                Error::Unfit(_) => text.contains("dropped: "),
                _ => text.contains("foreign"),
            };
            match says.filter(|says| !text.contains(says)) {
                Some(says) => Err(format!("it should say {says:?}: {text}")),
                None if !named || text.contains("internal error") => {
                    Err(format!("names no file: {text}"))
                }
                None => Ok(()),
            }
        }
    }
}

/// Runs the cases, and fails with the names of those that went wrong.
fn check(cases: Vec<Case>) {
    // Once, because the program wraps the hook that it finds at its first call of an engine.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            eprintln!("{panic}");
        }))
    });
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("rows.jsonl");
    let rows = [
        ("What is 2 + 22?", "  It is 24,\tor\n\n\"twenty-four\".  "),
        (
            "naïve café e\u{301} ﬁ 你好 👩🏽\u{200d}🚀 \u{0}",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaa ========= <|im_end|>",
        ),
        ("", "x"),
    ];
    let rows = rows.map(|(q, a)| json!({"prompt": q, "completion": a}).to_string());
    std::fs::write(&input, rows.join("\n")).unwrap();
    let mut wrong = Vec::new();
    for Case(name, bytes, says) in cases {
        let (send, receive) = channel();
        let input = input.clone();
        let before = PANICS.load(Ordering::Relaxed);
        std::thread::spawn(move || send.send(outcome(&bytes, says, &input)));
        match receive.recv_timeout(HANGS_AFTER) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => wrong.push(format!("{name}: {e}")),
            Err(_) => wrong.push(format!("{name}: it panicked or hangs")),
        }
        if PANICS.load(Ordering::Relaxed) > before {
            wrong.push(format!("{name}: a panic is on stderr"));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// The tests share the panic hook and its counter.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner())
}

#[test]
fn truncated_and_overwritten_files() {
    let _one = alone();
    let whole = tokenizer().to_string().into_bytes();
    let mut cases = Vec::new();
    for k in 0..40 {
        let at = whole.len() * k / 40;
        cases.push(Case(
            format!("cut at {at}"),
            whole[..at].to_vec(),
            Some("not a tokenizer.json"),
        ));
    }
    let mut draw = Draw(7);
    for k in 0..60 {
        let mut bytes = whole.clone();
        let at = draw.below(bytes.len());
        match k % 4 {
            0 => bytes[at] = b' ' + draw.below(95) as u8,
            1 => drop(bytes.drain(at..(at + 1 + draw.below(40)).min(whole.len()))),
            2 => {
                let piece = bytes[at..(at + 40).min(whole.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes[at] = 0x80 | draw.below(128) as u8,
        }
        cases.push(Case(format!("bytes {k} at {at}"), bytes, None));
    }
    let text = String::from_utf8(whole).unwrap();
    cases.push(Case(
        "BOM".into(),
        format!("\u{feff}{text}").into_bytes(),
        Some("not a tokenizer.json"),
    ));
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    cases.push(Case("UTF-16".into(), utf16, Some("UTF-8")));
    cases.push(Case("brackets".into(), vec![b'['; 2 << 20], Some("not a tokenizer.json")));
    cases.push(Case(
        "two".into(),
        format!("{text}{text}").into_bytes(),
        Some("not a tokenizer.json"),
    ));
    cases.push(Case(
        "two models".into(),
        text.replacen("\"model\"", "\"model\":{},\"model\"", 1).into_bytes(),
        None,
    ));
    check(cases);
}

#[test]
fn wrong_types_in_every_part() {
    let _one = alone();
    let mut cases = Vec::new();
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e9),
        json!(4294967295u64),
        json!(18446744073709551615u64),
        json!(""),
        json!("x"),
        json!([]),
        json!({}),
        json!([[]]),
        json!({"type": "Sequence"}),
        json!({"type": "Nothing"}),
    ];
    for (k, at) in [
        "/version",
        "/truncation",
        "/padding",
        "/added_tokens",
        "/added_tokens/0",
        "/added_tokens/0/id",
        "/added_tokens/0/content",
        "/added_tokens/0/special",
        "/added_tokens/0/lstrip",
        "/added_tokens/0/normalized",
        "/normalizer",
        "/pre_tokenizer",
        "/pre_tokenizer/type",
        "/pre_tokenizer/pretokenizers",
        "/pre_tokenizer/pretokenizers/0",
        "/pre_tokenizer/pretokenizers/1/add_prefix_space",
        "/post_processor",
        "/decoder",
        "/decoder/type",
        "/model",
        "/model/type",
        "/model/vocab",
        "/model/vocab/a",
        "/model/merges",
        "/model/merges/0",
        "/model/merges/0/0",
        "/model/dropout",
        "/model/unk_token",
        "/model/continuing_subword_prefix",
        "/model/end_of_word_suffix",
        "/model/byte_fallback",
        "/model/ignore_merges",
    ]
    .iter()
    .enumerate()
    {
        // Each place has a third of the values, so that all places and values occur.
        for (j, value) in values.iter().enumerate().filter(|(j, _)| (j + k) % 3 == 0) {
            cases.push(Case(format!("{at} = {} ({j})", value), with(at, value.clone()), None));
        }
    }
    check(cases);
}

#[test]
fn ids_that_contradict_or_are_out_of_range() {
    let _one = alone();
    let case = |name: &str, bytes, says| Case(name.to_string(), bytes, Some(says));
    let mut duplicate = tokenizer();
    duplicate["added_tokens"][1]["content"] = json!("<|endoftext|>");
    let mut moved = tokenizer();
    moved["added_tokens"][2]["id"] = json!(900);
    check(vec![
        case("negative", with("/model/vocab/a", json!(-1)), "in its model: invalid value"),
        case("fraction", with("/model/vocab/a", json!(1.5)), "in its model: invalid type"),
        case("2^31", with("/model/vocab/a", json!(1u64 << 31)), "the id 2147483648"),
        case("u32", with("/model/vocab/a", json!(u32::MAX)), "the id 4294967295"),
        case("2^32", with("/model/vocab/a", json!(1u64 << 32)), "in its model: invalid value"),
        case(
            "far",
            with("/model/vocab/a", json!(1_000_000)),
            "the id 1000000, but it has 823 tokens",
        ),
        case("far added", with_added(vec![added(2_000_000_000, "<far>")]), "the id 2000000000"),
        case(
            "added 2^31",
            with_added(vec![added(1 << 31, "<far>")]),
            "\"<far>\" has the id 2147483648",
        ),
        case("added 2^32", with_added(vec![added(1 << 32, "<far>")]), "in its added_tokens: "),
        case(
            "gap",
            with_added(vec![added(5000, "<gap>")]),
            "\"<gap>\" has the id 5000, but the tokenizers library gives it 820",
        ),
        case("taken", with_added(vec![added(30, "<taken>")]), "\"<taken>\" has the id 30, but"),
        case(
            "same id",
            with_added(vec![added(820, "<a>"), added(820, "<b>")]),
            "\"<a>\" and \"<b>\" both have the id 820",
        ),
        case(
            "two ids",
            with_added(vec![added(820, "<a>"), added(821, "<a>")]),
            "\"<a>\" has two ids, 820 and 821",
        ),
        case(
            "duplicate",
            duplicate.to_string().into_bytes(),
            "\"<|endoftext|>\" has two ids, 0 and 1",
        ),
        case("moved", moved.to_string().into_bytes(), "\"<|im_end|>\" has the id 900, but"),
        case(
            "long token",
            with_added(vec![added(820, &"x".repeat(5000))]),
            "has 5000 bytes; the limit is 1024",
        ),
        Case(
            "10,000 added tokens".into(),
            with_added((0..10_000).map(|i| added(820 + i, &format!("<|extra_{i}|>"))).collect()),
            None,
        ),
        Case("empty token".into(), with_added(vec![added(820, "")]), None),
        Case("control".into(), with_added(vec![added(820, "\u{0}\n ")]), None),
    ]);
}

/// Values of a tokenizer exchanged at random places.
#[test]
fn values_exchanged() {
    let _one = alone();
    fn pointers(v: &Value, at: &str, out: &mut Vec<String>) {
        out.push(at.to_string());
        match v {
            // Of long lists and maps only the first entries.
            Value::Object(o) => o.iter().take(12).for_each(|(k, v)| {
                pointers(v, &format!("{at}/{}", k.replace('~', "~0").replace('/', "~1")), out)
            }),
            Value::Array(a) => a
                .iter()
                .take(3)
                .enumerate()
                .for_each(|(k, v)| pointers(v, &format!("{at}/{k}"), out)),
            _ => {}
        }
    }
    let (original, mut places, mut draw) = (tokenizer(), Vec::new(), Draw(11));
    pointers(&original, "", &mut places);
    let mut cases = Vec::new();
    for k in 0..100 {
        let mut t = original.clone();
        for _ in 0..1 + k % 3 {
            let [from, to] = [0; 2].map(|_| &places[1 + draw.below(places.len() - 1)]);
            let value = original.pointer(from).unwrap().clone();
            if let Some(place) = t.pointer_mut(to) {
                *place = value;
            }
        }
        cases.push(Case(format!("exchange {k}"), t.to_string().into_bytes(), None));
    }
    check(cases);
}

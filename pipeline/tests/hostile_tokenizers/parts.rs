//! Hostile normalizers, pre-tokenizers, models, post-processors and decoders.

use super::{Case, alone, check, tokenizer, with};
use serde_json::{Value, json};

#[test]
fn normalizers_and_pre_tokenizers() {
    let _one = alone();
    let mut cases = Vec::new();
    let regex = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    for pattern in [
        "(",
        "[",
        "*",
        "(?<",
        "(?<=a*)b",
        "\\p{Nothing}",
        "",
        "^",
        "(?:)",
        "(a+)+$",
        "(?:a|aa)+$",
        "((a{0,100}){0,100}){0,100}",
        "\\1",
        "(?R)",
        "\\",
        "[z-a]",
        "(?i",
        "a{99999999999}",
        "\u{0}",
        "(?<n>a)\\k<m>",
        "\\x{110000}",
        "[[:nothing:]]",
    ] {
        cases.push(Case(format!("Split {pattern}"), with("/pre_tokenizer", regex(pattern)), None));
        let replace = json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"});
        cases.push(Case(format!("Replace {pattern}"), with("/normalizer", replace), None));
    }
    let replace = |old: &str, n: usize| json!({"type": "Replace", "pattern": {"String": old}, "content": "a".repeat(n)});
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    let nested = |n: usize| (0..n).fold(json!({"type": "NFC"}), |inner, _| sequence(vec![inner]));
    let pre = |n: usize| {
        (0..n).fold(regex("a"), |inner, _| json!({"type": "Sequence", "pretokenizers": [inner]}))
    };
    for (name, normalizer, says) in [
        ("grow 2000", replace("a", 2000), "its normalizer may make 2000 bytes"),
        ("grow nothing", replace("", 2000), "its normalizer may make 2001 bytes"),
        (
            "grow nested",
            sequence(vec![replace("a", 1000), sequence(vec![replace("a", 1000)])]),
            "make 1000000 bytes",
        ),
        ("grow 50 times", sequence(vec![replace("a", 2); 50]), "its normalizer may make"),
        ("grow beyond numbers", sequence(vec![replace("a", 200); 200]), "its normalizer may make"),
        ("prepend", json!({"type": "Prepend", "prepend": "a".repeat(2000)}), "make 2001 bytes"),
        ("nested 30", nested(30), "more than 16 deep"),
        (
            "steps",
            sequence(vec![json!({"type": "Strip", "strip_left": true, "strip_right": true}); 400]),
            "more than 256 steps",
        ),
    ] {
        cases.push(Case(name.into(), with("/normalizer", normalizer), Some(says)));
    }
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    cases.push(Case(
        "ByteLevel 30 times".into(),
        with("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![bytes; 30]})),
        Some("its pre_tokenizer may make 1073741824 bytes"),
    ));
    cases.push(Case(
        "decoder grows 30 times".into(),
        with("/decoder", json!({"type": "Sequence", "decoders": vec![replace("a", 2); 30]})),
        Some("its decoder may make 1073741824 bytes"),
    ));
    cases.push(Case(
        "pre-tokenizers 30".into(),
        with("/pre_tokenizer", pre(30)),
        Some("more than 16 deep"),
    ));
    let deep = format!(
        "{}{}",
        "{\"type\":\"Sequence\",\"normalizers\":[".repeat(100_000),
        "]}".repeat(100_000)
    );
    let text = tokenizer().to_string().replacen(
        "\"normalizer\":null",
        &format!("\"normalizer\":{deep}"),
        1,
    );
    cases.push(Case(
        "nested 100,000".into(),
        text.into_bytes(),
        Some("in its normalizer: recursion limit"),
    ));
    for normalizer in [
        replace("", 1),
        replace("", 0),
        replace("a", 0),
        sequence(vec![]),
        json!({"type": "Prepend", "prepend": ""}),
        json!({"type": "StripAccents"}),
        json!({"type": "Nmt"}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": true, "lowercase": true}),
    ] {
        cases.push(Case(format!("{normalizer}"), with("/normalizer", normalizer), None));
    }
    for charsmap in
        ["", "AAAA", "AAAAAA==", "/////w==", "AAEAAA==", "?", "AAQAAAAA", "BAAAAP////8="]
    {
        let normalizer = json!({"type": "Precompiled", "precompiled_charsmap": charsmap});
        cases.push(Case(
            format!("charsmap {charsmap}"),
            with("/normalizer", normalizer),
            Some("(Precompiled) is damaged"),
        ));
    }
    check(cases);
}

#[test]
fn models_processors_and_decoders() {
    let _one = alone();
    let mut cases = Vec::new();
    for (name, merges) in [
        ("none", json!([])),
        ("empty strings", json!([["", ""]])),
        ("empty left", json!([["", "a"]])),
        ("cyclic", json!([["a", "b"], ["ab", "a"], ["b", "a"], ["ba", "b"], ["aba", "ba"]])),
        ("itself", json!([["a", "a"], ["aa", "aa"], ["aaaa", "aaaa"]])),
        ("text", json!(["a b", "ab c"])),
        ("three", json!(["a b c"])),
        ("space", json!([" ", "  "])),
        ("mixed", json!(["a b", ["ab", "c"]])),
        ("unknown", json!([["qqq", "zzz"]])),
        ("long", json!([["a".repeat(100_000), "b"]])),
        ("repeated", Value::Array(vec![json!(["\"", ":"]); 2000])),
    ] {
        cases.push(Case(format!("merges {name}"), with("/model/merges", merges), None));
    }
    let long = "p".repeat(100_000);
    cases.push(Case(
        "prefix".into(),
        with("/model/continuing_subword_prefix", json!(long)),
        Some("continuing_subword_prefix of 100000 bytes"),
    ));
    cases.push(Case(
        "suffix".into(),
        with("/model/end_of_word_suffix", json!(long)),
        Some("end_of_word_suffix of 100000 bytes"),
    ));
    cases.push(Case(
        "short prefix".into(),
        with("/model/continuing_subword_prefix", json!("é")),
        None,
    ));
    cases.push(Case("unk".into(), with("/model/unk_token", json!("nothing")), None));
    cases.push(Case("fallback".into(), with("/model/byte_fallback", json!(true)), None));
    cases.push(Case("empty vocabulary".into(), with("/model/vocab", json!({})), None));
    let mut same = tokenizer();
    for (_, id) in same["model"]["vocab"].as_object_mut().unwrap() {
        *id = json!(id.as_u64().unwrap().min(5));
    }
    cases.push(Case("one id for all".into(), same.to_string().into_bytes(), None));
    let vocabulary: Vec<Value> = tokenizer()["model"]["vocab"]
        .as_object()
        .unwrap()
        .keys()
        .map(|k| json!([k, -1.0]))
        .collect();
    let mut listed = vocabulary.clone();
    listed[9] = json!(["q", "x"]);
    let ids = tokenizer()["model"]["vocab"].clone();
    for model in [
        json!({"type": "Unigram", "vocab": vocabulary, "unk_id": 0, "byte_fallback": false}),
        json!({"type": "Unigram", "vocab": vocabulary, "unk_id": null, "byte_fallback": true}),
        json!({"type": "Unigram", "vocab": vocabulary, "unk_id": 99999, "byte_fallback": false}),
        json!({"type": "Unigram", "vocab": listed, "unk_id": 0}),
        json!({"type": "Unigram", "vocab": [], "unk_id": null}),
        json!({"type": "Unigram", "vocab": [["", 0.0], ["a", 1e308], ["b", -1e308]], "unk_id": 0}),
        json!({"type": "WordPiece", "vocab": ids, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
        json!({"type": "WordPiece", "vocab": ids, "unk_token": "nothing", "continuing_subword_prefix": "", "max_input_chars_per_word": 0}),
        json!({"type": "WordPiece", "vocab": ids, "unk_token": "", "continuing_subword_prefix": "", "max_input_chars_per_word": 9_999}),
        json!({"type": "WordLevel", "vocab": ids, "unk_token": "nothing"}),
        json!({"type": "WordLevel", "vocab": {}, "unk_token": "nothing"}),
        json!({"type": "BPE"}),
        json!({"vocab": ids, "merges": []}),
    ] {
        let name: String =
            model.to_string().chars().rev().take(90).collect::<String>().chars().rev().collect();
        cases.push(Case(name, with("/model", model), None));
    }
    for characters in [10_001, 100_000_000_000, u64::MAX] {
        let model = json!({"type": "WordPiece", "vocab": ids, "unk_token": "<|endoftext|>", "continuing_subword_prefix": "##", "max_input_chars_per_word": characters});
        cases.push(Case(
            format!("words of {characters}"),
            with("/model", model),
            Some("max_input_chars_per_word of"),
        ));
    }
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let other = json!({"SpecialToken": {"id": "x", "type_id": 0}});
    for (single, says) in [
        (json!([]), "has the text 0 times"),
        (json!([other]), "has the text 0 times"),
        (json!([text, text]), "has the text 2 times"),
    ] {
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
        let sequence = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
        for value in [template, sequence] {
            let bytes = with("/post_processor", value);
            cases.push(Case(format!("single {single}"), bytes, Some(says)));
        }
    }
    for (at, value) in [
        (
            "/truncation",
            json!({"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}),
        ),
        (
            "/padding",
            json!({"strategy": {"Fixed": u64::MAX}, "direction": "Left", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": ""}),
        ),
        (
            "/post_processor",
            json!({"type": "BertProcessing", "sep": ["x", u32::MAX], "cls": ["y", 0]}),
        ),
        ("/post_processor", json!({"type": "ByteLevel"})),
        ("/decoder", json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})),
        ("/decoder", json!({"type": "Strip", "content": "", "start": u64::MAX, "stop": 0})),
        (
            "/decoder",
            json!({"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": true}),
        ),
        ("/decoder", json!({"type": "Fuse"})),
    ] {
        cases.push(Case(format!("{at} {value}"), with(at, value), None));
    }
    check(cases);
}

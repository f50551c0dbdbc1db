//! `dlm-train generate` as a program: what it prints, what it refuses, and that it gives the tokens
//! of the reference's decodes in the same number of passes.
//!
//! In: models and decodes of tests/fixtures, described in its README.md.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use dlm_test_support::fixtures;
use serde_json::{Value, json};

fn generate(model: &Path, arguments: &[&str]) -> Output {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command
        .args(["generate", "--device", "cpu", "--model"])
        .arg(model)
        .args(arguments)
        .output()
        .unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn ids(values: &Value) -> String {
    values.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}

/// Decodes every case of `decode_<model>.json` and returns how many there were.
fn agrees_with_the_reference(model: &str) -> usize {
    let dir = fixtures();
    let file = std::fs::read_to_string(dir.join(format!("decode_{model}.json"))).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let mask = file["mask_id"].to_string();
    // One call for all cases with the same options, their prompts in a file.
    let mut groups: BTreeMap<Vec<String>, Vec<&Value>> = BTreeMap::new();
    for case in file["cases"].as_array().unwrap() {
        let mut options = vec!["--mask-token-id".to_string(), mask.clone()];
        for (option, key) in [
            ("--max-new-tokens", "max_new_tokens"),
            ("--block-size", "block_size"),
            ("--sub-block-size", "small_block_size"),
            ("--threshold", "threshold"),
        ] {
            options.extend([option.to_string(), case[key].to_string()]);
        }
        let stop = case["stop_token"].as_i64().map_or("none".into(), |id| id.to_string());
        options.extend(["--stop-token-id".to_string(), stop]);
        // pass by pass, as the published code decodes
        options.extend(["--fuse-prefill", "false"].map(String::from));
        if case["use_block_cache"] == json!(true) {
            options.push("--sub-block-cache".into());
        }
        groups.entry(options).or_default().push(case);
    }
    let place = tempfile::tempdir().unwrap();
    let prompts = place.path().join("prompts.jsonl");
    for (options, cases) in &groups {
        let lines = cases.iter().map(|case| format!("{}\n", json!({"ids": case["prompt"]})));
        std::fs::write(&prompts, lines.collect::<String>()).unwrap();
        let mut arguments = vec!["--json", "--input", prompts.to_str().unwrap()];
        arguments.extend(options.iter().map(String::as_str));
        let answers = objects(&generate(&dir.join(model), &arguments));
        assert_eq!(answers.len(), cases.len());
        for (answer, case) in answers.iter().zip(cases) {
            let prompt = case["prompt"].as_array().unwrap();
            let expected = &case["expected"].as_array().unwrap()[prompt.len()..];
            assert_eq!(answer["prompt_ids"], case["prompt"], "{options:?}");
            assert_eq!(answer["completion_ids"], json!(expected), "{options:?}, prompt {prompt:?}");
            assert_eq!(answer["passes"], case["passes"], "{options:?}, prompt {prompt:?}");
            let rate = expected.len() as f64 / case["passes"]["total"].as_f64().unwrap();
            assert!((answer["tokens_per_forward"].as_f64().unwrap() - rate).abs() < 1e-9);
            assert_eq!(answer["mode"], "block");
            assert!(answer["seconds"].as_f64().unwrap() > 0.0);
            assert_eq!(answer["text"], Value::Null, "the folder has no tokenizer");
            each_pass_decides_the_sure_tokens(answer, case["threshold"].as_f64().unwrap());
        }
    }
    file["cases"].as_array().unwrap().len()
}

/// Every token was decided in a pass that took place, and of the tokens of one pass at most one was
/// not above the threshold: the most probable one, which is decided in any case.
fn each_pass_decides_the_sure_tokens(answer: &Value, threshold: f64) {
    let passes = answer["token_passes"].as_array().unwrap();
    let logprobs = answer["token_logprobs"].as_array().unwrap();
    let tokens = answer["completion_ids"].as_array().unwrap().len();
    assert_eq!((passes.len(), logprobs.len()), (tokens, tokens));
    let total = answer["passes"]["total"].as_u64().unwrap();
    let mut unsure: BTreeMap<u64, usize> = BTreeMap::new();
    for (pass, logprob) in passes.iter().zip(logprobs) {
        let pass = pass.as_u64().unwrap();
        assert!((1..=total).contains(&pass), "pass {pass} of {total}");
        if logprob.as_f64().unwrap().exp() <= threshold - 1e-6 {
            *unsure.entry(pass).or_default() += 1;
        }
    }
    assert!(unsure.values().all(|tokens| *tokens == 1), "{unsure:?}");
}

#[test]
fn ar_mode_decides_a_token_a_pass_and_passes_can_be_seen() {
    let model = fixtures().join("qwen2_peaky");
    let more = ["--ids", "3,4,5", "--max-new-tokens", "6", "--mode", "ar"];
    let answer = &objects(&generate(&model, &[&more[..], &["--json"]].concat()))[0];
    assert_eq!(answer["token_passes"], json!([1, 2, 3, 4, 5, 6]));
    let shown = generate(&model, &[&more[..], &["--show-passes"]].concat());
    let shown = String::from_utf8(shown.stdout).unwrap();
    let lines: Vec<&str> = shown.lines().collect();
    let ids: Vec<String> =
        answer["completion_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(lines.len(), 7, "{shown}");
    assert_eq!(lines[0], format!("1 [{} ]", ids[0]));
    assert_eq!(lines[2], format!("3 {} {} [{} ]", ids[0], ids[1], ids[2]));
}

#[test]
fn qwen2_tiny_agrees_with_the_reference() {
    assert!(agrees_with_the_reference("qwen2_tiny") >= 40);
}

#[test]
fn qwen2_peaky_agrees_with_the_reference() {
    assert!(agrees_with_the_reference("qwen2_peaky") >= 100);
}

#[test]
fn llama_tiny_agrees_with_the_reference() {
    assert!(agrees_with_the_reference("llama_tiny") >= 10);
}

#[test]
fn batches_do_not_change_answers() {
    let dir = fixtures();
    let place = tempfile::tempdir().unwrap();
    let input = place.path().join("prompts.jsonl");
    let prompts = [
        json!({"ids": [3, 4, 5]}),
        json!({"ids": (10..80).collect::<Vec<_>>(), "answer": "kept out"}),
        json!({"ids": [7]}),
    ];
    std::fs::write(&input, prompts.map(|prompt| prompt.to_string()).join("\n")).unwrap();
    let input = input.to_str().unwrap();
    for mode in [&["--mask-token-id", "319", "--threshold", "0.9"][..], &["--mode", "ar"]] {
        let run = |size: &str| {
            let fixed =
                ["--json", "--input", input, "--max-new-tokens", "64", "--batch-size", size];
            let mut found = objects(&generate(&dir.join("qwen2_peaky"), &[&fixed, mode].concat()));
            found.iter_mut().for_each(|object| object["seconds"] = Value::Null);
            found
        };
        let alone = run("1");
        assert_eq!(alone.len(), 3);
        assert_eq!(alone, run("3"), "{mode:?}");
        assert_eq!(alone, run("2"), "{mode:?}");
    }
}

/// A limit on new tokens costs nothing: the largest possible one gives the same result as a
/// sensible one, in little memory, in both modes.
#[test]
fn a_limit_without_end_is_no_limit() {
    let dir = fixtures();
    let model = dir.join("qwen2_peaky");
    for mode in [&["--mask-token-id", "319", "--threshold", "0.9"][..], &["--mode", "ar"]] {
        // The sixth generated token becomes the stop token.
        let free = objects(&generate(
            &model,
            &[
                &["--json", "--ids", "304", "--max-new-tokens", "64", "--stop-token-id", "none"],
                mode,
            ]
            .concat(),
        ));
        let stop = free[0]["completion_ids"][5].to_string();
        let run = |limit: &str| {
            let fixed =
                ["--json", "--ids", "304", "--stop-token-id", &stop, "--max-new-tokens", limit];
            let mut object = objects(&generate(&model, &[&fixed, mode].concat())).remove(0);
            object["seconds"] = Value::Null;
            object
        };
        assert_eq!(run("64"), run("18446744073709551615"), "{mode:?}");
        assert_eq!(run("64")["stopped"], json!(true));
    }
    // Beyond the cache's initial size, a completion continues as it does from a prompt of that
    // length.
    let long = objects(&generate(
        &model,
        &[
            "--json",
            "--ids",
            "304",
            "--mode",
            "ar",
            "--max-new-tokens",
            "1100",
            "--stop-token-id",
            "none",
        ],
    ));
    let tokens = long[0]["completion_ids"].as_array().unwrap();
    assert_eq!(tokens.len(), 1100);
    let prompt = format!("304,{}", ids(&json!(tokens[..1000])));
    let rest = objects(&generate(
        &model,
        &[
            "--json",
            "--ids",
            &prompt,
            "--mode",
            "ar",
            "--max-new-tokens",
            "100",
            "--stop-token-id",
            "none",
        ],
    ));
    assert_eq!(rest[0]["completion_ids"], json!(tokens[1000..]));
}

/// Block size, mask token and stop tokens are read from a converted folder.
#[test]
fn a_converted_folder_speaks_for_itself() {
    let dir = fixtures();
    let place = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        std::fs::copy(dir.join("qwen2_peaky").join(file), place.path().join(file)).unwrap();
    }
    let put = |name: &str, value: Value| {
        std::fs::write(place.path().join(name), value.to_string()).unwrap()
    };
    put("dlm_config.json", json!({"bd_size": 16, "mask_token_id": 319}));
    put("generation_config.json", json!({"eos_token_id": [107, 245]}));
    let object =
        objects(&generate(place.path(), &["--json", "--ids", "304", "--threshold", "0.9"]))
            .remove(0);
    let completion = object["completion_ids"].as_array().unwrap();
    assert!(
        [json!(107), json!(245)].contains(completion.last().unwrap())
            && object["stopped"] == json!(true),
        "{object}"
    );
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(place.path().join("config.json")).unwrap())
            .unwrap();
    config["bd_size"] = json!(32);
    put("config.json", config);
    let output = generate(place.path(), &["--ids", "304"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("bd_size 16") && said.contains("says 32"), "{said}");
}

#[test]
fn refusals() {
    let dir = fixtures();
    for (arguments, words) in [
        (&["--ids", "1"][..], "names no mask token"),
        (&["--prompt", "hello"], "no tokenizer.json"),
        (&["--ids", "1,x", "--mode", "ar"], "not a token id"),
        (&["--ids", "1,320", "--mode", "ar"], "token 1 of the prompt is id 320"),
        (&["--ids", "", "--mode", "ar"], "no tokens"),
        (&["--ids", "1", "--mode", "ar", "--threshold", "0.5"], "--threshold has no meaning"),
        (&["--ids", "1", "--mode", "ar", "--blocks-in-flight", "2"], "has no meaning"),
        (&["--ids", "1", "--mask-token-id", "319", "--blocks-in-flight", "0"], "1 or more"),
        (&["--ids", "1", "--mask-token-id", "319", "--threshold", "1.5"], "0 to 1"),
        (&["--ids", "1", "--mask-token-id", "319", "--sub-block-size", "5"], "do not divide"),
        (&["--ids", "1", "--mask-token-id", "1000"], "mask token id is 1000"),
        (&["--ids", "1", "--mode", "ar", "--stop-token-id", "end"], "expected a token id"),
        (&["--ids", "1", "--mode", "ar", "--batch-size", "0"], "1 or more"),
        (&["--mode", "ar"], "required"),
        (&["--ids", "1", "--prompt", "x"], "cannot be used"),
    ] {
        let output = generate(&dir.join("qwen2_peaky"), arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(generate(Path::new("no/such/folder"), &["--ids", "1"]).status.code(), Some(2));
}

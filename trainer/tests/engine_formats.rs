//! Folders for inference engines by the real binary: what they hold, that our own loader reads
//! them, and what is refused before training and before anything is written. Python reads them in
//! tests/python/check_engine_formats.py.

#![allow(clippy::print_stdout, reason = "what Python compared")]

mod families;

use std::path::{Path, PathBuf};
use std::process::Command;

use dlm_test_support::{capture, repository};
use families::{MASK, VOCAB};
use serde_json::{Value, json};

const SDAR_MASK: i32 = 151_669;

/// Arguments that name a random model of `arch`, whose config.json is written.
fn random(dir: &Path, arch: &str, vocab: usize) -> [String; 2] {
    let file = dir.join(format!("{arch}-{vocab}.json"));
    let mut config = families::own_config(arch);
    config["vocab_size"] = json!(vocab);
    if vocab > VOCAB {
        // a table of 151,936 rows
        for (key, size) in [("hidden_size", 16), ("intermediate_size", 24), ("head_dim", 8)] {
            config[key] = json!(size);
        }
    }
    std::fs::write(&file, config.to_string()).unwrap();
    ["source.init=random".into(), format!("source.config={}", file.display())]
}

fn train(data: &Path, out: &Path, source: &[String; 2], more: &[&str]) -> families::Run {
    let source = source.iter().map(String::as_str);
    families::train(data, out, &source.chain(more.iter().copied()).collect::<Vec<_>>())
}

/// The logits of a folder for fixed ids.
fn logits(dir: &Path, folder: &str) -> Vec<u8> {
    let (ids, file) = (dir.join("ids.safetensors"), dir.join(format!("{folder}.logits")));
    let values: Vec<u8> = (0..48i64).flat_map(|i| ((i * 37 + 11) % 300).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![1, 48], &values);
    safetensors::serialize_to_file([("input_ids", view.unwrap())], None, &ids).unwrap();
    let folder = dir.join(folder);
    let [folder, ids, out] = [&folder, &ids, &file].map(|path| path.to_str().unwrap());
    let more = ["--case", ids, "--dump-logits", out];
    families::dlm_train(&[&["parity", "--device", "cpu", "--model", folder][..], &more].concat())
        .ok()
        .unwrap();
    std::fs::read(file).unwrap()
}

fn export(dir: &Path, run: &str, out: &str, format: &str) -> families::Run {
    let (run, out) = (dir.join(run), dir.join(out));
    let [run, out] = [&run, &out].map(|path| path.to_str().unwrap());
    families::dlm_train(&["export", run, "--out", out, "--format", format])
}

/// A fast-dllm folder has the keys of the published ones and a modeling file; our own loader reads
/// it, and its weights under the source's own architecture give the same logits.
#[test]
fn fast_dllm_folders_have_the_published_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let data = families::dataset(&path("data"), MASK, 8);
    for (arch, own) in [("Qwen2", "Qwen2ForCausalLM"), ("Llama", "LlamaForCausalLM")] {
        let (out, hf) = (format!("{arch}-out"), format!("{arch}-hf"));
        let source = random(dir.path(), arch, VOCAB);
        train(&data, &path(&out), &source, &["export.format=fast-dllm"]).ok().unwrap();
        let config = families::read_json(&path(&out).join("config.json"));
        for (key, expected) in [
            ("architectures", json!(["Fast_dLLM_QwenForCausalLM"])),
            ("model_type", json!("Fast_dLLM_Qwen")),
            ("bd_size", json!(8)),
            ("mask_token_id", json!(MASK)),
            ("pad_token_id", json!(0)),
            ("conplemenrary_mask", json!(true)),
            ("layer_types", json!(["full_attention", "full_attention"])),
            ("head_dim", json!(16)),
            ("rope_theta", json!(1e4)),
            ("rope_scaling", Value::Null),
            (
                "auto_map",
                json!({
                    "AutoConfig": "modeling.Fast_dLLM_QwenConfig",
                    "AutoModel": "modeling.Fast_dLLM_QwenModel",
                    "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
                }),
            ),
        ] {
            assert_eq!(config[key], expected, "{arch}: {key}");
        }
        let modeling = std::fs::read_to_string(path(&out).join("modeling.py")).unwrap();
        assert!(modeling.contains("class Fast_dLLM_QwenForCausalLM"));
        let record = families::read_json(&path(&out).join("dlm_config.json"));
        assert_eq!((&record["bd_size"], record.get("token_shift")), (&json!(8), None), "{arch}");
        let biases = families::tensors(&path(&out));
        let biases: Vec<_> = biases.iter().filter(|(name, _)| name.ends_with(".bias")).collect();
        assert_eq!(biases.len(), 2 * 3, "{arch}: q, k and v of two layers");
        let source = format!("source.path={}", path(&out).display());
        families::train(&data, &path(&format!("{arch}-next")), &[&source]).ok().unwrap();
        export(dir.path(), &out, &hf, "hf").ok().unwrap();
        let config = families::read_json(&path(&hf).join("config.json"));
        assert_eq!((&config["architectures"], config.get("auto_map")), (&json!([own]), None));
        assert!(!path(&hf).join("modeling.py").exists());
        assert!(logits(dir.path(), &out) == logits(dir.path(), &hf), "{arch}");
        // the other way round: what was written as hf is replaced whole
        export(dir.path(), &out, &hf, "fast-dllm").ok().unwrap();
        assert!(path(&hf).join("modeling.py").exists());
        export(dir.path(), &out, &hf, "hf").ok().unwrap();
        assert!(!path(&hf).join("modeling.py").exists(), "{arch}: a file of another format");
    }
}

/// `dlm-train generate` with a model and options of its own, and the same as arguments of the
/// modeling file's `generate`: completions for prompts of several lengths.
fn completions(model: &Path, cases: &Path, block: usize) {
    let mut listed = Vec::new();
    let options = [(64, 0.9, None), (20, 0.5, Some(block)), (7, 0.3, None), (33, 1.0, None)];
    for (i, (new, threshold, small)) in options.into_iter().enumerate() {
        let (limit, sure) = (new.to_string(), threshold.to_string());
        let name = model.to_str().unwrap();
        let mut call = vec!["generate", "--model", name, "--json", "--device", "cpu"];
        call.extend(["--max-new-tokens", &limit, "--threshold", &sure, "--stop-token-id", "245"]);
        let sub = small.map(|size| size.to_string());
        call.extend(sub.iter().flat_map(|size| ["--sub-block-size", size]));
        let named = json!({
            "max_new_tokens": new, "threshold": threshold, "small_block_size": small, "stop_token": 245,
        });
        let lengths = [1, 3, block, block + 1, 2 * block, 2 * block + 3].into_iter();
        let prompts = lengths.map(|len| {
            let ids: Vec<_> = (0..len).map(|j| (i * 29 + j * 37 + j * j) % 300).collect();
            json!({"ids": ids}).to_string() + "\n"
        });
        let file = cases.with_extension("jsonl");
        std::fs::write(&file, prompts.collect::<String>()).unwrap();
        call.extend(["--input", file.to_str().unwrap()]);
        let done = families::dlm_train(&call).ok().unwrap().json_lines().unwrap();
        assert_eq!(done.len(), 6);
        listed.extend(done.iter().map(|one| {
            json!({
                "options": named, "prompt_ids": one["prompt_ids"], "completion_ids": one["completion_ids"],
            })
        }));
    }
    std::fs::write(cases, json!({"cases": listed}).to_string()).unwrap();
}

/// Runs a check in Python, which prints what it compared.
fn python(interpreter: &Path, home: &Path, script: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(interpreter);
    command.arg(repository().join("tests/python").join(script)).args(arguments);
    // modeling files are copied into a cache before they are imported
    let run = capture(command.env("HF_HOME", home).env("HF_HUB_OFFLINE", "1")).unwrap();
    println!("{}", run.stdout.trim());
    run.ok().unwrap().stdout
}

/// The folders load in transformers 4 and 5 with the modeling file that we wrote, and decode to the
/// same tokens as here; SGLang's and LMDeploy's tables take the sdar folder.
#[test]
fn python_decodes_the_same_tokens() {
    let packages = ["torch", "transformers", "safetensors"];
    let interpreters: Vec<(&str, PathBuf)> = ["DLM_PYTHON", "DLM_PYTHON_TRANSFORMERS4"]
        .into_iter()
        .filter_map(|name| Some((name, dlm_test_support::python::named(name, &packages)?)))
        .collect();
    if interpreters.is_empty() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_string();
    let data = families::dataset(&path("data"), MASK, 8);
    let peaky = format!("source.path={}", families::fixtures().join("qwen2_peaky").display());
    let arguments = [peaky.as_str(), "export.format=fast-dllm", "optim.lr=1e-6"];
    families::train(&data, &path("fast"), &arguments).ok().unwrap();
    export(dir.path(), "fast", "fast-plain", "hf").ok().unwrap();
    let llama = random(dir.path(), "Llama", VOCAB);
    train(&data, &path("llama"), &llama, &["export.format=fast-dllm"]).ok().unwrap();
    export(dir.path(), "llama", "llama-plain", "hf").ok().unwrap();
    let data = families::dataset(&path("data4"), SDAR_MASK, 4);
    let qwen3 = random(dir.path(), "Qwen3", 151_936);
    let more = ["conversion=sdar", "train.micro_batch_rows=2", "train.eval_every=0"];
    train(&data, &path("sdar"), &qwen3, &more).ok().unwrap();
    export(dir.path(), "sdar", "sdar-plain", "hf").ok().unwrap();
    for (folder, block) in [("fast", 8), ("llama", 8), ("sdar", 4)] {
        completions(&path(folder), &path(&format!("{folder}.json")), block);
    }
    for (name, interpreter) in &interpreters {
        let folders = [text("fast"), text("llama"), text("sdar")];
        let arguments = folders.each_ref().map(String::as_str);
        let said = python(interpreter, &path(name), "check_engine_formats.py", &arguments);
        let version = if *name == "DLM_PYTHON" { "" } else { "transformers 4." };
        assert!(said.contains(version), "{name} is another version: {said}");
    }
    let mut arguments = vec![text("sdar")];
    match std::env::var("DLM_ENGINE_PACKAGES") {
        Ok(packages) => arguments.extend(["--packages".to_string(), packages]),
        Err(_) => dlm_test_support::skip(
            "the sources of sglang and lmdeploy (DLM_ENGINE_PACKAGES); tables as published are used",
        ),
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    python(&interpreters[0].1, &path("home"), "check_sdar_folder.py", &arguments);
}

/// The same for sdar; the key `token_shift` is in both files, and a folder trained further keeps
/// it.
#[test]
fn sdar_folders_have_the_published_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let data = families::dataset(&path("data"), SDAR_MASK, 4);
    let source = random(dir.path(), "Qwen3", 151_936);
    let more = ["conversion=sdar", "train.micro_batch_rows=2", "train.eval_every=0"];
    train(&data, &path("out"), &source, &more).ok().unwrap();
    let config = families::read_json(&path("out").join("config.json"));
    for (key, expected) in [
        ("architectures", json!(["SDARForCausalLM"])),
        ("model_type", json!("sdar")),
        ("bd_size", json!(4)),
        ("mask_token_id", json!(SDAR_MASK)),
        ("token_shift", json!(false)),
        ("rope_theta", json!(1e4)),
        (
            "auto_map",
            json!({
                "AutoConfig": "modeling_sdar.SDARConfig",
                "AutoModel": "modeling_sdar.SDARModel",
                "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
            }),
        ),
    ] {
        assert_eq!(config[key], expected, "{key}");
    }
    assert!(path("out").join("modeling_sdar.py").is_file());
    let record = families::read_json(&path("out").join("dlm_config.json"));
    assert_eq!((&record["token_shift"], &record["bd_size"]), (&json!(false), &json!(4)));
    export(dir.path(), "out", "hf", "hf").ok().unwrap();
    let config = families::read_json(&path("hf").join("config.json"));
    assert_eq!(config["architectures"], json!(["Qwen3ForCausalLM"]));
    assert_eq!((&config["token_shift"], config.get("auto_map")), (&json!(false), None));
    assert!(logits(dir.path(), "out") == logits(dir.path(), "hf"));
    // Qwen3's layers have no place in Fast_dLLM_Qwen, and nothing is written
    let refused = export(dir.path(), "out", "no", "fast-dllm").expect(2).unwrap().stderr;
    assert!(refused.contains("without the token shift"), "{refused}");
    assert!(!path("no").join("config.json").exists());
    // null follows the source, and what contradicts it is said
    let source = format!("source.path={}", path("out").display());
    let more = ["train.micro_batch_rows=2", "train.eval_every=0"];
    let arguments = [&[source.as_str()][..], &more].concat();
    let kept = families::train(&data, &path("kept"), &arguments).ok().unwrap();
    assert!(!kept.stderr.contains("conversion.token_shift="), "{}", kept.stderr);
    let kept = families::read_json(&path("kept").join("config.json"));
    assert_eq!((&kept["token_shift"], &kept["model_type"]), (&json!(false), &json!("qwen3")));
    let arguments = [&arguments[..], &["conversion.token_shift=true"]].concat();
    let back = families::train(&data, &path("back"), &arguments).ok().unwrap();
    assert!(back.stderr.contains("at its own position; this run trains it"), "{}", back.stderr);
    let back = families::read_json(&path("back").join("config.json"));
    assert_eq!(back.get("token_shift"), None, "a shifted model says nothing");
    // a published folder says neither mask id nor block size nor shift: they are SDAR's
    let file = path("out").join("config.json");
    let mut config = families::read_json(&file);
    for key in ["bd_size", "mask_token_id", "token_shift"] {
        config.as_object_mut().unwrap().shift_remove(key);
    }
    std::fs::write(&file, config.to_string()).unwrap();
    let prompt =
        ["generate", "--model", path("out").to_str().unwrap(), "--ids", "1,2,3"].map(String::from);
    let generate = |more: &[&str]| {
        let prompt = prompt.iter().map(String::as_str);
        families::dlm_train(&prompt.chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let limit = ["--json", "--max-new-tokens", "9", "--stop-token-id", "none"];
    let stated = generate(&limit).ok().unwrap().json().unwrap();
    std::fs::remove_file(path("out").join("dlm_config.json")).unwrap();
    let published = generate(&limit).ok().unwrap().json().unwrap();
    assert_eq!(published["completion_ids"], stated["completion_ids"]);
    assert_eq!(published["passes"], stated["passes"]);
    assert!(generate(&["--mode", "ar"]).stderr.contains("without the token shift"));
    let other = families::dataset(&path("other"), 151_700, 4);
    let refused = families::train(&other, &path("mixed"), &arguments).stderr;
    assert!(refused.contains("converted with mask id 151669"), "{refused}");
}

/// What does not fit is refused by name, before training.
#[test]
fn what_does_not_fit_a_format_is_refused_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let data = families::dataset(&dir.path().join("data"), MASK, 8);
    let shiftless = "conversion.token_shift=false";
    for (arch, more, said) in [
        ("Qwen3", vec!["export.format=fast-dllm"], "this model is Qwen3"),
        ("BitNet", vec!["export.format=fast-dllm"], "this model is BitNet with another activation"),
        ("Qwen2", vec!["export.format=fast-dllm", shiftless], "export.format=sdar"),
        ("Qwen2", vec!["export.format=fast-dllm", "conversion.objective=sft"], "causal model"),
        ("Qwen2", vec!["export.format=fast-dllm", "conversion.bitlinear=on"], "BitLinear"),
        ("Qwen2", vec!["export.format=sdar", shiftless], "this model is Qwen2"),
        ("Qwen3", vec!["export.format=sdar"], "trained with the token shift"),
        ("Qwen3", vec!["export.format=sdar", shiftless], "take 151669 for the mask token"),
        (
            "Qwen3",
            vec!["conversion=sdar", "conversion.bd_size=8"],
            "conversion.mask_token_id is 151669",
        ),
        ("Qwen3", vec!["conversion=sdar"], "conversion.bd_size is 4"),
        ("Qwen3", vec![shiftless, "conversion.objective=sft"], "conversion.token_shift"),
    ] {
        let source = random(dir.path(), arch, VOCAB);
        let out = dir.path().join("out");
        let ran = train(&data, &out, &source, &more);
        assert_ne!(ran.code, Some(0), "{arch} {more:?}");
        assert!(ran.stderr.contains(said), "{arch} {more:?}: {}", ran.stderr);
        assert!(!out.join("metrics.jsonl").exists(), "{arch} {more:?}: it trained");
    }
}

/// A model without the token shift has no autoregressive mode, files that disagree are refused, and
/// a checkpoint goes on as it began.
#[test]
fn models_without_the_token_shift() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let data = families::dataset(&path("data"), MASK, 8);
    let source = random(dir.path(), "Llama", VOCAB);
    let shiftless = "conversion.token_shift=false";
    train(&data, &path("out"), &source, &[shiftless, "train.save_every=2"]).ok().unwrap();
    let out = path("out").to_str().unwrap().to_string();
    let generate = |more: &[&str]| {
        let ids = ["generate", "--model", &out, "--ids", "1,2,3", "--json"];
        families::dlm_train(&[&ids[..], more].concat())
    };
    let done = generate(&["--max-new-tokens", "11", "--stop-token-id", "none"]).ok().unwrap();
    let done = done.json().unwrap();
    assert_eq!(done["completion_ids"].as_array().unwrap().len(), 11, "{done}");
    let refused = generate(&["--mode", "ar"]).expect(2).unwrap().stderr;
    assert!(refused.contains("without the token shift"), "{refused}");
    let data_name = data.to_str().unwrap();
    let eval = ["eval", "--model", &out, "--data", data_name, "--device", "cpu", "--json"];
    let report = families::dlm_train(&eval).ok().unwrap().json().unwrap();
    assert!(report["block_diffusion_loss"].is_f64() && report["causal_loss"].is_null(), "{report}");
    // resuming needs the same
    let shifted = ["conversion.token_shift=true", "train.max_steps=4"];
    let other = train(&data, &path("out"), &source, &shifted);
    assert_ne!(other.code, Some(0));
    assert!(
        other.stderr.contains("conversion.token_shift: was false, is true"),
        "{}",
        other.stderr
    );
    train(&data, &path("out"), &source, &[shiftless, "train.max_steps=4"]).ok().unwrap();
    let file = path("out").join("config.json");
    let mut config = families::read_json(&file);
    for (value, said) in
        [(json!(true), "token_shift false, config.json says true"), (json!(1), "token_shift is 1")]
    {
        config["token_shift"] = value;
        std::fs::write(&file, config.to_string()).unwrap();
        let refused = generate(&[]).stderr;
        assert!(refused.contains(said), "{refused}");
    }
}

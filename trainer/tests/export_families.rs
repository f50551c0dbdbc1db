//! Every family: trained for three steps by the real binary, exported, and read by our loader, by a
//! next run and by transformers.

#![allow(clippy::print_stdout, reason = "what a test measured")]

mod families;

use std::path::Path;
use std::process::Command;

use dlm_test_support::{fixtures, python, repository};
use families::{EOS, MASK, VOCAB};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// A run: its name, overrides that choose its source, further overrides.
struct Run {
    name: String,
    source: Vec<String>,
    more: Vec<&'static str>,
}

/// A random model of each family, then the models of tests/fixtures.
fn runs(dir: &Path) -> Vec<Run> {
    let mut runs = Vec::new();
    for arch in ["Llama", "Qwen2", "Qwen3", "BitNet"] {
        let config = dir.join(format!("{arch}.json"));
        std::fs::write(&config, families::own_config(arch).to_string()).unwrap();
        let more = if arch == "BitNet" { vec!["conversion.bitlinear=on"] } else { vec![] };
        let source =
            vec!["source.init=random".to_string(), format!("source.config={}", config.display())];
        runs.push(Run { name: format!("random {arch}"), source, more });
    }
    let packed = Run {
        name: "random BitNet, packed".into(),
        source: runs[3].source.clone(),
        more: vec!["conversion.bitlinear=on", "export.format=packed-ternary"],
    };
    let biased = Run {
        name: "random Qwen2, packed".into(),
        source: runs[1].source.clone(),
        more: packed.more.clone(),
    };
    runs.extend([packed, biased]);
    for model in ["llama_tiny", "qwen2_tiny", "qwen3_tiny", "bitnet_tiny", "bitnet_tiny_packed"] {
        let source = vec![format!("source.path={}", fixtures().join(model).display())];
        runs.push(Run { name: model.into(), source, more: vec![] });
    }
    runs
}

fn train(data: &Path, out: &Path, run: &Run) {
    let more: Vec<&str> =
        run.source.iter().map(String::as_str).chain(run.more.iter().copied()).collect();
    families::train(data, out, &more).ok().unwrap();
}

/// Checks config.json, dlm_config.json, generation_config.json, tokenizer and tensors of an
/// exported folder.
fn check_folder(out: &Path, data: &Path, run: &Run) {
    let name = &run.name;
    let config = families::read_json(&out.join("config.json"));
    let source: Value = match run.source.last().unwrap().split_once('=').unwrap() {
        ("source.path", dir) => families::read_json(&Path::new(dir).join("config.json")),
        (_, file) => families::read_json(Path::new(file)),
    };
    assert_eq!(config["bd_size"], 8, "{name}");
    assert_eq!(config["mask_token_id"], MASK, "{name}");
    assert_eq!(config["vocab_size"], VOCAB, "{name}: the table had room for the mask token");
    // Every key of the source's config that there was no reason to change.
    for (key, value) in source.as_object().unwrap() {
        let ours = ["torch_dtype", "dtype", "eos_token_id", "pad_token_id", "quantization_config"]
            .contains(&key.as_str());
        assert!(ours || config[key] == *value, "{name}: {key} was {value}, is {}", config[key]);
    }
    let dtype = config.get("dtype").or(config.get("torch_dtype"));
    assert_eq!(dtype, Some(&json!("float32")), "{name}");
    assert!(
        config.get("dtype").is_none() || config.get("torch_dtype").is_none(),
        "{name}: both dialects at once"
    );

    let dlm = families::read_json(&out.join("dlm_config.json"));
    for (key, expected) in [
        ("bd_size", json!(8)),
        ("mask_token", json!("|<MASK>|")),
        ("mask_token_id", json!(MASK)),
        ("training_method", json!("fast-dllm-v2-sft")),
        ("objective", json!("block_diffusion")),
        ("steps", json!(3)),
        ("max_seq_length", json!(families::SEQ_LEN)),
    ] {
        assert_eq!(dlm[key], expected, "{name}: dlm_config.json, {key}");
    }
    // Two rows per step, each with 48 positions in documents, 4 of them block padding.
    assert_eq!(dlm["total_tokens_trained"], 3 * 2 * 44, "{name}");
    let given = run.source[0].strip_prefix("source.path=").unwrap_or("random");
    assert_eq!(dlm["source_checkpoint"], given, "{name}");
    for key in ["training_loss", "eval_loss"] {
        assert!(
            dlm[key].as_f64().is_some_and(|l| l > 1.0 && l < 30.0),
            "{name}: {key} is {}",
            dlm[key]
        );
    }
    assert!(dlm["data_fingerprint"].as_str().is_some_and(|f| f.len() >= 32), "{name}: {dlm}");

    let generation = families::read_json(&out.join("generation_config.json"));
    assert_eq!(generation["eos_token_id"], EOS, "{name}");
    assert_eq!(generation["pad_token_id"], 0, "{name}");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let (ours, theirs) = (
            std::fs::read(out.join(file)).unwrap(),
            std::fs::read(data.join("tokenizer").join(file)).unwrap(),
        );
        assert!(ours == theirs, "{name}: {file} is not the dataset's");
    }

    let stored = families::tensors(out);
    let packed = config["quantization_config"]["quantization_mode"] == "offline";
    let floats = stored.iter().filter(|(n, _)| !(packed && n.contains("_proj.weight")));
    assert!(floats.clone().all(|(_, (dtype, _))| dtype == "F32"), "{name}: {stored:?}");
    let untied = config["tie_word_embeddings"] == false;
    assert_eq!(stored.contains_key("lm_head.weight"), untied, "{name}");
    assert_eq!(stored["model.embed_tokens.weight"].1[0], VOCAB, "{name}");
    if let Some(dir) =
        run.source[0].strip_prefix("source.path=").filter(|d| !d.ends_with("_packed"))
    {
        let before = families::tensors(Path::new(dir));
        assert_eq!(stored, before, "{name}: names, types or shapes changed");
        assert_ne!(
            std::fs::read(out.join("model.safetensors")).unwrap(),
            std::fs::read(Path::new(dir).join("model.safetensors")).unwrap(),
            "{name}: nothing was learned"
        );
    }
}

/// Writes a parity case of input_ids alone, to compare logits on.
fn case(path: &Path) {
    let (rows, len) = (4usize, 24usize);
    let ids: Vec<u8> =
        (0..rows * len).flat_map(|i| (((i * i * 13 + i * 7) % 310) as i64).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![rows, len], &ids).unwrap();
    safetensors::serialize_to_file([("input_ids", view)], None, path).unwrap();
}

#[test]
fn every_family_exports_is_a_source_again_and_loads_in_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let data = families::dataset(&dir.path().join("data"), MASK, 8);
    let ids = dir.path().join("ids.safetensors");
    case(&ids);
    let (runs, mut cases) = (runs(dir.path()), Vec::new());
    for (i, run) in runs.iter().enumerate() {
        let (out, next) =
            (dir.path().join(format!("out-{i}")), dir.path().join(format!("next-{i}")));
        train(&data, &out, run);
        check_folder(&out, &data, run);
        let source = format!("source.path={}", out.display());
        families::train(&data, &next, &[&source]).ok().unwrap();
        assert_eq!(
            families::read_json(&next.join("dlm_config.json"))["source_checkpoint"],
            json!(out),
            "{}",
            run.name
        );

        let logits = dir.path().join(format!("logits-{i}.safetensors"));
        let folder = out.to_str().unwrap();
        let arguments = [
            "parity",
            "--device",
            "cpu",
            "--model",
            folder,
            "--case",
            ids.to_str().unwrap(),
            "--dump-logits",
            logits.to_str().unwrap(),
        ];
        families::dlm_train(&arguments).ok().unwrap();
        let config = families::read_json(&out.join("config.json"));
        let class = config["architectures"][0].clone();
        cases.push(json!({"name": run.name, "folder": out, "ids": ids, "logits": logits, "class": class, "quantized": config["quantization_config"].is_object()}));
    }
    let packages = ["torch", "transformers", "safetensors", "accelerate"];
    let Some(python) = python::with(&packages) else { return };
    let list = dir.path().join("cases.json");
    let script = repository().join("tests/python/check_families.py");
    let check = |cases: &Value| {
        std::fs::write(&list, cases.to_string()).unwrap();
        // The BitNet classes of transformers use torch.compile, which needs a C++ compiler on the
        // CPU.
        let out = Command::new(&python)
            .arg(&script)
            .arg(&list)
            .env("TORCHDYNAMO_DISABLE", "1")
            .env("HF_HUB_OFFLINE", "1")
            .env("CUDA_VISIBLE_DEVICES", "")
            .output()
            .unwrap();
        print!("{}", String::from_utf8_lossy(&out.stdout));
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, said) = check(&json!(cases));
    assert_eq!(code, Some(0), "{said}");
    // The comparison must be able to fail: another model's logits.
    cases[0]["logits"] = cases[1]["logits"].clone();
    let (code, said) = check(&json!([cases[0]]));
    assert_eq!(code, Some(1), "other logits were accepted");
    assert!(said.contains("random Llama"), "{said}");
}

#[test]
fn another_mask_id_or_block_size_is_refused_with_both_values() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let data = families::dataset(&path("data"), MASK, 8);
    let (mask, block) =
        (families::dataset(&path("mask"), 317, 8), families::dataset(&path("block"), MASK, 16));
    train(&data, &path("out"), &runs(dir.path())[0]);
    let source = format!("source.path={}", path("out").display());
    for (data, found, expected) in [(&mask, "317", "319"), (&block, "bd_size 16", "bd_size 8")] {
        let ran = families::train(data, &path("refused"), &[&source]);
        assert!(ran.code == Some(2) || ran.code == Some(1), "{:?}: {}", ran.code, ran.stderr);
        assert!(ran.stderr.contains(found) && ran.stderr.contains(expected), "{}", ran.stderr);
        assert!(!path("refused").join("config.json").exists());
    }
    // The same when the configuration asks for another block size.
    let ran = families::train(&data, &path("refused"), &[&source, "conversion.bd_size=32"]);
    assert!(
        ran.code != Some(0) && ran.stderr.contains("32") && ran.stderr.contains("bd_size 8"),
        "{}",
        ran.stderr
    );
}

#[test]
fn both_dialects_of_config_json_are_kept() {
    let fixtures = fixtures();
    let dir = tempfile::tempdir().unwrap();
    let data = families::dataset(&dir.path().join("data"), MASK, 8);
    for model in ["llama_tiny", "qwen2_tiny", "qwen3_tiny", "bitnet_tiny"] {
        let mut weights = Vec::new();
        for dialect in ["config.json", "config_v5.json"] {
            let (source, out) = (
                dir.path().join(format!("{model}-{dialect}-source")),
                dir.path().join(format!("{model}-{dialect}")),
            );
            std::fs::create_dir(&source).unwrap();
            std::fs::copy(
                fixtures.join(model).join("model.safetensors"),
                source.join("model.safetensors"),
            )
            .unwrap();
            std::fs::copy(fixtures.join(model).join(dialect), source.join("config.json")).unwrap();
            let run = Run {
                name: format!("{model} {dialect}"),
                source: vec![format!("source.path={}", source.display())],
                more: vec![],
            };
            train(&data, &out, &run);
            check_folder(&out, &data, &run);
            let config = families::read_json(&out.join("config.json"));
            assert_eq!(
                config.get("rope_parameters").is_some(),
                dialect == "config_v5.json",
                "{}: {config}",
                run.name
            );
            assert_eq!(
                config.get("dtype").is_some(),
                dialect == "config_v5.json",
                "{}: {config}",
                run.name
            );
            weights.push(std::fs::read(out.join("model.safetensors")).unwrap());
        }
        assert!(
            weights[0] == weights[1],
            "{model}: the dialects of its config gave different models"
        );
    }
}

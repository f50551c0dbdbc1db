//! Checkpoints as they are found: where config.json and tensors disagree, the loader does what
//! transformers does and says so, or refuses and names what was found and the way out.
//!
//! In: the models of tests/fixtures, changed. The right logits are those of the fixtures' cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dlm_test_support::{Run, capture, fixtures};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// fp32 tensors by name: shape and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A copy of a fixture model that a test changes.
struct Model {
    dir: tempfile::TempDir,
    config: Value,
    tensors: Tensors,
    case: PathBuf,
}

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    file.tensors()
        .into_iter()
        .filter(|(_, view)| view.dtype() == Dtype::F32)
        .map(|(name, view)| (name, (view.shape().to_vec(), values(view.data()))))
        .collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            (name.clone(), shape.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

impl Model {
    fn new(name: &str) -> Self {
        let from = fixtures().join(name);
        Model {
            dir: tempfile::tempdir().unwrap(),
            config: serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap(),
            tensors: read(&from.join("model.safetensors")),
            case: fixtures().join(format!("causal_{name}.safetensors")),
        }
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn without(mut self, keys: &[&str]) -> Self {
        for key in keys {
            self.config.as_object_mut().unwrap().shift_remove(*key);
        }
        self
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn parity(&self) -> Run {
        if !self.dir.path().join("config.json").exists() {
            self.put("config.json", &self.config.to_string());
        }
        if !self.dir.path().join("model.safetensors.index.json").exists() {
            write(&self.dir.path().join("model.safetensors"), &self.tensors);
        }
        self.parity_as_it_is()
    }

    fn parity_as_it_is(&self) -> Run {
        let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        command.args(["parity", "--device", "cpu", "--json", "--model"]).arg(self.dir.path());
        command.arg("--case").arg(&self.case);
        capture(&mut command).unwrap()
    }

    /// The logits are those of the case; returns what was said.
    fn right(&self) -> String {
        let run = self.parity();
        let said = run.stderr.clone();
        assert_eq!(run.ok().unwrap().json().unwrap()["ok"], true, "{}: {said}", self.config);
        said
    }

    /// Refused with these words and without a panic.
    fn refused(&self, words: &[&str]) {
        self.refused_run(self.parity(), words);
    }

    fn refused_run(&self, run: Run, words: &[&str]) {
        let said = run.stderr.clone();
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(run.code, Some(1), "{}: {said}{}", self.config, run.stdout);
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
    }
}

#[test]
fn a_tied_head_that_differs_is_not_tied() {
    let mut model = Model::new("llama_tiny");
    let (shape, values) = model.tensors["model.embed_tokens.weight"].clone();
    model.tensors.insert("lm_head.weight".into(), (shape.clone(), values.clone()));
    assert_eq!(model.right(), "", "equal tables stay tied");
    // twice the head, twice the logits
    let doubled = values.iter().map(|v| v * 2.0).collect();
    model.tensors.insert("lm_head.weight".into(), (shape, doubled));
    let mut case = read(&model.case);
    case.get_mut("logits").unwrap().1.iter_mut().for_each(|v| *v *= 2.0);
    let file = SafeTensors::deserialize;
    let bytes = fs::read(&model.case).unwrap();
    let original = file(&bytes).unwrap();
    let logits: Vec<u8> = case["logits"].1.iter().flat_map(|v| v.to_le_bytes()).collect();
    let ids = original.tensor("input_ids").unwrap();
    let mask = original.tensor("attention_mask").unwrap();
    let shape = case["logits"].0.clone();
    model.case = model.dir.path().join("case.safetensors");
    let views = [
        ("input_ids", ids),
        ("attention_mask", mask),
        ("logits", TensorView::new(Dtype::F32, shape, &logits).unwrap()),
    ];
    safetensors::serialize_to_file(views, None, &model.case).unwrap();
    let said = model.right();
    assert!(said.contains("lm_head.weight differs") && said.contains("not tied"), "{said}");
}

#[test]
fn the_base_of_the_rotary_embedding_is_found_in_every_dialect() {
    let theta = json!(100_000.0);
    let llama = || Model::new("llama_tiny").without(&["rope_theta", "rope_scaling"]);
    let inside = json!({"rope_type": "default", "rope_theta": theta});
    let other = json!({"rope_type": "default", "rope_theta": 7.0});
    let nested = json!({"full_attention": inside});
    for model in [
        llama().set("rope_scaling", inside.clone()),
        llama().set("rope_parameters", inside.clone()),
        llama().set("rope_parameters", json!({"rope_theta": theta})),
        llama().set("rope_scaling", json!({"type": "default", "rope_theta": 100_000})),
        llama().set("rope_scaling", json!({})).set("rope_parameters", inside.clone()),
        llama().set("rope_theta", theta.clone()).set("rope_scaling", json!({"type": "default"})),
        llama().set("rope_parameters", nested),
    ] {
        assert_eq!(model.right(), "");
    }
    let said = llama().set("rope_scaling", inside.clone()).set("rope_parameters", other).right();
    assert!(said.contains("rope_scaling is used"), "{said}");
    let said = llama().set("rope_theta", json!(7.0)).set("rope_parameters", inside.clone()).right();
    assert!(said.contains("rope_theta is 7") && said.contains("100000 is used"), "{said}");

    llama().set("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})).refused(&["yarn"]);
    llama().set("rope_scaling", json!("linear")).refused(&["rope_scaling", "expected an object"]);
    llama().set("rope_parameters", json!({"rope_theta": "10"})).refused(&["expected a number"]);
    llama().set("rope_parameters", json!({"rope_theta": 0.0})).refused(&["positive"]);
    llama()
        .set("partial_rotary_factor", json!(0.5))
        .set("rope_parameters", inside)
        .refused(&["partial_rotary_factor"]);
    llama()
        .set("rope_parameters", json!({"sliding_attention": {"rope_theta": 1.0}}))
        .refused(&["full_attention"]);
}

#[test]
fn keys_that_are_missing_are_those_of_the_family() {
    let keys = ["hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling"];
    assert_eq!(Model::new("bitnet_tiny").without(&keys).right(), "");
    // the head is not tied unless config.json says so
    Model::new("bitnet_tiny")
        .without(&["tie_word_embeddings"])
        .refused(&["missing (1): lm_head.weight", "tie_word_embeddings to true"]);
    let said = Model::new("llama_tiny").set("model_type", json!("qwen2")).parity().stderr;
    assert!(said.contains("transformers does"), "{said}");
}

#[test]
fn sliding_windows_that_are_off_do_not_matter() {
    let qwen = || {
        let model = Model::new("qwen2_tiny").without(&["layer_types"]);
        model.set("use_sliding_window", json!(true)).set("sliding_window", json!(16))
    };
    let full = json!(["full_attention", "full_attention"]);
    let mixed = json!(["full_attention", "sliding_attention"]);
    for model in [
        qwen().set("max_window_layers", json!(2)),
        qwen().set("max_window_layers", json!(0)).set("layer_types", full.clone()),
        qwen().set("max_window_layers", json!(0)).set("sliding_window", Value::Null),
        qwen().set("max_window_layers", json!(0)).set("sliding_window", json!(2048)),
        qwen().set("max_window_layers", json!(0)).set("use_sliding_window", json!(false)),
    ] {
        assert_eq!(model.right(), "");
    }
    qwen().set("max_window_layers", json!(1)).refused(&["sliding-window", "16 of 2048"]);
    qwen().set("layer_types", mixed.clone()).refused(&["sliding-window", "16 of 2048"]);
    qwen()
        .set("layer_types", mixed)
        .set("use_sliding_window", json!(false))
        .refused(&["layer_types", "use_sliding_window"]);
    qwen().set("layer_types", json!(["full_attention"])).refused(&["1 entries for 2 layers"]);
    qwen()
        .set("layer_types", json!(["linear_attention", "full_attention"]))
        .refused(&["linear_attention"]);
}

#[test]
fn modules_that_keep_full_precision_are_not_quantised() {
    let bitnet = |modules: Value| {
        let mut model = Model::new("bitnet_tiny");
        model.config["quantization_config"] = json!({
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
            "modules_to_not_convert": modules,
        });
        model
    };
    // with every module named, the model is the unquantised one
    assert_eq!(bitnet(json!(["lm_head", "_proj"])).right(), "");
    assert_eq!(bitnet(json!(["lm_head", "model.layers.*"])).right(), "");
    // an attention module's own name is not that of its projections
    let run = bitnet(json!(["lm_head", "self_attn", "mlp"])).parity();
    assert_eq!(run.json().unwrap()["ok"], false, "{}", run.stdout);
    bitnet(json!(["q_proj"])).refused(&["lm_head", "not implemented"]);
    bitnet(json!("q_proj")).refused(&["expected a list"]);
    bitnet(json!(["lm_head", "(q|k)_proj"])).refused(&["(q|k)_proj", "not understood"]);
}

#[test]
fn a_tensor_in_two_shards_is_that_of_the_last_one() {
    let model = Model::new("llama_tiny");
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let place = |file: &str| model.dir.path().join(file);
    let (mut first, mut second, mut map) = (Tensors::new(), Tensors::new(), serde_json::Map::new());
    for (i, (name, tensor)) in model.tensors.iter().enumerate() {
        let decoy = (tensor.0.clone(), vec![0.5; tensor.1.len()]);
        // what the first shard holds too is no right value
        first.insert(name.clone(), decoy);
        second.insert(name.clone(), tensor.clone());
        map.insert(name.clone(), json!(names[i % 2]));
    }
    write(&place(names[0]), &first);
    write(&place(names[1]), &second);
    let index = |map: &serde_json::Map<String, Value>| {
        model.put("model.safetensors.index.json", &json!({"weight_map": map}).to_string());
    };
    index(&map);
    let said = model.right();
    assert!(said.contains("the last one's is used, as in transformers 5"), "{said}");
    let mut partial = map.clone();
    partial.shift_remove("model.norm.weight");
    index(&partial);
    model.refused(&["model.norm.weight is in another shard too"]);
    first.remove("model.embed_tokens.weight");
    write(&place(names[0]), &first);
    index(&map);
    model.refused(&["model.embed_tokens.weight", "does not hold it"]);
    map.insert("model.norm.weight".into(), json!("../x.safetensors"));
    index(&map);
    model.refused(&["model.norm.weight", "plain file name"]);
}

#[test]
fn models_without_a_head_and_heads_without_a_table_are_read() {
    let mut base = Model::new("qwen2_tiny").set("architectures", json!(["Qwen2Model"]));
    base.tensors = std::mem::take(&mut base.tensors)
        .into_iter()
        .map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_string(), tensor))
        .collect();
    assert_eq!(base.right(), "");
    let mut twice = Model::new("qwen2_tiny");
    let norm = twice.tensors["model.norm.weight"].clone();
    twice.tensors.insert("norm.weight".into(), norm);
    twice.refused(&["not used", "norm.weight"]);
    let mut head = Model::new("llama_tiny");
    let table = head.tensors.remove("model.embed_tokens.weight").unwrap();
    head.tensors.insert("lm_head.weight".into(), table);
    assert_eq!(head.right(), "");
}

#[test]
fn numbers_that_json_does_not_know_are_read() {
    let model = Model::new("llama_tiny");
    let text = model.config.to_string();
    let with = |more: &str| model.put("config.json", &format!("{{{more}, {}", &text[1..]));
    with("\"foo\": Infinity, \"bar\": [NaN, -Infinity], \"text\": \"NaN\"");
    assert_eq!(model.right(), "");
    model.put("config.json", &text.replace("\"rms_norm_eps\":", "\"rms_norm_eps\": NaN, \"x\":"));
    model.refused(&["rms_norm_eps is \"NaN\"", "expected a number"]);
    model.put("config.json", &format!("\u{feff}{text}"));
    model.right();
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut model = Model::new("llama_tiny");
        let name = "model.layers.1.mlp.up_proj.weight";
        let values = &mut model.tensors.get_mut(name).unwrap().1;
        (values[96 + 5], values[500]) = (bad, bad);
        model.refused(&[name, "row 1, column 5", "2 of its", "take another checkpoint"]);
    }
}

#[test]
fn quantised_weights_are_called_so() {
    let mut model = Model::new("llama_tiny");
    for part in ["qweight", "qzeros", "scales", "g_idx"] {
        let name = format!("model.layers.0.mlp.up_proj.{part}");
        model.tensors.insert(name, (vec![2], vec![0.0; 2]));
    }
    model.tensors.remove("model.layers.0.mlp.up_proj.weight");
    model.put("quantize_config.json", r#"{"bits": 4, "quant_method": "gptq"}"#);
    model.refused(&["quantised", "model.layers.0.mlp.up_proj.g_idx", "gptq", "unquantised"]);
    Model::new("llama_tiny")
        .set("quantization_config", json!({"quant_method": "awq"}))
        .refused(&["awq", "unquantised"]);
}

#[test]
fn folders_that_are_no_model_folders_say_what_they_are() {
    let empty = || {
        let mut model = Model::new("llama_tiny");
        model.dir = tempfile::tempdir().unwrap();
        model
    };
    let adapter = r#"{"base_model_name_or_path": "org/base"}"#;
    for (files, words) in [
        (&[("adapter_config.json", adapter)][..], &["LoRA", "org/base", "merge"][..]),
        (&[("checkpoints", "")], &["not exported", "dlm-train export"]),
        (&[("state.json", "{}"), ("optimizer.safetensors", "")], &["--checkpoint"]),
        (&[("manifest.json", "{}")], &["packed dataset"]),
        (&[("model.gguf", "")], &["model.gguf", "save_pretrained"]),
        (&[("pytorch_model.bin", "")], &["pytorch_model.bin", "save_pretrained"]),
        (&[], &["no config.json", "Hugging Face model folder"]),
    ] {
        let model = empty();
        for (name, text) in files {
            model.put(name, text);
        }
        let run = model.parity_as_it_is();
        model.refused_run(run, words);
    }
    // the config is there, the weights are not
    for (name, words) in [
        ("adapter_model.safetensors", &["LoRA", "merge"][..]),
        ("pytorch_model.bin", &["no model.safetensors", "save_pretrained"]),
        ("model-00001-of-00002.safetensors", &["model-00001-of-00002.safetensors", "complete"]),
    ] {
        let model = empty();
        model.put("config.json", &model.config.to_string());
        model.put(name, "");
        let run = model.parity_as_it_is();
        model.refused_run(run, words);
    }
}

/// Every key that the code reads from config.json stands in the table of docs/loading.md.
#[test]
fn every_key_that_is_read_is_in_the_table() {
    let root = dlm_test_support::repository();
    let page = fs::read_to_string(root.join("docs/loading.md")).unwrap();
    let table = page.split("## config.json").nth(1).unwrap().split("## Weights").next().unwrap();
    let calls = [
        "opt_size(",
        "size(",
        "size_or(",
        "number(",
        "flag(",
        "text(",
        "ids(",
        "get(",
        "object(reader, ",
    ];
    let mut keys = std::collections::BTreeSet::new();
    for file in ["config", "config_reader", "rope_config"] {
        let path = root.join("trainer/src/model").join(file).with_extension("rs");
        let text = fs::read_to_string(path).unwrap();
        for call in calls {
            let opening = format!("{call}\"");
            let parts = text.split(&opening).skip(1);
            keys.extend(parts.map(|rest| rest.split('"').next().unwrap().to_string()));
        }
    }
    // keys inside rope_scaling, which its row describes
    for inner in
        ["factor", "low_freq_factor", "high_freq_factor", "rope_type", "type", "full_attention"]
    {
        keys.remove(inner);
    }
    assert!(keys.len() > 20, "{keys:?}");
    let missing: Vec<&String> =
        keys.iter().filter(|key| !table.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "not in docs/loading.md: {missing:?}");
}

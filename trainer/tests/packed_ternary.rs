//! Packed ternary export by the real binary: refused for models without BitLinear before training
//! starts, and exported again as full weights on demand. What the files hold is tested in
//! trainer/src/tests/packed_ternary.rs.

mod families;

use dlm_test_support::{capture, python, repository};

#[test]
fn models_without_bitlinear_are_refused_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let data = families::dataset(&dir.path().join("data"), families::MASK, 8);
    let config = dir.path().join("config.json");
    std::fs::write(&config, families::own_config("Qwen3").to_string()).unwrap();
    let out = dir.path().join("out");
    let source = format!("source.config={}", config.display());
    let arguments = ["source.init=random", &source, "export.format=packed-ternary"];
    let ran = families::train(&data, &out, &arguments);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("no BitLinear") && ran.stderr.contains("conversion.bitlinear=on"),
        "{}",
        ran.stderr
    );
    assert!(!out.join("metrics.jsonl").exists(), "it trained before it refused");
    families::train(&data, &out, &[&arguments[..], &["conversion.bitlinear=on"]].concat())
        .ok()
        .unwrap();
    assert_eq!(
        families::read_json(&out.join("config.json"))["quantization_config"]["quantization_mode"],
        "offline"
    );
    // An export in the hf format gives the fp32 master weights.
    let again = dir.path().join("again");
    families::dlm_train(&[
        "export",
        out.to_str().unwrap(),
        "--out",
        again.to_str().unwrap(),
        "--format",
        "hf",
    ])
    .ok()
    .unwrap();
    assert_eq!(
        families::read_json(&again.join("config.json"))["quantization_config"]["quantization_mode"],
        "online"
    );
    assert!(families::tensors(&again).values().all(|(dtype, _)| dtype == "F32"));
}

/// The number behind `name` in a line about ternary values.
fn values(said: &str) -> (usize, usize) {
    let line = said.lines().find(|line| line.contains("read back and quantised")).unwrap();
    let numbers: Vec<usize> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().unwrap())
        .collect();
    match line.contains("warning") {
        true => (numbers[0], numbers[1]),
        false => (0, numbers[0]),
    }
}

/// fp32 masters and packed values give what was trained; masters rounded to bf16 give some values
/// otherwise, and an export says how many. microsoft/BitNet's conversion to I2_S, written anew in
/// Python, reads the folder and finds the same number.
#[test]
fn an_export_says_how_many_ternary_values_are_not_those_that_were_trained() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let data = families::dataset(&path("data"), families::MASK, 8);
    let mut config = families::own_config("BitNet");
    for (key, size) in [("hidden_size", 128), ("intermediate_size", 256), ("head_dim", 32)] {
        config[key] = size.into();
    }
    config["quantization_config"] = serde_json::json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"});
    std::fs::write(path("config.json"), config.to_string()).unwrap();
    let source = format!("source.config={}", path("config.json").display());
    let run = families::train(&data, &path("fp32"), &["source.init=random", &source]);
    let run = run.ok().unwrap().stderr;
    // q and o 128 x 128, k and v 64 x 128, three matrices of 128 x 256, in two layers
    let all = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256);
    assert_eq!(values(&run), (0, all), "{run}");
    let text = |name: &str| path(name).to_str().unwrap().to_string();
    let export = |out: &str, more: &[&str]| {
        let arguments = ["export", &text("fp32"), "--out", &text(out)];
        values(&families::dlm_train(&[&arguments[..], more].concat()).ok().unwrap().stderr)
    };
    assert_eq!(export("packed", &["--format", "packed-ternary"]), (0, all));
    let (changed, of) = export("bf16", &["--dtype", "bf16"]);
    assert!(of == all && changed > 0 && changed < all / 100, "{changed} of {of}");
    let Some(python) = python::with(&["numpy"]) else { return };
    for (folder, changed) in [("fp32", 0), ("bf16", changed)] {
        let mut command = std::process::Command::new(&python);
        command.arg(repository().join("tests/python/check_bitnet_i2s.py"));
        let run = capture(command.args([text(folder), text("packed")])).unwrap().ok().unwrap();
        let found = run.json().unwrap();
        assert_eq!(
            (&found["values"], &found["changed"]),
            (&all.into(), &changed.into()),
            "{found}"
        );
        assert_eq!((&found["tensors"], &found["pads_vocabulary_by"]), (&25.into(), &0.into()));
    }
    // the packed folder is not what that conversion reads
    let mut command = std::process::Command::new(&python);
    command.arg(repository().join("tests/python/check_bitnet_i2s.py"));
    let refused = capture(command.args([text("packed"), text("packed")])).unwrap();
    assert!(refused.stderr.contains("is U8; the conversion reads"), "{}", refused.stderr);
}

/// What microsoft/BitNet's direct conversion (`convert-hf-to-gguf-bitnet.py --outtype i2_s`,
/// written anew in Python) makes of a packed folder is what was trained. An own output matrix,
/// which that conversion would quantise, and a divisor in place of a scale are found.
#[test]
fn a_packed_folder_is_what_the_direct_conversion_reads() {
    let Some(python) = python::with(&["numpy"]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_string();
    let data = families::dataset(&path("data"), families::MASK, 8);
    let train = |name: &str, tied: bool| {
        let mut config = families::own_config("BitNet");
        for (key, size) in [("hidden_size", 128), ("intermediate_size", 256), ("head_dim", 32)] {
            config[key] = size.into();
        }
        config["tie_word_embeddings"] = tied.into();
        config["quantization_config"] = serde_json::json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"});
        let file = format!("{name}.json");
        std::fs::write(path(&file), config.to_string()).unwrap();
        let source = format!("source.config={}", text(&file));
        families::train(&data, &path(name), &["source.init=random", &source]).ok().unwrap();
        let packed = format!("{name}-packed");
        let arguments = ["export", &text(name), "--format", "packed-ternary", "--out"];
        families::dlm_train(&[&arguments[..], &[&text(&packed)]].concat()).ok().unwrap();
    };
    let check = |name: &str| {
        let mut command = std::process::Command::new(&python);
        command.arg(repository().join("tests/python/check_bitnet_packed.py"));
        capture(command.args([text(&format!("{name}-packed")), text(name)])).unwrap()
    };
    train("tied", true);
    let found = check("tied").ok().unwrap().json().unwrap();
    let all = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256);
    assert_eq!((&found["values"], &found["matrices"]), (&all.into(), &14.into()), "{found}");
    // besides the matrices the embeddings, the last norm, and four norms in each of two layers
    assert_eq!(found["tensors"], 24, "{found}");

    train("untied", false);
    let refused = check("untied").stderr;
    assert!(refused.contains("lm_head.weight: the conversion would quantise it"), "{refused}");
    let config = path("tied-packed/config.json");
    let written = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, written.replace("autobitlinear", "bitlinear")).unwrap();
    let refused = check("tied").stderr;
    assert!(refused.contains("would take the divisor for the scale"), "{refused}");
}

//! Packed ternary export by the real binary: refused for models without BitLinear before training
//! starts, and exported again as full weights on demand. What the files hold is tested in
//! trainer/src/tests/packed_ternary.rs.

mod families;

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

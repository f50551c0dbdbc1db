//! Models trained with `objective=sft` and models that were not converted: they have no block size
//! of their own, and can be evaluated and converted with any.

mod families;

use std::path::Path;

use families::{MASK, dataset, dlm_train, fixtures, read_json, train};
use serde_json::{Value, json};

fn losses(model: &Path, data: &Path) -> (Value, String) {
    let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
    let run = dlm_train(&["eval", "--model", model, "--data", data, "--json", "--device", "cpu"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    (serde_json::from_str(&run.stdout).unwrap(), run.stderr)
}

#[test]
fn a_causal_export_has_no_block_size_and_is_converted_with_any() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (eight, sixteen) = (dataset(&path("8"), MASK, 8), dataset(&path("16"), MASK, 16));
    let source = format!("source.path={}", fixtures().join("qwen3_tiny").display());
    train(&eight, &path("sft"), &[&source, "conversion.objective=sft"]).ok().unwrap();
    for file in ["config.json", "dlm_config.json"] {
        let keys = read_json(&path("sft").join(file));
        assert_eq!((keys.get("bd_size"), &keys["mask_token_id"]), (None, &json!(MASK)), "{file}");
    }
    let said = dlm_train(&[
        "generate",
        "--model",
        path("sft").to_str().unwrap(),
        "--ids",
        "5,6,7",
        "--max-new-tokens",
        "1",
    ]);
    assert!(said.stderr.contains("objective=sft"), "{}", said.stderr);
    let from = format!("source.path={}", path("sft").display());
    train(&sixteen, &path("converted"), &[&from]).ok().unwrap();
    assert_eq!(read_json(&path("converted/config.json"))["bd_size"], 16);

    // the same for a folder of an older version, which wrote the data's block size
    for file in ["config.json", "dlm_config.json"] {
        let mut keys = read_json(&path("sft").join(file));
        keys["bd_size"] = json!(8);
        std::fs::write(path("sft").join(file), keys.to_string()).unwrap();
    }
    train(&sixteen, &path("converted-older"), &[&from]).ok().unwrap();

    // and a converted model that was trained causally since is not called converted
    let from = format!("source.path={}", path("converted").display());
    train(&sixteen, &path("again"), &[&from, "conversion.objective=sft"]).ok().unwrap();
    assert_eq!(read_json(&path("again/config.json")).get("bd_size"), None);
    let refused = train(&eight, &path("refused"), &[&from]);
    assert!(refused.code != Some(0) && refused.stderr.contains("bd_size 16"), "{}", refused.stderr);

    let qwen2 = format!("source.path={}", fixtures().join("qwen2_tiny").display());
    let fast = "export.format=fast-dllm";
    let refused = train(&eight, &path("refused"), &[&qwen2, "conversion.objective=sft", fast]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("objective=sft"), "{}", refused.stderr);
}

#[test]
fn a_model_without_a_mask_token_has_the_losses_with_which_its_conversion_starts() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // 319 is a spare row of the table, 320 is a row past it
    for mask in [MASK, 320] {
        let data = dataset(&path(&format!("data-{mask}")), mask, 8);
        for model in ["llama_tiny", "qwen2_tiny", "bitnet_tiny"] {
            let (folder, out) = (fixtures().join(model), path(&format!("{model}-{mask}")));
            let (found, said) = losses(&folder, &data);
            assert!(said.contains("was not converted"), "{said}");
            let source = format!("source.path={}", folder.display());
            train(&data, &out, &[&source, "optim.lr=1e-30", "train.max_steps=1"]).ok().unwrap();
            let (start, said) = losses(&out, &data);
            assert!(!said.contains("was not converted"), "{said}");
            for key in ["block_diffusion_loss", "causal_loss", "acceptance", "decode"] {
                assert_eq!(found[key], start[key], "{model} {mask} {key}");
            }
            assert!(found["causal_loss"].as_f64().unwrap() > 1.0);
        }
    }
}

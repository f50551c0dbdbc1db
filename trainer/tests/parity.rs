//! `dlm-train parity` on every fixture: causal and block-diffusion cases of all families, with
//! gradients, in both layouts and both forms of attention, in fp32 at the fixtures' own tolerances
//! and in bf16 within the bound of docs/objective.md. A fixture that no case here covers fails the
//! test.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::prelude::*;
use burn::tensor::DType;
use dlm_train::compute::tensor_io::{decode_floats, download};
use dlm_train::kernels::linear::{int8_activation, ternary_weight};
use safetensors::SafeTensors;
use serde_json::Value;

fn fixtures() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let dir = std::env::var_os("DLM_SHARED").map_or(beside, PathBuf::from).join("fixtures");
    if dir.is_dir() {
        return Some(dir);
    }
    drop(
        std::io::stderr().write_all(
            format!(
                "SKIP: no {}; set DLM_SHARED to the folder that holds fixtures/\n",
                dir.display()
            )
            .as_bytes(),
        ),
    );
    None
}

struct Case {
    model: String,
    file: String,
    more: Vec<String>,
    objective: bool,
    /// BitLinear on generic activations: rounding to 8 bits is chaotic (fixtures' README,
    /// "BitNet").
    chaotic: bool,
}

fn cases(dir: &Path) -> Vec<Case> {
    let causal = |model: &str, file: &str, online: bool, chaotic: bool| Case {
        model: model.into(),
        file: file.into(),
        more: if online { vec!["--bitlinear".into()] } else { vec![] },
        objective: false,
        chaotic,
    };
    let mut all = vec![
        causal("llama_tiny", "causal_llama_tiny", false, false),
        causal("qwen2_tiny", "causal_qwen2_tiny", false, false),
        causal("qwen3_tiny", "causal_qwen3_tiny", false, false),
        causal("bitnet_tiny", "causal_bitnet_tiny", false, false),
        causal("bitnet_tiny", "causal_bitnet_tiny_online", true, true),
        causal("bitnet_tiny", "causal_bitnet_tiny_online_robust", true, false),
        causal("bitnet_tiny_packed", "causal_bitnet_tiny_packed", false, true),
        causal("bitnet_tiny_packed_divisor", "causal_bitnet_tiny_packed", false, true),
    ];
    let list: Value =
        serde_json::from_slice(&std::fs::read(dir.join("objective.json")).unwrap()).unwrap();
    for (name, case) in list.as_object().unwrap().iter().filter(|(_, c)| c.get("mask_id").is_some())
    {
        let mut more = vec![
            "--bd-size".to_string(),
            case["block_size"].to_string(),
            "--mask-token-id".into(),
            case["mask_id"].to_string(),
        ];
        let chaotic = name.contains("online");
        if chaotic {
            more.push("--bitlinear".into());
        }
        all.push(Case {
            model: case["model"].as_str().unwrap().into(),
            file: format!("obj_{name}"),
            more,
            objective: true,
            chaotic,
        });
    }
    all
}

/// The report of one comparison, which must hold.
fn parity(dir: &Path, case: &Case, more: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dlm-train"));
    command.args(["parity", "--device", "cpu", "--json", "--model"]).arg(dir.join(&case.model));
    command.arg("--case").arg(dir.join(format!("{}.safetensors", case.file)));
    let grads = dir.join(format!("{}_grads.safetensors", case.file));
    if grads.is_file() {
        command.arg("--grads").arg(grads);
    }
    let out = command.args(&case.more).args(more).output().unwrap();
    assert!(
        out.status.success(),
        "{} {more:?}: {}{}",
        case.file,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Layouts and attention forms a case is computed in.
fn forms(case: &Case, tiles: bool) -> Vec<Vec<&'static str>> {
    let layouts: &[&[&str]] = if case.objective {
        &[&["--layout", "reference"], &["--layout", "saving"]]
    } else {
        &[&[]]
    };
    let attention: &[&[&str]] = if tiles {
        &[
            &["--attention", "tiles"],
            &["--attention", "dense", "--recompute"],
            &["--attention", "ranges"],
        ]
    } else {
        &[&[]]
    };
    layouts.iter().flat_map(|l| attention.iter().map(|a| [*l, *a].concat())).collect()
}

fn shown(v: &Value) -> String {
    v.as_f64().map_or("-".into(), |v| format!("{v:.1e}"))
}

#[test]
fn every_fixture_in_fp32() {
    let Some(dir) = fixtures() else { return };
    let mut covered = BTreeSet::new();
    for case in cases(&dir) {
        covered.insert(case.file.clone());
        for form in forms(&case, true) {
            let mut more = form.clone();
            if case.chaotic {
                more.extend([
                    "--logits-quantile",
                    "0.25",
                    "--tol-loss",
                    "5e-3",
                    "--grads-l2",
                    "--tol-grads",
                    "0.05",
                ]);
            }
            let report = parity(&dir, &case, &more);
            println!(
                "{} {} {}: logits {} loss {} gradients {}",
                case.file,
                case.model,
                form.join(" "),
                shown(&report["logits_at_quantile"]),
                shown(&report["loss_rel"]),
                shown(if case.chaotic {
                    &report["grads_max_l2"]
                } else {
                    &report["grads_max_rel"]
                })
            );
            let has_grads = dir.join(format!("{}_grads.safetensors", case.file)).is_file();
            assert_eq!(has_grads, report["grads_max_rel"].is_f64(), "{report}");
            assert!(
                report["logits_max_abs"].is_f64() || report["loss_rel"].is_f64(),
                "nothing was compared: {report}"
            );
        }
    }
    for entry in std::fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(stem) = name.strip_suffix(".safetensors") else {
            continue;
        };
        let expected =
            ["causal_", "obj_"].iter().any(|p| stem.starts_with(p)) && !stem.ends_with("_grads");
        assert!(!expected || covered.contains(stem), "no case covers {name}");
    }
}

#[test]
fn every_fixture_in_bf16_within_the_stated_bound() {
    let Some(dir) = fixtures() else { return };
    for case in cases(&dir) {
        for form in forms(&case, false) {
            let mut more = form.clone();
            more.extend(["--dtype", "bf16"]);
            let report = parity(&dir, &case, &more);
            let t = &report["tolerances"];
            println!(
                "{} {} {}: logits {} of {} | loss {} of {} | gradients {} of {}",
                case.file,
                case.model,
                form.join(" "),
                shown(&report["logits_max_abs"]),
                shown(&t["logits"]),
                shown(&report["loss_rel"]),
                shown(&t["loss"]),
                shown(&report["grads_max_l2"]),
                shown(&t["grads"])
            );
            // a bound that everything keeps would say nothing
            let grads = t["grads"].as_f64().unwrap();
            assert!(grads < 0.2 && t["logits"].as_f64().unwrap() < 0.8, "{t}");
            assert!(report["grads_max_l2"].as_f64().is_none_or(|g| g > grads / 10.0), "{report}");
        }
    }
}

#[test]
fn quantisers_equal_the_unit_fixture() {
    let Some(dir) = fixtures() else { return };
    let bytes = std::fs::read(dir.join("bitnet_quant_unit.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let device = Device::flex();
    let read = |name: &str| {
        let view = file.tensor(name).unwrap();
        let shape = [view.shape()[0], view.shape()[1]];
        Tensor::<2>::from_data(
            TensorData::new(decode_floats(view.dtype(), view.data()).unwrap(), shape),
            (&device, DType::F32),
        )
    };
    let same = |ours: Tensor<2>, expected: &str| {
        let (ours, expected) = (download(&ours).unwrap(), download(&read(expected)).unwrap());
        let worst = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        println!("{expected:?}: {worst:.1e}", expected = expected.len());
        assert!(worst < 1e-6, "{worst}");
    };
    same(ternary_weight(read("w")), "w_quant");
    same(ternary_weight(read("w_ties")), "w_ties_quant");
    same(int8_activation(read("x")), "x_quant");
}

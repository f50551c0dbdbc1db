//! The optimizer compared with values computed independently (`tests/python/optim_reference.py`:
//! numpy float64, itself compared with torch.optim): AdamW with and without decay, Muon's
//! Newton-Schulz steps, ZClip's bounds and statistics.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::compute::tensor_io::download;
use crate::config::{Config, Optim, OptimName};
use crate::model::{Gradients, ModelConfig, ParamKind, Params, Weights};
use crate::optim::Optimizer;
use crate::optim::clip::{self, ZState};
use burn::prelude::*;
use burn::tensor::DType;
use serde_json::{Value, json};

fn reference() -> Value {
    serde_json::from_str(include_str!("optim_reference.json")).unwrap()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn optim(hyper: &Value, name: OptimName) -> Optim {
    let h = |key: &str| hyper[key].as_f64().unwrap();
    let mut o = Config::load(None, &[]).unwrap().optim;
    o.name = name;
    (o.lr, o.beta1, o.beta2, o.eps) = (h("lr"), h("beta1"), h("beta2"), h("eps"));
    (o.weight_decay, o.muon_lr, o.muon_momentum) =
        (h("weight_decay"), h("muon_lr"), h("muon_momentum"));
    o
}

/// The weights after each step, when the model has one parameter of kind `kind`: the case's matrix.
fn steps(case: &Value, optim: &Optim, kind: ParamKind) -> Vec<Vec<f64>> {
    let device = Device::flex();
    let shape: Vec<usize> =
        case["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let shape = [shape[0], shape[1]];
    let cfg = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true
    });
    let mut params = Params::new(&ModelConfig::from_json(cfg).unwrap());
    params.specs.retain(|s| s.kind == kind);
    params.specs.truncate(1);
    assert_eq!(params.specs.len(), 1);
    params.specs[0].shape = shape.to_vec();
    let tensor = |v: &Value| {
        let values: Vec<f32> = floats(v).iter().map(|x| *x as f32).collect();
        Tensor::<2>::from_data(TensorData::new(values, shape), (&device, DType::F32))
    };
    let mut w = Weights(vec![tensor(&case["weight"])]);
    let mut optimizer = Optimizer::new(optim, &params, &device);
    let mut out = Vec::new();
    for grad in case["grads"].as_array().unwrap() {
        let mut grads = Gradients::new(1);
        grads.0[0] = Some(tensor(grad));
        optimizer.step(optim, &params, &mut w, grads, 1.0, 1.0);
        out.push(download(&w.0[0]).unwrap().iter().map(|v| f64::from(*v)).collect());
    }
    out
}

/// The largest difference from the reference, relative to the largest change that the reference
/// made to a weight.
fn off(case: &Value, ours: &[Vec<f64>], expected: &Value) -> f64 {
    let start = floats(&case["weight"]);
    let (mut worst, mut moved) = (0f64, 0f64);
    for (ours, expected) in ours.iter().zip(expected.as_array().unwrap()) {
        for ((a, b), w) in ours.iter().zip(floats(expected)).zip(&start) {
            worst = worst.max((a - b).abs());
            moved = moved.max((b - w).abs());
        }
    }
    worst / moved
}

#[test]
fn adamw_is_the_published_one() {
    let reference = reference();
    let o = optim(&reference["hyper"], OptimName::Adamw);
    for case in reference["matrices"].as_array().unwrap() {
        for (kind, key) in [
            (ParamKind::Matrix, "adamw"),
            (ParamKind::Embedding, "adamw"),
            (ParamKind::Norm, "adamw_no_decay"),
        ] {
            let difference = off(case, &steps(case, &o, kind), &case[key]);
            println!("{} {key}: {difference:.1e}", case["name"]);
            assert!(difference < 1e-5, "{} {kind:?} {key}: {difference:.1e}", case["name"]);
        }
    }
}

#[test]
fn muon_is_the_published_one_and_only_for_matrices() {
    let reference = reference();
    let o = optim(&reference["hyper"], OptimName::Muon);
    for case in reference["matrices"].as_array().unwrap() {
        let difference = off(case, &steps(case, &o, ParamKind::Matrix), &case["muon"]);
        println!("{} muon: {difference:.1e}", case["name"]);
        assert!(difference < 1e-4, "{}: {difference:.1e}", case["name"]);
        let difference = off(case, &steps(case, &o, ParamKind::Embedding), &case["adamw"]);
        assert!(difference < 1e-5, "{}: the embedding is AdamW's: {difference:.1e}", case["name"]);
    }
}

#[test]
fn zclip_is_the_published_one() {
    let reference = reference();
    let norms = floats(&reference["norms"]);
    let mut o = optim(&reference["hyper"], OptimName::Adamw);
    for case in reference["zclip"].as_array().unwrap() {
        o.clip_norm = case["max_norm"].as_f64();
        o.zclip.enabled = true;
        (o.zclip.z, o.zclip.alpha) = (case["z"].as_f64().unwrap(), case["alpha"].as_f64().unwrap());
        let mut state = ZState::default();
        let mut clipped = 0;
        for (step, (norm, row)) in norms.iter().zip(case["rows"].as_array().unwrap()).enumerate() {
            let after = clip::factor(&o, *norm, &mut state) * norm;
            let expected = row[0].as_f64().unwrap();
            // clip_grad_norm_ adds 1e-6 to the norm that it divides by.
            assert!(
                (after - expected).abs() <= 2e-6 * expected.max(1.0),
                "step {step}: {after} for {norm}, expected {expected}"
            );
            clipped += usize::from(expected < *norm);
            if let (Some(mean), Some(var)) = (row[1].as_f64(), row[2].as_f64()) {
                assert!(
                    (state.mean - mean).abs() <= 1e-12 * mean,
                    "step {step}: mean {} expected {mean}",
                    state.mean
                );
                assert!(
                    (state.var - var).abs() <= 1e-10 * var,
                    "step {step}: variance {} expected {var}",
                    state.var
                );
            }
        }
        println!(
            "z {} alpha {}: {clipped} of {} norms clipped",
            case["z"],
            case["alpha"],
            norms.len()
        );
        assert!(clipped >= 1);
    }
}

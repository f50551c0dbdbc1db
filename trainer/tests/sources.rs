//! Sources in half precision: weights stored as f16 or bf16 are widened exactly to fp32 masters.

mod common;

use std::fs;

use common::{ok, train, workplace};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

#[test]
fn half_precision_is_read_as_it_is_stored() {
    let dir = workplace();
    ok(&mut train(dir.path(), "full", &["export.dtype=fp32", "conversion.total_tokens=600"]));
    let bytes = fs::read(dir.path().join("full/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let loss = |folder: &str| {
        let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        command
            .current_dir(dir.path())
            .args(["eval", "--model", folder, "--data", "data", "--device", "cpu", "--json"]);
        serde_json::from_slice::<Value>(&ok(&mut command).stdout).unwrap()["block_diffusion_loss"]
            .as_f64()
            .unwrap()
    };
    let full = loss("full");
    for (name, dtype) in [("f16", Dtype::F16), ("bf16", Dtype::BF16)] {
        // The same values twice: in half precision, and widened to fp32.
        let (half_dir, wide_dir) = (dir.path().join(name), dir.path().join(format!("{name}-wide")));
        let (mut half, mut wide) = (Vec::new(), Vec::new());
        for (tensor, view) in file.tensors() {
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let rounded: Vec<(Vec<u8>, f32)> = match dtype {
                Dtype::F16 => values
                    .map(half::f16::from_f32)
                    .map(|v| (v.to_le_bytes().to_vec(), v.to_f32()))
                    .collect(),
                _ => values
                    .map(half::bf16::from_f32)
                    .map(|v| (v.to_le_bytes().to_vec(), v.to_f32()))
                    .collect(),
            };
            half.push((
                tensor.clone(),
                view.shape().to_vec(),
                rounded.iter().flat_map(|(b, _)| b.clone()).collect::<Vec<u8>>(),
            ));
            wide.push((
                tensor,
                view.shape().to_vec(),
                rounded.iter().flat_map(|(_, v)| v.to_le_bytes()).collect::<Vec<u8>>(),
            ));
        }
        for (at, dtype, tensors) in [(&half_dir, dtype, &half), (&wide_dir, Dtype::F32, &wide)] {
            fs::create_dir(at).unwrap();
            fs::copy(dir.path().join("full/config.json"), at.join("config.json")).unwrap();
            let views = tensors.iter().map(|(n, shape, data)| {
                (n.clone(), TensorView::new(dtype, shape.clone(), data).unwrap())
            });
            safetensors::serialize_to_file(views, None, &at.join("model.safetensors")).unwrap();
        }
        let (half, wide) = (loss(name), loss(&format!("{name}-wide")));
        assert_eq!(half.to_bits(), wide.to_bits(), "{name}");
        assert!(half != full && (half - full).abs() < 0.01 * full, "{name}: {half} against {full}");
    }
}

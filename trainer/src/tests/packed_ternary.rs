//! Packed ternary export: what is written is what the online quantiser computes, and it reads back
//! as the same ternary model.

use std::path::Path;

use crate::compute::tensor_io::download;
use crate::compute::{AttentionChoice, ComputePlan, StreamShape, device as compute_device};
use crate::config::{ExportFormat, LoraExport};
use crate::diffusion::objective;
use crate::diffusion::{
    DeviceBatch, DocumentMask, Objective, ObjectiveSpec, PackedRow, build_batch,
};
use crate::io::description::ExportInfo;
use crate::io::export::{self, ExportAs};
use crate::io::load_model::{LoadOptions, LoadedModel, load_model};
use crate::kernels::linear::{ternary_codes, ternary_weight};
use crate::model::Checkpoint;
use crate::model::{Decoder, ModelConfig, ParamKind, Params, Weights, load, ternary};
use burn::prelude::*;
use dlm_test_support::{families, fixtures};
use safetensors::Dtype;

fn device() -> Device {
    crate::compute::device::choose("cpu").unwrap().device
}

fn own(arch: &str) -> (Decoder, Weights) {
    let mut cfg = ModelConfig::from_json(families::own_config(arch)).unwrap();
    cfg.set_bitlinear(true);
    let params = Params::new(&cfg);
    let mut host = load::random_host(&cfg, &params, 5);
    // Biases large enough that losing them would show.
    for (spec, values) in
        params.specs.iter().zip(host.iter_mut()).filter(|(s, _)| s.kind == ParamKind::Bias)
    {
        values
            .iter_mut()
            .enumerate()
            .for_each(|(i, v)| *v = ((i * 7 + spec.name.len()) % 11) as f32 / 10.0 - 0.5);
    }
    let w = load::upload(host, &params, &device());
    (Decoder::new(cfg), w)
}

fn load(dir: &Path) -> (Decoder, Weights) {
    let LoadedModel { decoder, weights } =
        load_model(dir, LoadOptions::default(), &device()).unwrap();
    (decoder, weights)
}

fn as_format(format: ExportFormat) -> ExportAs {
    ExportAs { dtype: Dtype::F32, format, lora: LoraExport::Merged }
}

fn info() -> ExportInfo {
    ExportInfo {
        bd_size: Some(8),
        mask_token: "|<MASK>|".into(),
        mask_token_id: families::MASK,
        source_eos_token_ids: Vec::new(),
        eos_token_ids: vec![families::EOS],
        pad_token_id: 0,
        tokenizer: dlm_test_support::sample("tokenizer"),
        source_folder: None,
        record: serde_json::json!({}),
    }
}

fn logits(decoder: &Decoder, w: &Weights) -> Vec<f32> {
    let ids: Vec<i32> = (0..64).map(|i| (i * 37 + 11) % 300).collect();
    let row = PackedRow { labels: ids.clone(), documents: vec![(0, ids.len())], input_ids: ids };
    let spec = ObjectiveSpec {
        bd_size: 8,
        mask_token_id: families::MASK,
        complementary: true,
        document_mask: DocumentMask::Document,
        token_shift: true,
    };
    let batch = build_batch(
        Objective::Sft,
        &[row],
        &[Vec::new()],
        &spec,
        StreamShape::Rectangular { multiple: 1 },
    );
    let compute = ComputePlan::new(compute_device::cpu(), None);
    let compute = compute.with_attention(AttentionChoice::Dense).unwrap();
    let inputs = DeviceBatch::upload(decoder, &batch, &compute).unwrap();
    download(&objective::all_logits(decoder, w, &inputs)).unwrap()
}

/// Rounding to 8 bits is a step function: the lower quartile over positions must agree, and no
/// logit may be far off.
fn close(a: &[f32], b: &[f32], what: &str) {
    let mut worst: Vec<f32> = a
        .chunks(families::VOCAB)
        .zip(b.chunks(families::VOCAB))
        .map(|(a, b)| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max))
        .collect();
    worst.sort_by(f32::total_cmp);
    assert!(
        worst[worst.len() / 4] < 2e-4,
        "{what}: lower quartile of the logits' errors is {}",
        worst[worst.len() / 4]
    );
    assert!(
        worst[worst.len() - 1] < 0.5,
        "{what}: largest error of a logit is {}",
        worst[worst.len() - 1]
    );
}

#[test]
fn reads_back_as_the_ternary_model_it_was() {
    // Qwen2 has biases, which transformers' autobitlinear would scale, so it is written for
    // bitlinear.
    for (arch, class) in
        [("BitNet", "autobitlinear"), ("Llama", "autobitlinear"), ("Qwen2", "bitlinear")]
    {
        let dir = tempfile::tempdir().unwrap();
        let (decoder, w) = own(arch);
        export::export(dir.path(), &decoder, &w, as_format(ExportFormat::PackedTernary), &info())
            .unwrap();
        let q = families::read_json(&dir.path().join("config.json"))["quantization_config"].clone();
        assert_eq!(q["quant_method"], "bitnet");
        assert_eq!(q["quantization_mode"], "offline");
        assert_eq!(q["linear_class"], class, "{arch}");
        let stored = families::tensors(dir.path());
        let (mut matrices, back) = (0, load(dir.path()));
        for ((spec, ours), theirs) in decoder.params.specs.iter().zip(&w.0).zip(&back.1.0) {
            let (ours, theirs) = match spec.kind {
                ParamKind::Matrix => {
                    matrices += 1;
                    assert_eq!(
                        stored[&spec.name],
                        ("U8".into(), vec![spec.shape[0] / 4, spec.shape[1]]),
                        "{}",
                        spec.name
                    );
                    assert_eq!(stored[&format!("{}_scale", spec.name)], ("F32".into(), vec![1]));
                    let codes = |t: &Tensor<2>| download(&ternary_codes(t.clone()).0).unwrap();
                    let (a, b) = (codes(ours), codes(theirs));
                    assert_eq!(a, b, "{arch} {}: other ternary values came back", spec.name);
                    assert!(
                        [-1.0, 0.0, 1.0].iter().all(|v| a.contains(v)),
                        "{}: not all three values occur",
                        spec.name
                    );
                    (ternary_weight(ours.clone()), ternary_weight(theirs.clone()))
                }
                _ => (ours.clone(), theirs.clone()),
            };
            let (ours, theirs) = (download(&ours).unwrap(), download(&theirs).unwrap());
            let far = ours
                .iter()
                .zip(&theirs)
                .map(|(a, b)| (a - b).abs() / a.abs().max(1e-6))
                .fold(0.0, f32::max);
            assert!(far < 2e-6, "{arch} {}: relative difference {far}", spec.name);
        }
        assert_eq!(matrices, 14, "{arch}");
        close(&logits(&decoder, &w), &logits(&back.0, &back.1), arch);
    }
}

/// The layout is a contract with other programs, so a small matrix is written out here.
#[test]
fn the_bits_are_where_other_readers_expect_them() {
    // Rows 0..8, two columns; mean|W| = 1.
    let rows: [[f32; 2]; 8] = [
        [2.0, 0.1],
        [-2.0, 0.4],
        [0.0, 1.5],
        [1.0, -1.0],
        [-0.2, 2.0],
        [0.3, -2.0],
        [2.0, 0.5],
        [-1.0, 0.0],
    ];
    let w = Tensor::<2>::from_data(rows, &device());
    let p = ternary::pack("w", &w).unwrap();
    assert_eq!(p.shape, [2, 2]);
    assert!((p.scale - 1.0).abs() < 1e-6, "{}", p.scale);
    // Byte [r][c] is the sum over i of (code of row 2i + r, column c, plus one) shifted left by 2i.
    let code = |row: usize, col: usize| {
        (rows[row][col].round_ties_even().clamp(-1.0, 1.0) as i8 + 1) as u8
    };
    let byte = |r: usize, c: usize| (0..4).map(|i| code(2 * i + r, c) << (2 * i)).sum::<u8>();
    assert_eq!(p.bytes, [byte(0, 0), byte(0, 1), byte(1, 0), byte(1, 1)]);
    let five = Tensor::<2>::ones([5, 2], &device());
    let said = ternary::pack("model.x.weight", &five).unwrap_err().to_string();
    assert!(said.contains("model.x.weight has 5 output rows"), "{said}");
}

#[test]
fn a_packed_checkpoint_packs_to_the_same_bytes() {
    let dir = fixtures();
    for name in ["bitnet_tiny_packed", "bitnet_tiny_packed_divisor"] {
        let source = dir.join(name);
        let (decoder, w) = load(&source);
        let out = tempfile::tempdir().unwrap();
        export::export(out.path(), &decoder, &w, as_format(ExportFormat::PackedTernary), &info())
            .unwrap();
        let (a, b) = (Checkpoint::open(&source).unwrap(), Checkpoint::open(out.path()).unwrap());
        for spec in decoder.params.specs.iter().filter(|s| s.kind == ParamKind::Matrix) {
            assert_eq!(
                a.view(&spec.name).unwrap().3,
                b.view(&spec.name).unwrap().3,
                "{name}: {}",
                spec.name
            );
        }
        // `dlm-train parity` compares the source's logits with the reference (tests/parity.rs).
        let back = load(out.path());
        close(&logits(&decoder, &w), &logits(&back.0, &back.1), name);
    }
}

#[test]
fn an_export_without_the_datasets_tokenizer_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let (decoder, w) = own("Llama");
    let info = ExportInfo { tokenizer: out.path().join("none"), ..info() };
    let error =
        export::export(out.path(), &decoder, &w, as_format(ExportFormat::Hf), &info).unwrap_err();
    assert!(error.to_string().contains("none: no tokenizer.json"), "{error}");
    assert!(!out.path().join("model.safetensors").exists(), "half an export");
}

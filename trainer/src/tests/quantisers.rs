//! BitNet's two quantisers alone, ties and a row of zeros included, against
//! `bitnet_quant_unit.safetensors` of tests/fixtures.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use burn::prelude::*;
use burn::tensor::DType;
use dlm_test_support::fixtures;
use safetensors::SafeTensors;

use crate::compute::tensor_io::{decode_floats, download};
use crate::kernels::linear::{int8_activation, ternary_weight};

#[test]
fn quantisers_equal_the_unit_fixture() {
    let bytes = std::fs::read(fixtures().join("bitnet_quant_unit.safetensors")).unwrap();
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

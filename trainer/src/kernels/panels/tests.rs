//! Products by panels compared with a plain form in f64.

use super::product::{Job, SETS, run_with};
use super::*;
use crate::compute::WeightFormat;
use dlm_datasets::rng;

fn random(seed: u64, len: usize) -> Vec<f32> {
    let key = rng::key(&[seed, 77]);
    (0..len).map(|i| rng::normal(key, i as u64)).collect()
}

/// Rows `[rows, inputs]` in groups.
fn grouped(x: &[f32], inputs: usize) -> Vec<f32> {
    let rows = x.len() / inputs;
    let mut out = vec![0f32; inputs.div_ceil(PANEL) * rows * PANEL];
    for (i, v) in x.iter().enumerate() {
        let (row, input) = (i / inputs, i % inputs);
        out[(input / PANEL * rows + row) * PANEL + input % PANEL] = *v;
    }
    out
}

const FORMATS: [WeightFormat; 4] =
    [WeightFormat::Auto, WeightFormat::Fp32, WeightFormat::Bf16, WeightFormat::Int8];

#[test]
fn products_of_every_shape() {
    let shapes = [(1, 1, 1), (2, 40, 70), (3, 32, 32), (7, 100, 33), (13, 576, 96), (33, 65, 5)];
    for (n, (rows, inputs, outputs)) in shapes.into_iter().enumerate() {
        let x = random(n as u64, rows * inputs);
        let w = random(100 + n as u64, outputs * inputs);
        let groups = grouped(&x, inputs);
        for format in FORMATS {
            let matrix = Matrix::pack(&w, inputs, format);
            for p in 0..matrix.panels() {
                for set in 0..SETS {
                    let mut out = vec![[f32::NAN; PANEL]; rows];
                    let x_groups = groups.as_chunks().0;
                    let job = Job { panel: matrix.panel(p), x: x_groups, rows, first: 0 };
                    if !run_with(set, job, &mut out) {
                        dlm_test_support::skip("an instruction set is missing here");
                        continue;
                    }
                    for (row, out) in out.iter().enumerate() {
                        for (lane, ours) in out.iter().enumerate() {
                            let output = p * PANEL + lane;
                            if output >= outputs {
                                assert_eq!(*ours, 0.0, "padding");
                                continue;
                            }
                            let terms = (0..inputs).map(|i| {
                                f64::from(x[row * inputs + i]) * f64::from(matrix.weight(output, i))
                            });
                            let (sum, size) =
                                terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                            let far = (f64::from(*ours) - sum).abs();
                            assert!(
                                far <= 2e-7 * size * (inputs as f64).sqrt() + 1e-12,
                                "{format:?}, set {set}, row {row}, output {output}: {ours} for {sum}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// The bits of a row do not depend on the rows beside it.
#[test]
fn a_row_alone_has_the_same_bits() {
    let (rows, inputs) = (23, 96);
    let x = random(1, rows * inputs);
    let groups = grouped(&x, inputs);
    for format in FORMATS {
        let matrix = Matrix::pack(&random(2, PANEL * inputs), inputs, format);
        let mut together = vec![[0f32; PANEL]; rows];
        product(matrix.panel(0), &groups, rows, 0, &mut together);
        for (row, (x, together)) in x.chunks(inputs).zip(&together).enumerate() {
            let mut alone = [[0f32; PANEL]];
            product(matrix.panel(0), &grouped(x, inputs), 1, 0, &mut alone);
            assert_eq!(alone[0], *together, "{format:?}, row {row}");
            product(matrix.panel(0), &groups, rows, row, &mut alone);
            assert_eq!(alone[0], *together, "{format:?}, row {row} of all");
        }
    }
}

#[test]
fn formats_hold_what_they_should() {
    let w = random(5, 50 * 90);
    let short: Vec<f32> = w.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
    let ternary: Vec<f32> = w.iter().map(|v| 0.37 * v.round().clamp(-1.0, 1.0)).collect();
    for (values, format) in [
        (&w, WeightFormat::Fp32),
        (&short, WeightFormat::Bf16),
        (&ternary, WeightFormat::Int8),
        (&vec![0.0; 64], WeightFormat::Int8),
    ] {
        let matrix = Matrix::pack(values, values.len() / 2, WeightFormat::Auto);
        assert_eq!(matrix.format(), format);
        for (i, v) in values.iter().enumerate() {
            assert_eq!(matrix.weight(i / (values.len() / 2), i % (values.len() / 2)), *v);
        }
    }
    let (rounded, int8) =
        (Matrix::pack(&w, 90, WeightFormat::Bf16), Matrix::pack(&w, 90, WeightFormat::Int8));
    for (i, v) in w.iter().enumerate() {
        assert_eq!(rounded.weight(i / 90, i % 90), half::bf16::from_f32(*v).to_f32());
        let (row, block) = (&w[i / 90 * 90..(i / 90 + 1) * 90], i % 90 / 64);
        let part = &row[block * 64..90.min(block * 64 + 64)];
        let largest = part.iter().fold(0f32, |m, v| m.max(v.abs()));
        let far = (int8.weight(i / 90, i % 90) - v).abs();
        assert!(far <= largest / 127.0 * 0.5001, "{far} of {largest}");
    }
}

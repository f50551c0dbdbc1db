//! Weights in panels of 32 outputs, in fp32, bf16 or int8.
//!
//! A panel holds its outputs' weights input by input, so that a product reads it from front to
//! back. Outputs and inputs are padded with zeros to multiples of [`PANEL`].

use half::bf16;
use rayon::prelude::*;

use super::PANEL;
use crate::compute::WeightFormat;

/// Inputs that share the factor of an int8 output: two groups.
const SCALED: usize = 2 * PANEL;

/// Sixteen fp32 values in a cache line of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Floats(pub [f32; 16]);

/// The bf16 weights of one input: output j in the low half of word j, output 16 + j in the high
/// half.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Words(pub [u32; 16]);

/// The int8 weights of two inputs, twice sixteen outputs each.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Bytes(pub [[[i8; 16]; 2]; 2]);

/// One panel of a matrix, or as many of its first groups of inputs as are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Panel<'a> {
    /// Two for each input.
    Fp32(&'a [Floats]),
    /// One for each input.
    Bf16(&'a [Words]),
    /// One for two inputs; two vectors of factors for each [`SCALED`] inputs.
    Int8(&'a [Bytes], &'a [[Floats; 2]]),
}

impl Panel<'_> {
    /// Groups of [`PANEL`] inputs.
    pub(crate) fn groups(&self) -> usize {
        match self {
            Panel::Fp32(lines) => lines.len() / (2 * PANEL),
            Panel::Bf16(lines) => lines.len() / PANEL,
            Panel::Int8(lines, _) => lines.len() / (PANEL / 2),
        }
    }
}

impl<'a> Panel<'a> {
    /// Some groups of the panel's inputs; of int8 weights from an even group on.
    pub(crate) fn part(self, groups: std::ops::Range<usize>) -> Panel<'a> {
        let (start, end) = (groups.start, groups.end);
        match self {
            Panel::Fp32(lines) => Panel::Fp32(&lines[start * 2 * PANEL..end * 2 * PANEL]),
            Panel::Bf16(lines) => Panel::Bf16(&lines[start * PANEL..end * PANEL]),
            Panel::Int8(lines, scales) => Panel::Int8(
                &lines[start * PANEL / 2..end * PANEL / 2],
                &scales[start / 2..end.div_ceil(2)],
            ),
        }
    }
}

/// A weight matrix `[outputs, inputs]`.
pub(crate) struct Matrix {
    outputs: usize,
    inputs: usize,
    values: Values,
}

enum Values {
    Fp32(Vec<Floats>),
    Bf16(Vec<Words>),
    Int8 { codes: Vec<Bytes>, scales: Vec<[Floats; 2]> },
}

impl Matrix {
    /// Packs row-major `values` `[outputs, inputs]`. [`WeightFormat::Auto`] takes the smallest
    /// format that holds every value exactly: int8 for ternary weights, else bf16, else fp32.
    ///
    /// # Panics
    /// Where `values` is not a whole number of rows.
    pub(crate) fn pack(values: &[f32], inputs: usize, format: WeightFormat) -> Self {
        let outputs = values.len() / inputs.max(1);
        assert_eq!(values.len(), outputs * inputs, "weights are whole rows");
        let (panels, groups) = (outputs.div_ceil(PANEL), inputs.div_ceil(PANEL));
        let packing = Packing { values, outputs, inputs };
        let ternary = match format {
            WeightFormat::Auto | WeightFormat::Int8 => ternary_sizes(values, inputs),
            WeightFormat::Fp32 | WeightFormat::Bf16 => None,
        };
        let format = match format {
            WeightFormat::Auto if ternary.is_some() => WeightFormat::Int8,
            WeightFormat::Auto if is_bf16(values) => WeightFormat::Bf16,
            WeightFormat::Auto => WeightFormat::Fp32,
            chosen => chosen,
        };
        let values = match format {
            WeightFormat::Auto | WeightFormat::Fp32 => {
                let mut lines = vec![Floats::default(); panels * groups * PANEL * 2];
                lines.par_chunks_mut(groups * PANEL * 2).enumerate().for_each(|(p, lines)| {
                    for (i, lines) in lines.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        *lines = packing.halves(p, i).map(Floats);
                    }
                });
                Values::Fp32(lines)
            }
            WeightFormat::Bf16 => {
                let mut lines = vec![Words::default(); panels * groups * PANEL];
                lines.par_chunks_mut(groups * PANEL).enumerate().for_each(|(p, lines)| {
                    for (i, line) in lines.iter_mut().enumerate() {
                        let bits = packing
                            .halves(p, i)
                            .map(|half| half.map(|v| u32::from(bf16::from_f32(v).to_bits())));
                        line.0 = std::array::from_fn(|j| bits[0][j] | (bits[1][j] << 16));
                    }
                });
                Values::Bf16(lines)
            }
            WeightFormat::Int8 => packing.int8(panels, groups, ternary.as_deref()),
        };
        Matrix { outputs, inputs, values }
    }

    /// Rows of the matrix.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Panels of [`PANEL`] outputs.
    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    fn groups(&self) -> usize {
        self.inputs.div_ceil(PANEL)
    }

    /// The format that the weights are held in.
    pub(crate) fn format(&self) -> WeightFormat {
        match self.values {
            Values::Fp32(_) => WeightFormat::Fp32,
            Values::Bf16(_) => WeightFormat::Bf16,
            Values::Int8 { .. } => WeightFormat::Int8,
        }
    }

    /// Panel `p`, outputs `p · PANEL` and after.
    pub(crate) fn panel(&self, p: usize) -> Panel<'_> {
        fn part<T>(all: &[T], p: usize, len: usize) -> &[T] {
            &all[p * len..(p + 1) * len]
        }
        let groups = self.groups();
        match &self.values {
            Values::Fp32(lines) => Panel::Fp32(part(lines, p, groups * PANEL * 2)),
            Values::Bf16(lines) => Panel::Bf16(part(lines, p, groups * PANEL)),
            Values::Int8 { codes, scales } => {
                Panel::Int8(part(codes, p, groups * PANEL / 2), part(scales, p, groups.div_ceil(2)))
            }
        }
    }

    /// One weight, as products use it.
    pub(crate) fn weight(&self, output: usize, input: usize) -> f32 {
        let (lane, half) = (output % 16, output % PANEL / 16);
        match self.panel(output / PANEL) {
            Panel::Fp32(lines) => lines[2 * input + half].0[lane],
            Panel::Bf16(lines) => {
                let word = lines[input].0[lane];
                f32::from_bits(if half == 0 { word << 16 } else { word & 0xffff_0000 })
            }
            Panel::Int8(codes, scales) => {
                let code = f32::from(codes[input / 2].0[input % 2][half][lane]);
                code * scales[input / SCALED][half].0[lane]
            }
        }
    }
}

/// Row-major values that are being packed.
struct Packing<'a> {
    values: &'a [f32],
    outputs: usize,
    inputs: usize,
}

impl Packing<'_> {
    fn at(&self, output: usize, input: usize) -> f32 {
        match output < self.outputs && input < self.inputs {
            true => self.values[output * self.inputs + input],
            false => 0.0,
        }
    }

    /// The weights of an input in panel `p`, in two halves.
    fn halves(&self, p: usize, input: usize) -> [[f32; 16]; 2] {
        [0, 16].map(|half| std::array::from_fn(|j| self.at(p * PANEL + half + j, input)))
    }

    /// Codes and factors: `code · factor` is the weight, with factor = the largest size among
    /// [`SCALED`] inputs / 127. With `ternary`, the size of each output's weights that are not
    /// zero, codes are -1, 0 and 1 and exact.
    fn int8(&self, panels: usize, groups: usize, ternary: Option<&[f32]>) -> Values {
        let blocks = groups.div_ceil(2);
        let mut codes = vec![Bytes::default(); panels * groups * PANEL / 2];
        let mut scales = vec![[Floats::default(); 2]; panels * blocks];
        codes
            .par_chunks_mut(groups * PANEL / 2)
            .zip(scales.par_chunks_mut(blocks))
            .enumerate()
            .for_each(|(p, (codes, scales))| {
                let parts = codes.chunks_mut(SCALED / 2).zip(scales);
                for (block, (codes, scales)) in parts.enumerate() {
                    for (half, lane) in (0..2).flat_map(|h| (0..16).map(move |l| (h, l))) {
                        let output = p * PANEL + half * 16 + lane;
                        let inputs = block * SCALED..(block + 1) * SCALED;
                        let largest =
                            inputs.clone().fold(0f32, |m, i| m.max(self.at(output, i).abs()));
                        let ternary = ternary.and_then(|sizes| sizes.get(output));
                        let scale = ternary.copied().unwrap_or(largest / 127.0);
                        scales[half].0[lane] = scale;
                        if scale == 0.0 {
                            continue;
                        }
                        for (i, input) in inputs.enumerate().take(2 * codes.len()) {
                            let code = (self.at(output, input) / scale).round() as i8;
                            codes[i / 2].0[i % 2][half][lane] = code;
                        }
                    }
                }
            });
        Values::Int8 { codes, scales }
    }
}

/// For each output the size of its weights that are not zero, where each has only one; 0 without
/// such weights.
fn ternary_sizes(values: &[f32], inputs: usize) -> Option<Vec<f32>> {
    let size = |row: &[f32]| {
        let size = row.iter().find(|v| **v != 0.0).map_or(0.0, |v| v.abs());
        row.iter().all(|v| *v == 0.0 || v.abs() == size).then_some(size)
    };
    values.par_chunks(inputs.max(1)).map(size).collect()
}

/// Whether bf16 holds every value exactly.
fn is_bf16(values: &[f32]) -> bool {
    values.par_iter().all(|v| v.to_bits() & 0xffff == 0)
}

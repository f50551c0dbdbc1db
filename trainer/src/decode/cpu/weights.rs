//! A model's weights packed for [`super::CpuModel`]: queries, keys and values as one matrix, the
//! panels of the gate and of the up projection in turn.

use crate::compute::WeightFormat;
use crate::compute::tensor_io::download;
use crate::error::Result;
use crate::kernels::Activation;
use crate::kernels::linear::ternary_weight;
use crate::kernels::panels::{Matrix, PANEL, groups};
use crate::model::params::{LayerIndex, LinearIndex, ParamIndex};
use crate::model::{Decoder, Weights};

use super::low_rank::{Factors, LowRank};

/// `x Wᵀ + b`, with `x` rounded to int8 before where the map is BitLinear.
pub(super) struct Linear {
    pub matrix: Matrix,
    /// One for each output, padded to whole panels.
    pub bias: Option<Vec<f32>>,
    /// Whether the map is BitLinear.
    pub rounds_input: bool,
    /// Adapters that act on masks alone.
    pub adapter: Option<LowRank>,
}

/// One decoder layer. Norm weights are padded with zeros to whole groups.
pub(super) struct Layer {
    pub input_norm: Vec<f32>,
    pub qkv: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub attention_norm: Option<Vec<f32>>,
    pub o: Linear,
    pub mlp_norm: Vec<f32>,
    /// Panel 2p: outputs of the gate; panel 2p + 1: the same outputs of the up projection.
    pub gate_up: Linear,
    pub activation: Activation,
    /// Width inside the MLP.
    pub inner: usize,
    pub down_norm: Option<Vec<f32>>,
    pub down: Linear,
}

/// Embeddings of tokens.
pub(super) enum Embeddings {
    /// Rows of the output head.
    Tied,
    /// A table `[vocab_size, hidden_size]`.
    Table(Vec<f32>),
}

impl Embeddings {
    /// The embeddings of `ids`, into zeros in groups.
    pub(super) fn gather(&self, ids: &[i64], head: &Matrix, width: usize, x: &mut [f32]) {
        let rows = ids.len();
        for (row, id) in ids.iter().enumerate() {
            let id = *id as usize;
            for i in 0..width {
                x[(i / PANEL * rows + row) * PANEL + i % PANEL] = match self {
                    Embeddings::Tied => head.weight(id, i),
                    Embeddings::Table(table) => table[id * width + i],
                };
            }
        }
    }
}

/// All of a model's weights.
pub(super) struct Packed {
    pub embeddings: Embeddings,
    /// Embedding of masks.
    pub mask_row: Option<Vec<f32>>,
    pub layers: Vec<Layer>,
    pub norm: Vec<f32>,
    pub head: Linear,
}

/// Why a model cannot be packed: what it has that this form of the forward pass does not compute.
pub(crate) fn unsupported(decoder: &Decoder) -> Option<String> {
    if decoder.cfg.quantization.is_some() && decoder.quant_lambda != 1.0 {
        return Some("its BitLinear quantisation is blended with full precision".into());
    }
    if decoder.params.lora.as_ref().is_some_and(|lora| !lora.shape.gated) {
        return Some("it has adapters beside ternary weights".into());
    }
    let bitlinear = decoder.cfg.quantization.is_some();
    let together = |maps: [&LinearIndex; 2]| maps[0].may_quantize == maps[1].may_quantize;
    let mixed = |l: &LayerIndex| {
        !together([&l.q_proj, &l.k_proj])
            || !together([&l.q_proj, &l.v_proj])
            || !together([&l.gate_proj, &l.up_proj])
    };
    match bitlinear && decoder.params.layers.iter().any(mixed) {
        true => Some(
            "of its query, key and value projections, or of its gate and up projections, some are BitLinear and some are not"
                .into(),
        ),
        false => None,
    }
}

/// Weights of a model that are taken one by one.
struct Source<'a> {
    decoder: &'a Decoder,
    tensors: Vec<Option<burn::prelude::Tensor<2>>>,
    /// Matrices of BitLinear maps are to be made ternary.
    ternary: bool,
    format: WeightFormat,
}

impl Source<'_> {
    /// The values of a parameter, row by row; its memory on the device is freed.
    fn take(&mut self, i: ParamIndex) -> Result<Vec<f32>> {
        let tensor = self.tensors.get_mut(i).and_then(Option::take);
        let Some(mut tensor) = tensor else { return Ok(Vec::new()) };
        let spec = self.decoder.params.specs.get(i);
        if self.ternary && spec.is_some_and(|spec| spec.may_quantize) {
            tensor = ternary_weight(tensor);
        }
        download(&tensor)
    }

    fn norm(&mut self, i: ParamIndex) -> Result<Vec<f32>> {
        let mut weights = self.take(i)?;
        weights.resize(groups(weights.len()) * PANEL, 0.0);
        Ok(weights)
    }

    fn norm_if(&mut self, i: Option<ParamIndex>) -> Result<Option<Vec<f32>>> {
        i.map(|i| self.norm(i)).transpose()
    }

    /// Maps over the same input as one: `step` outputs of each in turn, padded with zeros to whole
    /// steps; without a step, all outputs of one after those of the other.
    fn linear(
        &mut self,
        maps: &[&LinearIndex],
        inputs: usize,
        step: Option<usize>,
    ) -> Result<Linear> {
        let mut parts = Vec::with_capacity(maps.len());
        let mut factors = Vec::with_capacity(maps.len());
        for map in maps {
            let mut weights = self.take(map.weight)?;
            let outputs = (weights.len() / inputs).next_multiple_of(step.unwrap_or(1));
            let bias = map.bias.map(|b| self.take(b)).transpose()?;
            weights.resize(outputs * inputs, 0.0);
            parts.push((weights, bias, outputs));
            factors.push(self.factors(map)?);
        }
        let has_bias = parts.iter().any(|(_, bias, _)| bias.is_some());
        let longest = parts.iter().map(|(_, _, outputs)| *outputs).max().unwrap_or(0);
        let (mut weights, mut biases, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let step = step.unwrap_or(longest).max(1);
        for first in (0..longest).step_by(step) {
            for (map, (part, bias, outputs)) in parts.iter().enumerate() {
                let range = first.min(*outputs)..(first + step).min(*outputs);
                weights.extend_from_slice(&part[range.start * inputs..range.end * inputs]);
                let bias = bias.as_deref().unwrap_or_default();
                rows.extend(range.clone().map(|output| (map, output)));
                biases.extend(range.map(|i| bias.get(i).copied().unwrap_or(0.0)));
            }
        }
        drop(parts);
        biases.resize(groups(biases.len()) * PANEL, 0.0);
        let bitlinear = self.decoder.cfg.quantization.is_some();
        Ok(Linear {
            matrix: Matrix::pack(&weights, inputs, self.format),
            bias: has_bias.then_some(biases),
            rounds_input: bitlinear && maps.iter().any(|map| map.may_quantize),
            adapter: self.decoder.params.lora.as_ref().and_then(|lora| {
                let pack = || LowRank::pack(&factors, inputs, lora.shape.rank, &rows, lora.scale());
                factors.iter().any(Option::is_some).then(pack)
            }),
        })
    }

    /// A and B of a map's adapter.
    fn factors(&mut self, map: &LinearIndex) -> Result<Option<Factors>> {
        let Some(at) = map.adapter else { return Ok(None) };
        Ok(Some(Factors { a: self.take(at.a)?, b: self.take(at.b)? }))
    }

    fn layer(&mut self, l: &LayerIndex) -> Result<Layer> {
        let c = &self.decoder.cfg;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (attended, activation) = (c.num_attention_heads * c.head_dim, c.activation);
        Ok(Layer {
            input_norm: self.norm(l.input_layernorm)?,
            qkv: self.linear(&[&l.q_proj, &l.k_proj, &l.v_proj], hidden, None)?,
            q_norm: self.norm_if(l.q_norm)?,
            k_norm: self.norm_if(l.k_norm)?,
            attention_norm: self.norm_if(l.attn_sub_norm)?,
            o: self.linear(&[&l.o_proj], attended, None)?,
            mlp_norm: self.norm(l.post_attention_layernorm)?,
            gate_up: self.linear(&[&l.gate_proj, &l.up_proj], hidden, Some(PANEL))?,
            activation,
            inner,
            down_norm: self.norm_if(l.ffn_sub_norm)?,
            down: self.linear(&[&l.down_proj], inner, None)?,
        })
    }
}

/// Packs all weights of a model. Matrices of BitLinear maps are made ternary, unless they are.
pub(super) fn pack(decoder: &Decoder, weights: Weights, format: WeightFormat) -> Result<Packed> {
    let params = &decoder.params;
    let mut source = Source {
        decoder,
        tensors: weights.0.into_iter().map(Some).collect(),
        ternary: decoder.cfg.quantization.is_some() && !decoder.ternary_weights,
        format,
    };
    let layers = params.layers.iter().map(|l| source.layer(l)).collect::<Result<Vec<_>>>()?;
    let norm = source.norm(params.norm)?;
    let mask_row = params.lora.as_ref().map(|lora| source.take(lora.mask_row)).transpose()?;
    let embeddings = match params.lm_head == params.embed_tokens {
        true => Embeddings::Tied,
        false => Embeddings::Table(source.take(params.embed_tokens)?),
    };
    let head =
        LinearIndex { weight: params.lm_head, bias: None, may_quantize: false, adapter: None };
    let head = source.linear(&[&head], decoder.cfg.hidden_size, None)?;
    Ok(Packed { embeddings, mask_row, layers, norm, head })
}

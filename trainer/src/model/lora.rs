//! Low-rank adapters (LoRA, arXiv:2106.09685): which parameters they add and train, how they start,
//! and what they do to a matrix.
//!
//! A target matrix W `[out, in]` gets A `[r, in]` and B `[out, r]`; its map becomes
//! `W x + (alpha / r) · B A x`. Beside the adapters one row is trained: that of the mask token in
//! the embedding table, which is the head's too where the two are tied. Everything else is frozen:
//! it has no gradient and no optimizer state.
//!
//! Trained parameters stand behind the model's own in [`Weights`], under the names that the Python
//! library `peft` gives them. The mask token's row is a parameter of its own (fp32), which
//! [`Weights::set_mask_row`] copies into the table after every change, so that a forward pass needs
//! to know nothing of it.

use std::ops::Range;

use burn::prelude::*;
use dlm_datasets::rng;

use super::params::{
    AdapterIndex, LayerIndex, LinearIndex, Lora, LoraShape, ParamIndex, ParamKind, ParamSpec,
    Params, Weights,
};
use crate::config::LoraTarget;
use crate::error::{Error, Result};
use crate::kernels::cast::{cast_to, to_f32};
use crate::kernels::linear::linear;

/// All matrices of a layer that can have an adapter.
pub(crate) const ALL_TARGETS: [LoraTarget; 7] = [
    LoraTarget::Query,
    LoraTarget::Key,
    LoraTarget::Value,
    LoraTarget::Output,
    LoraTarget::Gate,
    LoraTarget::Up,
    LoraTarget::Down,
];

/// `peft` puts this before the names of a model's modules.
const PREFIX: &str = "base_model.model.";

/// `peft`'s name of trained rows of the embedding table.
pub(crate) const TOKEN_ROWS: &str =
    "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";

impl Lora {
    /// The factor on an adapter's output.
    pub(crate) fn scale(&self) -> f64 {
        self.shape.alpha / self.shape.rank as f64
    }
}

/// `peft`'s name of A or B (`lora_A`, `lora_B`) beside the weight `name`.
pub(crate) fn adapter_name(weight: &str, matrix: &str) -> String {
    let module = weight.strip_suffix(".weight").unwrap_or(weight);
    format!("{PREFIX}{module}.{matrix}.weight")
}

impl LayerIndex {
    /// The linear map that a target names.
    fn target(&mut self, target: LoraTarget) -> &mut LinearIndex {
        match target {
            LoraTarget::Query => &mut self.q_proj,
            LoraTarget::Key => &mut self.k_proj,
            LoraTarget::Value => &mut self.v_proj,
            LoraTarget::Output => &mut self.o_proj,
            LoraTarget::Gate => &mut self.gate_proj,
            LoraTarget::Up => &mut self.up_proj,
            LoraTarget::Down => &mut self.down_proj,
        }
    }

    /// The linear maps of the layer.
    fn linears(&self) -> [&LinearIndex; 7] {
        [
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.o_proj,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ]
    }
}

impl Params {
    /// The parameters with adapters, which alone are trained then.
    ///
    /// # Errors
    /// [`Error::Usage`] where the rank is above the smaller side of a target, or the mask token has
    /// no row.
    pub(crate) fn with_lora(mut self, shape: LoraShape) -> Result<Self> {
        let own = self.specs.len();
        if shape.rank == 0 {
            return Err(Error::Usage("adapters of rank 0; expected a rank of 1 or more".into()));
        }
        let [rows, width] = self.specs[self.embed_tokens].shape2();
        if shape.mask_token_id >= rows {
            return Err(Error::Usage(format!(
                "the mask token has id {}, and the embedding table {rows} rows",
                shape.mask_token_id
            )));
        }
        let mut specs: Vec<ParamSpec> = Vec::new();
        let mut layers = Vec::with_capacity(self.layers.len());
        let mut add = |name: String, shape: [usize; 2], kind| {
            specs.push(ParamSpec { name, shape: shape.to_vec(), kind, may_quantize: false });
            own + specs.len() - 1
        };
        let mut first = own;
        for layer in &mut self.layers {
            for target in ALL_TARGETS.iter().filter(|target| shape.targets.contains(target)) {
                let linear = layer.target(*target);
                let weight = &self.specs[linear.weight];
                let [out, inp] = weight.shape2();
                if shape.rank > out.min(inp) {
                    return Err(Error::Usage(format!(
                        "an adapter of rank {} (conversion.lora.rank): {} is {out} x {inp}; expected a rank of at most {}, or other targets (conversion.lora.targets)",
                        shape.rank,
                        weight.name,
                        out.min(inp)
                    )));
                }
                let (a, b) =
                    (adapter_name(&weight.name, "lora_A"), adapter_name(&weight.name, "lora_B"));
                let a = add(a, [shape.rank, inp], ParamKind::Matrix);
                let b = add(b, [out, shape.rank], ParamKind::Matrix);
                linear.adapter = Some(AdapterIndex { a, b });
                first = first.min(a);
            }
            let end = layer.linears().iter().filter_map(|l| l.adapter).map(|ad| ad.b + 1).max();
            let end = end.unwrap_or(first);
            layers.push(first..end);
            first = end;
        }
        let mask_row = add(TOKEN_ROWS.into(), [1, width], ParamKind::Embedding);
        self.lora = Some(Lora { shape, specs, layers, mask_row });
        Ok(self)
    }

    /// The trained parameters: all, or those that adapters add.
    pub(crate) fn trained(&self) -> Range<ParamIndex> {
        let own = self.specs.len();
        match &self.lora {
            None => 0..own,
            Some(lora) => own..own + lora.specs.len(),
        }
    }

    /// The trained parameters, in the order of [`Params::trained`].
    pub(crate) fn trained_specs(&self) -> &[ParamSpec] {
        self.lora.as_ref().map_or(&self.specs, |lora| &lora.specs)
    }

    /// The trained parameters of a layer.
    pub(crate) fn trained_of_layer(&self, layer: usize) -> Range<ParamIndex> {
        match &self.lora {
            None => self.layers[layer].range.clone(),
            Some(lora) => lora.layers[layer].clone(),
        }
    }

    /// Tensors of [`Weights`]: the model's own and those that adapters add.
    pub(crate) fn tensors(&self) -> usize {
        self.specs.len() + self.lora.as_ref().map_or(0, |lora| lora.specs.len())
    }

    /// Numbers that are trained.
    pub(crate) fn trained_numel(&self) -> usize {
        self.trained_specs().iter().map(ParamSpec::numel).fold(0, usize::saturating_add)
    }

    /// First values of the trained parameters that adapters add, as `peft` starts them: A uniform
    /// in ±1/√in (Kaiming with a = √5) from `seed`, B zero, the mask token's row as it is in
    /// `table`, the embedding table's rows end to end. Nothing without adapters.
    pub(crate) fn first_adapters(&self, table: &[f32], seed: u64) -> Vec<Vec<f32>> {
        let Some(lora) = &self.lora else { return Vec::new() };
        let width = self.specs[self.embed_tokens].shape[1];
        let first = |(i, spec): (usize, &ParamSpec)| {
            if spec.kind == ParamKind::Embedding {
                return table[lora.shape.mask_token_id * width..][..width].to_vec();
            }
            if spec.name.contains("lora_B") {
                return vec![0.0; spec.numel()];
            }
            let (key, bound) =
                (rng::key(&[seed, 0x10ba, i as u64]), (spec.shape[1] as f64).powf(-0.5));
            (0..spec.numel() as u64)
                .map(|e| ((2.0 * rng::uniform(key, e) - 1.0) * bound) as f32)
                .collect()
        };
        lora.specs.iter().enumerate().map(first).collect()
    }
}

impl Weights {
    /// Puts `trained`, in the order of [`Params::trained`], in place.
    pub(crate) fn set_trained(&mut self, params: &Params, trained: Vec<Tensor<2>>) {
        self.0.truncate(params.trained().start);
        self.0.extend(trained);
        self.set_mask_row(params);
    }

    /// Copies the trained row of the mask token into the embedding table; nothing without adapters,
    /// and nothing where they are gated.
    pub(crate) fn set_mask_row(&mut self, params: &Params) {
        let Some(lora) = params.lora.as_ref().filter(|lora| !lora.shape.gated) else { return };
        let (id, row) = (lora.shape.mask_token_id, self.0[lora.mask_row].clone());
        let table = &mut self.0[params.embed_tokens];
        let empty = Tensor::empty([1, 1], (&table.device(), table.dtype()));
        // moved out, because only a tensor with one owner is changed in place
        let taken = std::mem::replace(table, empty);
        let (width, dtype) = (taken.dims()[1], taken.dtype());
        *table = taken.slice_assign([id..id + 1, 0..width], cast_to(row, dtype));
    }

    /// Computes the weight `i` of the model with its adapter added, `W + (alpha / r) · B A`, in
    /// fp32; nothing where there is no adapter.
    pub(crate) fn merge(
        &self,
        params: &Params,
        i: ParamIndex,
    ) -> Option<impl Fn() -> Tensor<2> + use<>> {
        let (lora, AdapterIndex { a, b }) = (params.lora.as_ref()?, params.adapter_of(i)?);
        let (weight, a, b) = (self[i].clone(), self[a].clone(), self[b].clone());
        let scale = lora.scale();
        Some(move || {
            let product = b.clone().matmul(a.clone());
            to_f32(weight.clone()) + product.mul_scalar(scale)
        })
    }
}

impl Params {
    /// The adapter beside the weight `i`.
    pub(crate) fn adapter_of(&self, i: ParamIndex) -> Option<AdapterIndex> {
        let layer = self.layers.iter().find(|layer| layer.range.contains(&i))?;
        layer.linears().into_iter().find(|l| l.weight == i)?.adapter
    }
}

/// `scale · B A x` of an adapter: `x` `[T, in]` → `[T, out]` in the dtype of `x`. With `gate`
/// `[T, 1]`, row i is multiplied by its entry i.
pub(crate) fn adapted(
    x: Tensor<2>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f64,
    gate: Option<&Tensor<2>>,
) -> Tensor<2> {
    // the factors go on the r columns in between, which are the fewest
    let low = linear(x, a, None).mul_scalar(scale);
    let low = match gate {
        Some(gate) => low * gate.clone(),
        None => low,
    };
    linear(low, b, None)
}

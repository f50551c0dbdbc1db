//! Loading a model: the one path from a name or a folder to a decoder with weights on a device.
//!
//! In: a local folder, `hf://ORG/NAME[@REV]` or `ORG/NAME`. Out: [`HostModel`] (architecture and
//! fp32 weights in host memory), then [`LoadedModel`] (the same on a device). Training, evaluation,
//! parity checks, decoding and the check of packed exports all load models here.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::DType;
use dlm_prep::ConsoleProgress;
use dlm_prep::hub::{ModelPart, resolve_model};

use crate::error::Result;
use crate::model::config::Quantization;
use crate::model::params::LoraShape;
use crate::model::{Checkpoint, Decoder, ModelConfig, ParamKind, Params, Weights, load};
use crate::report::console::message;

/// Changes applied to a model between reading and upload.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LoadOptions {
    /// Round matrices and embeddings to bf16 and back, which is what bf16 computation does to them.
    pub round_to_bf16: bool,
    /// Quantise linear layers online (BitLinear) whatever `config.json` says.
    pub force_bitlinear: bool,
}

/// A model in host memory.
#[derive(Clone)]
pub(crate) struct HostModel {
    pub config: ModelConfig,
    pub params: Params,
    /// fp32 values in the order of [`Params::specs`]; empty until they are read or drawn.
    pub values: Vec<Vec<f32>>,
}

/// A model on a device.
pub(crate) struct LoadedModel {
    pub decoder: Decoder,
    /// fp32 weights.
    pub weights: Weights,
}

/// The local folder of a model given on the command line; a hub's model is downloaded first.
pub(crate) fn resolve(model: &Path) -> Result<PathBuf> {
    match model.to_str() {
        Some(text) => {
            Ok(resolve_model(text, ModelPart::Whole, "--model", &ConsoleProgress::default())?
                .folder)
        }
        None => Ok(model.to_path_buf()),
    }
}

/// Read the model of a Hugging Face folder and move it to `device`.
pub(crate) fn load_model(
    folder: &Path,
    options: LoadOptions,
    device: &Device,
) -> Result<LoadedModel> {
    Ok(HostModel::read_as(folder, options)?.upload(device))
}

impl LoadedModel {
    /// The model with its adapters added to the weights, where these are not ternary.
    pub(crate) fn merged(self) -> LoadedModel {
        let LoadedModel { decoder, weights } = self;
        if decoder.cfg.quantization.is_some() || decoder.params.lora.is_none() {
            return LoadedModel { decoder, weights };
        }
        let of = |i| match weights.merge(&decoder.params, i) {
            Some(merge) => merge(),
            None => weights[i].clone(),
        };
        let merged = Weights((0..decoder.params.specs.len()).map(of).collect());
        LoadedModel { decoder: Decoder::new(decoder.cfg), weights: merged }
    }
}

impl LoadedModel {
    /// The model with the first `rows` tokens of its vocabulary.
    pub(crate) fn with_vocabulary(mut self, rows: usize) -> LoadedModel {
        let params = &mut self.decoder.params;
        for i in [params.embed_tokens, params.lm_head] {
            let table = &mut self.weights.0[i];
            let [has, width] = table.dims();
            if rows < has {
                *table = table.clone().slice([0..rows, 0..width]);
                params.specs[i].shape = vec![rows, width];
            }
        }
        self.decoder.cfg.vocab_size = rows;
        self
    }
}

impl HostModel {
    /// An architecture, without weights so far.
    pub(crate) fn new(config: ModelConfig) -> Self {
        HostModel { params: Params::new(&config), config, values: Vec::new() }
    }

    /// Architecture and weights of a Hugging Face folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut model = HostModel::new(ModelConfig::read(folder)?);
        model.read_weights(folder)?;
        Ok(model)
    }

    /// [`HostModel::read`] with changes.
    pub(crate) fn read_as(folder: &Path, options: LoadOptions) -> Result<Self> {
        let mut model = HostModel::read(folder)?;
        if options.round_to_bf16 {
            model.round_to_bf16();
        }
        if options.force_bitlinear {
            model.config.quantization = Some(Quantization::Online);
        }
        Ok(model)
    }

    /// Read the weights of a folder, and print what was decided where its files contradict each
    /// other: a head that differs from the embedding table is not tied to it. Packed ternary
    /// weights are unpacked, after which `config.quantization` is [`Quantization::Online`].
    pub(crate) fn read_weights(&mut self, folder: &Path) -> Result<()> {
        let checkpoint = Checkpoint::open(folder)?;
        load::settle_head(&checkpoint, &mut self.config)?;
        for warning in self.config.warnings.drain(..) {
            message(format_args!("warning: {}: {warning}", folder.display()));
        }
        self.params = Params::new(&self.config);
        self.values = load::read_host(&checkpoint, &mut self.config, &self.params)?;
        Ok(())
    }

    /// Draw random weights from `seed`.
    pub(crate) fn draw_weights(&mut self, seed: u64) {
        self.values = load::random_host(&self.config, &self.params, seed);
    }

    /// Round matrices and embeddings to bf16 and back.
    pub(crate) fn round_to_bf16(&mut self) {
        let rounded = |kind| matches!(kind, ParamKind::Matrix | ParamKind::Embedding);
        self.params
            .specs
            .iter()
            .zip(&mut self.values)
            .filter(|(spec, _)| rounded(spec.kind))
            .flat_map(|(_, values)| values)
            .for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
    }

    /// Move the weights to `device`.
    pub(crate) fn upload(self, device: &Device) -> LoadedModel {
        let weights = load::upload(self.values, &self.params, device);
        LoadedModel { decoder: Decoder::new(self.config), weights }
    }

    /// Give the model adapters and move it to `device` with everything else frozen, ready to
    /// compute in `dtype`. `first` makes the values of the trained parameters, from the table of
    /// all and the rows of the embedding table.
    pub(crate) fn adapted(
        mut self,
        shape: LoraShape,
        first: impl FnOnce(&Params, &[f32]) -> Result<Vec<Vec<f32>>>,
        dtype: DType,
        device: &Device,
    ) -> Result<LoadedModel> {
        let params = Params::new(&self.config).with_lora(shape)?;
        let first = first(&params, &self.values[params.embed_tokens])?;
        self.values.extend(first);
        let mut decoder = Decoder::new(self.config);
        let quantized = decoder.cfg.quantization.is_some();
        let weights = load::upload_frozen(self.values, &params, quantized, dtype, device);
        (decoder.params, decoder.ternary_weights) = (params, quantized);
        Ok(LoadedModel { decoder, weights })
    }
}

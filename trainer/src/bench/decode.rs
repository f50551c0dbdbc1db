//! Times of decoding passes, for a model folder or for shapes with random weights.

use std::path::PathBuf;

use serde::Serialize;

use crate::compute::{ComputeDtype, ComputePlan, EngineChoice, WeightFormat, device};
use crate::decode::Engine;
use crate::decode::cost::PassCost;
use crate::decode::folder::ModelFolder;
use crate::error::Result;
use crate::io::load_model;
use crate::model::{Decoder, ModelConfig, Params, load};

use super::presets;

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) enum Measured {
    /// A model folder or hub name.
    Model(PathBuf),
    /// Shapes by name, weights random.
    Preset(String),
}

/// Settings of a measurement.
#[derive(Clone, Debug)]
pub(crate) struct DecodeBenchOptions {
    pub measured: Measured,
    /// New tokens of the passes.
    pub tokens: Vec<usize>,
    /// Tokens before them.
    pub context: usize,
    /// Passes of each kind.
    pub rounds: usize,
    pub device: String,
    pub dtype: Option<ComputeDtype>,
    pub engine: EngineChoice,
    pub weights: WeightFormat,
}

/// Times of the passes.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DecodeBenchReport {
    pub device: String,
    pub dtype: String,
    pub weights: String,
    pub threads: usize,
    /// Tokens before the new ones.
    pub context: usize,
    /// Passes over new tokens.
    pub passes: Vec<PassCost>,
    /// The pass over the context.
    pub prefill: Option<PassCost>,
}

/// Measures.
///
/// # Errors
/// For models, devices and formats that cannot be used.
pub(crate) fn measure_decoding(options: &DecodeBenchOptions) -> Result<DecodeBenchReport> {
    let compute = ComputePlan::new(device::choose(&options.device)?, options.dtype);
    let (name, dtype) = (compute.device.name.clone(), compute.dtype);
    let mut engine = match &options.measured {
        Measured::Model(model) => {
            let folder = ModelFolder::read(&load_model::resolve(model)?)?;
            folder.load(compute, options.engine, options.weights)?
        }
        Measured::Preset(preset) => {
            let config = ModelConfig::from_json(presets::config(preset)?)?;
            let params = Params::new(&config);
            let host = load::random_host(&config, &params, 1);
            let weights = load::upload(host, &params, &compute.device.device);
            let (engine, format) = (options.engine, options.weights);
            Engine::open(Decoder::new(config), weights, compute, engine, format)?
        }
    };
    let mut passes = engine.cost_of_passes(options.context, &options.tokens, options.rounds)?;
    let prefill = passes.pop().filter(|_| options.context > 0);
    Ok(DecodeBenchReport {
        device: name,
        dtype: dtype.to_string(),
        weights: options.weights.to_string(),
        threads: rayon::current_num_threads(),
        context: options.context,
        passes,
        prefill,
    })
}

//! The settings under which tasks are answered.
//!
//! In: the options of the call and what the model can do. Out: [`Run`]s: the source in
//! autoregressive mode, which is the baseline, then the model in each mode, block mode once for
//! each threshold, sub-block size and number of blocks in flight.

use std::path::{Path, PathBuf};

use super::options::{Baseline, TaskOptions};
use crate::decode::generate_options::{DecodeMode, GenerateOptions};
use crate::error::Result;
use crate::generate::ModelFiles;
use crate::io::json;
use crate::report::console::message;

/// Whose answers a run holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Whose {
    /// The baseline's.
    Source,
    /// Those of the model that is evaluated.
    Model,
}

/// One setting.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// Short name, for people: `source ar`, `ar`, `block 0.95/8`, with two
    /// blocks in flight `block 0.95/8 x2`; `verify`, with another number of tokens `verify 4`.
    pub(super) name: String,
    pub(super) whose: Whose,
    pub(super) options: GenerateOptions,
    /// Tokens per sub-block in block mode.
    pub(super) sub_block_size: Option<usize>,
}

/// The runs of a model.
///
/// # Errors
/// [`Error::Usage`] for an option that none of its modes reads.
pub(super) fn list(whose: Whose, files: &ModelFiles, options: &TaskOptions) -> Result<Vec<Run>> {
    let ar = |name: &str| Run {
        name: name.into(),
        whose,
        options: GenerateOptions { mode: DecodeMode::Ar, ..options.decoding.clone() },
        sub_block_size: None,
    };
    if whose == Whose::Source {
        return Ok(vec![ar("source ar")]);
    }
    let mut every = files.modes(&options.decoding);
    if every.contains(&DecodeMode::Verify) {
        // its ar mode is that of the model beside the adapter, the baseline
        every.retain(|mode| *mode == DecodeMode::Verify);
    }
    let modes = if options.modes.is_empty() { &every } else { &options.modes };
    options.mode_options.check(modes)?;
    let sub_block_sizes: Vec<Option<usize>> = match options.sub_block_sizes.as_slice() {
        [] => vec![None],
        sizes => sizes.iter().copied().map(Some).collect(),
    };
    let mut runs = Vec::new();
    if modes.contains(&DecodeMode::Ar) {
        runs.push(ar("ar"));
    }
    if modes.contains(&DecodeMode::Verify) {
        let propose: Vec<Option<usize>> = match options.propose.as_slice() {
            [] => vec![None],
            several => several.iter().copied().map(Some).collect(),
        };
        runs.extend(propose.into_iter().map(|propose| Run {
            name: propose.map_or("verify".into(), |most| format!("verify {most}")),
            whose,
            options: GenerateOptions {
                mode: DecodeMode::Verify,
                propose,
                ..options.decoding.clone()
            },
            sub_block_size: None,
        }));
    }
    if modes.contains(&DecodeMode::Block) {
        let flights = options.blocks_in_flight.iter();
        let sizes = flights.flat_map(|n| sub_block_sizes.iter().map(move |size| (*n, *size)));
        for (blocks_in_flight, sub_block_size) in sizes {
            for &threshold in &options.thresholds {
                let options = GenerateOptions {
                    mode: DecodeMode::Block,
                    threshold,
                    sub_block_size,
                    blocks_in_flight,
                    ..options.decoding.clone()
                };
                let size = files.sub_block_size(&options);
                let flight = match blocks_in_flight {
                    1 => String::new(),
                    n => format!(" x{n}"),
                };
                let name = format!("block {threshold}/{size}{flight}");
                runs.push(Run { name, whose, options, sub_block_size: Some(size) });
            }
        }
    }
    Ok(runs)
}

/// The folder or hub name of the baseline. Says so where a converted model has none.
pub(super) fn baseline(options: &TaskOptions, files: &ModelFiles) -> Result<Option<PathBuf>> {
    let recorded = match &options.source {
        Baseline::None => return Ok(None),
        Baseline::Named(path) => return Ok(Some(path.clone())),
        // an adapter's source is the model beside it
        Baseline::Recorded if options.adapter.is_some() => return Ok(Some(options.model.clone())),
        Baseline::Recorded => recorded_source(files.dir())?,
    };
    let missing = match recorded {
        // a checkpoint of the same weights has nothing to be compared with
        None if !files.is_converted(&GenerateOptions::default()) => return Ok(None),
        None => "its dlm_config.json names no source_checkpoint".to_string(),
        Some(source) if source == "random" => "its training began with random weights".to_string(),
        Some(source) => {
            let path = PathBuf::from(&source);
            if source.starts_with("hf://") || path.join("config.json").is_file() {
                return Ok(Some(path));
            }
            format!("its source {source} is not there")
        }
    };
    message(format_args!(
        "{} has no baseline: {missing}; name one with --source MODEL",
        options.model.display()
    ));
    Ok(None)
}

/// `source_checkpoint` of dlm_config.json.
fn recorded_source(dir: &Path) -> Result<Option<String>> {
    let record: Option<serde_json::Value> =
        json::read_if_present(&dir.join("dlm_config.json"), "valid JSON")?;
    let source = record.as_ref().and_then(|record| record.get("source_checkpoint"));
    Ok(source.and_then(serde_json::Value::as_str).map(str::to_string))
}

//! `quantization_config` of a `config.json`: BitNet's ternary weights and the modules that keep
//! full precision.

use serde_json::Value;

use super::config_reader::Reader;
use super::module_pattern;
use crate::error::{Error, Result};

/// How the ternary weights of a BitNet checkpoint are stored and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantization {
    /// Full-precision master weights, quantised in every forward pass (straight-through gradients).
    Online,
    /// `weight` packed four to a byte, `weight_scale` = mean|W| (linear_class `autobitlinear`).
    PackedMultiply,
    /// `weight` packed four to a byte, `weight_scale` = 1 / mean|W| (linear_class `bitlinear`).
    PackedDivide,
}

/// Reads the method; any other than BitNet's is refused.
pub(super) fn read(reader: &Reader) -> Result<Option<Quantization>> {
    let Some(q) = reader.raw.get("quantization_config").filter(|v| v.is_object()) else {
        return Ok(None);
    };
    let get = |key: &str| q.get(key).and_then(Value::as_str);
    match get("quant_method") {
        Some("bitnet") => {}
        other => {
            return Err(Error::Model(format!(
                "quantization_config.quant_method is {other:?}; only \"bitnet\" is supported, load an unquantised checkpoint instead"
            )));
        }
    }
    if q.get("use_rms_norm").and_then(Value::as_bool) == Some(true) {
        return Err(Error::Model(
            "quantization_config.use_rms_norm is true: the extra norm inside every linear is not implemented".into(),
        ));
    }
    let class = get("linear_class").unwrap_or("bitlinear");
    let mode = get("quantization_mode").unwrap_or("offline");
    match (mode, class) {
        ("online", _) => Ok(Some(Quantization::Online)),
        ("offline", "autobitlinear") => Ok(Some(Quantization::PackedMultiply)),
        ("offline", "bitlinear") => Ok(Some(Quantization::PackedDivide)),
        (m, c) => Err(Error::Model(format!(
            "quantization_config has quantization_mode {m:?} and linear_class {c:?}, which are not known"
        ))),
    }
}

/// The patterns of modules that are not quantised. Without the key these are the output head alone,
/// which is never quantised here.
pub(super) fn modules_to_not_convert(reader: &Reader) -> Result<Vec<String>> {
    let list = match reader.raw.pointer("/quantization_config/modules_to_not_convert") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(Error::Model(format!(
                "quantization_config.modules_to_not_convert is {other}; expected a list of names"
            )));
        }
    };
    let mut patterns = Vec::new();
    for entry in list {
        let Some(pattern) = entry.as_str() else {
            return Err(Error::Model(format!(
                "quantization_config.modules_to_not_convert holds {entry}; expected names"
            )));
        };
        module_pattern::check(pattern)?;
        patterns.push(pattern.to_string());
    }
    if !patterns.iter().any(|pattern| module_pattern::matches(pattern, "lm_head")) {
        return Err(Error::Model(
            "quantization_config.modules_to_not_convert does not name lm_head: transformers quantises the output head then, which is not implemented; add \"lm_head\" to the list if the model was trained with a full-precision head".into(),
        ));
    }
    Ok(patterns)
}

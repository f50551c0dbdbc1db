//! The rotary embedding of a `config.json`: base and scaling of its frequencies.
//!
//! In: `rope_parameters` (transformers 5), `rope_scaling` and `rope_theta` (transformers 4), in any
//! mixture. Out: [`RopeConfig`]. As in transformers 5, a `rope_scaling` that is not empty wins over
//! `rope_parameters`, and a `rope_theta` inside either wins over the one beside it.

use serde_json::{Map, Value};

use super::config_reader::Reader;
use crate::error::{Error, Result};

/// Llama-3 style frequency scaling of RoPE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Llama3Scaling {
    /// Low frequencies are divided by this.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are divided fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are not changed.
    pub high_freq_factor: f64,
    /// Context length the base model was trained with, tokens.
    pub original_max_position_embeddings: f64,
}

impl Llama3Scaling {
    /// A frequency in radians per position, scaled.
    pub(crate) fn apply(&self, freq: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / freq;
        let low = self.original_max_position_embeddings / self.low_freq_factor;
        let high = self.original_max_position_embeddings / self.high_freq_factor;
        if wavelength > low {
            freq / self.factor
        } else if wavelength < high {
            freq
        } else {
            let smooth = (self.original_max_position_embeddings / wavelength
                - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * freq / self.factor + smooth * freq
        }
    }
}

/// Base and scaling of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RopeConfig {
    pub theta: f64,
    pub scaling: Option<Llama3Scaling>,
}

/// Reads the rotary embedding; `default_theta` is the family's, `max_positions` the context length.
/// What was decided between contradicting keys is added to `warnings`.
pub(super) fn read(
    reader: &Reader,
    default_theta: f64,
    max_positions: usize,
    warnings: &mut Vec<String>,
) -> Result<RopeConfig> {
    let beside = reader.number("rope_theta")?;
    let scaling = object(reader, "rope_scaling")?;
    let parameters = object(reader, "rope_parameters")?;
    let mut contradictions = Vec::new();
    if let (Some(old), Some(new)) = (scaling, parameters)
        && old != new
    {
        contradictions.push("rope_scaling and rope_parameters differ: rope_scaling is used".into());
    }
    let chosen =
        scaling.map(|s| ("rope_scaling", s)).or(parameters.map(|p| ("rope_parameters", p)));
    let Some((key, outer)) = chosen else {
        return Ok(RopeConfig {
            theta: positive("rope_theta", beside.unwrap_or(default_theta))?,
            scaling: None,
        });
    };
    let rope = of_full_attention(key, outer)?;
    let inside = match rope.get("rope_theta") {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_f64().ok_or_else(|| {
            Error::Model(format!("{key}.rope_theta is {value}; expected a number"))
        })?),
    };
    if let (Some(a), Some(b)) = (inside, beside)
        && a != b
    {
        contradictions.push(format!("rope_theta is {b} and {key}.rope_theta is {a}: {a} is used"));
    }
    warnings
        .extend(contradictions.into_iter().map(|what| format!("{what}, as transformers 5 does")));
    let partial = rope.get("partial_rotary_factor").or(reader.raw.get("partial_rotary_factor"));
    if partial.and_then(Value::as_f64).is_some_and(|share| share != 1.0) {
        return Err(Error::Model(format!(
            "partial_rotary_factor is {}: rotating only a part of each head is not implemented",
            partial.unwrap_or(&Value::Null)
        )));
    }
    let theta = positive("rope_theta", inside.or(beside).unwrap_or(default_theta))?;
    let original = reader.opt_size("original_max_position_embeddings")?.unwrap_or(max_positions);
    Ok(RopeConfig { theta, scaling: scaling_of(key, rope, original)? })
}

/// An object that is not empty.
fn object<'a>(reader: &Reader<'a>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    match reader.raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok((!map.is_empty()).then_some(map)),
        Some(other) => Err(Error::Model(format!("{key} is {other}; expected an object"))),
    }
}

/// The entry of full attention where the object has one entry per layer type, else the object.
fn of_full_attention<'a>(
    key: &str,
    rope: &'a Map<String, Value>,
) -> Result<&'a Map<String, Value>> {
    if !rope.values().all(Value::is_object) {
        return Ok(rope);
    }
    rope.get("full_attention").and_then(Value::as_object).ok_or_else(|| {
        let types: Vec<&str> = rope.keys().map(String::as_str).collect();
        Error::Model(format!(
            "{key} has entries for the layer types {}; expected one for full_attention",
            types.join(", ")
        ))
    })
}

fn scaling_of(
    key: &str,
    rope: &Map<String, Value>,
    original: usize,
) -> Result<Option<Llama3Scaling>> {
    let kind = match rope.get("rope_type").or_else(|| rope.get("type")) {
        None | Some(Value::Null) => "default",
        Some(Value::String(kind)) => kind,
        Some(other) => {
            return Err(Error::Model(format!("{key}.rope_type is {other}; expected a name")));
        }
    };
    let part = |name: &str| {
        let value = rope.get(name).and_then(Value::as_f64);
        value.filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| {
            Error::Model(format!("{key} of type {kind:?} has no positive number {name}"))
        })
    };
    match kind {
        "default" => Ok(None),
        "llama3" => Ok(Some(Llama3Scaling {
            factor: part("factor")?,
            low_freq_factor: part("low_freq_factor")?,
            high_freq_factor: part("high_freq_factor")?,
            original_max_position_embeddings: match rope.get("original_max_position_embeddings") {
                None | Some(Value::Null) => original as f64,
                Some(_) => part("original_max_position_embeddings")?,
            },
        })),
        other => Err(Error::Model(format!(
            "{key}: rope scaling {other:?} is not supported; supported: default, llama3"
        ))),
    }
}

fn positive(key: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::Model(format!("{key} is {value}; expected a positive number")))
}

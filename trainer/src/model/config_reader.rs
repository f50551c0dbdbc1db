//! Values of a `config.json` by key, each of the type that the key needs or refused by name.

use serde_json::Value;

use super::family::{Family, SDAR};
use crate::error::{Error, Result};

/// Largest size of a dimension or a context: no model comes near, and products of two of them stay
/// below what a machine can address.
const LARGEST_SIZE: u64 = 1 << 28;

/// A parsed `config.json`.
pub(super) struct Reader<'a> {
    pub(super) raw: &'a Value,
}

impl<'a> Reader<'a> {
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.raw.get(key).and_then(Value::as_str)
    }

    /// A positive whole number.
    pub(super) fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) if n > 0 && n <= LARGEST_SIZE => Ok(Some(n as usize)),
                Some(n) if n > 0 => {
                    Err(Error::Usage(format!("{key} is {n}; expected at most {LARGEST_SIZE}")))
                }
                _ => Err(Error::Model(format!("{key} is {v}; expected a positive whole number"))),
            },
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| Error::Model(format!("{key} is missing")))
    }

    /// A size that is `default` where the key is absent, and `None` where it is null.
    pub(super) fn size_or(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        if self.raw.get(key).is_none() { Ok(default) } else { self.opt_size(key) }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v
                .as_f64()
                .map(Some)
                .ok_or_else(|| Error::Model(format!("{key} is {v}; expected a number"))),
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.raw.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => Err(Error::Model(format!("{key} is {v}; expected true or false"))),
        }
    }

    /// `token_shift`, which SDAR's models do not have, without saying so.
    pub(super) fn token_shift(&self) -> Result<Option<bool>> {
        let said = match self.raw.get("token_shift") {
            None | Some(Value::Null) => None,
            Some(_) => Some(self.flag("token_shift", true)?),
        };
        match (said, self.text("model_type") == Some(SDAR)) {
            (Some(true), true) => Err(Error::Model(
                "token_shift is true and model_type sdar: SDAR's models predict each token at its own position; remove one of the two".into(),
            )),
            (None, true) => Ok(Some(false)),
            _ => Ok(said),
        }
    }

    /// The family, as transformers finds it: by `model_type`, and by `architectures` where there is
    /// no `model_type`. A contradiction between the two is added to `warnings`.
    pub(super) fn family(&self, warnings: &mut Vec<String>) -> Result<Family> {
        let arch = self.raw.get("architectures").and_then(|v| v.get(0)).and_then(Value::as_str);
        let kind = self.text("model_type");
        let by_arch = arch.map(|name| {
            let stem = name.strip_suffix("ForCausalLM").or_else(|| name.strip_suffix("Model"));
            stem.and_then(|stem| Family::named(&stem.to_lowercase())).ok_or(name)
        });
        let by_kind = kind.map(|name| Family::named(&name.to_lowercase()).ok_or(name));
        match (by_kind, by_arch) {
            (_, Some(Err(name))) | (Some(Err(name)), _) => Err(Error::Model(format!(
                "architecture {name:?} is not supported; supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, BitNetForCausalLM, SDARForCausalLM, Fast_dLLM_QwenForCausalLM"
            ))),
            (Some(Ok(a)), Some(Ok(b))) if a != b => {
                warnings.push(format!(
                    "model_type says {a:?} and architectures says {b:?}: {a:?} is used, as transformers does"
                ));
                Ok(a)
            }
            (Some(Ok(family)), _) | (None, Some(Ok(family))) => Ok(family),
            (None, None) => Err(Error::Model("neither architectures nor model_type is set".into())),
        }
    }

    /// Refuses sliding-window attention, unless no layer uses it or the window is as long as the
    /// context. The layers that have a window are those of `layer_types`, else those from
    /// `max_window_layers` on, and the window is on where `use_sliding_window` is true.
    pub(super) fn check_window(
        &self,
        family: Family,
        layers: usize,
        positions: usize,
    ) -> Result<()> {
        if !matches!(family, Family::Qwen2 | Family::Qwen3) {
            return Ok(());
        }
        let on = self.flag("use_sliding_window", false)?;
        let window = self.size_or("sliding_window", Some(4096))?.filter(|_| on);
        let types = match self.raw.get("layer_types") {
            None | Some(Value::Null) => None,
            Some(Value::Array(types)) => Some(types),
            Some(other) => {
                return Err(Error::Model(format!("layer_types is {other}; expected a list")));
            }
        };
        let sliding = match types {
            Some(types) if types.len() != layers => {
                return Err(Error::Model(format!(
                    "layer_types has {} entries for {layers} layers",
                    types.len()
                )));
            }
            Some(types) => {
                let known = ["full_attention", "sliding_attention"];
                if let Some(other) = types.iter().find(|t| !known.iter().any(|k| *t == k)) {
                    return Err(Error::Model(format!(
                        "layer_types holds {other}, which is not implemented; supported: full_attention"
                    )));
                }
                types.iter().any(|t| t == "sliding_attention")
            }
            None => {
                let first = match self.raw.get("max_window_layers") {
                    None | Some(Value::Null) => 28,
                    Some(v) => v.as_u64().ok_or_else(|| {
                        Error::Model(format!("max_window_layers is {v}; expected a whole number"))
                    })?,
                };
                window.is_some() && first < layers as u64
            }
        };
        match window {
            _ if !sliding => Ok(()),
            Some(window) if window >= positions => Ok(()),
            Some(window) => Err(Error::Model(format!(
                "use_sliding_window is true and some layers see only {window} of {positions} positions: sliding-window attention is not implemented; set use_sliding_window to false, and layer_types to full_attention, if the model is used within its window"
            ))),
            None => Err(Error::Model(
                "layer_types holds sliding_attention, but use_sliding_window is not true or sliding_window is null; make them agree".into(),
            )),
        }
    }
}

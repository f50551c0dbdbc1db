//! What the files of a model folder say of its conversion to block diffusion, and whether they
//! agree: `dlm_config.json`, `config.json` and the tokenizer.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::{json, tokenizer_ids};
use crate::model::{ModelConfig, TokenIds};

/// Largest block.
const MOST_BLOCK: u64 = 1 << 28;

/// The conversion of a model; empty for one that was not converted. A model that was trained with
/// `objective=sft` last has no block size, whatever its data was padded to.
#[derive(Debug, Default)]
pub(crate) struct ConversionRecord {
    /// Tokens per diffusion block.
    pub bd_size: Option<usize>,
    pub mask_token_id: Option<i64>,
    /// Whether the logits at position i-1 predict token i; `None` where no file says.
    pub token_shift: Option<bool>,
    /// Ids with which the assistant's turn opened in the training data, behind the prompt.
    pub opening_ids: Vec<i64>,
    /// Whether the last training was causal (`objective=sft`), which does not teach to fill blocks.
    pub is_causal: bool,
}

impl ConversionRecord {
    /// Whether the logits at position i-1 predict token i, as in every model that says nothing
    /// else.
    pub(crate) fn has_token_shift(&self) -> bool {
        self.token_shift.unwrap_or(true)
    }

    /// Reads the files of an adapter's folder, for a base model with the vocabulary of `base`. What
    /// the base model was converted to itself does not count.
    pub(crate) fn of_adapter(dir: &Path, base: &ModelConfig) -> Result<Self> {
        let (bd_size, mask_token_id, token_shift) = (None, None, None);
        Self::read(dir, &ModelConfig { bd_size, mask_token_id, token_shift, ..base.clone() })
    }

    /// Reads the files of `dir`, whose `config.json` is `config`.
    pub(crate) fn read(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let path = dir.join("dlm_config.json");
        let file: Option<Value> = json::read_if_present(&path, "valid JSON")?;
        let Some(file) = file else {
            let (bd_size, mask_token_id) = (config.bd_size, config.mask_token_id);
            let token_shift = config.token_shift;
            return Ok(ConversionRecord {
                bd_size,
                mask_token_id,
                token_shift,
                ..Default::default()
            });
        };
        if !file.is_object() {
            return Err(Error::format(&path, "not an object of keys and values"));
        }
        let ids = TokenIds { file: &file, rows: config.vocab_size };
        let here = |error: Error| Error::format(&path, error.to_string());
        let mask_token_id = ids.one("mask_token_id").map_err(here)?;
        let opening_ids = ids.all("assistant_opening_ids").map_err(here)?;
        let bd_size = match file.get("bd_size") {
            None | Some(Value::Null) => None,
            Some(size) => {
                Some(size.as_u64().filter(|n| (1..=MOST_BLOCK).contains(n)).ok_or_else(|| {
                    here(Error::Model(format!(
                        "bd_size is {size}; expected a whole number from 1 to {MOST_BLOCK}"
                    )))
                })? as usize)
            }
        };
        let bd_size = agree(dir, "bd_size", bd_size, config.bd_size)?;
        let is_causal = file.get("objective").and_then(Value::as_str) == Some("sft");
        let token_shift = match file.get("token_shift") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(shift)) => Some(*shift),
            Some(other) => {
                return Err(here(Error::Model(format!(
                    "token_shift is {other}; expected true or false"
                ))));
            }
        };
        let record = ConversionRecord {
            bd_size: bd_size.filter(|_| !is_causal),
            is_causal,
            mask_token_id: agree(dir, "mask_token_id", mask_token_id, config.mask_token_id)?,
            token_shift: agree(dir, "token_shift", token_shift, config.token_shift)?,
            opening_ids,
        };
        let token = file.get("mask_token").and_then(Value::as_str);
        if let (Some(token), Some(id)) = (token, record.mask_token_id) {
            let of_tokenizer = tokenizer_ids::id_of(dir, token)?;
            if let Some(other) = of_tokenizer.filter(|other| *other != id) {
                return Err(Error::format(
                    dir,
                    format!(
                        "dlm_config.json says that the mask token {token:?} has id {id}, the tokenizer says {other}; the folder is a mixture of two models"
                    ),
                ));
            }
        }
        Ok(record)
    }
}

/// The value of a key that two files may have; an error where they contradict each other.
fn agree<T: PartialEq + std::fmt::Display>(
    dir: &Path,
    key: &str,
    dlm_config: Option<T>,
    config: Option<T>,
) -> Result<Option<T>> {
    match (dlm_config, config) {
        (Some(a), Some(b)) if a != b => Err(Error::format(
            dir,
            format!(
                "dlm_config.json says {key} {a}, config.json says {b}; the folder is a mixture of two models"
            ),
        )),
        (a, b) => Ok(a.or(b)),
    }
}

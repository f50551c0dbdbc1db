//! Folders of adapters that act on mask tokens alone (docs/objective.md, "Lossless").

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::adapter::Adapter;
use crate::io::conversion_record::ConversionRecord;
use crate::io::json;
use crate::model::ModelConfig;

/// What `gate` in dlm_config.json says of such adapters.
const MASK_TOKEN: &str = "mask_token";

/// Masks of a group where the folder does not say how far the adapters propose.
const MOST_MASKS: usize = 8;

/// Most masks of a group that a folder may name.
const MOST: usize = 1 << 10;

/// Adapters that act on mask tokens alone, beside the model that verifies what they propose.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    pub mask_id: i64,
    /// Masks of a group at most: what the adapters were trained with.
    pub most_masks: usize,
    /// Tokens of the model's own vocabulary.
    pub rows: usize,
    /// The model's own mask token, which it never produces, where it has one.
    pub never: Option<i64>,
}

impl Gate {
    /// The gate of an adapter folder, if it has one, for the model of `dir`, whose config.json is
    /// `config`.
    ///
    /// # Errors
    /// [`Error::Format`] for a gate of another kind, without a mask token, and beside a model that
    /// does not predict the next token.
    pub(super) fn read(adapter: &Path, dir: &Path, config: &ModelConfig) -> Result<Option<Self>> {
        let path = adapter.join("dlm_config.json");
        let file: Option<Value> = json::read_if_present(&path, "valid JSON")?;
        let gate = match file.as_ref().and_then(|file| file.get("gate")) {
            None | Some(Value::Null) => return Ok(None),
            Some(gate) => gate,
        };
        if gate != MASK_TOKEN {
            return Err(Error::format(
                &path,
                format!(
                    "gate is {gate}; expected \"{MASK_TOKEN}\", or none for adapters that act on all tokens"
                ),
            ));
        }
        let mut grown = config.clone();
        grown.vocab_size = Adapter::read(adapter)?.vocabulary(config.vocab_size);
        let of_adapter = ConversionRecord::of_adapter(adapter, &grown)?;
        let Some(mask_id) = of_adapter.mask_token_id else {
            let reason = "no mask_token_id; expected that of the token at which the adapters act";
            return Err(Error::format(&path, reason));
        };
        let of_model = ConversionRecord::read(dir, config)?;
        if !of_model.has_token_shift() {
            return Err(Error::format(
                dir,
                "trained without the token shift (token_shift: false): nothing predicts the next token, so that nothing can verify proposals",
            ));
        }
        let most_masks = of_adapter.bd_size.unwrap_or(MOST_MASKS).min(MOST);
        let (rows, never) = (config.vocab_size, of_model.mask_token_id);
        Ok(Some(Gate { mask_id, most_masks, rows, never }))
    }
}

//! Everything that decides the output's bytes, in one place.
//!
//! In: the command line (and a recipe). Out: [`Settings`], which goes into the manifest as
//! `recipe`, and whose fingerprint tells a stale or foreign partial output from our own. Worker
//! counts and paths are deliberately not in it.

use crate::config::policies::{LostText, MASK_TOKEN, OverLong, SpecialText, default_now};
use dlm_datasets::manifest::{Alignment, LossOn, Padding};
use serde::{Deserialize, Serialize};

/// The choices of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Tokens per row.
    pub seq_len: usize,
    /// Block size.
    pub bd_size: usize,
    /// Block padding.
    pub padding: Padding,
    /// Block grid.
    pub alignment: Alignment,
    /// Which turns carry loss.
    pub loss_on: LossOn,
    /// Conversations longer than a row.
    pub over_long: OverLong,
    /// Tokens of context that a continued document opens with (`split`).
    pub split_context: usize,
    /// Control-token strings in text.
    pub special_text: SpecialText,
    /// Assistant text the template deletes or rewrites.
    pub lost_text: LostText,
    /// The mask token.
    pub mask_token: String,
    /// What `strftime_now` tells templates.
    pub now: String,
    /// Documents the packer chooses among.
    pub pack_window: usize,
    /// Rows per data file.
    pub shard_rows: usize,
    /// Share of conversations held out.
    pub eval_fraction: f64,
    /// Leave out conversations seen before.
    pub dedup: bool,
    /// Stop after so many document tokens.
    pub max_tokens: Option<u64>,
    /// Stop after so many response tokens.
    pub max_response_tokens: Option<u64>,
    /// Read at most so many rows.
    pub max_rows: Option<u64>,
    /// This machine's part of the rows: (index, of how many).
    pub shard: Option<(u64, u64)>,
    /// Fail above this share of conversations without any loss.
    pub max_unsupervised: f64,
    /// Seed.
    pub seed: u64,
}

/// Below so many rows, prompts that fill a row do not make a run fail.
const FEW: f64 = 200.0;

impl Settings {
    /// Whether `unsupervised` of `rows` conversations are more than the run bears; `too_long` of
    /// them have prompts that fill a row.
    pub fn too_many_unsupervised(&self, unsupervised: f64, too_long: f64, rows: f64) -> bool {
        // A handful of rows says little about prompts in general; a template without labels shows
        // at once.
        let counted = if rows < FEW { unsupervised - too_long } else { unsupervised };
        counted > self.max_unsupervised * rows
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            seq_len: 512,
            bd_size: 32,
            padding: Padding::Mask,
            alignment: Alignment::Sample,
            loss_on: LossOn::All,
            over_long: OverLong::Truncate,
            split_context: 128,
            special_text: SpecialText::Text,
            lost_text: LostText::Drop,
            mask_token: MASK_TOKEN.to_string(),
            now: default_now().to_string(),
            pack_window: 1024,
            shard_rows: 16384,
            eval_fraction: 0.0,
            dedup: false,
            max_tokens: None,
            max_response_tokens: None,
            max_rows: None,
            shard: None,
            max_unsupervised: 0.05,
            seed: 42,
        }
    }
}

impl Settings {
    /// Refuses what cannot work.
    pub fn check(&self) -> crate::Result<()> {
        let usage = |m: String| Err(crate::Error::Usage(m));
        if self.bd_size == 0
            || self.seq_len == 0
            || self.seq_len % self.bd_size != 0
            || self.seq_len > 1 << 24
        {
            return usage(format!(
                "--seq-len {} must be a positive multiple of --bd-size {}",
                self.seq_len, self.bd_size
            ));
        }
        if !(0.0..1.0).contains(&self.eval_fraction) {
            return usage(format!(
                "--eval-fraction {} must be at least 0 and below 1",
                self.eval_fraction
            ));
        }
        if !(0.0..=1.0).contains(&self.max_unsupervised) {
            return usage(format!(
                "--max-unsupervised {} must lie between 0 and 1",
                self.max_unsupervised
            ));
        }
        if let Some((i, n)) = self.shard
            && i >= n
        {
            return usage(format!(
                "--shard {i}/{n}: the index counts from 0 and must be below {n}"
            ));
        }
        if self.shard_rows == 0 || self.pack_window == 0 {
            return usage("--shard-rows and --pack-window must be positive".to_string());
        }
        Ok(())
    }

    /// As JSON, for the manifest.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

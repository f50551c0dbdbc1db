//! Everything that decides the output's bytes, in one place, with all defaults.
//!
//! In: [`SettingsOverrides`](crate::config::overrides::SettingsOverrides) and a recipe. Out:
//! [`Settings`]. They go into the manifest as `recipe`; their fingerprint tells whether an
//! unfinished output belongs to this run. Worker counts and paths are not settings.

use crate::config::policies::{LostText, MASK_TOKEN, OverLong, SpecialText, default_now};
use crate::config::trained_roles::TrainedRoles;
use crate::error::{Error, Result};
use dlm_datasets::manifest::{Alignment, LossOn, Padding};
use serde::{Deserialize, Serialize};

/// Resolved settings of a run. Field names and their order are part of the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Tokens per packed row; a multiple of `bd_size`.
    pub seq_len: usize,
    /// Block size in tokens.
    pub bd_size: usize,
    /// What fills a document up to its next block boundary.
    pub padding: Padding,
    /// From where blocks are counted.
    pub alignment: Alignment,
    /// Which assistant turns carry loss.
    pub loss_on: LossOn,
    /// The roles whose turns carry loss.
    pub train_on_roles: TrainedRoles,
    /// Whether thoughts carry no loss.
    pub mask_thinking: bool,
    /// What happens to conversations longer than a row.
    pub over_long: OverLong,
    /// Tokens of context that a continued document opens with (`over_long: split`).
    pub split_context: usize,
    /// What happens to strings in message content that spell a control token.
    pub special_text: SpecialText,
    /// What happens to assistant text that the template deletes or rewrites.
    pub lost_text: LostText,
    /// The mask token; appended to the tokenizer if it has no such token.
    pub mask_token: String,
    /// The time that `strftime_now` returns in templates, as `2025-01-01T12:00:00`.
    pub now: String,
    /// Number of documents that the packer chooses from.
    pub pack_window: usize,
    /// Packed rows per data file.
    pub shard_rows: usize,
    /// Share of conversations that is held out as the eval split, from 0 to below 1.
    pub eval_fraction: f64,
    /// Whether conversations that were seen before are dropped.
    pub dedup: bool,
    /// The run ends after this many document tokens.
    pub max_tokens: Option<u64>,
    /// The run ends after this many response tokens.
    pub max_response_tokens: Option<u64>,
    /// The run ends after this many rows.
    pub max_rows: Option<u64>,
    /// This machine's part of the rows: (index from 0, number of parts).
    pub shard: Option<(u64, u64)>,
    /// Largest share of conversations without any token to learn from; above it, the run fails.
    pub max_unsupervised: f64,
    /// Seed of the choice of held-out conversations.
    pub seed: u64,
}

/// Rows below which prompts that fill a whole row do not count as unsupervised.
const FEW_ROWS: f64 = 200.0;

impl Default for Settings {
    fn default() -> Self {
        Settings {
            seq_len: 512,
            bd_size: 32,
            padding: Padding::Mask,
            alignment: Alignment::Sample,
            loss_on: LossOn::All,
            train_on_roles: TrainedRoles::default(),
            mask_thinking: false,
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
    /// Refuses values that cannot work.
    pub fn check(&self) -> Result<()> {
        let usage = |m: String| Err(Error::Usage(m));
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
        if self.train_on_roles.beyond_assistant() {
            let roles = self.train_on_roles;
            let other = match (self.loss_on, self.lost_text) {
                (LossOn::Last, _) => Some("--loss-on last, which is about assistant turns"),
                (_, LostText::Split) => Some("--lost-text split, which is about assistant turns"),
                _ => None,
            };
            if let Some(other) = other {
                return usage(format!("--train-on-roles {roles} cannot be used with {other}"));
            }
        }
        if self.shard_rows == 0 || self.pack_window == 0 {
            return usage("--shard-rows and --pack-window must be positive".to_string());
        }
        Ok(())
    }

    /// Whether too many of `rows` conversations have no token to learn from: `unsupervised` in all,
    /// `prompt_too_long` of them because the prompt fills a row. In a handful of rows the latter
    /// say little about the input as a whole, while a template without labels shows at once.
    pub fn too_many_unsupervised(
        &self,
        unsupervised: f64,
        prompt_too_long: f64,
        rows: f64,
    ) -> bool {
        let counted = if rows < FEW_ROWS { unsupervised - prompt_too_long } else { unsupervised };
        counted > self.max_unsupervised * rows
    }

    /// `now` as a time.
    pub fn template_time(&self) -> Result<jiff::civil::DateTime> {
        Self::parse_time(&self.now)
    }

    /// Parses a time like `2025-07-10T12:00:00`.
    pub fn parse_time(text: &str) -> Result<jiff::civil::DateTime> {
        text.parse().map_err(|e| {
            Error::Usage(format!("--now {text:?}: expected a time like 2025-07-10T12:00:00 ({e})"))
        })
    }

    /// The settings as JSON, as they are written into the manifest. Later settings are left out
    /// where they have their default, so that manifests stay as they were.
    pub fn to_json(&self) -> serde_json::Value {
        let (mut json, default) = (self.all_to_json(), Settings::default().all_to_json());
        if let Some(settings) = json.as_object_mut() {
            let later = ["train_on_roles", "mask_thinking"];
            settings.retain(|k, v| !later.contains(&k.as_str()) || *v != default[k]);
        }
        json
    }

    /// All settings as JSON.
    pub(crate) fn all_to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

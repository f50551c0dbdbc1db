//! Settings as typed: only those that the caller named, all others unset.
//!
//! In: a command line or the calls of a builder. Out: resolved [`Settings`]. A value that was typed
//! comes before the recipe's, and the recipe's before the default.

use crate::config::policies::{LostText, OverLong, SpecialText};
use crate::config::recipe::Recipe;
use crate::config::settings::Settings;
use crate::config::trained_roles::TrainedRoles;
use crate::error::{Error, Result};
use dlm_datasets::manifest::{Alignment, LossOn, Padding};

/// One optional value per field of [`Settings`], which documents them.
#[allow(missing_docs)]
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SettingsOverrides {
    pub seq_len: Option<usize>,
    pub bd_size: Option<usize>,
    pub padding: Option<Padding>,
    pub alignment: Option<Alignment>,
    pub loss_on: Option<LossOn>,
    pub train_on_roles: Option<TrainedRoles>,
    pub mask_thinking: Option<bool>,
    pub over_long: Option<OverLong>,
    pub split_context: Option<usize>,
    pub special_text: Option<SpecialText>,
    pub lost_text: Option<LostText>,
    pub mask_token: Option<String>,
    pub now: Option<String>,
    pub pack_window: Option<usize>,
    pub shard_rows: Option<usize>,
    pub eval_fraction: Option<f64>,
    pub dedup: Option<bool>,
    pub max_tokens: Option<u64>,
    pub max_response_tokens: Option<u64>,
    pub max_rows: Option<u64>,
    pub shard: Option<(u64, u64)>,
    pub max_unsupervised: Option<f64>,
    pub seed: Option<u64>,
}

impl SettingsOverrides {
    /// The settings of a run: typed values, then the recipe's, then defaults. Unknown keys of the
    /// recipe and values that cannot work are errors.
    pub(crate) fn resolve(&self, recipe: Option<&Recipe>) -> Result<Settings> {
        let base = match recipe {
            Some(recipe) => recipe_settings(recipe)?,
            None => Settings::default(),
        };
        let t = self.clone();
        let now = match t.now {
            Some(now) => Settings::parse_time(&now)?.to_string(),
            None => base.now,
        };
        let settings = Settings {
            seq_len: t.seq_len.unwrap_or(base.seq_len),
            bd_size: t.bd_size.unwrap_or(base.bd_size),
            padding: t.padding.unwrap_or(base.padding),
            alignment: t.alignment.unwrap_or(base.alignment),
            loss_on: t.loss_on.unwrap_or(base.loss_on),
            train_on_roles: t.train_on_roles.unwrap_or(base.train_on_roles),
            mask_thinking: t.mask_thinking.unwrap_or(base.mask_thinking),
            over_long: t.over_long.unwrap_or(base.over_long),
            split_context: t.split_context.unwrap_or(base.split_context),
            special_text: t.special_text.unwrap_or(base.special_text),
            lost_text: t.lost_text.unwrap_or(base.lost_text),
            mask_token: t.mask_token.unwrap_or(base.mask_token),
            now,
            pack_window: t.pack_window.unwrap_or(base.pack_window),
            shard_rows: t.shard_rows.unwrap_or(base.shard_rows),
            eval_fraction: t.eval_fraction.unwrap_or(base.eval_fraction),
            dedup: t.dedup.unwrap_or(base.dedup),
            max_tokens: t.max_tokens.or(base.max_tokens),
            max_response_tokens: t.max_response_tokens.or(base.max_response_tokens),
            max_rows: t.max_rows.or(base.max_rows),
            shard: t.shard.or(base.shard),
            max_unsupervised: t.max_unsupervised.unwrap_or(base.max_unsupervised),
            seed: t.seed.unwrap_or(base.seed),
        };
        settings.check()?;
        Ok(settings)
    }
}

/// The defaults with the values of a recipe in their place.
fn recipe_settings(recipe: &Recipe) -> Result<Settings> {
    let usage = |reason: String| Error::Usage(format!("recipe {}: {reason}", recipe.name));
    let mut merged = Settings::default().all_to_json();
    for (key, value) in &recipe.settings {
        if merged.get(key).is_none() {
            let known: Vec<&String> =
                merged.as_object().map(|o| o.keys().collect()).unwrap_or_default();
            return Err(usage(format!("unknown setting {key:?}; expected one of {known:?}")));
        }
        merged[key] = value.clone();
    }
    serde_json::from_value(merged).map_err(|e| usage(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(settings: serde_json::Value) -> Recipe {
        let serde_json::Value::Object(settings) = settings else { panic!("not an object") };
        Recipe { name: "r".to_string(), settings, ..Default::default() }
    }

    #[test]
    fn typed_before_recipe_before_default() {
        let recipe = recipe(serde_json::json!({"seq_len": 1024, "dedup": true}));
        let nothing = SettingsOverrides::default();
        assert_eq!(nothing.resolve(None).unwrap(), Settings::default());
        let settings = nothing.resolve(Some(&recipe)).unwrap();
        assert_eq!((settings.seq_len, settings.dedup, settings.bd_size), (1024, true, 32));
        // 512 is the default; it was typed all the same.
        let typed = SettingsOverrides { seq_len: Some(512), ..Default::default() };
        assert_eq!(typed.resolve(Some(&recipe)).unwrap().seq_len, 512);
        let built_in = Recipe::load(std::path::Path::new("nemotron")).unwrap();
        assert_eq!(nothing.resolve(Some(&built_in)).unwrap().over_long, OverLong::Split);
        let typed = SettingsOverrides { over_long: Some(OverLong::Truncate), ..Default::default() };
        assert_eq!(typed.resolve(Some(&built_in)).unwrap().over_long, OverLong::Truncate);
    }

    #[test]
    fn mistakes_are_named() {
        let typed = SettingsOverrides::default();
        let message = |settings| {
            let error = typed.resolve(Some(&recipe(settings))).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert!(message(serde_json::json!({"seqlen": 3})).contains("seqlen"));
        assert!(message(serde_json::json!({"seq_len": "long"})).contains("recipe r"));
        assert!(message(serde_json::json!({"seq_len": 100})).contains("multiple"));
        let typed = SettingsOverrides { eval_fraction: Some(f64::NAN), ..Default::default() };
        assert!(typed.resolve(None).unwrap_err().to_string().contains("--eval-fraction NaN"));
        let typed = SettingsOverrides { now: Some("noon".to_string()), ..Default::default() };
        assert!(typed.resolve(None).unwrap_err().to_string().contains("--now \"noon\""));
    }
}

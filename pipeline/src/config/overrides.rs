//! Settings as typed: only those that the caller named, all others unset.
//!
//! In: a command line or the calls of a builder. Out: resolved [`Settings`]. A value that was typed
//! comes before the recipe's, and the recipe's before the default.

use crate::config::policies::{LostText, OverLong, SpecialText};
use crate::config::recipe::Recipe;
use crate::config::settings::Settings;
use crate::error::{Error, Result};
use dlm_datasets::manifest::{Alignment, LossOn, Padding};
use serde::Serialize;

/// One optional value per field of [`Settings`], which documents them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SettingsOverrides {
    pub seq_len: Option<usize>,
    pub bd_size: Option<usize>,
    pub padding: Option<Padding>,
    pub alignment: Option<Alignment>,
    pub loss_on: Option<LossOn>,
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
    pub fn resolve(&self, recipe: Option<&Recipe>) -> Result<Settings> {
        let internal = |e: serde_json::Error| Error::Internal(e.to_string());
        let mut typed = serde_json::to_value(self).map_err(internal)?;
        if let Some(now) = &self.now {
            typed["now"] = Settings::parse_time(now)?.to_string().into();
        }
        let mut merged = Settings::default().to_json();
        let recipe_name = recipe.map_or("", |r| r.name.as_str());
        for (key, value) in recipe.iter().flat_map(|r| &r.settings) {
            if merged.get(key).is_none() {
                let known: Vec<&String> =
                    merged.as_object().map(|o| o.keys().collect()).unwrap_or_default();
                return Err(Error::Usage(format!(
                    "recipe {recipe_name}: unknown setting {key:?}; expected one of {known:?}"
                )));
            }
            merged[key] = value.clone();
        }
        for (key, value) in typed.as_object().into_iter().flatten().filter(|t| !t.1.is_null()) {
            merged[key] = value.clone();
        }
        let settings: Settings = serde_json::from_value(merged).map_err(|e| match recipe {
            Some(_) => Error::Usage(format!("recipe {recipe_name}: {e}")),
            None => internal(e),
        })?;
        settings.check()?;
        Ok(settings)
    }
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
        let typed = SettingsOverrides { now: Some("noon".to_string()), ..Default::default() };
        assert!(typed.resolve(None).unwrap_err().to_string().contains("--now \"noon\""));
    }

    /// A field that is missing here could not be typed.
    #[test]
    fn every_setting_can_be_overridden() {
        let all = SettingsOverrides {
            seq_len: Some(1),
            bd_size: Some(1),
            padding: Some(Padding::Mask),
            alignment: Some(Alignment::Sample),
            loss_on: Some(LossOn::All),
            over_long: Some(OverLong::Drop),
            split_context: Some(1),
            special_text: Some(SpecialText::Text),
            lost_text: Some(LostText::Drop),
            mask_token: Some(String::new()),
            now: Some(String::new()),
            pack_window: Some(1),
            shard_rows: Some(1),
            eval_fraction: Some(0.0),
            dedup: Some(true),
            max_tokens: Some(1),
            max_response_tokens: Some(1),
            max_rows: Some(1),
            shard: Some((0, 1)),
            max_unsupervised: Some(0.0),
            seed: Some(1),
        };
        let keys = |v: serde_json::Value| -> Vec<String> {
            v.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(keys(serde_json::to_value(all).unwrap()), keys(Settings::default().to_json()));
    }
}

//! The identity of a run: every setting that must stay the same for a resume to be exact.

use dlm_datasets::Dataset;

use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::io::checkpoint::Identity;
use crate::io::source::{self, ModelSource};
use crate::model::Decoder;

/// Settings that may change between sessions: they decide what is logged, evaluated or saved, and
/// when, or, like the device, by what the same is computed.
const FREE: [&str; 7] = [
    "train.engine",
    "train.log_every",
    "train.eval_every",
    "train.eval_rows",
    "train.save_every",
    "train.keep_checkpoints",
    "train.prefetch",
];

/// Name of the source.
pub(super) const SOURCE: &str = "source";

/// Hash of the files of a local source; a hub's source is named with its commit instead.
pub(super) const SOURCE_HASH: &str = "source_hash";

/// Settings that say when a run is complete. A complete run may be given a larger budget.
pub(super) const BUDGET: [&str; 2] = ["conversion.total_tokens", "train.max_steps"];

/// Settings that checkpoints of older versions do not record, and what was in effect there.
pub(super) const ADDED: [(&str, &str); 3] =
    [(TOKEN_SHIFT, "true"), ("conversion.mask_token_id", "null"), (DISTILL, "0")];

/// Recorded as it is in effect, not as it is configured: null takes that of the source.
const TOKEN_SHIFT: &str = "conversion.token_shift";

/// Recorded as it is in effect: null stands for a number.
const DISTILL: &str = "conversion.distill";

/// Dataset fingerprint, model source, parameter count, and every configuration key of the sections
/// `conversion`, `optim` and `train` that is not [`FREE`].
pub(super) fn identity(
    cfg: &Config,
    data: &Dataset,
    source: &ModelSource,
    decoder: &Decoder,
) -> Result<Identity> {
    let mut identity = Identity::new();
    identity.insert("data".into(), data.fingerprint());
    identity.insert(SOURCE.into(), source.name.clone());
    // adapters are of use with these weights alone
    let pinned = source.name.starts_with("hf://") && cfg.conversion.lora.is_none();
    let folder = source.folder.as_deref().filter(|_| !pinned);
    if let Some(hash) = folder.map(source::content_hash).transpose()?.flatten() {
        identity.insert(SOURCE_HASH.into(), hash);
    }
    identity.insert("parameters".into(), decoder.params.numel().to_string());
    let yaml = cfg.to_yaml()?;
    let tree: serde_json::Value = serde_saphyr::from_str(&yaml)
        .map_err(|e| Error::Usage(format!("the configuration cannot be recorded: {e}")))?;
    for section in ["conversion", "optim", "train"] {
        let entries = tree.get(section).and_then(|v| v.as_object()).into_iter().flatten();
        for (name, value) in entries {
            let key = format!("{section}.{name}");
            // a key that came later, whose null is what every run before it did
            let later = ["conversion.lora", "conversion.block_offsets", DISTILL];
            let is_absent = later.contains(&key.as_str()) && value.is_null();
            if !FREE.contains(&key.as_str()) && !is_absent {
                identity.insert(key, value.to_string());
            }
        }
    }
    identity.insert(TOKEN_SHIFT.into(), decoder.cfg.has_token_shift().to_string());
    if cfg.conversion.objective == config::Objective::Lossless {
        identity.insert(DISTILL.into(), distilled_share(cfg).to_string());
    }
    Ok(identity)
}

/// Share of the divergence from the source in the lossless objective, where the configuration is
/// silent.
const DISTILLED_SHARE: f64 = 1.0;

/// Share of the divergence from the source in the loss; 0 with other objectives than the lossless
/// one.
pub(super) fn distilled_share(cfg: &Config) -> f64 {
    match cfg.conversion.objective {
        config::Objective::Lossless => cfg.conversion.distill.unwrap_or(DISTILLED_SHARE),
        config::Objective::Sft | config::Objective::BlockDiffusion => 0.0,
    }
}

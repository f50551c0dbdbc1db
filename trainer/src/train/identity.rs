//! The identity of a run: every setting that must stay the same for a resume to be exact.

use dlm_datasets::Dataset;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::checkpoint::Identity;
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

/// Dataset fingerprint, model source, parameter count, and every configuration key of the sections
/// `conversion`, `optim` and `train` that is not [`FREE`].
pub(super) fn identity(
    cfg: &Config,
    data: &Dataset,
    source: &str,
    decoder: &Decoder,
) -> Result<Identity> {
    let mut identity = Identity::new();
    identity.insert("data".into(), data.fingerprint());
    identity.insert("source".into(), source.into());
    identity.insert("parameters".into(), decoder.params.numel().to_string());
    let yaml = cfg.to_yaml()?;
    let tree: serde_json::Value = serde_saphyr::from_str(&yaml)
        .map_err(|e| Error::Usage(format!("the configuration cannot be recorded: {e}")))?;
    for section in ["conversion", "optim", "train"] {
        let entries = tree.get(section).and_then(|v| v.as_object()).into_iter().flatten();
        for (name, value) in entries {
            let key = format!("{section}.{name}");
            if !FREE.contains(&key.as_str()) {
                identity.insert(key, value.to_string());
            }
        }
    }
    Ok(identity)
}

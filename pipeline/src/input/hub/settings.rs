//! Settings of a hub client: endpoint, token, cache folder.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a client.
#[derive(Debug, Clone)]
pub(crate) struct HubSettings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or the token file's content.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `HF_HOME/hub`.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Pause before the second attempt; it doubles with each further one.
    pub pause: Duration,
    /// Time after which a request is not tried again, and in which some of a file must arrive.
    pub patience: Duration,
}

impl HubSettings {
    /// Reads the environment variables that the Python client reads.
    pub(crate) fn from_env() -> HubSettings {
        let var = |k: &str| std::env::var(k).ok().filter(|v| !v.trim().is_empty());
        let on = |k: &str| {
            var(k).is_some_and(|v| {
                !matches!(v.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off")
            })
        };
        let home = var("HF_HOME").map(Into::into).unwrap_or_else(|| {
            let base = var("XDG_CACHE_HOME").map(PathBuf::from);
            base.unwrap_or_else(|| {
                PathBuf::from(var("HOME").unwrap_or_else(|| ".".to_string())).join(".cache")
            })
            .join("huggingface")
        });
        let file = || {
            let path =
                var("HF_TOKEN_PATH").map(PathBuf::from).unwrap_or_else(|| home.join("token"));
            std::fs::read_to_string(path).ok()
        };
        let implicit = !on("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let token = var("HF_TOKEN")
            .or_else(|| file().filter(|_| implicit))
            .map(|t| t.trim().to_string())
            .filter(|t| !t.is_empty());
        let milliseconds = |key: &str, usual: u64| {
            Duration::from_millis(var(key).and_then(|v| v.parse().ok()).unwrap_or(usual))
        };
        HubSettings {
            endpoint: var("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_string())
                .trim_end_matches('/')
                .to_string(),
            token,
            cache: var("HF_HUB_CACHE").map(Into::into).unwrap_or_else(|| home.join("hub")),
            offline: on("HF_HUB_OFFLINE"),
            pause: milliseconds("DLM_HUB_PAUSE_MS", 500),
            patience: milliseconds("DLM_HUB_PATIENCE_MS", 600_000),
        }
    }
}

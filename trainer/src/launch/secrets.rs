//! What a machine must know and nobody else may read: tokens and the keys of buckets.
//!
//! In: the environment and the plan's buckets. Out: names of variables, which `sky --secret NAME`
//! reads from its own environment. Values are in neither the task nor a command line, and this
//! program never prints them.

use std::path::PathBuf;

/// The variable in which Google's credentials travel; the task writes them to a file that only its
/// user can read.
const GOOGLE: &str = "DLM_GOOGLE_CREDENTIALS";

/// Secrets of a task.
#[derive(Default)]
pub(super) struct Secrets {
    /// Names of variables that are set here.
    names: Vec<String>,
    /// Content of Google's credentials file, where there is one.
    google: Option<String>,
}

impl Secrets {
    /// What a task needs that uses these buckets, the hub, and W&B if `wandb`.
    pub(super) fn of<'a>(buckets: impl Iterator<Item = &'a str>, wandb: bool) -> Secrets {
        let mut prefixes = vec!["HF_TOKEN"];
        if wandb {
            prefixes.push("WANDB_API_KEY");
        }
        let mut secrets = Secrets::default();
        for bucket in buckets {
            match bucket.split(':').next() {
                Some("gs") => {
                    prefixes.push("GOOGLE_SERVICE_ACCOUNT_KEY");
                    if secrets.google.is_none() {
                        secrets.google =
                            google_file().and_then(|p| std::fs::read_to_string(p).ok());
                    }
                }
                Some("s3") => prefixes.push("AWS_"),
                Some("az") => prefixes.push("AZURE_"),
                _ => {}
            }
        }
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|_| !value.is_empty()) else { continue };
            let wanted = prefixes.iter().any(|p| match p.strip_suffix('_') {
                Some(_) => name.starts_with(p) && !names_a_file(name),
                None => name == *p,
            });
            if wanted {
                secrets.names.push(name.into());
            }
        }
        secrets.names.sort();
        if secrets.google.is_some() {
            secrets.names.push(GOOGLE.into());
        }
        secrets
    }

    /// Names for `--secret`.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Variables that the child process needs besides those of this process.
    pub(super) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.google.iter().map(|text| (GOOGLE, text.as_str()))
    }

    /// Why a machine of this cloud could not open the bucket; `None` where it has what it needs, or
    /// its cloud gives it.
    pub(super) fn missing_for(&self, bucket: &str, infra: Option<&str>) -> Option<String> {
        let cloud = infra.and_then(|infra| infra.split('/').next());
        let has = |prefix: &str| self.names.iter().any(|name| name.starts_with(prefix));
        match bucket.split(':').next() {
            Some("gs") if cloud != Some("gcp") && self.google.is_none() && !has("GOOGLE_") => Some(
                "the machine could not open gs://: no credentials here to give it; run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file".into(),
            ),
            Some("s3") if cloud != Some("aws") && !has("AWS_ACCESS_KEY_ID") => Some(
                "the machine could not open s3://: no credentials here to give it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`eval \"$(aws configure export-credentials --format env)\"` sets them from a profile)".into(),
            ),
            Some("az") if !has("AZURE_") => Some(
                "the machine could not open az://: no credentials here to give it; set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY".into(),
            ),
            _ => None,
        }
    }
}

/// Variables of Amazon's and Azure's programs that name a file or a profile here, which a machine
/// elsewhere has not.
fn names_a_file(name: &str) -> bool {
    name.ends_with("_FILE")
        || name.ends_with("_PROFILE")
        || name.ends_with("_PATH")
        || name.ends_with("_CA_BUNDLE")
        || name.ends_with("_CONFIG_DIR")
}

/// The file of Google's application default credentials.
fn google_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set("GOOGLE_APPLICATION_CREDENTIALS") {
        return Some(path.into());
    }
    let folder = set("CLOUDSDK_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(set("HOME")?).join(".config/gcloud")))?;
    Some(folder.join("application_default_credentials.json")).filter(|path| path.is_file())
}

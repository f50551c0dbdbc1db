//! Where a model or a tokenizer is: a local folder, or a repository of the hub brought into the
//! cache.
//!
//! In: a folder, `hf://ORG/NAME[@REVISION]`, or `ORG/NAME` where no folder of that name exists.
//! Out: a local folder, and the name to record: of a repository `hf://ORG/NAME@COMMIT`, which
//! always means the same bytes. Only what is loaded is downloaded: config.json, tokenizer files,
//! and `model.safetensors` or the shards its index names; never `.bin`, `.gguf` or other copies.

use super::ShardSource;
use super::cache::{Repo, RepoKind, is_commit, is_id};
use super::client::{HubClient, HubSettings};
use super::fetch::HubSource;
use super::list::{self, Listing};
use crate::error::{Error, Result};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What is wanted of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPart {
    /// Tokenizer files and chat template.
    Tokenizer,
    /// Those and config.json: enough where the weights come from a checkpoint.
    Shapes,
    /// Those and the weights.
    Whole,
}

/// A repository, at a revision if one was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/NAME`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
}

/// A model that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundModel {
    /// Its files.
    pub folder: PathBuf,
    /// What to record: the folder as it was given, or `hf://ORG/NAME@COMMIT`.
    pub name: String,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];
const CONFIG: [&str; 3] = ["config.json", "generation_config.json", "dlm_config.json"];

impl HubName {
    /// `hf://ORG/NAME[@REV]`, `ORG/NAME[@REV]`; none where the text is neither.
    pub fn parse(text: &str) -> Option<HubName> {
        let (rest, marked) = match text.strip_prefix("hf://") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (rest, None),
        };
        let one_slash = id.matches('/').count() == 1;
        let fits =
            is_id(id) && (one_slash || (marked && !id.contains('/'))) && !id.starts_with('.');
        let named = revision.is_none_or(|r| !r.is_empty() && super::cache::safe(r).is_ok());
        (fits && named)
            .then(|| HubName { id: id.to_string(), revision: revision.map(String::from) })
    }

    /// Whether a commit is named.
    pub fn pinned(&self) -> bool {
        self.revision.as_deref().is_some_and(is_commit)
    }
}

/// Whether `text` names a repository rather than a folder: by its prefix, or because there is no
/// such folder.
pub fn hub_name(text: &str) -> Option<HubName> {
    if text.starts_with("hf://") || !Path::new(text).exists() { HubName::parse(text) } else { None }
}

/// Finds a model and brings what is needed of it here. `key` is what the text was given as
/// (`source.path`, `--model`), for errors.
pub fn find(text: &str, part: ModelPart, key: &str) -> Result<FoundModel> {
    let usage = |reason: String| Error::Usage(format!("{key} {text}: {reason}"));
    for (scheme, how) in [("gs://", "gcloud storage cp -r"), ("s3://", "aws s3 cp --recursive")] {
        if text.starts_with(scheme) {
            return Err(usage(format!(
                "buckets are not read; copy the folder first (`{how} {text} DIR`) and give DIR"
            )));
        }
    }
    if let Some(name) = hub_name(text) {
        if !text.starts_with("hf://") {
            eprintln!("{key} {text}: no such folder; taking it as hf://{text}");
        }
        return fetch(&name, part).map_err(|e| match e {
            // A mistyped folder looks like a repository.
            Error::Input { path, reason } if !text.starts_with("hf://") => Error::Input {
                path,
                reason: format!(
                    "{reason} ({key} {text} is no local folder, so it was looked up on the hub)"
                ),
            },
            other => other,
        });
    }
    let folder = PathBuf::from(text);
    if folder.is_dir() {
        return Ok(FoundModel { folder, name: text.to_string() });
    }
    let found = if folder.exists() { "is a file" } else { "no such folder" };
    Err(usage(format!(
        "{found}; expected a folder with a model's files, hf://ORG/NAME[@REVISION], or ORG/NAME"
    )))
}

/// Brings a repository's files into the cache.
fn fetch(name: &HubName, part: ModelPart) -> Result<FoundModel> {
    let mut client = HubClient::new(HubSettings::from_env());
    client.tells = true;
    let repo = Repo::new(&client.settings.cache, RepoKind::Model, &name.id);
    let revision = name.revision.as_deref().unwrap_or("main");
    let found = |commit: &str| FoundModel {
        folder: repo.snapshot(commit),
        name: format!("hf://{}@{commit}", name.id),
    };
    let known =
        if is_commit(revision) { Some(revision.to_string()) } else { repo.read_ref(revision) };
    let cached = known.filter(|commit| complete(&repo.snapshot(commit), part));
    let offline = client.settings.offline;
    match &cached {
        // What a commit holds never changes; another client may have fetched less of it.
        Some(commit)
            if offline
                || (is_commit(revision)
                    && found(commit).folder.join("tokenizer.json").is_file()) =>
        {
            return Ok(found(commit));
        }
        None if offline => {
            return Err(Error::Input {
                path: format!("{} at {revision}", name.id),
                reason: "HF_HUB_OFFLINE is set and the cache does not hold all of it; run once with the network, or unset it".to_string(),
            });
        }
        _ => {}
    }
    let listed = list::tree(&client, &repo, RepoKind::Model, &name.id, revision, &|path| {
        !path.contains('/')
    });
    let listed = listed.map_err(|e| match (e, &cached) {
        (Error::Input { path, reason }, Some(commit)) => {
            Error::Input { path, reason: format!("{reason} (the cache holds this model at commit {commit}: HF_HUB_OFFLINE=1 takes it)") }
        }
        (e, _) => e,
    })?;
    let (listing, _) = listed.ok_or_else(|| Error::Input {
        path: format!("hf://{}", name.id),
        reason: format!(
            "the hub answers 404: no such model, or it has no revision {revision} (a private one looks the same without HF_TOKEN)"
        ),
    })?;
    let commit = listing.commit.clone();
    download(client, &name.id, listing, part)?;
    Ok(found(&commit))
}

/// The folder of a tokenizer given as `--tokenizer`.
pub fn tokenizer(given: &Path) -> Result<PathBuf> {
    match given.to_str() {
        Some(text) => {
            let found = find(text, ModelPart::Tokenizer, "--tokenizer")?;
            if found.name.starts_with("hf://") {
                eprintln!("from       {}", found.name);
            }
            Ok(found.folder)
        }
        None => Ok(given.to_path_buf()),
    }
}

/// Whether a snapshot holds all that is needed: links are made when their files are whole.
fn complete(folder: &Path, part: ModelPart) -> bool {
    let has = |file: &str| folder.join(file).is_file();
    match part {
        ModelPart::Tokenizer => has("tokenizer.json") && has("tokenizer_config.json"),
        ModelPart::Shapes => has("config.json"),
        ModelPart::Whole => {
            let weights = has(SINGLE)
                || shards(&folder.join(INDEX)).is_some_and(|names| names.iter().all(|n| has(n)));
            has("config.json") && weights
        }
    }
}

/// The files an index names; none where there is no index, or it names none.
fn shards(index: &Path) -> Option<Vec<String>> {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
    let mut names: Vec<String> = json
        .get("weight_map")?
        .as_object()?
        .values()
        .filter_map(|v| v.as_str().map(String::from))
        .collect();
    names.sort_unstable();
    names.dedup();
    let plain = |n: &String| !n.is_empty() && !n.contains(['/', '\\']) && n != "..";
    (!names.is_empty() && names.iter().all(plain)).then_some(names)
}

fn download(client: HubClient, id: &str, listing: Listing, part: ModelPart) -> Result<()> {
    let has = |file: &str| listing.files.iter().any(|f| f.path == file);
    let lacks =
        |what: String| Error::Input { path: format!("hf://{id}@{}", listing.commit), reason: what };
    let names = |filter: &dyn Fn(&str) -> bool| -> String {
        let found: Vec<&str> =
            listing.files.iter().map(|f| f.path.as_str()).filter(|p| filter(p)).take(6).collect();
        if found.is_empty() { "nothing of the kind".to_string() } else { found.join(", ") }
    };
    if part == ModelPart::Tokenizer && !has("tokenizer.json") {
        return Err(lacks(format!(
            "has no tokenizer.json (it has {}); make one with transformers: AutoTokenizer.from_pretrained({id:?}).save_pretrained(DIR), and give DIR",
            names(&|p| p.contains("token") || p.contains("vocab"))
        )));
    }
    if part != ModelPart::Tokenizer && !has("config.json") {
        return Err(lacks(format!(
            "has no config.json (it has {}); it is no transformers model",
            names(&|_| true)
        )));
    }
    if part == ModelPart::Whole && !has(SINGLE) && !has(INDEX) {
        let weights = |p: &str| {
            [".bin", ".pt", ".pth", ".gguf", ".safetensors", ".h5", ".msgpack"]
                .iter()
                .any(|e| p.ends_with(e))
        };
        return Err(lacks(format!(
            "has no {SINGLE} and no {INDEX} (it has {}); convert it with transformers: AutoModelForCausalLM.from_pretrained({id:?}).save_pretrained(DIR), and give DIR",
            names(&weights)
        )));
    }
    let sharded = part == ModelPart::Whole && !has(SINGLE);
    let small = |p: &str| {
        TOKENIZER.contains(&p)
            || (part != ModelPart::Tokenizer && CONFIG.contains(&p))
            || (sharded && p == INDEX)
    };
    let index_of = |pick: &dyn Fn(&str) -> bool| -> Vec<usize> {
        listing.files.iter().enumerate().filter(|(_, f)| pick(&f.path)).map(|(k, _)| k).collect()
    };
    // Weights come last: a folder that has them has the rest.
    let first = index_of(&small);
    let source = HubSource::new(client, RepoKind::Model, id, listing.clone());
    let go = |k: usize| source.fetch(k, &|| false);
    let mut index = None;
    for &k in &first {
        let path = go(k)?;
        if listing.files[k].path == INDEX {
            index = Some(path);
        }
    }
    if part != ModelPart::Whole {
        return Ok(());
    }
    let weights = match index {
        None => index_of(&|p| p == SINGLE),
        Some(path) => {
            let wanted = shards(&path)
                .ok_or_else(|| lacks(format!("its {INDEX} names no weights (weight_map)")))?;
            if let Some(gone) = wanted.iter().find(|n| !has(n)) {
                return Err(lacks(format!(
                    "its {INDEX} names {gone}, which it does not list; take another revision"
                )));
            }
            index_of(&|p| wanted.iter().any(|n| n == p))
        }
    };
    let bytes: u64 = weights.iter().map(|&k| listing.files[k].bytes).sum();
    let work = || weights.iter().try_for_each(|&k| go(k).map(|_| ()));
    if weights.iter().map(|&k| source.held(k)).sum::<u64>() == bytes {
        return work();
    }
    let short = listing.commit.get(..8).unwrap_or_default();
    let files =
        if weights.len() == 1 { "1 file".to_string() } else { format!("{} files", weights.len()) };
    eprintln!("fetching   hf://{id}@{short}, {:.1} MB of weights in {files}", bytes as f64 / 1e6);
    watched(&source, &weights, bytes, work)
}

/// Runs `work` beside a bar on a terminal, or a line now and then.
fn watched(
    source: &HubSource,
    files: &[usize],
    bytes: u64,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let done = AtomicBool::new(false);
    let lines = AtomicUsize::new(0);
    std::thread::scope(|s| {
        s.spawn(|| {
            let begun = Instant::now();
            let held = || files.iter().map(|&k| source.held(k)).sum::<u64>();
            let start = held();
            let bar = std::io::stderr().is_terminal().then(|| {
                let bar = indicatif::ProgressBar::new(bytes);
                let style = indicatif::ProgressStyle::with_template(
                    "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}",
                );
                if let Ok(style) = style {
                    bar.set_style(style);
                }
                bar.set_position(start);
                bar.reset_elapsed();
                bar
            });
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                let seconds = begun.elapsed().as_secs();
                match &bar {
                    Some(bar) => bar.set_position(held()),
                    None if seconds / 10 > lines.load(Ordering::Relaxed) as u64 => {
                        lines.store((seconds / 10) as usize, Ordering::Relaxed);
                        let now = held();
                        let rate =
                            now.saturating_sub(start) as f64 / begun.elapsed().as_secs_f64() / 1e6;
                        eprintln!(
                            "fetching   {:.0} of {:.0} MB, {rate:.1} MB/s",
                            now as f64 / 1e6,
                            bytes as f64 / 1e6
                        );
                    }
                    None => {}
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        });
        // The display must end even if the work panics.
        struct Finish<'a>(&'a AtomicBool);
        impl Drop for Finish<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _finish = Finish(&done);
        work()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub() {
        let name = |id: &str, revision: Option<&str>| {
            Some(HubName { id: id.to_string(), revision: revision.map(String::from) })
        };
        assert_eq!(HubName::parse("hf://Qwen/Qwen3-4B"), name("Qwen/Qwen3-4B", None));
        assert_eq!(HubName::parse("Qwen/Qwen3-4B"), name("Qwen/Qwen3-4B", None));
        assert_eq!(HubName::parse("hf://gpt2@main"), name("gpt2", Some("main")));
        assert_eq!(HubName::parse("hf://a/b@refs/pr/3"), name("a/b", Some("refs/pr/3")));
        for none in [
            "",
            "gpt2",
            "hf://",
            "hf://a/b/c",
            "/a/b",
            "./a",
            "../a",
            "a/b/c",
            "~/a",
            "hf://a/b@",
            "hf://a/b@../x",
            "a b/c",
            "gs://a/b",
        ] {
            assert_eq!(HubName::parse(none), None, "{none:?}");
        }
        let pinned = HubName::parse("a/b@0123456789abcdef0123456789abcdef01234567").unwrap();
        assert!(pinned.pinned() && !HubName::parse("a/b@main").unwrap().pinned());
    }

    #[test]
    fn folders_win_and_buckets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().to_str().unwrap();
        assert_eq!(
            find(text, ModelPart::Whole, "--model").unwrap(),
            FoundModel { folder: dir.path().into(), name: text.to_string() }
        );
        let said = |t: &str| find(t, ModelPart::Whole, "--model").unwrap_err().to_string();
        assert!(said("gs://bucket/x").contains("gcloud storage cp"), "{}", said("gs://bucket/x"));
        assert!(said("no-such-folder").contains("no such folder"), "{}", said("no-such-folder"));
    }
}

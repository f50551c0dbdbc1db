//! `--dataset` against a hub on the loopback interface: the same bytes as from local files, with
//! faults and without; wrong or unsafe answers are refused; the token is never printed or stored.

use dlm_test_support::hub::{COMMIT, CONVERTED, Faults, Hub, ID, files_of};
use dlm_test_support::sample;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

const TOKEN: &str = "hf_secretsecretsecret";

/// Rows in the Nemotron layout: SFT/<category>/<category>.jsonl, and files that hold no data. One
/// file is longer than one download range.
fn layout() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (k, category) in ["chat", "code", "math", "science", "safety"].iter().enumerate() {
        let mut text = String::new();
        let rows = if *category == "code" { 30_000 } else { 200 };
        let filler = if *category == "code" { "x = x + 1 ".repeat(50) } else { String::new() };
        for i in 0..rows {
            text.push_str(&format!(
                "{{\"input\": [{{\"role\": \"user\", \"content\": \"Question {i} of {category}? {filler}\"}}], \"output\": \"Answer {} indeed.\", \"category\": \"{category}\", \"license\": \"cc-by-4.0\", \"reasoning\": \"off\", \"system_prompt\": \"detailed thinking off\"}}\n",
                i * (k + 3)
            ));
        }
        files.insert(format!("SFT/{category}/{category}.jsonl"), text.into_bytes());
    }
    files.insert("README.md".to_string(), b"# A dataset".to_vec());
    files.insert("dataset_infos.json".to_string(), b"{}".to_vec());
    files
}

struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Ground {
        Ground { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn prep(&self, hub: &Hub, cache: &str, out: &str, more: &[&str]) -> Output {
        let tokenizer = sample("tokenizer");
        let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
        c.args(["--dataset", ID, "--engine", "fast", "--over-long", "split", "--tokenizer"])
            .arg(tokenizer)
            .arg("--out")
            .arg(self.path(out))
            .args(more);
        c.env("HF_ENDPOINT", &hub.url)
            .env("HF_HOME", self.path(cache))
            .env("HF_TOKEN", TOKEN)
            .env("DLM_HUB_PAUSE_MS", "1");
        c.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE");
        c.output().unwrap()
    }

    fn shards(&self, out: &str) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.path(out)).unwrap().map(|e| e.unwrap().path());
        let arrow = entries.filter(|p| p.extension().is_some_and(|x| x == "arrow"));
        arrow
            .map(|p| {
                (
                    p.file_name().unwrap().to_string_lossy().into_owned(),
                    dlm_datasets::hash::sha256_file(&p).unwrap(),
                )
            })
            .collect()
    }

    fn local(&self, files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, String> {
        let root = self.path("local");
        for (path, content) in files {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), content).unwrap();
        }
        let tokenizer = sample("tokenizer");
        let done = Command::new(env!("CARGO_BIN_EXE_dlm-prep"))
            .args(["--engine", "fast", "--over-long", "split", "--input"])
            .arg(&root)
            .arg("--tokenizer")
            .arg(tokenizer)
            .arg("--out")
            .arg(self.path("local-out"))
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", said(&done));
        self.shards("local-out")
    }
}

fn said(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

#[test]
fn same_bytes_as_local_with_faults_and_without() {
    let (g, files) = (Ground::new(), layout());
    assert!(files["SFT/code/code.jsonl"].len() > 17 << 20, "one file must be longer than a piece");
    let local = g.local(&files);
    let calm = Hub::start(files.clone(), BTreeMap::new(), Faults::default());
    let done = g.prep(&calm, "cache", "calm", &[]);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(local, g.shards("calm"));
    let manifest = std::fs::read_to_string(g.path("calm/manifest.json")).unwrap();
    assert!(manifest.contains(COMMIT) && manifest.contains(ID));
    assert!(!manifest.contains(TOKEN) && !said(&done).contains(TOKEN));
    assert!(
        calm.log.lock().unwrap().iter().all(|l| l.starts_with("/cdn/") || l.contains("auth=true")),
        "the token goes to the hub"
    );
    // The cache has the Python client's layout.
    let repo = g.path("cache/hub/datasets--nvidia--Llama-Nemotron-Post-Training-Dataset");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let link = repo.join("snapshots").join(COMMIT).join("SFT/chat/chat.jsonl");
    assert_eq!(std::fs::read(&link).unwrap(), files["SFT/chat/chat.jsonl"]);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    // A second run downloads nothing.
    let before = calm.log.lock().unwrap().len();
    assert!(g.prep(&calm, "cache", "again", &[]).status.success());
    assert!(calm.log.lock().unwrap()[before..].iter().all(|l| l.starts_with("/api/")));
    assert_eq!(local, g.shards("again"));

    let wild = Hub::start(
        files,
        BTreeMap::new(),
        Faults { mixed: true, wrong_bytes: 1, ..Default::default() },
    );
    let done = g.prep(&wild, "cache2", "wild", &[]);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(local, g.shards("wild"));
    assert!(wild.requests.load(std::sync::atomic::Ordering::SeqCst) > 20);
    // Offline, from the cache alone.
    let tokenizer = sample("tokenizer");
    let offline = Command::new(env!("CARGO_BIN_EXE_dlm-prep"))
        .args(["--dataset", ID, "--engine", "fast", "--over-long", "split", "--tokenizer"])
        .arg(tokenizer)
        .arg("--out")
        .arg(g.path("offline"))
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env("HF_HOME", g.path("cache2"))
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(offline.status.success(), "{}", said(&offline));
    assert_eq!(local, g.shards("offline"));
}

#[test]
fn splits_globs_and_revisions() {
    let (g, files) = (Ground::new(), layout());
    let hub = Hub::start(files, BTreeMap::new(), Faults::default());
    let rows = |out: &str, more: &[&str]| {
        let done = g.prep(&hub, "cache", out, more);
        assert!(done.status.success(), "{}", said(&done));
        let m: serde_json::Value =
            serde_json::from_slice(&std::fs::read(g.path(out).join("manifest.json")).unwrap())
                .unwrap();
        m["counts"]["rows_read"].as_u64().unwrap()
    };
    assert_eq!(rows("a", &["--split", "chat,math"]), 400);
    assert_eq!(rows("b", &["--files", "SFT/s*/*.jsonl"]), 400);
    assert_eq!(rows("c", &["--split", "chat", "--revision", COMMIT]), 200);
    for (more, word) in [(["--split", "poetry"], "--split poetry"), (["--revision", "nope"], "404")]
    {
        let done = g.prep(&hub, "cache", "x", &more);
        assert_eq!(done.status.code(), Some(1));
        assert!(
            said(&done).contains(word)
                || said(&done).contains("no such")
                || said(&done).contains("none of its"),
            "{}",
            said(&done)
        );
    }
}

#[test]
fn a_whole_conversion_is_preferred_and_a_partial_one_is_not() {
    let (g, files) = (Ground::new(), layout());
    let sample = std::fs::read(sample("train.parquet")).unwrap();
    let used = |folder: &str, cache: &str| {
        let converted = BTreeMap::from([(format!("SFT/{folder}/0000.parquet"), sample.clone())]);
        let hub = Hub::start(files.clone(), converted, Faults::default());
        let done = g.prep(&hub, cache, cache, &["--max-rows", "100"]);
        assert!(done.status.success(), "{}", said(&done));
        std::fs::read_to_string(g.path(cache).join("manifest.json")).unwrap()
    };
    assert!(used("chat", "whole").contains(CONVERTED));
    assert!(used("partial-chat", "partial").contains(COMMIT));
}

#[test]
fn what_cannot_be_right_is_refused() {
    let small: BTreeMap<String, Vec<u8>> =
        layout().into_iter().filter(|(k, _)| !k.contains("code")).collect();
    for (faults, word) in [
        (Faults { expired: true, ..Default::default() }, "expired"),
        (Faults { wrong_length: true, ..Default::default() }, "its listing says"),
        (
            Faults { wrong_bytes: 1000, ..Default::default() },
            "twice the content is not what the hub lists",
        ),
        (Faults { traversal: true, ..Default::default() }, "could leave the cache folder"),
    ] {
        let g = Ground::new();
        let hub = Hub::start(small.clone(), BTreeMap::new(), faults.clone());
        let done = g.prep(&hub, "cache", "out", &[]);
        assert_eq!(done.status.code(), Some(1), "{faults:?}: {}", said(&done));
        assert!(said(&done).contains(word), "{faults:?}: {}", said(&done));
        assert!(!said(&done).contains(TOKEN));
        assert!(!g.path("out/manifest.json").exists());
        assert!(!g.path("SFT").exists() && !g.dir.path().parent().unwrap().join("SFT").exists());
    }
    let g = Ground::new();
    let hub = Hub {
        url: "http://127.0.0.1:9".to_string(),
        requests: Default::default(),
        log: Default::default(),
        models: Default::default(),
    };
    let done = g.prep(&hub, "cache", "out", &[]);
    assert!(said(&done).contains("gave up after"), "{}", said(&done));
}

/// `--tokenizer ORG/NAME` downloads the tokenizer's files and no others, gives the same rows as the
/// local folder, works offline from the cache, and reports what the repository lacks.
#[test]
fn a_tokenizer_of_the_hub() {
    let g = Ground::new();
    let folder = sample("tokenizer");
    let hub = Hub::of_models(Faults { mixed: true, ..Default::default() });
    let mut files = files_of(&folder);
    files.insert("model.safetensors".to_string(), vec![1; 100]);
    files.insert("README.md".to_string(), b"# A model".to_vec());
    hub.push("org/small", COMMIT, files);
    hub.push("org/old", CONVERTED, BTreeMap::from([("tokenizer.model".to_string(), vec![1; 10])]));
    let input = sample("train.parquet");
    let prep = |tokenizer: &str, out: &str, offline: &str| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
        c.args(["--max-rows", "50", "--engine", "fast", "--tokenizer", tokenizer, "--input"])
            .arg(&input)
            .arg("--out")
            .arg(g.path(out));
        c.env("HF_ENDPOINT", &hub.url)
            .env("HF_HOME", g.path("cache"))
            .env("HF_TOKEN", TOKEN)
            .env("DLM_HUB_PAUSE_MS", "1");
        c.env_remove("HF_HUB_CACHE").env("HF_HUB_OFFLINE", offline).output().unwrap()
    };
    let local = prep(folder.to_str().unwrap(), "local", "0");
    assert!(local.status.success(), "{}", said(&local));
    for (name, out) in [
        ("hf://org/small", "a"),
        ("org/small@main", "b"),
        (&format!("hf://org/small@{COMMIT}"), "c"),
    ] {
        let done = prep(name, out, "0");
        assert!(done.status.success(), "{name}: {}", said(&done));
        assert_eq!(g.shards("local"), g.shards(out));
        assert!(!said(&done).contains(TOKEN));
    }
    let asked = hub.asked(0).join("\n");
    assert!(
        asked.contains("tokenizer.json")
            && !asked.contains("safetensors")
            && !asked.contains("README"),
        "{asked}"
    );
    let before = hub.asked(0).len();
    assert!(prep("org/small", "d", "1").status.success());
    assert_eq!(hub.asked(0).len(), before, "offline asks nothing");
    for (name, offline, words) in [
        ("org/old", "0", ["tokenizer.model", "save_pretrained"]),
        ("org/never", "1", ["HF_HUB_OFFLINE", "org/never"]),
        ("org/small@v9", "0", ["404", "v9"]),
        ("org/none", "0", ["401", "no local folder"]),
        ("no-such-folder", "0", ["no such folder", "--tokenizer"]),
    ] {
        let done = prep(name, "x", offline);
        assert!(
            !done.status.success() && words.iter().all(|w| said(&done).contains(w)),
            "{name}: {}",
            said(&done)
        );
    }
}

/// A system without certificates: a hub on the loopback needs none, one with TLS is refused with
/// what to do.
#[test]
fn a_system_without_certificates() {
    let g = Ground::new();
    let hub = Hub::of_models(Faults::default());
    hub.push("org/small", COMMIT, files_of(&sample("tokenizer")));
    let prep = |endpoint: &str| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
        c.args(["--max-rows", "20", "--tokenizer", "hf://org/small", "--input"])
            .arg(sample("train.parquet"))
            .arg("--out")
            .arg(g.path("out"));
        c.env("HF_ENDPOINT", endpoint).env("HF_HOME", g.path("cache"));
        c.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
        c.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE").output().unwrap()
    };
    let plain = prep(&hub.url);
    assert!(plain.status.success(), "{}", said(&plain));
    let tls = prep("https://127.0.0.1:9");
    assert!(!tls.status.success());
    if cfg!(target_os = "linux") {
        assert!(said(&tls).contains("SSL_CERT_FILE"), "{}", said(&tls));
    }
}

/// A cache that belongs to somebody else: nothing in it can be written, and the run works online
/// as long as the files of the commit are there.
#[test]
fn a_cache_that_cannot_be_written() {
    let g = Ground::new();
    let mut files = layout();
    files.retain(|path, _| !path.contains("code"));
    let hub = Hub::start(files, BTreeMap::new(), Faults::default());
    assert!(g.prep(&hub, "cache", "first", &[]).status.success());
    let repo = g.path("cache/hub/datasets--nvidia--Llama-Nemotron-Post-Training-Dataset");
    // A file where a folder would be made: writing fails for every user, root included.
    for folder in ["cache/hub/.locks", "refs", "blobs"].map(|f| match f {
        "cache/hub/.locks" => g.path(f),
        f => repo.join(f),
    }) {
        if folder.ends_with("blobs") {
            // The snapshot keeps copies, as where the cache was copied without its links.
            for path in ["chat", "math", "science", "safety"] {
                let link =
                    repo.join("snapshots").join(COMMIT).join(format!("SFT/{path}/{path}.jsonl"));
                let content = std::fs::read(&link).unwrap();
                std::fs::remove_file(&link).unwrap();
                std::fs::write(&link, content).unwrap();
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "in the way").unwrap();
    }
    let done = g.prep(&hub, "cache", "second", &[]);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(g.shards("first"), g.shards("second"));
    // A file that is not there cannot be stored, and the message names the place.
    std::fs::remove_file(repo.join("snapshots").join(COMMIT).join("SFT/chat/chat.jsonl")).unwrap();
    let done = g.prep(&hub, "cache", "third", &[]);
    let named = said(&done).contains("blobs") || said(&done).contains(".locks");
    assert!(!done.status.success() && named, "{}", said(&done));
}

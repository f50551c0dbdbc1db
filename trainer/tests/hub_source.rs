//! Models from a hub on the loopback interface, by the real binary: the same run as from the local
//! folder, pinned to a commit that a resume keeps, offline from the cache; and error messages that
//! say what to do.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{ok, train, workplace};
use dlm_test_support::hub::{Faults, Hub, files_of};
use serde_json::Value;

const TOKEN: &str = "hf_secretsecretsecret";
const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const ID: &str = "org/tiny";

type Files = BTreeMap<String, Vec<u8>>;

/// Sets the environment of a client of `hub`, with its cache in the test's folder.
fn client<'a>(command: &'a mut Command, hub: &Hub, dir: &Path) -> &'a mut Command {
    command
        .env("HF_ENDPOINT", &hub.url)
        .env("HF_HOME", dir.join("cache"))
        .env("HF_TOKEN", TOKEN)
        .env("DLM_HUB_PAUSE_MS", "1");
    command.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE")
}

fn from(dir: &Path, hub: &Hub, source: &str, out: &str, more: &[&str]) -> Command {
    let path = format!("source.path={source}");
    let mut all =
        vec!["source.init=pretrained", &path, "export.dtype=fp32", "conversion.total_tokens=1500"];
    all.extend(more);
    let mut command = train(dir, out, &all);
    client(&mut command, hub, dir);
    command
}

/// A model's files as a hub has them, beside files that must not be downloaded.
fn model(dir: &Path, seed: &str) -> Files {
    let name = format!("made-{seed}");
    ok(&mut train(dir, &name, &["export.dtype=fp32", "conversion.total_tokens=300", seed]));
    let mut files = files_of(&dir.join(name));
    files.retain(|name, _| !["config.yaml", "metrics.jsonl"].contains(&name.as_str()));
    for extra in ["pytorch_model.bin", "consolidated.safetensors", "README.md", "model.gguf"] {
        files.insert(extra.into(), vec![7; 50]);
    }
    files.insert("original/params.json".into(), b"{}".to_vec());
    files
}

/// The same files as a local source.
fn folder(dir: &Path, name: &str, files: &Files) -> PathBuf {
    let at = dir.join(name);
    fs::create_dir_all(&at).unwrap();
    for (path, content) in files.iter().filter(|(path, _)| !path.contains('/')) {
        fs::write(at.join(path), content).unwrap();
    }
    at
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn weights(dir: &Path, out: &str) -> Vec<u8> {
    fs::read(dir.join(out).join("model.safetensors")).unwrap()
}

#[test]
fn a_repository_is_the_folder_it_holds() {
    let place = workplace();
    let dir = place.path();
    let files = model(dir, "train.seed=1");
    folder(dir, "local", &files);
    let hub = Hub::of_models(Faults { mixed: true, wrong_bytes: 1, ..Default::default() });
    hub.push(ID, A, files);
    ok(&mut from(dir, &hub, "local", "by-folder", &[]));
    let done = ok(&mut from(dir, &hub, "hf://org/tiny", "by-hub", &[]));
    assert_eq!(weights(dir, "by-folder"), weights(dir, "by-hub"));
    assert!(!said(&done).contains(TOKEN));

    // Every record of the source names the commit.
    let pinned = format!("hf://{ID}@{A}");
    assert!(said(&done).contains(&pinned), "{}", said(&done));
    assert_eq!(json(dir.join("by-hub/dlm_config.json"))["source_checkpoint"], pinned);
    assert!(fs::read_to_string(dir.join("by-hub/config.yaml")).unwrap().contains(&pinned));
    let latest = fs::read_to_string(dir.join("by-hub/checkpoints/latest")).unwrap();
    let state = dir.join("by-hub/checkpoints").join(latest.trim()).join("state.json");
    assert_eq!(json(state.clone())["identity"]["source"], pinned);
    for written in ["by-hub/config.yaml", "by-hub/dlm_config.json", "by-hub/metrics.jsonl"] {
        assert!(!fs::read_to_string(dir.join(written)).unwrap().contains(TOKEN));
    }

    // Only files that are loaded are downloaded, and only the hub itself gets the token.
    let asked = hub.asked(0);
    for name in ["pytorch_model.bin", "consolidated", "README", "gguf", "original"] {
        assert!(!asked.iter().any(|a| a.contains(name)), "{name} was fetched");
    }
    assert!(
        asked.iter().all(|a| a.contains("auth=true")),
        "the hub's own host gets the token, redirects included: {asked:?}"
    );
    let link = dir.join("cache/hub/models--org--tiny/snapshots").join(A).join("model.safetensors");
    assert!(fs::symlink_metadata(link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(dir.join("cache/hub/models--org--tiny/refs/main")).unwrap(), A);

    // A second run: by the bare name, by the commit, and without a network.
    let before = hub.asked(0).len();
    ok(&mut from(dir, &hub, ID, "bare", &[]));
    assert!(
        hub.asked(before).iter().all(|a| a.starts_with("/api/")),
        "nothing is downloaded twice"
    );
    let before = hub.asked(0).len();
    ok(&mut from(dir, &hub, &pinned, "by-commit", &[]));
    ok(from(dir, &hub, "hf://org/tiny", "offline", &[])
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_ENDPOINT", "http://127.0.0.1:9"));
    assert_eq!(hub.asked(0).len(), before, "a commit in the cache, or offline: nothing is asked");
    for out in ["bare", "by-commit", "offline"] {
        assert_eq!(weights(dir, "by-folder"), weights(dir, out), "{out}");
    }
}

#[test]
fn a_resume_keeps_the_commit() {
    let place = workplace();
    let dir = place.path();
    let hub = Hub::of_models(Faults::default());
    hub.push(ID, A, model(dir, "train.seed=1"));
    let more = ["train.save_every=1", "train.keep_checkpoints=50"];
    ok(&mut from(dir, &hub, "hf://org/tiny", "run", &more));
    let whole = weights(dir, "run");
    // Back to step 2, while main has moved to another model.
    hub.push(ID, B, model(dir, "train.seed=2"));
    let back = || fs::write(dir.join("run/checkpoints/latest"), "step-000000002").unwrap();
    back();
    // As on another machine: the cache is empty, and the weights come from the checkpoint.
    fs::remove_dir_all(dir.join("cache")).unwrap();
    let before = hub.asked(0).len();
    let resumed = ok(&mut from(dir, &hub, "hf://org/tiny", "run", &more));
    let asked = hub.asked(before).join("\n");
    assert!(asked.contains("config.json") && !asked.contains("model.safetensors"), "{asked}");
    assert!(said(&resumed).contains("resumed") && said(&resumed).contains(A), "{}", said(&resumed));
    assert_eq!(whole, weights(dir, "run"));
    assert_eq!(
        json(dir.join("run/dlm_config.json"))["source_checkpoint"],
        format!("hf://{ID}@{A}")
    );
    // A revision that is named explicitly is used.
    back();
    common::refused(&mut from(dir, &hub, "hf://org/tiny@main", "run", &more), 1, &[A, B, "source"]);
    // An export on demand uses the recorded commit, too.
    let mut export = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    export.current_dir(dir).args(["export", "run", "--out", "again", "--data", "data"]);
    ok(client(&mut export, &hub, dir));
    assert_eq!(
        json(dir.join("again/dlm_config.json"))["source_checkpoint"],
        format!("hf://{ID}@{A}")
    );
    // A new run uses the commit that main names now.
    ok(&mut from(dir, &hub, "hf://org/tiny", "new", &[]));
    assert_ne!(whole, weights(dir, "new"));
    assert_eq!(
        json(dir.join("new/dlm_config.json"))["source_checkpoint"],
        format!("hf://{ID}@{B}")
    );
}

/// Splits `model.safetensors` into two files with an index.
fn sharded(mut files: Files) -> Files {
    let bytes = files.remove("model.safetensors").unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    let names: Vec<String> = all.names().iter().map(|n| n.to_string()).collect();
    for (k, part) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", k + 1);
        let views: Vec<_> = part.iter().map(|n| (n.clone(), all.tensor(n).unwrap())).collect();
        files.insert(file.clone(), safetensors::serialize(views, None).unwrap());
        map.extend(part.iter().map(|n| (n.clone(), Value::from(file.clone()))));
    }
    files.insert(
        "model.safetensors.index.json".into(),
        serde_json::json!({ "weight_map": map }).to_string().into_bytes(),
    );
    files
}

#[test]
fn shards_come_by_their_index_and_other_commands_read_hubs_too() {
    let place = workplace();
    let dir = place.path();
    let files = model(dir, "train.seed=1");
    let hub = Hub::of_models(Faults { mixed: true, other_host: true, ..Default::default() });
    let parts = sharded(files.clone());
    hub.push(ID, A, files.clone());
    hub.push("org/parts", B, parts.clone());
    ok(&mut from(dir, &hub, "hf://org/tiny", "single", &[]));
    ok(&mut from(dir, &hub, "hf://org/parts", "shards", &[]));
    assert_eq!(weights(dir, "single"), weights(dir, "shards"));
    assert!(!hub.asked(0).iter().any(|a| a.contains("consolidated")));
    // A redirect to another host carries no token.
    let (elsewhere, here): (Vec<_>, Vec<_>) =
        hub.asked(0).into_iter().partition(|a| a.starts_with("/cdn-models/"));
    assert!(
        !elsewhere.is_empty() && elsewhere.iter().all(|a| a.contains("auth=false")),
        "{elsewhere:?}"
    );
    assert!(here.iter().all(|a| a.contains("auth=true")));

    let mut gone = parts;
    gone.remove("model-00002-of-00002.safetensors");
    hub.push("org/gone", A, gone);
    common::refused(
        &mut from(dir, &hub, "hf://org/gone", "x", &[]),
        1,
        &["model-00002-of-00002.safetensors", "another revision"],
    );

    let call = |arguments: &[&str]| {
        let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
        command.current_dir(dir).args(arguments).args(["--device", "cpu", "--json"]);
        serde_json::from_slice::<Value>(&ok(client(&mut command, &hub, dir)).stdout).unwrap()
    };
    folder(dir, "local", &files);
    for arguments in [
        ["generate", "--ids", "5,6,7", "--max-new-tokens", "8"],
        ["eval", "--data", "data", "--rows", "4"],
    ] {
        let mut answers = ["org/parts", "local"].map(|model| {
            let mut all = arguments.to_vec();
            all.extend(["--model", model]);
            call(&all)
        });
        answers.iter_mut().filter_map(Value::as_object_mut).for_each(|o| drop(o.remove("seconds")));
        assert_eq!(answers[0], answers[1]);
    }
}

#[test]
fn errors_say_what_to_do() {
    let place = workplace();
    let dir = place.path();
    let files = model(dir, "train.seed=1");
    let hub = Hub::of_models(Faults::default());
    let without = |names: &[&str]| {
        let mut files = files.clone();
        names.iter().for_each(|n| drop(files.remove(*n)));
        files
    };
    hub.push("org/bin", A, without(&["model.safetensors", "consolidated.safetensors"]));
    hub.push("org/bare", A, without(&["config.json"]));
    let refused = |source: &str, code: i32, words: &[&str]| {
        let out = from(dir, &hub, source, "x", &[]).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{}", said(&out));
        for word in words {
            assert!(said(&out).contains(word), "{source}: no {word:?} in {}", said(&out));
        }
        assert!(!said(&out).contains(TOKEN) && !said(&out).contains("panicked"));
    };
    refused(
        "hf://org/bin",
        1,
        &["no model.safetensors", "pytorch_model.bin", "model.gguf", "save_pretrained"],
    );
    refused("org/bare", 1, &["no config.json", "model.safetensors"]);
    refused("hf://org/bin@v7", 1, &["404", "v7"]);
    refused("org/none", 1, &["401", "no local folder"]);
    refused("gcs://bucket/model", 2, &["source.path", "give gs://"]);
    refused("s3a://bucket/model", 2, &["give s3://"]);
    refused("file:///no/such/folder", 1, &["no such folder in the bucket"]);
    refused("no-such-folder", 2, &["source.path", "no such folder", "hf://ORG/NAME"]);
    refused("config.json", 2, &["is a file"]);
    let expired = Hub::of_models(Faults { expired: true, ..Default::default() });
    let gated = Hub::of_models(Faults { gated: true, ..Default::default() });
    gated.push(ID, A, files);
    let on = |hub: &Hub, token: bool| {
        let mut command = from(dir, hub, "hf://org/tiny", "x", &[]);
        if !token {
            command.env_remove("HF_TOKEN");
        }
        let out = command.output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        said(&out)
    };
    assert!(
        on(&gated, false).contains("accept its conditions, then set HF_TOKEN"),
        "{}",
        on(&gated, false)
    );
    assert!(on(&gated, true).contains("no access yet"), "{}", on(&gated, true));
    assert!(on(&expired, true).contains("expired") && !on(&expired, true).contains(TOKEN));
    assert!(on(&expired, false).contains("set HF_TOKEN"));
    let nobody =
        from(dir, &hub, "hf://org/tiny", "x", &[]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(said(&nobody).contains("HF_HUB_OFFLINE is set"), "{}", said(&nobody));
    assert!(!dir.join("x").exists(), "a refused call leaves no folder");
}

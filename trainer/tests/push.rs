//! Exports on a hub, by the real binary against a loopback hub that checks the commit: a model
//! card, `export --push`, again after a cut, `output.push` at the end of a run; nothing of the run
//! but the model leaves the machine.

mod common;

use std::path::Path;
use std::process::Command;

use common::{ok, refused, train, workplace};
use dlm_test_support::push_hub::{PushFaults, PushHub, TOKEN};

const REPO: &str = "models/me/tiny";

fn client<'a>(command: &'a mut Command, hub: &PushHub, dir: &Path) -> &'a mut Command {
    for key in ["HF_HUB_OFFLINE", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy"] {
        command.env_remove(key);
    }
    command
        .env("HF_ENDPOINT", &hub.url)
        .env("HF_HOME", dir.join("cache"))
        .env("HF_TOKEN", TOKEN)
        .env("DLM_HUB_PAUSE_MS", "1")
        .env("DLM_HUB_PATIENCE_MS", "20000")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
}

fn export(dir: &Path, more: &[&str]) -> Command {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).args(["export", "run", "--out", "model", "--data", "data"]).args(more);
    command
}

const TINY: [&str; 1] = ["conversion.total_tokens=300"];

#[test]
fn an_export_arrives_whole() {
    let place = workplace();
    let dir = place.path();
    ok(&mut train(dir, "run", &TINY));
    // A cut, which commits nothing.
    let hub = PushHub::start(PushFaults { xorbs_before_a_cut: Some(0), ..Default::default() });
    let mut push = export(dir, &["--push", "me/tiny"]);
    refused(client(&mut push, &hub, dir), 1, &["nothing was committed", "push again"]);
    assert_eq!(hub.repo(REPO).unwrap().files.len(), 1);
    hub.held().faults.xorbs_before_a_cut = None;
    // An older push had shards, and somebody added a file.
    {
        let mut held = hub.held();
        let files = &mut held.repos.get_mut(REPO).unwrap().files;
        files.insert("model-00001-of-00002.safetensors".into(), vec![1; 9]);
        files.insert("model.gguf".into(), vec![1; 9]);
    }
    let mut push = export(dir, &["--push", "me/tiny"]);
    let done = ok(client(&mut push, &hub, dir));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(said.contains("every file checked") && !said.contains(TOKEN), "{said}");
    let repo = hub.repo(REPO).unwrap();
    assert!(repo.private && repo.commits.len() == 2, "{:?}", repo.commits);
    for name in ["model.safetensors", "config.json", "dlm_config.json", "tokenizer.json"] {
        assert_eq!(
            repo.files[name],
            std::fs::read(dir.join("model").join(name)).unwrap(),
            "{name}"
        );
    }
    assert!(!repo.files.contains_key("model-00001-of-00002.safetensors"));
    assert!(repo.files.contains_key("model.gguf"));
    let card = String::from_utf8(repo.files["README.md"].clone()).unwrap();
    for part in ["pipeline_tag: \"text-generation\"", "| tokens trained on |", "hf://me/tiny"] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let wrong = hub.held().wrong.clone();
    assert!(wrong.is_empty(), "{wrong:?}");
    // Again: the same bytes are exported, and nothing is sent.
    let mut push = export(dir, &["--push", "me/tiny"]);
    ok(client(&mut push, &hub, dir));
    assert_eq!(hub.repo(REPO).unwrap().commits.len(), 2);
}

/// A run with `output.push` ends on the hub; what the folder of a run has beside the model stays.
#[test]
fn a_run_ends_on_the_hub() {
    let place = workplace();
    let dir = place.path();
    let hub = PushHub::start(PushFaults::default());
    let mut run = train(dir, "run", &[TINY[0], "output.push=me/tiny"]);
    ok(client(&mut run, &hub, dir));
    let repo = hub.repo(REPO).unwrap();
    assert!(repo.files.contains_key("model.safetensors") && repo.files.contains_key("README.md"));
    let private: Vec<&String> = repo
        .files
        .keys()
        .filter(|f| f.contains("checkpoints") || f.contains("metrics") || f.ends_with(".yaml"))
        .collect();
    assert!(private.is_empty(), "{private:?}");
    // Said before the run, not after it.
    for (id, says) in [("tiny", "ORG/NAME"), ("me/tiny", "HF_TOKEN")] {
        let mut run = train(dir, "other", &[TINY[0], &format!("output.push={id}")]);
        client(&mut run, &hub, dir);
        if id == "me/tiny" {
            run.env("HF_TOKEN", "");
        }
        refused(&mut run, 2, &[says, "output.push"]);
        assert!(!dir.join("other").exists());
    }
}

/// `--card` writes README.md beside the export, and keeps one that somebody wrote.
#[test]
fn a_card_without_a_hub() {
    let place = workplace();
    let dir = place.path();
    ok(&mut train(dir, "run", &TINY));
    ok(&mut export(dir, &["--card"]));
    let path = dir.join("model/README.md");
    let card = std::fs::read_to_string(&path).unwrap();
    assert!(card.starts_with("---\n") && card.contains("## How to run it"), "{card}");
    std::fs::write(&path, "# Mine\n").unwrap();
    ok(&mut export(dir, &["--card"]));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "# Mine\n");
    refused(&mut export(dir, &["--public"]), 2, &["--push"]);
}

//! Lies about a tokenizer's repository, and settings with which no request can succeed.

use crate::cases::{TOKEN, finish, large};
use dlm_test_support::lying_hub::{Kind, LyingHub, Reply, part};
use dlm_test_support::sample;
use std::process::Command;

fn prep(dir: &std::path::Path, tokenizer: &str) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
    c.args(["--max-rows", "20", "--tokenizer", tokenizer, "--input"])
        .arg(sample("train.parquet"))
        .arg("--out")
        .arg(dir.join("out"))
        .current_dir(dir);
    c
}

/// The files of a tokenizer come as they are listed or not at all.
#[test]
fn tokenizers() {
    let hub = LyingHub::start(|r, at| {
        let names = ["tokenizer.json", "tokenizer_config.json"];
        let content = |name: &str| std::fs::read(sample("tokenizer").join(name)).unwrap();
        let mut entries: Vec<_> = names.iter().map(|n| large(n, &content(n))).collect();
        match (r.kind, r.repo.as_str()) {
            (Kind::Tree, "twice") => entries.push(large(names[0], b"{}")),
            (Kind::Tree, "big") => {
                entries[0]["size"] = (1u64 << 62).into();
                entries[0]["lfs"]["size"] = (1u64 << 62).into();
            }
            (Kind::Tree, "long") => {
                entries[0]["size"] = (1u64 << 40).into();
                entries[0]["lfs"]["size"] = (1u64 << 40).into();
            }
            (Kind::Tree, "lacking") => {
                entries.pop();
                let body = serde_json::to_vec(&entries).unwrap();
                return Reply::Whole(200, Vec::new(), body);
            }
            (Kind::Revision, "lacking") => {
                let text = r#"{"sha": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "siblings": [{"rfilename": "tokenizer_config.json"}]}"#;
                return Reply::Whole(200, Vec::new(), text.into());
            }
            (Kind::File, "other-bytes") => return part(r, b"{}"),
            (Kind::File, "elsewhere") if !r.elsewhere => {
                let to = format!("{}{}", at.elsewhere, r.target);
                return Reply::Whole(302, vec![("Location", to)], Vec::new());
            }
            _ => {}
        }
        match r.kind {
            Kind::Tree => Reply::Whole(200, Vec::new(), serde_json::to_vec(&entries).unwrap()),
            Kind::File => part(r, &content(r.target.rsplit('/').next().unwrap())),
            _ => crate::cases::truth(r),
        }
    });
    for (repo, code, says) in [
        ("right", 0, ""),
        ("elsewhere", 0, ""),
        ("twice", 1, "twice, with different content"),
        ("big", 1, "more than"),
        ("long", 1, "that such a file may have"),
        ("lacking", 1, "was cut off"),
        ("other-bytes", 1, "its listing says"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut c = prep(dir.path(), &format!("hf://evil/{repo}"));
        let run = finish(&mut c, dir.path(), &hub.at.hub, 30_000).unwrap();
        assert!(run.code == Some(code) && run.said.contains(says), "{repo}: {}", run.said);
        let asked = hub.asked(repo);
        assert!(asked.iter().all(|r| r.token != r.elsewhere), "{repo}: {asked:?}");
    }
}

/// Said before anything is sent.
#[test]
fn settings() {
    let hub = LyingHub::start(|r, _| crate::cases::truth(r));
    let here = hub.at.hub.as_str();
    for (k, (key, text, says)) in [
        ("HF_TOKEN", format!("{TOKEN}\nX-Evil: 1"), "HF_TOKEN"),
        ("HF_TOKEN", format!("{TOKEN} x"), "HF_TOKEN"),
        ("HF_TOKEN", "hf_ä".to_string(), "HF_TOKEN"),
        ("HF_TOKEN", "\u{7f}".to_string(), "HF_TOKEN"),
        ("HF_ENDPOINT", "huggingface.co".to_string(), "HF_ENDPOINT"),
        ("HF_ENDPOINT", "ftp://x".to_string(), "HF_ENDPOINT"),
        ("HF_ENDPOINT", "file:///tmp".to_string(), "HF_ENDPOINT"),
        ("HF_ENDPOINT", "http://".to_string(), "HF_ENDPOINT"),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let mut c = prep(dir.path(), "hf://evil/any");
        c.env("HF_ENDPOINT", here).env("HF_HOME", dir.path().join("home")).env("HF_TOKEN", TOKEN);
        let done = c.env(key, &text).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains(says), "{k} {key} {text:?}: {said}");
        assert!(!said.contains(TOKEN) && !said.contains("gave up"), "{said}");
    }
    assert!(hub.asked("any").is_empty());
}

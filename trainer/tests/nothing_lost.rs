//! Accidents that must not lose a run: output folders that belong to something else, signals,
//! sources that are gone.

#![allow(unsafe_code, reason = "libc::kill")]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{ok, refused, train, workplace};

fn export(dir: &Path, more: &[&str]) -> Command {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).arg("export").args(more);
    command
}

#[test]
fn folders_that_belong_to_something_else_are_not_written_to() {
    let dir = workplace();
    let short = ["conversion.total_tokens=300"];
    ok(&mut train(dir.path(), "run", &short));
    ok(&mut train(dir.path(), "other", &["conversion.total_tokens=300", "train.seed=7"]));
    fs::create_dir(dir.path().join("model")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(dir.path().join("run").join(file), dir.path().join("model").join(file)).unwrap();
    }
    let before = fs::read(dir.path().join("model/config.json")).unwrap();
    let source = ["source.init=pretrained", "source.path=model", "conversion.total_tokens=300"];
    for (out, more, words) in [
        ("model", &short[..], "no run here wrote"),
        ("./model", &source, "this is the source"),
        ("data", &short, "this is the dataset"),
        ("config.json", &short, "this is a file"),
        ("''", &short, "empty"),
        ("..", &short, "names a folder above"),
        ("x/..", &short, "names a folder above"),
        ("/", &short, "the root"),
        ("'~nobody/x'", &short, "~USER is not expanded"),
        ("'~'", &short, "the home folder itself"),
    ] {
        refused(&mut train(dir.path(), out, more), 2, &["output.dir", words]);
    }
    for (out, words) in [
        ("model", "no export of this run"),
        ("other", "the folder of another run"),
        ("data", "this is the dataset"),
        ("", "a value is required"),
        ("..", "names a folder above"),
    ] {
        refused(&mut export(dir.path(), &["run", "--out", out]), 2, &["--out", words]);
    }
    assert_eq!(fs::read(dir.path().join("model/config.json")).unwrap(), before);
    assert!(!dir.path().join("model/config.yaml").exists());
    // an export may be written again, and ~ is the home folder
    for _ in 0..2 {
        ok(export(dir.path(), &["run", "--out", "~/exported"]).env("HOME", dir.path()));
    }
    assert!(dir.path().join("exported/dlm_config.json").is_file());
    ok(train(dir.path(), "'~/again'", &short).env("HOME", dir.path()));
    assert!(dir.path().join("again/dlm_config.json").is_file());
}

/// A budget that is not used up before a signal arrives.
const LONG: &str = "conversion.total_tokens=120000";

/// Starts a run, waits for its third step and sends signals.
fn stopped_by(dir: &Path, out: &str, signals: &[i32]) -> String {
    let mut command = train(dir, out, &[LONG]);
    // under nohup this process ignores SIGHUP, and what it starts would ignore it too
    // SAFETY: signal() is safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        })
    };
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let metrics = dir.join(out).join("metrics.jsonl");
    let started = Instant::now();
    while fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "no third step");
        std::thread::sleep(Duration::from_millis(1));
    }
    for signal in signals {
        // SAFETY: a signal to a process that this test started and has not waited for.
        unsafe { libc::kill(child.id() as i32, *signal) };
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("state saved in"), "{said}");
    said
}

#[test]
fn every_signal_saves_and_a_second_one_does_not_undo_it() {
    let dir = workplace();
    ok(&mut train(dir.path(), "whole", &[LONG]));
    let weights = |out: &str| fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    for (out, signals) in [
        ("hup", &[libc::SIGHUP][..]),
        ("usr1", &[libc::SIGUSR1]),
        ("usr2", &[libc::SIGUSR2]),
        ("twice", &[libc::SIGTERM, libc::SIGTERM, libc::SIGINT]),
    ] {
        stopped_by(dir.path(), out, signals);
        ok(&mut train(dir.path(), out, &[LONG]));
        assert_eq!(weights(out), weights("whole"), "{out}");
        assert_eq!(
            common::losses(&dir.path().join(out)),
            common::losses(&dir.path().join("whole")),
            "{out}"
        );
    }
}

#[test]
fn overwriting_removes_the_old_export_first() {
    let dir = workplace();
    ok(&mut train(dir.path(), "run", &["conversion.total_tokens=300"]));
    fs::write(dir.path().join("run/notes.txt"), "mine").unwrap();
    let templates = dir.path().join("run/additional_chat_templates");
    fs::create_dir(&templates).unwrap();
    fs::write(templates.join("tool_use.jinja"), "{{ tools }}").unwrap();
    let more = ["--resume", "never", "--overwrite", "optim.lr=1e30", "optim.clip_norm=null"];
    let out = train(dir.path(), "run", &more).output().unwrap();
    assert!(!out.status.success(), "a run that fails leaves no export");
    for gone in ["dlm_config.json", "config.json", "model.safetensors", "tokenizer.json"] {
        assert!(!dir.path().join("run").join(gone).exists(), "{gone}");
    }
    assert!(!templates.exists());
    assert!(dir.path().join("run/notes.txt").is_file());
}

#[test]
fn a_run_is_exported_when_its_source_is_gone() {
    let dir = workplace();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=300", "export.dtype=fp32"]));
    fs::write(dir.path().join("source/generation_config.json"), r#"{"temperature": 0.5}"#).unwrap();
    let more = ["source.init=pretrained", "source.path=source", "conversion.total_tokens=900"];
    ok(&mut train(dir.path(), "run", &more));
    fs::rename(dir.path().join("source"), dir.path().join("moved")).unwrap();
    ok(&mut export(dir.path(), &["run", "--out", "exported"]));
    for file in fs::read_dir(dir.path().join("exported")).unwrap() {
        let name = file.unwrap().file_name();
        let read = |folder: &str| fs::read(dir.path().join(folder).join(&name)).unwrap();
        assert_eq!(read("exported"), read("run"), "{}", name.display());
    }
    let generation = fs::read_to_string(dir.path().join("run/generation_config.json")).unwrap();
    assert!(generation.contains("0.5"), "{generation}");
    let mut again = train(dir.path(), "run", &more);
    refused(&mut again, 2, &["source.path source", "no such folder"]);
}

/// A source whose head is tied by its config.json alone trains untied and resumes.
#[test]
fn a_head_that_was_untied_at_load_is_resumed_untied() {
    let dir = workplace();
    let config = dir.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"tie_word_embeddings\":true", "\"tie_word_embeddings\":false"),
    )
    .unwrap();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=300", "export.dtype=fp32"]));
    let config = dir.path().join("source/config.json");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"tie_word_embeddings\": false"), "{text}");
    fs::write(&config, text.replace("_embeddings\": false", "_embeddings\": true")).unwrap();
    let source = ["source.init=pretrained", "source.path=source"];
    let run = |out: &str, more: &[&str]| {
        let all = [&source[..], more].concat();
        ok(&mut train(dir.path(), out, &all))
    };
    let said = run("whole", &["train.save_every=2", "train.keep_checkpoints=90"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("not tied"));
    let weights = || fs::read(dir.path().join("whole/model.safetensors")).unwrap();
    let whole = weights();
    fs::write(dir.path().join("whole/checkpoints/latest"), "step-000000002").unwrap();
    run("whole", &["train.save_every=2", "train.keep_checkpoints=90"]);
    assert_eq!(weights(), whole);
    let exported = fs::read_to_string(dir.path().join("whole/config.json")).unwrap();
    assert!(exported.contains("\"tie_word_embeddings\": false"), "{exported}");
}

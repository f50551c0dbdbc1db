//! `wf smoke`: every step from conversations to answers, in a minute or so.
//!
//! In: a model, a device. Steps: prepare 64 conversations of the built-in sample, 10 steps of
//! `conversion=smoke`, the exported folder, two prompts in blocks. Out: one line a step on stdout
//! and an exit code; the first step that fails ends it, with the end of its output.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::config::{Config, Init};
use crate::error::{Error, Result};
use crate::report::console;

use super::program;

const ROWS: usize = 64;
const STEPS: usize = 10;
/// Prompts that are answered at the end.
const PROMPTS: usize = 2;

const CONVERSATIONS: &str = include_str!("../../../datasets/sample/heldout.jsonl");
const TOKENIZER: [(&str, &str); 2] = [
    ("tokenizer.json", include_str!("../../../datasets/sample/tokenizer/tokenizer.json")),
    (
        "tokenizer_config.json",
        include_str!("../../../datasets/sample/tokenizer/tokenizer_config.json"),
    ),
];

/// Lines of a failed step's output that are shown.
const SHOWN: usize = 20;

/// What `wf smoke` tries here.
#[derive(Debug, Clone)]
pub(crate) struct SmokeOptions {
    /// Model: a choice of configs/model.
    pub model: String,
    /// Its source; `None`: that of the model's configuration.
    pub source: Option<String>,
    /// Device of dlm-train.
    pub device: String,
    /// Folder for what is made; `None`: a temporary one, removed at the end.
    pub keep: Option<PathBuf>,
}

/// Runs every step; whether all passed.
pub(crate) fn smoke(options: &SmokeOptions) -> Result<bool> {
    let mut composed = vec![format!("model={}", options.model), "conversion=smoke".into()];
    composed.extend(options.source.iter().map(|source| format!("source.path={source}")));
    let config = Config::load(None, &composed)?;
    let own = |name: &str| {
        program::beside(name).ok_or_else(|| {
            Error::Usage(format!("there is no {name} beside wf; wf smoke runs both programs"))
        })
    };
    let (prep, train) = (own("dlm-prep")?, own("dlm-train")?);
    let temporary = std::env::temp_dir().join(format!("wf-smoke-{}", std::process::id()));
    let dir = options.keep.clone().unwrap_or_else(|| temporary.clone());
    let passed = write_sample(&dir).and_then(|()| {
        let tokenizer = match (&config.source.init, &config.source.path) {
            (Init::Pretrained, Some(path)) => path.clone(),
            _ => "tokenizer".into(),
        };
        steps(options, &dir, &tokenizer, &prep, &train)
    });
    if options.keep.is_none() {
        // what is left in the folder for temporary files is not worth a failure
        let _ = std::fs::remove_dir_all(&temporary);
    }
    let passed = passed?;
    console::result(if passed { "smoke: passed" } else { "smoke: FAILED" })?;
    Ok(passed)
}

fn steps(
    options: &SmokeOptions,
    dir: &Path,
    tokenizer: &str,
    prep: &Path,
    train: &Path,
) -> Result<bool> {
    let model = format!("model={}", options.model);
    let source = options.source.as_ref().map(|source| format!("source.path={source}"));
    let mut training = vec!["--data", "data", "--device", &options.device, &model];
    training.extend(["conversion=smoke", "output.dir=run", "report.wandb=off"]);
    training.extend(source.as_deref());
    let steps: [(&str, &Path, &[&str], Check); 3] = [
        (
            "prepare",
            prep,
            &[
                "--input",
                "conversations.jsonl",
                "--tokenizer",
                tokenizer,
                "--out",
                "data",
                "--seq-len",
                "256",
                "--bd-size",
                "32",
                "--eval-fraction",
                "0.1",
            ],
            |dir, _| exists(dir, &["data/manifest.json"]),
        ),
        ("train and export", train, &training, |dir, _| {
            exists(dir, &["run/config.json", "run/dlm_config.json", "run/tokenizer.json"])?;
            finite_losses(dir)
        }),
        (
            "decode",
            train,
            &[
                "generate",
                "--model",
                "run",
                "--device",
                &options.device,
                "--input",
                "prompts.jsonl",
                "--max-new-tokens",
                "32",
                "--json",
            ],
            |_, stdout| answers(stdout),
        ),
    ];
    for (name, program, arguments, check) in steps {
        let started = Instant::now();
        let output = Command::new(program)
            .current_dir(dir)
            .args(arguments)
            .output()
            .map_err(|error| Error::io(program, "starting", error))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let problem = match output.status.success() {
            true => check(dir, &stdout).err(),
            false => Some(format!("{}", output.status)),
        };
        let seconds = started.elapsed().as_secs_f64();
        match problem {
            None => console::result(format_args!("{name}: passed, {seconds:.1} s"))?,
            Some(problem) => {
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                let lines: Vec<&str> = errors.lines().collect();
                for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                    console::message(line);
                }
                console::result(format_args!("{name}: FAILED after {seconds:.1} s: {problem}"))?;
                return Ok(false);
            }
        };
    }
    Ok(true)
}

/// Looks at what a step made: its folder and its stdout.
type Check = fn(&Path, &str) -> std::result::Result<(), String>;

/// Conversations, prompts and tokenizer of the built-in sample.
fn write_sample(dir: &Path) -> Result<()> {
    let tokenizer = dir.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).map_err(|e| Error::io(&tokenizer, "creating", e))?;
    let write = |name: &Path, text: &str| {
        std::fs::write(name, text).map_err(|e| Error::io(name, "writing the sample", e))
    };
    for (name, text) in TOKENIZER {
        write(&tokenizer.join(name), text)?;
    }
    let (mut conversations, mut prompts) = (String::new(), String::new());
    for (i, line) in CONVERSATIONS.lines().take(ROWS + PROMPTS).enumerate() {
        let mut row: Value = serde_json::from_str(line)
            .map_err(|e| Error::Model(format!("datasets/sample/heldout.jsonl: {e}")))?;
        let expected = row["expected"].take();
        let Some(messages) = row["messages"].as_array_mut() else { continue };
        if i < ROWS {
            messages.push(json!({"role": "assistant", "content": expected}));
            conversations += &format!("{}\n", json!({"messages": messages}));
        } else {
            prompts += &format!("{}\n", json!({"messages": messages}));
        }
    }
    write(&dir.join("conversations.jsonl"), &conversations)?;
    write(&dir.join("prompts.jsonl"), &prompts)
}

fn exists(dir: &Path, files: &[&str]) -> std::result::Result<(), String> {
    match files.iter().find(|file| !dir.join(file).is_file()) {
        Some(file) => Err(format!("{file} is missing")),
        None => Ok(()),
    }
}

/// Every step in metrics.jsonl, with a loss.
fn finite_losses(dir: &Path) -> std::result::Result<(), String> {
    let text = std::fs::read_to_string(dir.join("run/metrics.jsonl")).map_err(|e| e.to_string())?;
    let losses: Vec<f64> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("loss")?.as_f64())
        .filter(|loss| loss.is_finite())
        .collect();
    match losses.len() {
        STEPS => Ok(()),
        n => Err(format!("{n} steps with a loss in metrics.jsonl, expected {STEPS}")),
    }
}

/// One object for each prompt, with tokens.
fn answers(stdout: &str) -> std::result::Result<(), String> {
    let lines: Vec<Value> =
        stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_answer =
        |line: &Value| line["completion_ids"].as_array().is_some_and(|ids| !ids.is_empty());
    match lines.iter().filter(|line| is_answer(line)).count() {
        PROMPTS => Ok(()),
        n => Err(format!("{n} answers, expected {PROMPTS}")),
    }
}

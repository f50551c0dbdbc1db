//! Which files of a folder and of a hub's dataset are read: config and split, by the card or by the
//! names of the files, as `load_dataset` of Python chooses them. Every layout is read from a local
//! folder and from a hub, with the same outcome.

use dlm_test_support::lying_hub::{COMMIT, Kind, LyingHub, Reply, json, part};
use dlm_test_support::sample;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

const TRAIN_AND_TEST: &str = "
- config_name: default
  data_files:
  - {split: train, path: 'data/tr*.jsonl'}
  - {split: test, path: data/test.jsonl}";
const TWO_CONFIGS: &str = "
- config_name: chat
  default: true
  data_files:
  - {split: train, path: chat/*.jsonl}
- config_name: code
  data_files:
  - {split: train, path: code/a.jsonl}
  - {split: dev, path: code/b.jsonl}";
const NO_DEFAULT: &str = "
- config_name: chat
  data_files: chat/*
- config_name: code
  data_files: code/**";
const NO_TRAIN: &str = "
- config_name: SFT
  data_files:
  - {split: chat, path: SFT/chat/*}
  - {split: math, path: SFT/math/*}";

/// What a layout gives.
enum Gives {
    /// These files are read, and the console says these words.
    Files(&'static [&'static str], &'static [&'static str]),
    /// The run ends with these words.
    Says(&'static [&'static str]),
}
use Gives::{Files, Says};

type Layout = (&'static [&'static str], &'static str, &'static [&'static str], Gives);

/// Files, `configs:` of the card (none: no README.md), options, outcome.
const LAYOUTS: &[Layout] = &[
    // No card: splits by name.
    (&["a.jsonl", "b/c.jsonl"], "", &[], Files(&["a.jsonl", "b/c.jsonl"], &[])),
    (
        &["train.jsonl", "test.jsonl", "validation.jsonl"],
        "",
        &[],
        Files(
            &["train.jsonl"],
            &["split train", "1 file of split test (test.jsonl)", "1 file of split validation"],
        ),
    ),
    (
        &["train.jsonl", "test.jsonl", "validation.jsonl"],
        "",
        &["--split", "test"],
        Files(&["test.jsonl"], &["1 file of split train (train.jsonl)"]),
    ),
    (
        &["train.jsonl", "test.jsonl", "dev.jsonl"],
        "",
        &["--split", "validation,test"],
        Files(&["dev.jsonl", "test.jsonl"], &["split validation, test"]),
    ),
    (
        &["train.jsonl", "test.jsonl"],
        "",
        &["--split", "all"],
        Files(&["test.jsonl", "train.jsonl"], &[]),
    ),
    (
        &["train.jsonl", "test.jsonl"],
        "",
        &["--split", "poetry"],
        Says(&["no split \"poetry\"", "train, test"]),
    ),
    (
        &["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "x.jsonl"],
        "",
        &[],
        Files(
            &["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
            &["1 file of no split (x.jsonl)"],
        ),
    ),
    (
        &["data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl"],
        "",
        &[],
        Says(&["splits test_sft, train_sft, and none is named train", "--split NAME"]),
    ),
    (
        &["data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl"],
        "",
        &["--split", "train_sft"],
        Files(&["data/train_sft-00000-of-00001.jsonl"], &["of split test_sft"]),
    ),
    (
        &["train/a.jsonl", "train/b.jsonl", "eval/a.jsonl"],
        "",
        &[],
        Files(&["train/a.jsonl", "train/b.jsonl"], &["1 file of split test (eval/a.jsonl)"]),
    ),
    (&["test.jsonl"], "", &[], Files(&["test.jsonl"], &["split test"])),
    (&["dev.jsonl", "test.jsonl"], "", &[], Says(&["validation, test", "none is named train"])),
    // Words inside of other words are none.
    (&["latest.jsonl", "contest.jsonl"], "", &[], Files(&["contest.jsonl", "latest.jsonl"], &[])),
    // Categories by folder, as in the recipes.
    (
        &["SFT/chat/chat.jsonl", "SFT/math/math.jsonl"],
        "",
        &["--split", "chat"],
        Files(&["SFT/chat/chat.jsonl"], &["1 file of split train (SFT/math/math.jsonl)"]),
    ),
    (&["a.jsonl"], "", &["--config", "chat"], Says(&["no config \"chat\"", "README.md"])),
    (&["a.jsonl"], "", &["--config", "default"], Files(&["a.jsonl"], &[])),
    // Globs name files without regard to splits.
    (
        &["train.jsonl", "test.jsonl"],
        "",
        &["--files", "t*st.jsonl"],
        Files(&["test.jsonl"], &["1 file outside of --files (train.jsonl)"]),
    ),
    (
        &["a/x.jsonl", "b/x.jsonl", "b/c/y.jsonl"],
        "",
        &["--files", "b/**,[!b]/*"],
        Files(&["a/x.jsonl", "b/c/y.jsonl", "b/x.jsonl"], &[]),
    ),
    (&["a.jsonl"], "", &["--files", "*.parquet"], Says(&["outside of --files"])),
    // What is no data is counted and named.
    (
        &["a.jsonl", "b.csv", ".hidden.jsonl", "dataset_infos.json", "notes.txt"],
        "",
        &[],
        Files(
            &["a.jsonl"],
            &[
                "2 files of another format (b.csv, notes.txt)",
                "1 file with a hidden name (.hidden.jsonl)",
                "1 file with metadata (dataset_infos.json)",
            ],
        ),
    ),
    (&["b.csv", "c.txt"], "", &[], Says(&["parquet, JSONL or Arrow", "b.csv, c.txt"])),
    // The card.
    (
        &["data/train.jsonl", "data/try.jsonl", "data/test.jsonl", "old/train.jsonl"],
        TRAIN_AND_TEST,
        &[],
        Files(
            &["data/train.jsonl", "data/try.jsonl"],
            &["of split test (data/test.jsonl)", "1 file outside of config default"],
        ),
    ),
    (
        &["data/train.jsonl", "data/test.jsonl"],
        TRAIN_AND_TEST,
        &["--split", "test"],
        Files(&["data/test.jsonl"], &["1 file of split train"]),
    ),
    // A file that the card names is not there: refused where it would be read.
    (
        &["data/train.jsonl"],
        TRAIN_AND_TEST,
        &["--split", "test"],
        Says(&["no parquet, JSONL or Arrow file for split test"]),
    ),
    (&["data/train.jsonl"], TRAIN_AND_TEST, &[], Files(&["data/train.jsonl"], &[])),
    (
        &["x.jsonl"],
        "\n- config_name: a\n  data_files: [x.jsonl, y.jsonl]",
        &[],
        Says(&["README.md names y.jsonl for split train"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl", "code/b.jsonl"],
        TWO_CONFIGS,
        &[],
        Files(&["chat/a.jsonl"], &["config chat", "not taken  config code (--config NAME)"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl", "code/b.jsonl"],
        TWO_CONFIGS,
        &["--config", "code"],
        Files(&["code/a.jsonl"], &["not taken  config chat", "of split dev (code/b.jsonl)"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl", "code/b.jsonl"],
        TWO_CONFIGS,
        &["--config", "code", "--split", "all"],
        Files(&["code/a.jsonl", "code/b.jsonl"], &["split train, dev"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl", "code/b.jsonl"],
        TWO_CONFIGS,
        &["--split", "dev"],
        Says(&["config chat has no split \"dev\"", "--config code"]),
    ),
    (
        &["chat/a.jsonl"],
        TWO_CONFIGS,
        &["--config", "math"],
        Says(&["no config \"math\"", "it has chat, code"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl"],
        TWO_CONFIGS,
        &["--files", "code/*"],
        Files(&["code/a.jsonl"], &["outside of --files"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl"],
        TWO_CONFIGS,
        &["--files", "code/*", "--config", "code"],
        Says(&["--files"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl"],
        NO_DEFAULT,
        &[],
        Says(&["configs chat, code, and none is its default", "--config NAME"]),
    ),
    (
        &["chat/a.jsonl", "code/a.jsonl", "code/b/c.jsonl"],
        NO_DEFAULT,
        &["--config", "code"],
        Files(&["code/a.jsonl", "code/b/c.jsonl"], &["config code"]),
    ),
    (
        &["SFT/chat/a.jsonl", "SFT/math/b.jsonl"],
        NO_TRAIN,
        &[],
        Files(
            &["SFT/chat/a.jsonl", "SFT/math/b.jsonl"],
            &["taken      config SFT, split chat, math, 2 files"],
        ),
    ),
    // As nvidia/Llama-Nemotron-Post-Training-Dataset is laid out.
    (
        &["SFT/code/a.jsonl", "SFT/math/b.jsonl", "RL/instruction_following/c.jsonl"],
        "
- config_name: SFT
  data_files:
  - {split: code, path: SFT/code/*.jsonl}
  - {split: math, path: SFT/math/*.jsonl}
  default: true
- config_name: RL
  data_files:
  - {split: instruction_following, path: RL/instruction_following/*.jsonl}",
        &[],
        Files(&["SFT/code/a.jsonl", "SFT/math/b.jsonl"], &["not taken  config RL"]),
    ),
    (
        &["SFT/chat/a.jsonl", "SFT/math/b.jsonl", "SFT/test/c.jsonl"],
        "
- config_name: SFT
  data_files:
  - {split: chat, path: SFT/chat/*}
  - {split: math, path: SFT/math/*}
  - {split: math_test, path: SFT/test/*}",
        &[],
        Says(&["config SFT has the splits chat, math, math_test, and none is named train"]),
    ),
    (
        &["SFT/chat/a.jsonl", "SFT/math/b.jsonl"],
        NO_TRAIN,
        &["--split", "math,chat"],
        Files(&["SFT/chat/a.jsonl", "SFT/math/b.jsonl"], &["split chat, math"]),
    ),
    (
        &["sub/train.jsonl", "sub/test.jsonl", "train.jsonl"],
        "\n- config_name: a\n  data_dir: ./sub",
        &[],
        Files(&["sub/train.jsonl"], &["outside of config a (train.jsonl)"]),
    ),
    (
        &["no/x.jsonl", "y.jsonl"],
        "\n- config_name: no\n  data_dir: no\n- config_name: y\n  data_files: y.jsonl",
        &["--config", "no"],
        Files(&["no/x.jsonl"], &["not taken  config y"]),
    ),
    (&["a.jsonl"], "5", &[], Says(&["README.md: configs is no list"])),
    (&["a.jsonl"], "[", &[], Says(&["not readable as YAML"])),
    (&["a.jsonl"], "5", &["--files", "*"], Files(&["a.jsonl"], &[])),
    (&["a.jsonl"], "\n- data_files: ../a.jsonl", &[], Says(&["outside of the dataset"])),
    (&["a.jsonl"], "\n- data_files: hf://datasets/o/n/a", &[], Says(&["outside of the dataset"])),
    (
        &["a.jsonl"],
        "\n- config_name: a\n  default: true\n- config_name: default",
        &[],
        Says(&["several default configs, a, default"]),
    ),
];

fn content(path: &str) -> Vec<u8> {
    let row = format!(
        "{{\"messages\": [{{\"role\": \"user\", \"content\": \"q\"}}, {{\"role\": \"assistant\", \"content\": \"from {path}\"}}]}}\n"
    );
    row.repeat(3).into_bytes()
}

fn files_of(layout: &Layout) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> =
        layout.0.iter().map(|p| (p.to_string(), content(p))).collect();
    if !layout.1.is_empty() {
        let card = format!("---\nlicense: mit\nconfigs: {}\n---\n# A dataset\n", layout.1);
        files.insert("README.md".to_string(), card.into_bytes());
    }
    files
}

fn prep(out: &Path) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
    c.args(["--engine", "fast", "--tokenizer"]).arg(sample("tokenizer")).arg("--out").arg(out);
    c.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN");
    c
}

/// Why a run is not as the layout says; none if it is.
fn judge(layout: &Layout, done: &Output, out: &Path) -> Option<String> {
    let said = String::from_utf8_lossy(&[&done.stdout[..], &done.stderr].concat()).into_owned();
    let words = match &layout.3 {
        Says(words) => {
            let refused = !done.status.success() && !out.join("manifest.json").exists();
            if !refused {
                return Some(format!("not refused\n{said}"));
            }
            words
        }
        Files(files, words) => {
            let Ok(text) = std::fs::read_to_string(out.join("manifest.json")) else {
                return Some(said);
            };
            let manifest: Value = serde_json::from_str(&text).unwrap();
            let sources = manifest["sources"].as_array().unwrap();
            let mut read: Vec<&str> = sources.iter().map(|s| s["name"].as_str().unwrap()).collect();
            read.sort_unstable();
            if read != *files {
                return Some(format!("read {read:?}\n{said}"));
            }
            if !words.is_empty() && manifest["recipe"]["inputs"].is_null() {
                return Some("the manifest does not say what was taken".to_string());
            }
            words
        }
    };
    words.iter().find(|w| !said.contains(**w)).map(|w| format!("does not say {w:?}\n{said}"))
}

#[test]
fn as_load_dataset_chooses() {
    let hub = LyingHub::start(|r, _| {
        let Ok(number) = r.repo.parse::<usize>() else { return Reply::Silence };
        let files = files_of(&LAYOUTS[number]);
        match r.kind {
            Kind::Revision if r.target.contains("convert") => {
                Reply::Whole(404, Vec::new(), b"{}".to_vec())
            }
            Kind::Revision => json(format!("{{\"sha\": \"{COMMIT}\"}}")),
            Kind::Tree => {
                let entry = |(path, content): (&String, &Vec<u8>)| {
                    let sha = dlm_datasets::hash::sha256(content);
                    serde_json::json!({"type": "file", "path": path, "size": content.len(), "oid": &sha[..40]})
                };
                json(Value::from(files.iter().map(entry).collect::<Vec<_>>()).to_string())
            }
            _ => {
                let path = r.target.split(COMMIT).nth(1).unwrap().trim_start_matches('/');
                part(r, &files[path])
            }
        }
    });
    let next = std::sync::Mutex::new(0..LAYOUTS.len());
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                while let Some(k) = { next.lock().unwrap().next() } {
                    let (layout, dir) = (&LAYOUTS[k], tempfile::tempdir().unwrap());
                    let (root, at) = (dir.path().join("data"), |name: &str| dir.path().join(name));
                    for (path, content) in files_of(layout) {
                        std::fs::create_dir_all(root.join(&path).parent().unwrap()).unwrap();
                        std::fs::write(root.join(path), content).unwrap();
                    }
                    let mut local = prep(&at("local"));
                    let local = local.arg("--input").arg(&root).args(layout.2).output().unwrap();
                    let mut remote = prep(&at("remote"));
                    remote.args(["--dataset", &format!("of/{k}")]).args(layout.2);
                    remote.env("HF_ENDPOINT", &hub.at.hub).env("HF_HOME", at("home"));
                    let online = remote.output().unwrap();
                    let mut problems = vec![
                        ("local", judge(layout, &local, &at("local"))),
                        ("hub", judge(layout, &online, &at("remote"))),
                    ];
                    // From the cache alone, if all that the choice depends on is there.
                    if let Files(files, _) = layout.3 {
                        let offline = prep(&at("offline"))
                            .args(["--dataset", &format!("of/{k}")])
                            .args(layout.2)
                            .env("HF_HUB_OFFLINE", "1")
                            .env("HF_HOME", at("home"))
                            .output()
                            .unwrap();
                        let same = (layout.0, layout.1, layout.2, Files(files, &[]));
                        problems.push(("offline", judge(&same, &offline, &at("offline"))));
                    }
                    for (from, problem) in problems {
                        let text = problem.map(|p| format!("{k} {:?} {from}: {p}", layout.0));
                        failures.lock().unwrap().extend(text);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
}

/// The sources of a recipe name config, split and files each for itself; on the command line they
/// are refused beside a recipe.
#[test]
fn sources_of_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let layout: Layout = (
        &["chat/a.jsonl", "code/a.jsonl", "code/b.jsonl", "more/test.jsonl"],
        TWO_CONFIGS,
        &[],
        Files(&["by-card", "by-glob", "dev"], &["config code", "split dev", "of split train"]),
    );
    for (path, content) in files_of(&layout) {
        std::fs::create_dir_all(dir.path().join("data").join(&path).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join("data").join(path), content).unwrap();
    }
    let recipe = dir.path().join("recipe.yaml");
    let sources = "sources:
- {name: by-card, input: [data]}
- {name: dev, input: [data], config: code, split: [dev]}
- {name: by-glob, input: [data], files: ['more/*']}
";
    std::fs::write(&recipe, sources).unwrap();
    let out = dir.path().join("out");
    let done = prep(&out).arg("--recipe").arg(&recipe).output().unwrap();
    assert_eq!(judge(&layout, &done, &out), None);
    for (more, text) in [
        (&["--split", "dev"][..], sources),
        (&["--config", "code"], sources),
        (&["--files", "*"], sources),
        (&[], "sources:\n- {name: a, input: [data], config: none}\n"),
        (&[], "sources:\n- {name: a, input: [data/chat/a.jsonl], split: [dev]}\n"),
    ] {
        std::fs::write(&recipe, text).unwrap();
        let out = dir.path().join("refused");
        let done = prep(&out).arg("--recipe").arg(&recipe).args(more).output().unwrap();
        assert!(!done.status.success() && !out.join("manifest.json").exists(), "{more:?} {text}");
    }
}

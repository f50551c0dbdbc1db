//! Inputs are never changed or removed, whatever the options; what is no file is refused; what
//! dlm-prep did not write is not replaced.

use dlm_test_support::sample;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROW: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}\n";

/// All files below a folder with their content, and where links lead.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.is_symlink() {
            let to = std::fs::read_link(&path).unwrap();
            out.insert(path, to.to_string_lossy().into_owned().into_bytes());
        } else if meta.is_dir() {
            out.extend(content(&path));
            out.insert(path, Vec::new());
        } else if meta.is_file() {
            out.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    out
}

/// Runs `dlm-prep` in a folder. `TOK` stands for the sample's tokenizer.
fn prep(dir: &Path, args: &[&str]) -> Output {
    let tokenizer = sample("tokenizer");
    let args = args.iter().map(|a| if *a == "TOK" { tokenizer.to_str().unwrap() } else { a });
    let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
    c.args(args).current_dir(dir).env("HF_HUB_OFFLINE", "1").output().unwrap()
}

fn said(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// A folder with inputs, a prepared dataset, a tokenizer, links, and files of others.
fn ground() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, text) in [
        ("data/a.jsonl", ROW.repeat(20)),
        ("data/deep/b.jsonl", ROW.repeat(20)),
        ("one.jsonl", ROW.repeat(20)),
        ("recipe.yaml", "sources:\n- {name: a, input: [data]}\n".to_string()),
    ] {
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        std::fs::write(at(name), text).unwrap();
    }
    std::fs::create_dir(at("tok")).unwrap();
    for entry in std::fs::read_dir(sample("tokenizer")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, at("tok").join(path.file_name().unwrap())).unwrap();
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("data", at("link")).unwrap();
        std::os::unix::fs::symlink("data/a.jsonl", at("link.jsonl")).unwrap();
    }
    let done = prep(dir.path(), &["--input", "one.jsonl", "--tokenizer", "TOK", "--out", "set"]);
    assert!(done.status.success(), "{}", said(&done));
    dir
}

/// Inputs and output that overlap are refused, and not a byte has changed.
#[cfg(unix)]
#[test]
fn overlaps() {
    let dir = ground();
    std::fs::create_dir(dir.path().join("data/set")).unwrap();
    let before = content(dir.path());
    let path = dir.path().join("data");
    let absolute = path.to_str().unwrap();
    for (k, (input, out)) in [
        ("data", "data"),
        ("data", "./data/"),
        ("data", "data/../data"),
        ("data", "link"),
        ("link", "data"),
        ("link/", "link/."),
        ("data", absolute),
        (absolute, "link"),
        ("data", "data/new"),
        ("data", "data/new/deep"),
        ("data", "link/new"),
        ("link", "data/deep"),
        ("data/deep", "data"),
        ("data/a.jsonl", "data"),
        ("link.jsonl", "data"),
        ("link/a.jsonl", "data"),
        ("data/a.jsonl", "."),
        ("data", "."),
        (".", "new"),
        (".", "data/deep/../../new/x"),
        ("data", ".."),
    ]
    .into_iter()
    .enumerate()
    {
        for more in [&[][..], &["--overwrite"], &["--overwrite", "--max-rows", "1"]] {
            let args = ["--input", input, "--tokenizer", "TOK", "--out", out];
            let done = prep(dir.path(), &[&args[..], more].concat());
            let said = said(&done);
            assert_eq!(done.status.code(), Some(2), "{k} {input} {out} {more:?}: {said}");
            let clear = said.contains("are the same") || said.contains("overlap");
            assert!(clear && said.contains("nothing was changed"), "{k} {input} {out}: {said}");
            assert!(content(dir.path()) == before, "{k} {input} {out} {more:?}: files changed");
        }
    }
    // The files of a recipe, a file among several, the dataset's own tokenizer.
    for (args, word) in [
        (&["--recipe", "recipe.yaml", "--tokenizer", "TOK", "--out", "data"][..], "are the same"),
        (&["--recipe", "recipe.yaml", "--tokenizer", "TOK", "--out", "data/x"], "overlap"),
        (
            &["--input", "one.jsonl", "data/a.jsonl", "--tokenizer", "TOK", "--out", "data"],
            "overlap",
        ),
        (
            &[
                "--input",
                "one.jsonl",
                "--tokenizer",
                "set/tokenizer",
                "--out",
                "set",
                "--overwrite",
            ],
            "lies in the output folder",
        ),
        (&["merge", "set", "--out", "set"], "are the same"),
        (&["merge", "set", "--out", "set/x"], "overlap"),
        (&["merge", "set", "--out", "."], "overlap"),
    ] {
        let done = prep(dir.path(), args);
        assert!(!done.status.success() && said(&done).contains(word), "{args:?}: {}", said(&done));
        assert!(content(dir.path()) == before, "{args:?}: files changed");
    }
}

/// Folders beside each other are no overlap, also where one name begins like another.
#[test]
fn neighbours() {
    let dir = ground();
    for out in ["data-out", "dat", "data.jsonl", "datas/deep"] {
        let args = ["--input", "data", "--tokenizer", "tok", "--out", out];
        let done = prep(dir.path(), &args);
        assert!(done.status.success(), "{out}: {}", said(&done));
    }
}

/// `--overwrite` replaces a dataset of dlm-prep and nothing else.
#[test]
fn only_own_datasets_are_replaced() {
    let foreign: &[&[(&str, &str)]] = &[
        &[("notes.txt", "important")],
        &[("src/main.rs", "fn main() {}"), (".git/HEAD", "ref: refs/heads/main")],
        &[("config.json", "{}"), ("model.safetensors", "x"), ("tokenizer.json", "{}")],
        &[
            ("data-00000-of-00001.arrow", "ARROW1"),
            ("state.json", "{}"),
            ("dataset_info.json", "{}"),
        ],
        &[("manifest.json", "{\"name\": \"a web page\", \"icons\": []}")],
        &[("manifest.json", "")],
        &[("manifest.json", "not json")],
        &[("train-00000.arrow", "ARROW1\0\0somebody else's")],
        &[("train-00000.arrow", "")],
        &[("eval-00000.arrow", "x"), ("manifest.json", "{}")],
        &[("prep-state.json", "{}")],
        &[("tokenizer/tokenizer.json", "{}"), ("a.txt", "x")],
    ];
    let dir = ground();
    for (k, files) in foreign.iter().enumerate() {
        let out = dir.path().join(format!("foreign-{k}"));
        for (name, text) in *files {
            std::fs::create_dir_all(out.join(name).parent().unwrap()).unwrap();
            std::fs::write(out.join(name), text).unwrap();
        }
        let before = content(&out);
        let name = format!("foreign-{k}");
        let args = ["--input", "data", "--tokenizer", "tok", "--out", &name];
        for more in [&["--overwrite"][..], &[]] {
            let done = prep(dir.path(), &[&args[..], more].concat());
            let said = said(&done);
            // Files under other names do not stop a run that replaces nothing.
            if more.is_empty() && done.status.success() {
                let after = content(&out);
                assert!(before.iter().all(|(p, c)| after.get(p) == Some(c)), "{files:?}");
                continue;
            }
            assert!(!done.status.success(), "{files:?} {more:?}: {said}");
            assert!(said.contains(&name), "{files:?} {more:?}: {said}");
            let mut after = content(&out);
            after.retain(|p, _| !p.ends_with(".lock"));
            assert!(after == before, "{files:?} {more:?}: files changed");
        }
    }
    // Its own are, with what somebody put beside them left alone.
    std::fs::write(dir.path().join("set/notes.txt"), "mine").unwrap();
    let args = ["--input", "data", "--tokenizer", "tok", "--out", "set", "--overwrite"];
    let done = prep(dir.path(), &args);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(std::fs::read_to_string(dir.path().join("set/notes.txt")).unwrap(), "mine");
    // A foreign file under one of the names of a dataset, in a dataset.
    std::fs::write(dir.path().join("set/train-00007.arrow"), "x").unwrap();
    let before = content(&dir.path().join("set"));
    let done = prep(dir.path(), &args);
    assert!(said(&done).contains("train-00007.arrow"), "{}", said(&done));
    assert!(content(&dir.path().join("set")) == before);
    // Nor are links followed.
    #[cfg(unix)]
    {
        std::fs::remove_file(dir.path().join("set/train-00007.arrow")).unwrap();
        let link = dir.path().join("set/train-00008.arrow");
        std::os::unix::fs::symlink("../one.jsonl", link).unwrap();
        let done = prep(dir.path(), &args);
        assert!(said(&done).contains("train-00008.arrow"), "{}", said(&done));
        assert_eq!(std::fs::read_to_string(dir.path().join("one.jsonl")).unwrap(), ROW.repeat(20));
    }
}

/// Merging and exporting replace nothing of others either, and go on where they were interrupted.
#[test]
fn results_of_merge_and_export() {
    let dir = ground();
    for (k, (command, file, text)) in [
        ("merge", "train-00000.arrow", "somebody else's"),
        ("merge", "prep-state.json", "{}"),
        ("merge", "tokenizer/tokenizer.json", "{}"),
        ("export-hf", "train/data-00000-of-00001.arrow", "somebody else's"),
        ("export-hf", "train/state.json", "{}"),
        ("export-hf", "train/a.jsonl", ROW),
        ("export-hf", "dataset_dict.json", "{}"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("out-{k}");
        let path = dir.path().join(&out).join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        let done = prep(dir.path(), &[command, "set", "--out", &out]);
        assert!(!done.status.success() && said(&done).contains(&out), "{file}: {}", said(&done));
        assert_eq!(content(&dir.path().join(&out)).get(&path).unwrap(), text.as_bytes(), "{file}");
    }
    for command in ["merge", "export-hf"] {
        assert!(prep(dir.path(), &[command, "set", "--out", command]).status.success());
        let out = dir.path().join(command);
        let end = if command == "merge" { "manifest.json" } else { "dataset_dict.json" };
        let whole = content(&out);
        std::fs::remove_file(out.join(end)).unwrap();
        let done = prep(dir.path(), &[command, "set", "--out", command]);
        assert!(done.status.success(), "{command}: {}", said(&done));
        assert!(content(&out).keys().eq(whole.keys()), "{command}");
    }
}

/// A pipe would block, a device have no end: both are refused at once by name, and counted in a
/// folder.
#[cfg(unix)]
#[test]
fn pipes_and_devices() {
    let dir = ground();
    let at = |name: &str| dir.path().join(name);
    for name in ["pipe.jsonl", "pipe.parquet", "pipe.jsonl.gz", "pipe.arrow", "data/pipe.jsonl"] {
        assert!(Command::new("mkfifo").arg(at(name)).status().unwrap().success());
    }
    for (name, device) in [("zero.jsonl", "/dev/zero"), ("null.jsonl", "/dev/null")] {
        std::os::unix::fs::symlink(device, at(name)).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.jsonl")).unwrap();
    for name in [
        "pipe.jsonl",
        "pipe.parquet",
        "pipe.jsonl.gz",
        "pipe.arrow",
        "zero.jsonl",
        "null.jsonl",
        "socket.jsonl",
    ] {
        let args = ["--input", name, "--tokenizer", "tok", "--out", "x"];
        let done = prep(dir.path(), &args);
        let refused = said(&done).contains("is a pipe, socket or device");
        assert!(refused && !done.status.success(), "{name}: {}", said(&done));
    }
    let done = prep(dir.path(), &["--input", "data", "--tokenizer", "tok", "--out", "y"]);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("1 file of another kind"), "{}", said(&done));
    // A README.md that is a pipe names no configs.
    assert!(Command::new("mkfifo").arg(at("data/README.md")).status().unwrap().success());
    let done = prep(dir.path(), &["--input", "data", "--tokenizer", "tok", "--out", "z"]);
    assert!(done.status.success(), "{}", said(&done));
}

/// What a clone without git-lfs leaves in the place of data files.
#[test]
fn pointers_of_git_lfs() {
    let dir = ground();
    for name in ["a.jsonl", "a.parquet", "a.arrow", "a.jsonl.gz"] {
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n",
            "a".repeat(64)
        );
        std::fs::write(dir.path().join(name), pointer).unwrap();
        let done = prep(
            dir.path(),
            &["--input", name, "--tokenizer", "tok", "--out", &format!("out-{name}")],
        );
        let named = said(&done).contains("git lfs pull") && said(&done).contains(name);
        assert!(named && !done.status.success(), "{name}: {}", said(&done));
    }
}

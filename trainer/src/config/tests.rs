//! Composition over the built-in tree and over folders made here: precedence, overrides, and every
//! refusal by its words.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn load(overrides: &[&str]) -> Result<Config, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    Config::load(None, &overrides)
}

fn refused(overrides: &[&str]) -> String {
    load(overrides).expect_err("should be refused").to_string()
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn built_in_files_are_the_repository_tree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut on_disk = BTreeSet::new();
    let mut open = vec![root.clone()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                on_disk.insert(path.strip_prefix(&root).unwrap().to_str().unwrap().to_string());
            }
        }
    }
    let built_in: BTreeSet<String> =
        super::files::BUILT_IN.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(built_in, on_disk, "list every file of configs/ in files.rs");
}

#[test]
fn defaults_compose() {
    let config = load(&[]).unwrap();
    assert_eq!(config.model.name, "smollm2_135m");
    assert_eq!(config.source.path.as_deref(), Some("hf://HuggingFaceTB/SmolLM2-135M-Instruct"));
    assert_eq!(config.output.dir, Path::new("output/smollm2_135m"));
    assert_eq!(config.conversion.objective, Objective::BlockDiffusion);
    assert_eq!(
        (config.optim.lr, config.optim.beta2, config.optim.clip_norm),
        (2e-5, 0.95, Some(1.0))
    );
    assert_eq!(config.train.dtype, None);
}

#[test]
fn every_choice_of_every_group_composes() {
    for group in ["model", "data", "optim", "conversion"] {
        let names = super::files::BUILT_IN.iter().filter_map(|(name, _)| {
            name.strip_prefix(group)?.strip_prefix('/')?.strip_suffix(".yaml")
        });
        for name in names {
            load(&[&format!("{group}={name}")])
                .unwrap_or_else(|error| panic!("{group}={name}: {error}"));
        }
    }
}

#[test]
fn paper_numbers() {
    let small = load(&["model=qwen2_5_1_5b", "conversion=paper_1_5b"]).unwrap();
    assert_eq!(
        (small.optim.lr, small.train.max_steps, small.train.batch_rows),
        (2e-5, Some(6000), 256)
    );
    assert_eq!(small.conversion.total_tokens, 6000 * 524_288);
    let large = load(&["conversion=paper_7b"]).unwrap();
    assert_eq!((large.optim.lr, large.train.max_steps), (1e-5, Some(2500)));
    assert_eq!(large.conversion.total_tokens, 2500 * 524_288);
    assert_eq!(large.conversion.bd_size, Some(32));
}

#[test]
fn overrides_win_whatever_their_order() {
    let config =
        load(&["optim.lr=3e-4", "optim=muon", "conversion=smoke", "train.seed=7", "model=sample"])
            .unwrap();
    assert_eq!((config.optim.lr, config.optim.name), (3e-4, OptimName::Muon));
    assert_eq!(
        (config.train.seed, config.train.max_steps, config.train.batch_rows),
        (7, Some(10), 8)
    );
    assert_eq!(config.output.dir, Path::new("output/sample"));
    assert!(
        config.source_config().unwrap().contains("\"vocab_size\""),
        "the built-in shapes are found"
    );
}

#[test]
fn overrides_are_typed() {
    let config = load(&[
        "conversion.total_tokens=1e9",
        "source.path=1e3",
        "model.name=\"a b\"",
        "optim.clip_norm=null",
        "optim.lr=1",
        "optim.zclip={enabled: true, z: 2}",
        "train.micro_batch_rows=64",
        "train.dtype=bf16",
    ])
    .unwrap();
    assert_eq!(config.conversion.total_tokens, 1_000_000_000);
    assert_eq!(config.source.path.as_deref(), Some("1e3"));
    assert_eq!(config.model.name, "a b");
    assert_eq!((config.optim.clip_norm, config.optim.lr), (None, 1.0));
    assert_eq!(
        (config.optim.zclip.enabled, config.optim.zclip.z, config.optim.zclip.alpha),
        (true, 2.0, 0.99)
    );
    assert_eq!((config.train.micro_batch_rows, config.train.dtype), (Some(64), Some(Dtype::Bf16)));
}

#[test]
fn yaml_round_trip() {
    let config =
        load(&["model=sample", "optim=muon", "train.max_steps=3", "optim.lr=1.25e-7"]).unwrap();
    let text = config.to_yaml().unwrap();
    assert_eq!(Config::from_yaml(&text, "saved.yaml").unwrap(), config);
    // a run of a version that did not have the key yet
    let older: String = text
        .lines()
        .filter(|line| !line.trim().starts_with("engine:"))
        .fold(String::new(), |older, line| older + line + "\n");
    assert!(older.len() < text.len());
    assert_eq!(Config::from_yaml(&older, "saved.yaml").unwrap(), config);
    let broken = text.replace("  seed:", "  sead:");
    let error = Config::from_yaml(&broken, "saved.yaml").unwrap_err().to_string();
    assert!(
        error.contains("saved.yaml")
            && error.contains("train.sead")
            && error.contains("train.seed"),
        "{error}"
    );
    let short = text.replace("  seed: 42\n", "");
    let error = Config::from_yaml(&short, "saved.yaml").unwrap_err().to_string();
    assert!(error.contains("`train.seed` has no value"), "{error}");
}

#[test]
fn refusals_name_the_nearest_key() {
    for (override_, words) in [
        ("model=qwen3_4c", "did you mean `qwen3_4b`?"),
        ("mdoel=sample", "did you mean `model`?"),
        ("train.sead=3", "did you mean `train.seed`?"),
        ("lr=3", "did you mean `optim.lr`?"),
        ("train.lr=3", "did you mean `optim.lr`?"),
        ("optim.zclip.zz=3", "did you mean `optim.zclip.z`?"),
        ("launch=dlm_train", "read by `wf`"),
        ("model=../model/sample", "no choice"),
        ("optim.lr=abc", "is the text \"abc\"; expected a number"),
        ("train.seed=-1", "is the number -1; expected a whole number"),
        ("conversion.total_tokens=1.5", "expected a whole number"),
        ("optim.zclip.enabled=yes", "expected true or false"),
        ("optim.schedule=linear", "expected one of constant_with_warmup, cosine, wsd"),
        ("train=5", "expected a mapping"),
        ("model.name.x=3", "`model.name` is a mapping; expected text"),
        ("+train.x=3", "neither added nor removed"),
        ("train.seed", "no `=`"),
        ("=3", "the key is empty"),
        ("optim.lr=[1", "override `optim.lr=[1`"),
        ("output.dir=${modl.name}", "did you mean `model.name`?"),
        ("model.name=${output.dir}", "leads back to itself"),
        ("train.micro_batch_rows=7", "a divisor of train.batch_rows, which is 256"),
        ("source.path=null", "`source.path` is null"),
        ("source.init=random", "`source.config` is null"),
        ("optim.beta1=1", "below 1"),
        ("conversion.total_tokens=0", "1 or more"),
    ] {
        let error = refused(&[override_]);
        assert!(error.contains(words), "{override_}: {error}");
    }
}

#[test]
fn renamed_keys_and_values_are_refused_with_their_new_names() {
    for (override_, old, new) in [
        ("train.micro_rows=4", "`train.micro_rows`", "`train.micro_batch_rows`"),
        ("train.recompute=layer", "`train.recompute`", "`train.activation_checkpointing`"),
        (
            "conversion.document_mask=hub",
            "`conversion.document_mask=hub`",
            "`conversion.document_mask=none`",
        ),
    ] {
        let error = refused(&[override_]);
        assert!(error.contains(&format!("{old} is now called {new}")), "{override_}: {error}");
    }
    // the same in a file, which the error names
    let dir = folder(&[("conversion/old.yaml", "document_mask: hub\ntotal_tokens: 9\n")]);
    let error = Config::load(Some(dir.path()), &["conversion=old".into()]).unwrap_err().to_string();
    assert!(error.contains("old.yaml") && error.contains("document_mask=none"), "{error}");
    let text = load(&["model=sample"]).unwrap().to_yaml().unwrap();
    let text = text.replace("  micro_batch_rows:", "  micro_rows:");
    let error = Config::from_yaml(&text, "saved.yaml").unwrap_err().to_string();
    assert!(error.contains("saved.yaml") && error.contains("train.micro_batch_rows"), "{error}");
    // what took their place works
    let config = load(&[
        "train.micro_batch_rows=64",
        "train.activation_checkpointing=layer",
        "conversion.document_mask=none",
    ])
    .unwrap();
    assert_eq!(config.conversion.document_mask, DocumentMask::None);
    assert_eq!(config.train.activation_checkpointing, ActivationCheckpointing::Layer);
}

#[test]
fn a_folder_stands_in_front_of_the_built_in_tree() {
    let dir = folder(&[
        ("model/mine.yaml", "# @package _global_\ndefaults: [qwen3_4b]\nmodel:\n  name: mine\n"),
        ("model/bad.yaml", "nmae: x\n"),
        ("model/worse.yaml", "name: [\n"),
        ("model/twice.yaml", "name: x\nname: y\n"),
        ("model/loop.yaml", "defaults: [loop]\n"),
    ]);
    let load = |text: &str| Config::load(Some(dir.path()), &[text.to_string()]);
    let mine = load("model=mine").unwrap();
    assert_eq!(
        (mine.model.name.as_str(), mine.source.path.as_deref()),
        ("mine", Some("hf://Qwen/Qwen3-4B"))
    );
    for (choice, words) in [
        ("bad", "did you mean `model.name`?"),
        ("worse", "line"),
        ("twice", "name"),
        ("loop", "lead back to itself"),
        ("mien", "did you mean `mine`?"),
    ] {
        let error = load(&format!("model={choice}")).unwrap_err().to_string();
        let file = choice == "mien" || error.contains(&format!("{choice}.yaml"));
        assert!(error.contains(words) && file, "{choice}: {error}");
    }
}

#[test]
fn a_main_file_of_ones_own() {
    let dir = folder(&[("config.yaml", "defaults:\n  - model: sample\n  - 3\n")]);
    let error = Config::load(Some(dir.path()), &[]).unwrap_err().to_string();
    assert!(error.contains("entry 3 of `defaults`"), "{error}");
    let dir = folder(&[("config.yaml", "defaults:\n  - model: sample\n")]);
    let error = Config::load(Some(dir.path()), &[]).unwrap_err().to_string();
    assert!(error.contains("has no value") && error.contains("config.yaml"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = Config::load(Some(empty.path()), &[]).unwrap_err().to_string();
    assert!(error.contains("holds neither"), "{error}");
    let error = Config::load(Some(Path::new("no/such/folder")), &[]).unwrap_err().to_string();
    assert!(error.contains("not a folder"), "{error}");
}

#[test]
fn every_key_is_documented() {
    for (key, kind, doc) in Config::keys() {
        assert!(!doc.is_empty(), "{key} ({kind}) has no documentation");
    }
}

/// Rust source without comments and without the insides of string literals; chains broken before a
/// dot are joined.
fn bare(source: &str) -> String {
    let mut out = String::new();
    for line in source.lines() {
        let line = line.split("//").next().unwrap_or_default();
        if !line.trim_start().starts_with('.') {
            out.push('\n');
        }
        // Every second piece between quotes is a literal (escaped quotes only move text from one
        // side to the other).
        out.extend(line.trim().split('"').step_by(2));
    }
    out
}

/// No dead keys: the trainer's code reads every key of the schema, as `section.key`, or through a
/// section borrowed as `let name = &cfg.section;`.
#[test]
fn every_key_is_read() {
    let mut code = String::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("config") && !path.ends_with("launch") {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                code.push_str(&bare(&std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let reads = |owner: &str, key: &str| {
        let access = format!("{owner}.{key}");
        code.match_indices(&access).any(|(at, _)| {
            let before = code[..at].chars().next_back().is_none_or(|c| !word(c));
            before && code[at + access.len()..].chars().next().is_none_or(|c| !word(c))
        })
    };
    let mut dead = Vec::new();
    for (key, _, _) in Config::keys() {
        let (section, name) = key.rsplit_once('.').unwrap();
        let own = section.rsplit('.').next().unwrap();
        let borrow = format!("= &cfg.{section};");
        let mut aliases = code
            .match_indices(&borrow)
            .filter_map(|(at, _)| code[..at].trim_end().rsplit(|c| !word(c)).next());
        let through = key == "source.config" && code.contains(".source_config()");
        if !through && !reads(own, name) && !aliases.any(|alias| reads(alias, name)) {
            dead.push(key);
        }
    }
    assert!(dead.is_empty(), "keys of the schema that nothing reads: {}", dead.join(", "));
}

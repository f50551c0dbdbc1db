//! A packed dataset as a repository: which of its files, and its card.
//!
//! In: the folder. Out: the files that its manifest names, with the tokenizer, and a README.md that
//! says what they are made of. The Python library reads the rows with `load_dataset`.

use super::card::{Card, README, plain};
use super::contents::Content;
use super::push::{Push, Pushed, check_push, push};
use crate::error::{Error, Result};
use crate::progress::Progress;
use dlm_datasets::manifest::{FILE_NAME, Manifest, Split};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Licences by the names that hubs know; others are refused in a card's header.
const LICENCES: [&str; 27] = [
    "apache-2.0",
    "mit",
    "openrail",
    "bigscience-openrail-m",
    "cc",
    "cc0-1.0",
    "cc-by-2.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nd-4.0",
    "odc-by",
    "odbl",
    "pddl",
    "bsd-2-clause",
    "bsd-3-clause",
    "gpl-3.0",
    "lgpl-3.0",
    "agpl-3.0",
    "unlicense",
    "cdla-permissive-2.0",
    "llama2",
    "llama3",
];

/// Licence keys of a card for licences as data and models name them: those that hubs know, `other`
/// for the rest.
pub fn licence_names(named: &[String]) -> Vec<String> {
    let known = |name: &str| {
        let name = name.trim().to_ascii_lowercase().replace([' ', '_'], "-");
        if LICENCES.contains(&name.as_str()) { name } else { "other".to_string() }
    };
    // Expressions such as `Apache-2.0 OR MIT`.
    let parts = named.iter().flat_map(|n| n.split(" OR ")).flat_map(|n| n.split(" AND "));
    parts.map(known).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Writes the card of the dataset in `dir`, unless somebody else's is there: then false.
///
/// # Errors
/// If `dir` is not a dataset, or cannot be written.
pub fn write_card(dir: &Path, id: Option<&str>) -> Result<bool> {
    let (manifest, fingerprint) = Manifest::read_with_hash(dir)?;
    card(&manifest, &fingerprint, id).write(dir)
}

/// Pushes the dataset in `dir` to the dataset repository `id`, with a card.
///
/// # Errors
/// As [`push`], and if a file is not what the manifest says.
pub fn push_dataset(dir: &Path, id: &str, public: bool, progress: &dyn Progress) -> Result<Pushed> {
    check_push("push", id)?;
    let (manifest, _) = Manifest::read_with_hash(dir)?;
    if !write_card(dir, Some(id))? {
        progress.notice(&format!("kept       {README}, which is not this program's"));
    }
    let named: BTreeSet<&str> = manifest.files.iter().map(|f| f.path.as_str()).collect();
    let keep = |path: &str| {
        named.contains(path)
            || path == FILE_NAME
            || path == README
            || path.starts_with("tokenizer/")
    };
    let (mut planned, left) = Push::of_folder(dir, &keep, is_data_file)?;
    for file in &manifest.files {
        let path = dir.join(&file.path);
        if Content::of(&file.path, &path)?.sha256 != file.sha256 {
            return Err(Error::Input {
                path: path.display().to_string(),
                reason: "is not what manifest.json says; `dlm-prep verify` tells more".to_string(),
            });
        }
    }
    if !left.is_empty() {
        let n = left.len();
        progress.notice(&format!("not pushed {n} files that are no part of it, as {}", left[0]));
    }
    let rows = manifest.packing.train_rows + manifest.packing.eval_rows;
    planned.id = id.to_string();
    planned.is_dataset = true;
    planned.public = public;
    planned.message = format!("{rows} packed rows of {} tokens", manifest.seq_len);
    push(&planned, progress)
}

/// Whether a path is that of a data file as `dlm-prep` names them.
fn is_data_file(path: &str) -> bool {
    let number = ["train-", "eval-"].iter().find_map(|part| path.strip_prefix(part));
    let number = number.and_then(|rest| rest.strip_suffix(".arrow"));
    number.is_some_and(|n| n.len() >= 5 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// What the README.md of a dataset says.
fn card(m: &Manifest, fingerprint: &str, id: Option<&str>) -> Card {
    let mut card = Card::new();
    let rows = m.packing.train_rows + m.packing.eval_rows;
    let name = id.and_then(|id| id.rsplit('/').next()).unwrap_or("Packed dataset");
    let named: BTreeSet<String> = m.sources.iter().flat_map(|s| s.licences.clone()).collect();
    let named: Vec<String> = named.into_iter().collect();
    let datasets: BTreeSet<&str> = m.sources.iter().filter_map(|s| s.dataset.as_deref()).collect();
    card.key("pretty_name", name);
    card.key("license", licence_names(&named));
    card.key("task_categories", vec!["text-generation"]);
    card.key("tags", vec!["block-diffusion", "fast-dllm-v2", "packed", "dlm"]);
    card.key("source_datasets", datasets.iter().map(|d| d.to_string()).collect::<Vec<_>>());
    card.key("size_categories", vec![size_category(rows)]);
    let files = |split: Split| {
        let any = m.files.iter().any(|f| f.split == split);
        any.then(|| json!({"split": split.name(), "path": format!("{}-*.arrow", split.name())}))
    };
    let files: Vec<Value> = [Split::Train, Split::Eval].into_iter().filter_map(files).collect();
    card.key("configs", vec![json!({"config_name": "default", "data_files": files})]);

    card.text(&format!("# {}", plain(name)));
    card.text(&format!(
        "Conversations packed into rows of {} tokens for block-diffusion training (Fast-dLLM v2, blocks of {}), written by dlm-prep {}. \
         Every document starts and ends on a whole block; `labels` is -100 where no loss is taken; `documents` lists the conversations of a row.",
        m.seq_len, m.bd_size, plain(&m.code_version)
    ));
    let number = |n: u64| n.to_string();
    let row = |key: &str, value: String| vec![key.to_string(), value];
    card.table(
        &["", ""],
        &[
            row("train rows", number(m.packing.train_rows as u64)),
            row("eval rows", number(m.packing.eval_rows as u64)),
            row("tokens", number(m.counts.tokens)),
            row("tokens with loss", number(m.counts.response_tokens)),
            row("block padding", number(m.counts.block_padding)),
            row("row padding", number(m.packing.row_padding)),
            row("conversations read", number(m.counts.rows_read)),
            row("conversations kept", number(m.counts.rows_kept)),
            row("tokens per row (seq_len)", number(m.seq_len as u64)),
            row("tokens per block (bd_size)", number(m.bd_size as u64)),
            row("mask token", format!("{} ({})", m.mask_token, m.mask_token_id)),
            row("vocabulary", number(m.vocab_size as u64)),
            row("longer than a row", m.over_long.clone()),
            row("seed", number(m.seed)),
            row("fingerprint of the dataset", fingerprint.to_string()),
            row("fingerprint of the recipe", m.recipe_fingerprint.clone()),
            row("sha256 of tokenizer.json", m.tokenizer_sha256.clone()),
            row("sha256 of the chat template", m.template_sha256.clone()),
        ],
    );
    card.text("## Mixture");
    card.table(&["source", "kept", "dropped", "tokens", "share", "licences"], &mixture(m));
    if !m.counts.dropped.is_empty() {
        card.text("## Dropped conversations");
        let dropped = m.counts.dropped.iter().map(|(why, n)| row(why, number(*n)));
        card.table(&["reason", "conversations"], &dropped.collect::<Vec<_>>());
    }
    if named.is_empty() {
        card.text("The data names no licence; ask its source before you pass it on.");
    }
    let (command, id) = (id.is_some(), id.unwrap_or("ORG/NAME"));
    let from = if command { "" } else { " (with the name of its repository)" };
    card.text(&format!(
        "## How to use it{from}\n\n```\nhf download {id} --repo-type dataset --local-dir packed\ndlm-prep verify packed\ndlm-train --data packed model=… source.path=…\n```\n\n\
         `load_dataset(\"{id}\")` of the Python library reads the rows, too. The format is that of `docs/format.md` of dlm-prep, version {}.",
        m.format_version
    ));
    card
}

/// A line for each source.
fn mixture(m: &Manifest) -> Vec<Vec<String>> {
    let all = m.counts.tokens.max(1) as f64;
    let line = |s: &dlm_datasets::manifest::Source| {
        // A path of this machine is nobody else's business.
        let file = s.name.rsplit(['/', '\\']).next().unwrap_or_default();
        let from = match (&s.dataset, &s.revision) {
            (Some(id), Some(commit)) => {
                format!("{id}@{}: {file}", commit.get(..8).unwrap_or(commit))
            }
            (Some(id), None) => format!("{id}: {file}"),
            _ => file.to_string(),
        };
        let name = match &s.category {
            Some(category) => format!("{from} ({category})"),
            None => from,
        };
        let share = s.counts.tokens as f64 / all * 100.0;
        vec![
            name,
            s.counts.rows_kept.to_string(),
            s.counts.dropped_total().to_string(),
            s.counts.tokens.to_string(),
            format!("{share:.1} %"),
            s.licences.join(", "),
        ]
    };
    m.sources.iter().map(line).collect()
}

/// The class of a number of rows, as hubs name it.
fn size_category(rows: usize) -> &'static str {
    match rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        1_000_000..10_000_000 => "1M<n<10M",
        _ => "n>10M",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlm_datasets::manifest::Source;

    #[test]
    fn what_the_card_says() {
        let mut m = Manifest::new(512, 32, 1000, 5, 6, 7);
        m.counts.tokens = 1000;
        m.counts.dropped.insert("too_long".to_string(), 3);
        let source = |name: &str, tokens: u64, licence: &str| {
            let mut s = Source { name: name.to_string(), ..Default::default() };
            s.counts.tokens = tokens;
            s.licences = vec![licence.to_string()];
            s
        };
        m.sources = vec![source("/home/me/a.jsonl", 250, "CC BY 4.0"), source("b", 750, "odd")];
        m.sources[1].dataset = Some("org/data".to_string());
        m.sources[1].revision = Some("0123456789".to_string());
        let text = card(&m, "f1ng3r", Some("me/packed")).render();
        for part in [
            r#"license: ["cc-by-4.0","other"]"#,
            r#"source_datasets: ["org/data"]"#,
            "| a.jsonl | 0 | 0 | 250 | 25.0 % | CC BY 4.0 |",
            "| org/data@01234567: b | 0 | 0 | 750 | 75.0 % | odd |",
            r"| too\_long | 3 |",
            "f1ng3r",
            "hf download me/packed --repo-type dataset",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("/home/me"), "{text}");
    }

    #[test]
    fn licences() {
        let names = |text: &str| licence_names(&[text.to_string()]);
        assert_eq!(names("Apache-2.0 OR MIT"), ["apache-2.0", "mit"]);
        assert_eq!(names("CC BY 4.0"), ["cc-by-4.0"]);
        assert_eq!(names("Nobody's"), ["other"]);
        assert!(licence_names(&[]).is_empty());
    }

    #[test]
    fn data_files() {
        for name in ["train-00000.arrow", "eval-00012.arrow", "train-100000.arrow"] {
            assert!(is_data_file(name), "{name}");
        }
        for name in ["train-0.arrow", "x/train-00000.arrow", "train-0000x.arrow", "a.arrow"] {
            assert!(!is_data_file(name), "{name}");
        }
    }
}

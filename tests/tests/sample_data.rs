//! The shipped sample is what the generator writes, fits its tokenizer, and has no held-out record
//! among its training rows.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dlm_test_support::repository;
use dlm_tests::sample::{files, plain, text};
use parquet::file::reader::{FileReader, SerializedFileReader};

fn rows(path: &Path) -> Result<Vec<String>> {
    let reader = SerializedFileReader::new(
        fs::File::open(path).with_context(|| path.display().to_string())?,
    )?;
    let rows = reader.get_row_iter(None)?.map(|row| Ok(row?.to_string()));
    rows.collect()
}

#[test]
fn the_generator_reproduces_the_shipped_files() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let written = files::write(dir.path())?;
    ensure!(written.train >= 2000 && (100..=200).contains(&written.held_out));
    let shipped = repository().join("datasets/sample");
    for name in [
        "heldout.jsonl",
        "README.md",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ] {
        let (old, new) = (fs::read(shipped.join(name))?, fs::read(dir.path().join(name))?);
        ensure!(
            old == new,
            "{name} is not what the generator writes; run `cargo run --release -p dlm-tests --bin make-sample`"
        );
    }
    // Compared by rows, since another release of the compression library may write other bytes for
    // the same table.
    ensure!(
        rows(&shipped.join("train.parquet"))? == rows(&dir.path().join("train.parquet"))?,
        "train.parquet differs"
    );
    let size = |name: &str| fs::metadata(shipped.join(name)).map(|m| m.len());
    ensure!(
        size("train.parquet")? + size("heldout.jsonl")? + size("tokenizer/tokenizer.json")?
            < 3 << 20,
        "the sample is over 3 MB"
    );
    Ok(())
}

#[test]
fn another_seed_gives_other_rows_and_held_out_records_stay_out() -> Result<()> {
    let (train, held_out) = text::conversations(42, 3000, 100);
    let (other, _) = text::conversations(43, 3000, 100);
    ensure!(train != other);
    let key = |c: &text::Conversation| {
        c.input.iter().map(|t| t.content.clone()).collect::<Vec<_>>().join("\n")
    };
    let seen: HashSet<String> = train.iter().map(key).collect();
    ensure!(
        held_out.iter().all(|c| !seen.contains(&key(c))),
        "a held-out prompt is in the training rows"
    );
    // A held-out record's pair of leading values, as the JSON has it, occurs in no training row.
    let pair = |json: &str| json.split(',').take(2).collect::<Vec<_>>().join(",");
    let pairs: HashSet<String> =
        train.iter().filter(|c| c.task == "to-json").map(|c| pair(&c.output)).collect();
    ensure!(pairs.len() > 300);
    ensure!(
        held_out.iter().filter(|c| c.task == "to-json").all(|c| !pairs.contains(&pair(&c.output))),
        "a held-out pair is in the training rows"
    );
    Ok(())
}

#[test]
fn the_plain_form_has_the_same_tasks_and_keeps_its_held_out_records_out() -> Result<()> {
    let (train, held_out) = plain::conversations(42, 3000, 300);
    let prompt = |c: &text::Conversation| {
        c.input.iter().map(|t| t.content.clone()).collect::<Vec<_>>().join("\n")
    };
    let seen: HashSet<String> = train.iter().map(prompt).collect();
    ensure!(
        held_out.iter().all(|c| !seen.contains(&prompt(c))),
        "a prompt is in the training rows"
    );
    let pair = |json: &str| json.split(", ").take(2).collect::<Vec<_>>().join(",");
    let pairs: HashSet<String> =
        train.iter().filter(|c| c.task == "to-json").map(|c| pair(&c.output)).collect();
    ensure!(pairs.len() > 300);
    for c in &held_out {
        let last = c.input.last().context("a prompt without a turn")?;
        ensure!(last.role == "user");
        match c.task {
            // Every value of a JSON answer stands in its prompt, as `key: value`.
            "to-json" => {
                ensure!(!pairs.contains(&pair(&c.output)), "a held-out pair is in training");
                let record: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&c.output)?;
                for (key, value) in &record {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                    ensure!(last.content.contains(&format!("{key}: {value}")), "{c:?}");
                }
            }
            "to-list" | "two-turns" => ensure!(c.output.lines().count() >= 4, "{c:?}"),
            "sentence" | "lookup" => ensure!(c.output.ends_with('.'), "{c:?}"),
            other => anyhow::bail!("unknown task {other}"),
        }
    }
    Ok(())
}

//! dlm-prep as a user calls it: the sample and published conversations, worker counts, damaged
//! files, hostile rows, wrong calls.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dlm_test_support::{repository, run, shared, shared_tokenizers};
use dlm_tests::sample::TRAIN_ROWS;
use dlm_tests::samples;
use serde_json::Value;

fn manifest(dir: &str) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(Path::new(dir).join("manifest.json"))?)?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// The manifest of a folder that `verify` accepts and in which rows read = kept + dropped.
fn accepted(dir: &str) -> Result<Value> {
    let m = manifest(dir)?;
    let count = |key: &str| m["counts"][key].as_u64().with_context(|| format!("no counts.{key}"));
    let dropped = m["counts"]["dropped"].as_object().context("counts.dropped")?;
    let dropped: u64 = dropped.values().filter_map(Value::as_u64).sum();
    ensure!(count("rows_read")? == count("rows_kept")? + dropped, "{}", m["counts"]);
    run("dlm-prep", &repository(), &["verify", dir])?.ok()?;
    Ok(m)
}

#[test]
fn the_sample_is_packed_whole_and_alike_for_any_number_of_workers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut fingerprints = Vec::new();
    for workers in ["1", "2", "5"] {
        let out = samples::pack(
            dir.path(),
            &format!("w{workers}"),
            &["--seq-len", "256", "--eval-fraction", "0.05", "--workers", workers],
        )?;
        let m = accepted(&out)?;
        ensure!(m["counts"]["rows_kept"] == TRAIN_ROWS, "{}", m["counts"]);
        let files: Vec<_> =
            m["files"].as_array().context("files")?.iter().map(|f| f["sha256"].clone()).collect();
        fingerprints.push((files, fs::read_to_string(Path::new(&out).join("manifest.json"))?));
    }
    ensure!(
        fingerprints.iter().all(|f| f.0 == fingerprints[0].0),
        "the bytes depend on the number of workers"
    );
    ensure!(
        fingerprints.iter().all(|f| f.1 == fingerprints[0].1),
        "the manifest depends on the number of workers"
    );
    Ok(())
}

/// Training must see nothing that decoding does not: documents end with their last supervised
/// token, and only mask tokens follow it.
#[test]
fn nothing_but_padding_follows_the_last_label() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = samples::pack(dir.path(), "data", &["--max-rows", "500"])?;
    let data = dlm_datasets::Dataset::open(Path::new(&out))?;
    let mask = data.manifest().mask_token_id;
    let mut documents = 0;
    for row in data.split(dlm_datasets::Split::Train).iter() {
        let row = row?;
        for d in &row.documents {
            let (ids, labels) = (
                &row.input_ids[d.start..d.start + d.length],
                &row.labels[d.start..d.start + d.length],
            );
            let last =
                labels.iter().rposition(|l| *l != -100).context("a document without a label")?;
            ensure!(
                ids[last + 1..].iter().all(|id| *id == mask),
                "after the last label at {last}: {:?}",
                &ids[last + 1..]
            );
            documents += 1;
        }
    }
    ensure!(documents == 500);
    Ok(())
}

#[test]
fn one_changed_byte_is_found() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = samples::pack(dir.path(), "data", &["--max-rows", "300"])?;
    accepted(&out)?;
    let file = Path::new(&out).join("train-00000.arrow");
    let whole = fs::read(&file)?;
    for at in [whole.len() / 3, whole.len() / 2, whole.len() - 20] {
        let mut bytes = whole.clone();
        *bytes.get_mut(at).context("short file")? ^= 4;
        fs::write(&file, bytes)?;
        run("dlm-prep", &repository(), &["verify", &out])?.expect(1)?;
    }
    fs::write(&file, &whole[..whole.len() - 100])?;
    run("dlm-prep", &repository(), &["verify", &out])?.expect(1)?;
    fs::write(&file, &whole)?;
    fs::remove_file(Path::new(&out).join("manifest.json"))?;
    run("dlm-prep", &repository(), &["verify", &out])?.expect(1)?;
    Ok(())
}

#[test]
fn wrong_calls_end_with_2_and_missing_things_with_an_error_that_names_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = text(&dir.path().join("out"))?.to_string();
    let root = repository();
    run("dlm-prep", &root, &["--inptu", "x"])?.expect(2)?;
    run("dlm-prep", &root, &[])?.expect(2)?;
    let missing =
        ["--input", "no/such.parquet", "--tokenizer", "datasets/sample/tokenizer", "--out", &out];
    let said = run("dlm-prep", &root, &missing)?;
    ensure!(
        matches!(said.code, Some(1 | 2)) && said.stderr.contains("no/such.parquet"),
        "{said:?}"
    );
    let missing =
        ["--input", "datasets/sample/train.parquet", "--tokenizer", "no/tokenizer", "--out", &out];
    let said = run("dlm-prep", &root, &missing)?;
    ensure!(matches!(said.code, Some(1 | 2)) && said.stderr.contains("no/tokenizer"), "{said:?}");
    ensure!(!Path::new(&out).join("manifest.json").exists());
    Ok(())
}

#[test]
fn real_conversations_with_four_tokenizers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(conversations) = shared("assets/conversations") else {
        return Ok(());
    };
    let names = ["qwen2.5", "fast_dllm_v2_7b", "smollm2", "qwen3"];
    let Some(tokenizers) = shared_tokenizers(dir.path(), &names) else {
        return Ok(());
    };
    for name in names {
        let (tokenizer, out) = (tokenizers.join(name), dir.path().join(format!("out-{name}")));
        let mut arguments = vec![
            "--input",
            text(&conversations)?,
            "--tokenizer",
            text(&tokenizer)?,
            "--out",
            text(&out)?,
            "--max-rows",
            "6000",
            "--max-unsupervised",
            "0.1",
        ];
        if name == "smollm2" {
            arguments.extend(["--template", "chatml"]);
        }
        run("dlm-prep", &repository(), &arguments)?.ok()?;
        let m = accepted(text(&out)?)?;
        ensure!(m["counts"]["rows_kept"].as_u64() > Some(5000), "{name}: {}", m["counts"]);
        let expected = match name {
            "qwen3" => 151_669,
            "smollm2" => 49_152,
            _ => 151_665,
        };
        ensure!(m["mask_token_id"] == expected, "{name}: the mask token is {}", m["mask_token_id"]);
    }
    Ok(())
}

#[test]
fn hostile_rows_are_kept_or_dropped_by_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(hostile) = shared("assets/hostile") else {
        return Ok(());
    };
    let names = ["qwen2.5", "qwen3"];
    let Some(tokenizers) = shared_tokenizers(dir.path(), &names) else {
        return Ok(());
    };
    for name in names {
        let (tokenizer, out) = (tokenizers.join(name), dir.path().join(format!("out-{name}")));
        let input = hostile.join("hostile.parquet");
        let arguments =
            ["--input", text(&input)?, "--tokenizer", text(&tokenizer)?, "--out", text(&out)?];
        run("dlm-prep", &repository(), &arguments)?.ok()?;
        let m = accepted(text(&out)?)?;
        let read = m["counts"]["rows_read"].as_u64();
        ensure!(read == Some(17), "{name}: {} rows read of 17", m["counts"]["rows_read"]);
    }
    Ok(())
}

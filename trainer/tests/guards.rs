//! How a run responds when memory is short, when the loss is NaN or infinite, when it jumps, and
//! when it stops falling.

mod common;

use std::fs;
use std::path::Path;

use common::{MASK, VOCAB, losses, ok, refused, train, workplace};
use dlm_datasets::{Dataset, Split, hash};
use serde_json::Value;

fn said(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn weights(dir: &Path, out: &str) -> Vec<u8> {
    fs::read(dir.join(out).join("model.safetensors")).unwrap()
}

/// Memory fails above one row: the run continues with smaller micro-batches and ends with the
/// weights of a run that had them from the start. The effective batch stays the same, no row is
/// skipped, and a resume keeps the size.
#[test]
fn too_little_memory_halves_the_micro_batch() {
    let dir = workplace();
    let more = [
        "conversion.total_tokens=1200",
        "export.dtype=fp32",
        "train.save_every=2",
        "train.log_every=1",
    ];
    let run = |out: &str, limit: Option<&str>, micro: &[&str]| {
        let mut all = more.to_vec();
        all.extend(micro);
        let mut command = train(dir.path(), out, &all);
        limit.map(|l| command.env("DLM_FAULT_MEMORY_ROWS", l));
        ok(&mut command)
    };
    for (limit, tried) in [("2", 1), ("1", 2)] {
        let given = format!("train.micro_batch_rows={limit}");
        run(&format!("small{limit}"), None, &[&given]);
        let failed = run(&format!("halved{limit}"), Some(limit), &[]);
        assert_eq!(said(&failed).matches("no memory for").count(), tried, "{}", said(&failed));
        assert!(
            said(&failed).contains(&format!("micro-batches of {limit}, still 4 rows a step")),
            "{}",
            said(&failed)
        );
        assert!(!said(&failed).contains("panicked"));
        assert_eq!(
            weights(dir.path(), &format!("small{limit}")),
            weights(dir.path(), &format!("halved{limit}"))
        );
        assert_eq!(
            losses(&dir.path().join(format!("small{limit}"))),
            losses(&dir.path().join(format!("halved{limit}")))
        );
    }
    // Resumed from its second step with enough memory: sums are still taken in the same order.
    fs::write(dir.path().join("halved1/checkpoints/latest"), "step-000000002").unwrap();
    run("halved1", None, &[]);
    assert_eq!(weights(dir.path(), "small1"), weights(dir.path(), "halved1"));
    let mut none = train(dir.path(), "none", &more);
    refused(
        none.env("DLM_FAULT_MEMORY_ROWS", "0"),
        1,
        &["no memory for one row", "train.activation_checkpointing=layer"],
    );
}

/// One token's embedding has become NaN in a checkpoint: the error names rows that hold the token,
/// and nothing of that step is saved.
#[test]
fn a_loss_that_is_no_number_names_the_rows() {
    let dir = workplace();
    let config = dir.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    json["tie_word_embeddings"] = false.into();
    fs::write(&config, json.to_string()).unwrap();
    let more = ["train.save_every=1", "train.keep_checkpoints=90", "train.eval_every=0"];
    ok(&mut train(dir.path(), "out", &more));
    // The rarest token of the training rows.
    let data = Dataset::open(&dir.path().join("data")).unwrap();
    let rows_with = |token: i32| -> Vec<usize> {
        (0..data.rows(Split::Train))
            .filter(|i| data.row(Split::Train, *i).unwrap().input_ids.contains(&token))
            .collect()
    };
    let token = (2..VOCAB as i32)
        .filter(|t| *t != MASK && !rows_with(*t).is_empty())
        .min_by_key(|t| rows_with(*t).len())
        .unwrap();
    let bad = rows_with(token);
    assert!(bad.len() < 20);
    let checkpoints = dir.path().join("out/checkpoints");
    fs::write(checkpoints.join("latest"), "step-000000001").unwrap();
    let file = checkpoints.join("step-000000001/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let meta: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = 8
        + header
        + meta["model.embed_tokens.weight"]["data_offsets"][0].as_u64().unwrap() as usize
        + token as usize * 32 * 4;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let before = hash::sha256_file(&file).unwrap();
    fs::write(&file, bytes).unwrap();
    let state = checkpoints.join("step-000000001/state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text.replace(&before, &hash::sha256_file(&file).unwrap())).unwrap();
    let out = train(dir.path(), "out", &more).output().unwrap();
    let err = said(&out);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert!(
        err.contains("loss NaN")
            && err.contains("weights were not touched")
            && err.contains("dlm-prep inspect data --row N"),
        "{err}"
    );
    let list = err
        .split("The cause is in its training rows ")
        .nth(1)
        .expect(&err)
        .split(". Look")
        .next()
        .unwrap();
    let named: Vec<usize> =
        list.split(", ").map(|r| r.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(
        !named.is_empty() && named.iter().all(|r| bad.contains(r)),
        "{named:?} of {bad:?}: {err}"
    );
    // Every step recorded before is finite.
    for (_, loss, norm) in losses(&dir.path().join("out")) {
        assert!(f64::from_bits(loss).is_finite() && f64::from_bits(norm).is_finite());
    }
}

/// The spike guard skips a step above its bound, counts and reports it, and the run completes.
#[test]
fn a_jump_of_the_loss_is_skipped_and_counted() {
    let dir = workplace();
    // A learning rate far too high makes the loss jump.
    let more = [
        "optim.lr=0.5",
        "optim.warmup_ratio=0.0",
        "optim.clip_norm=null",
        "train.spike_factor=1.02",
        "train.log_every=1",
    ];
    let out = ok(&mut train(dir.path(), "out", &more));
    let text = fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    let skipped = text.lines().filter(|l| l.contains("\"skipped\":true")).count();
    assert!(skipped > 0, "{}", said(&out));
    assert_eq!(said(&out).matches("SKIPPED (spike)").count(), skipped);
    assert!(
        said(&out).contains(&format!("({skipped} skipped by the spike guard)")),
        "{}",
        said(&out)
    );
}

/// Evaluations without improvement end the run early, with an export.
#[test]
fn a_plateau_ends_the_run() {
    let dir = workplace();
    let more = [
        "optim.lr=1e-9",
        "train.eval_every=2",
        "train.early_stop_patience=3",
        "train.early_stop_min_delta=0.01",
    ];
    let out = ok(&mut train(dir.path(), "out", &more));
    assert!(
        said(&out).contains("no gain of the evaluation loss in 3 evaluations"),
        "{}",
        said(&out)
    );
    assert_eq!(
        losses(&dir.path().join("out")).len(),
        8,
        "the first evaluation and three without gain, every second step"
    );
    assert!(dir.path().join("out/dlm_config.json").is_file());
    // The run is complete: the same command does not train further.
    let again = ok(&mut train(dir.path(), "out", &more));
    assert!(said(&again).contains("the run is complete"), "{}", said(&again));
}

//! `report.tensorboard=true`: the event files hold the values of metrics.jsonl, also after a run
//! was killed and resumed.

mod families;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dlm_test_support::{python, repository};
use serde_json::Value;

const STEPS: u64 = 200;

fn varint(b: &mut &[u8]) -> u64 {
    let mut v = 0;
    for shift in (0..64).step_by(7) {
        let byte = b[0];
        *b = &b[1..];
        v |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    v
}

/// (field, wire type, content or number) of each field of a protobuf message.
fn fields(mut b: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    let mut out = Vec::new();
    while !b.is_empty() {
        let key = varint(&mut b);
        let n = match key & 7 {
            0 => {
                let v = varint(&mut b);
                out.push((key >> 3, 0, v.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut b) as usize,
            wire => panic!("wire type {wire}"),
        };
        out.push((key >> 3, key & 7, b[..n].to_vec()));
        b = &b[n..];
    }
    out
}

/// (step, tag, value) of every scalar in a file whose last record may be truncated.
fn scalars(path: &Path) -> Vec<(u64, String, f32)> {
    let bytes = std::fs::read(path).unwrap();
    let (mut b, mut out) = (bytes.as_slice(), Vec::new());
    while b.len() >= 16 {
        let n = u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
        if b.len() < n + 16 {
            break;
        }
        let message = fields(&b[12..12 + n]);
        b = &b[n + 16..];
        let get = |f: u64| message.iter().find(|m| m.0 == f).map(|m| m.2.clone());
        let step = get(2).map_or(0, |s| u64::from_le_bytes(s.try_into().unwrap()));
        for value in fields(&get(5).unwrap_or_default()) {
            let v = fields(&value.2);
            out.push((
                step,
                String::from_utf8(v[0].2.clone()).unwrap(),
                f32::from_le_bytes(v[1].2.clone().try_into().unwrap()),
            ));
        }
    }
    out
}

/// Tag → step → value, from metrics.jsonl.
fn expected(run: &Path) -> BTreeMap<String, BTreeMap<u64, f32>> {
    let mut out: BTreeMap<String, BTreeMap<u64, f32>> = BTreeMap::new();
    for line in std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines() {
        let v: Value = serde_json::from_str(line).unwrap();
        let sure = v["sure"].as_f64().unwrap() / v["counted"].as_f64().unwrap();
        out.entry("train/sure".into())
            .or_default()
            .insert(v["step"].as_u64().unwrap(), sure as f32);
        for (tag, key) in [
            ("train/loss", "/loss"),
            ("train/lr", "/lr"),
            ("train/grad_norm", "/grad_norm"),
            ("train/tokens_per_second", "/tok_s"),
            ("train/tokens", "/tokens"),
            ("eval/loss", "/eval_loss"),
            ("eval/acceptance", "/eval_acceptance/share"),
            ("eval/hidden_tokens", "/eval_acceptance/hidden"),
            ("eval/tokens_per_forward", "/eval_decode/tokens_per_forward"),
            ("eval/decoded_tokens", "/eval_decode/tokens"),
        ] {
            if let Some(x) = v.pointer(key).and_then(Value::as_f64) {
                out.entry(tag.into()).or_default().insert(v["step"].as_u64().unwrap(), x as f32);
            }
        }
    }
    out
}

fn event_files(run: &Path) -> Vec<PathBuf> {
    let Ok(dir) = std::fs::read_dir(run.join("tensorboard")) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = dir.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn event_files_say_what_metrics_say_also_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let data = families::dataset(&dir.path().join("data"), families::MASK, 8);
    let config = dir.path().join("config.json");
    std::fs::write(&config, families::own_config("Llama").to_string()).unwrap();
    let run = dir.path().join("run");
    let (source, out, steps) = (
        format!("source.config={}", config.display()),
        format!("output.dir={}", run.display()),
        format!("train.max_steps={STEPS}"),
    );
    let mut arguments = vec![
        "--device",
        "cpu",
        "--data",
        data.to_str().unwrap(),
        "source.init=random",
        &source,
        &out,
        &steps,
    ];
    arguments.extend([
        "conversion.total_tokens=1000000",
        "train.batch_rows=2",
        "train.save_every=7",
        "train.eval_every=5",
        "train.eval_rows=2",
        "report.tensorboard=true",
    ]);

    // The first session is killed somewhere between two checkpoints.
    let mut child = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"))
        .args(&arguments)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let lines = || {
        std::fs::read(run.join("metrics.jsonl"))
            .map_or(0, |b| b.iter().filter(|b| **b == b'\n').count())
    };
    while lines() < 12 {
        assert!(started.elapsed() < Duration::from_secs(120), "no 12 steps in two minutes");
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lines() < STEPS as usize, "it was over before the kill");
    // File names have a resolution of one second.
    std::thread::sleep(Duration::from_millis(1100));
    let ran = families::dlm_train(&arguments).ok().unwrap();
    assert!(ran.stderr.contains("resumed"), "{}", ran.stderr);

    let files = event_files(&run);
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(
        files.iter().all(|f| {
            f.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents.")
        })
    );
    let (first, second) = (scalars(&files[0]), scalars(&files[1]));
    let resumed_at = second.iter().map(|s| s.0).min().unwrap();
    assert!(
        resumed_at > 7 && (resumed_at % 7 == 1 || resumed_at % 5 == 1),
        "the second session begins at step {resumed_at}, the one after a checkpoint, which follows every 7 steps and every lowest evaluation loss"
    );
    let expected = expected(&run);
    assert_eq!(expected["train/loss"].len() as u64, STEPS);
    for tag in ["eval/loss", "eval/acceptance", "eval/tokens_per_forward"] {
        assert_eq!(expected[tag].len() as u64, STEPS / 5, "{tag}");
    }
    let mut found: BTreeMap<String, BTreeMap<u64, f32>> = BTreeMap::new();
    for (step, tag, value) in first.into_iter().filter(|s| s.0 < resumed_at).chain(second) {
        let twice = found.entry(tag.clone()).or_default().insert(step, value);
        assert!(twice.is_none(), "{tag} is there twice at step {step}");
    }
    assert_eq!(found, expected);

    // As TensorBoard itself reads the folder.
    let Some(python) = python::with(&["tensorboard"]) else { return };
    let script = repository().join("tests/python/read_tensorboard.py");
    let read = |dir: &Path| {
        let ran = Command::new(&python).arg(&script).arg(dir).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice::<BTreeMap<String, Vec<(u64, f32)>>>(&ran.stdout).unwrap()
    };
    let theirs = read(&run.join("tensorboard"));
    let theirs: BTreeMap<String, BTreeMap<u64, f32>> = theirs
        .into_iter()
        .map(|(tag, v)| {
            let n = v.len();
            let steps: BTreeMap<u64, f32> = v.into_iter().collect();
            assert_eq!(steps.len(), n, "{tag}: TensorBoard keeps a step twice");
            (tag, steps)
        })
        .collect();
    assert_eq!(theirs, expected);
    // TensorBoard verifies checksums: a record with a flipped bit is not read.
    let mut bytes = std::fs::read(&files[1]).unwrap();
    bytes[200] ^= 1;
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join(files[1].file_name().unwrap()), bytes).unwrap();
    assert!(read(&broken).get("train/loss").is_none_or(|v| v.len() < 3));
}

#[test]
fn nothing_is_written_unless_asked() {
    let dir = tempfile::tempdir().unwrap();
    let data = families::dataset(&dir.path().join("data"), families::MASK, 8);
    let config = dir.path().join("config.json");
    std::fs::write(&config, families::own_config("Llama").to_string()).unwrap();
    let run = dir.path().join("run");
    families::train(
        &data,
        &run,
        &["source.init=random", &format!("source.config={}", config.display())],
    )
    .ok()
    .unwrap();
    assert!(event_files(&run).is_empty());
}

//! The real binary on published conversations and on hostile rows: the same bytes for any number of
//! workers and after kills, every row accounted for. Skipped with a message where the third-party
//! test data (`dlm_test_support::shared`) or a tar that reads xz is missing.

#![allow(clippy::print_stdout, reason = "what a test measured")]

use dlm_datasets::{Dataset, verify};
use dlm_test_support::{shared, shared_tokenizers, skip};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

struct Ground {
    dir: tempfile::TempDir,
    /// Third-party test data.
    assets: PathBuf,
}

fn ground() -> Option<Ground> {
    let assets = shared("assets")?;
    let dir = tempfile::tempdir().ok()?;
    shared_tokenizers(dir.path(), &["smollm2"])?;
    Some(Ground { dir, assets })
}

impl Ground {
    fn prep(&self, out: &str, inputs: &[PathBuf], more: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
        c.arg("--input")
            .args(inputs)
            .arg("--tokenizer")
            .arg(self.dir.path().join("tokenizers/smollm2"));
        c.arg("--out").arg(self.dir.path().join(out)).args(["--engine", "fast"]);
        if !more.contains(&"--over-long") {
            c.args(["--over-long", "split"]);
        }
        c.args(more);
        c.stdout(Stdio::null()).stderr(Stdio::piped());
        c
    }

    fn conversations(&self) -> Vec<PathBuf> {
        ["chat-00000-of-00004", "code-00000-of-00002", "math-00000-of-00002"]
            .iter()
            .map(|n| self.assets.join(format!("conversations/{n}.parquet")))
            .collect()
    }

    fn run(&self, out: &str, inputs: &[PathBuf], more: &[&str]) {
        let done = self.prep(out, inputs, more).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn bytes(&self, out: &str) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for dir in [self.dir.path().join(out), self.dir.path().join(out).join("tokenizer")] {
            for e in std::fs::read_dir(dir).unwrap() {
                let p = e.unwrap().path();
                if p.is_file() {
                    all.insert(
                        p.file_name().unwrap().to_string_lossy().into_owned(),
                        dlm_datasets::hash::sha256_file(&p).unwrap(),
                    );
                }
            }
        }
        all
    }

    fn check(&self, out: &str) -> Dataset {
        let ds = Dataset::open(&self.dir.path().join(out)).unwrap();
        verify::check_dataset(&ds).unwrap();
        let c = &ds.manifest().counts;
        assert_eq!(c.rows_read, c.rows_kept + c.dropped_total());
        assert!(ds.is_zero_copy());
        ds
    }
}

#[test]
fn same_bytes_for_any_number_of_workers() {
    let Some(g) = ground() else { return };
    let flags = ["--shard-rows", "1000", "--eval-fraction", "0.02", "--over-long", "split"];
    for n in ["1", "2", "7"] {
        g.run(&format!("w{n}"), &g.conversations(), &[&flags[..], &["--workers", n]].concat());
    }
    let one = g.bytes("w1");
    assert!(one.len() > 8, "{one:?}");
    assert_eq!(one, g.bytes("w2"));
    assert_eq!(one, g.bytes("w7"));
    g.run("each", &g.conversations(), &[&flags[..], &["--render", "each"]].concat());
    assert_eq!(
        one,
        g.bytes("each"),
        "filling skeletons and rendering every row give the same bytes"
    );
    let ds = g.check("w1");
    assert!(ds.manifest().packing.eval_rows > 0);
    assert_eq!(ds.manifest().counts.rows_read, 7738 + 6125 + 5056);
}

/// Twenty kills at random moments. After each, the same command is run again until it completes.
#[test]
fn same_bytes_after_kills() {
    let Some(g) = ground() else { return };
    let flags = ["--shard-rows", "150", "--eval-fraction", "0.02", "--dedup"];
    let begin = std::time::Instant::now();
    g.run("whole", &g.conversations(), &flags);
    let whole = begin.elapsed();
    let mut seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
            as u64;
    let (mut kills, mut rounds, mut resumed) = (0, 0, 0);
    while kills < 20 {
        let out = format!("killed{rounds}");
        rounds += 1;
        assert!(rounds < 60, "the run is over before it can be killed: {kills} kills");
        loop {
            let mut child = g.prep(&out, &g.conversations(), &flags).spawn().unwrap();
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            std::thread::sleep(whole.mul_f64((seed >> 40) as f64 / (1u64 << 24) as f64));
            if kills < 20 && child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
                let dir = g.dir.path().join(&out);
                if !dir.join("manifest.json").exists() {
                    assert!(
                        Dataset::open(&dir).is_err(),
                        "an unfinished folder must not pass for a dataset"
                    );
                }
                continue;
            }
            let done = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{said}");
            resumed += usize::from(said.contains("resuming after row"));
            break;
        }
        assert_eq!(g.bytes("whole"), g.bytes(&out));
        std::fs::remove_dir_all(g.dir.path().join(&out)).unwrap();
    }
    println!("{kills} kills in {rounds} runs, {resumed} of them resumed in the middle");
    assert!(resumed > 0);
}

#[test]
fn stale_and_foreign_output_is_refused() {
    let Some(g) = ground() else { return };
    let inputs = &g.conversations()[..1];
    let fails = |out: &str, more: &[&str], word: &str| {
        let done = g.prep(out, inputs, more).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains(word), "expected {word:?} in: {said}");
        done.status.code()
    };
    // Killed halfway, then run again with other settings.
    let mut child =
        g.prep("stale", inputs, &["--shard-rows", "50", "--workers", "1"]).spawn().unwrap();
    let state = g.dir.path().join("stale/prep-state.json");
    for _ in 0..2000 {
        if state.exists() && g.dir.path().join("stale/train-00001.arrow").exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    child.wait().unwrap();
    if state.exists() {
        fails("stale", &["--shard-rows", "51"], "unfinished output of another run");
        g.run("stale", inputs, &["--shard-rows", "51", "--overwrite"]);
        g.check("stale");
    }
    // A finished dataset is never overwritten by a run with other settings; the same run leaves it
    // alone.
    g.run("stale", inputs, &["--shard-rows", "51"]);
    fails("stale", &["--shard-rows", "52"], "holds a finished dataset");
    // Data files of unknown origin.
    let foreign = g.dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("train-00000.arrow"), b"x").unwrap();
    fails("foreign", &[], "did not make");
    // Unwritable output, wrong calls.
    std::fs::write(g.dir.path().join("file"), b"x").unwrap();
    fails("file/sub", &[], "creating the folder");
    assert_eq!(fails("bad", &["--seq-len", "100"], "multiple of --bd-size"), Some(2));
    assert_eq!(fails("bad", &["--shard", "3/2"], "below 2"), Some(2));
}

#[test]
fn hostile_rows_are_kept_or_dropped_by_name() {
    let Some(g) = ground() else { return };
    let packed = g.assets.join("hostile/hostile.jsonl.xz");
    let lines = Command::new("xz").arg("-dc").arg(&packed).output();
    let mut inputs = vec![g.assets.join("hostile/hostile.parquet")];
    match lines {
        Ok(o) if o.status.success() => {
            let extra = b"{\"input\": \"\\ud800 lone surrogate\", \"output\": \"x\"}\n[1, 2]\nnot json\n\xff\xfe\n".to_vec();
            let nested = format!("{}{}\n", "[".repeat(100_000), "]".repeat(100_000));
            let path = g.dir.path().join("hostile.jsonl");
            std::fs::write(&path, [o.stdout, extra, nested.into_bytes()].concat()).unwrap();
            inputs.push(path);
        }
        _ => skip(&format!("xz cannot unpack {}; the parquet half only", packed.display())),
    }
    for policy in ["truncate", "drop", "turns", "split"] {
        g.run("hostile", &inputs, &["--over-long", policy, "--overwrite"]);
        let ds = g.check("hostile");
        let c = &ds.manifest().counts;
        let lines = u64::from(inputs.len() == 2);
        assert_eq!(c.rows_read, 17 + lines * (17 + 5), "{policy}: {c:?}");
        assert_eq!(c.dropped.get("bad_json").copied().unwrap_or(0), lines * 4, "{policy}: {c:?}");
        assert_eq!(c.dropped.get("bad_utf8").copied().unwrap_or(0), lines);
        assert_eq!(c.dropped["null_content"], 2 * (1 + lines));
        assert!(c.notes["special_text_rows"] >= 1);
    }
}

#[test]
fn budgets_stop_the_run() {
    let Some(g) = ground() else { return };
    g.run("budget", &g.conversations(), &["--max-tokens", "100000"]);
    let n = g.check("budget").manifest().counts.tokens;
    assert!((100_000..101_000).contains(&n), "{n}");
    g.run("rows", &g.conversations(), &["--max-rows", "100"]);
    assert_eq!(g.check("rows").manifest().counts.rows_read, 100);
    // The shards of several machines together read every row once.
    let mut read = 0;
    for i in 0..3 {
        let out = format!("part{i}");
        g.run(&out, &g.conversations()[..1], &["--shard", &format!("{i}/3")]);
        read += g.check(&out).manifest().counts.rows_read;
    }
    assert_eq!(read, 7738);
    assert!(Path::new(&g.dir.path().join("part0/tokenizer/tokenizer.json")).exists());
}

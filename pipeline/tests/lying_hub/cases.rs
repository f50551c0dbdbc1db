//! Runs tables of cases, four at a time, and checks what holds for all of them.

use dlm_test_support::lying_hub::{Addresses, COMMIT, Kind, LyingHub, Reply, Request, json, part};
use dlm_test_support::sample;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) const TOKEN: &str = "hf_secretsecretsecret";

/// How a run has to end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// With a dataset of all rows.
    Fine,
    /// With exit code 1 and this in its message.
    Says(&'static str),
}

type Lie = Box<dyn Fn(&Request, &Addresses) -> Reply + Send + Sync>;

/// One case: what the hub answers to requests of one kind, and how the run ends.
pub(crate) struct Case {
    pub(crate) name: String,
    kind: Kind,
    lie: Lie,
    end: End,
    /// Requests of that kind at most.
    most: usize,
    /// DLM_HUB_PATIENCE_MS.
    patience: u64,
}

/// A case; the kind of request is lied to, all others get right answers.
pub(crate) fn case(
    name: impl Into<String>,
    kind: Kind,
    end: End,
    lie: impl Fn(&Request, &Addresses) -> Reply + Send + Sync + 'static,
) -> Case {
    Case { name: name.into(), kind, lie: Box::new(lie), end, most: 20, patience: 30_000 }
}

impl Case {
    /// Requests of the kind that is lied to, at most.
    pub(crate) fn asked_at_most(self, most: usize) -> Case {
        Case { most, ..self }
    }

    /// Milliseconds in which some of an answer must arrive.
    pub(crate) fn patience(self, patience: u64) -> Case {
        Case { patience, ..self }
    }
}

/// 50 rows.
pub(crate) fn rows() -> Vec<u8> {
    let row = |k| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"q{k}\"}}, {{\"role\": \"assistant\", \"content\": \"answer {k}\"}}]}}\n"
        )
    };
    (0..50).map(row).collect::<String>().into_bytes()
}

/// An entry of a listing for a large file.
pub(crate) fn large(path: &str, content: &[u8]) -> serde_json::Value {
    let sha256 = dlm_datasets::hash::sha256(content);
    serde_json::json!({
        "type": "file", "path": path, "size": content.len(), "oid": &sha256[..40],
        "lfs": {"oid": sha256, "size": content.len()},
    })
}

/// The answer with a listing.
pub(crate) fn listing(entries: &[serde_json::Value]) -> Reply {
    json(serde_json::to_string(entries).unwrap())
}

/// The right answer to a request.
pub(crate) fn truth(request: &Request) -> Reply {
    match request.kind {
        Kind::Revision if request.target.contains("convert") => {
            Reply::Whole(404, Vec::new(), b"{}".to_vec())
        }
        Kind::Revision => json(format!("{{\"sha\": \"{COMMIT}\"}}")),
        Kind::Tree => listing(&[large("a.jsonl", &rows())]),
        Kind::File => part(request, &rows()),
        // Where redirects lead.
        Kind::Other if request.target.contains("blob") => part(request, &rows()),
        Kind::Other => json(format!("{{\"sha\": \"{COMMIT}\"}}")),
    }
}

/// Runs all cases and reports every one that ends otherwise.
pub(crate) fn check(cases: Vec<Case>) {
    let cases = Arc::new(cases);
    let known = cases.clone();
    let hub = LyingHub::start(move |request, at| {
        let case = known.iter().find(|c| c.name == request.repo && c.kind == request.kind);
        match case.filter(|_| !request.elsewhere) {
            Some(case) => (case.lie)(request, at),
            None => truth(request),
        }
    });
    let (next, failures) = (Mutex::new(0..cases.len()), Mutex::new(Vec::new()));
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                while let Some(k) = { next.lock().unwrap().next() } {
                    if let Err(e) = run(&hub, &cases[k]) {
                        failures.lock().unwrap().push(format!("{}: {e}", cases[k].name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
    assert!(hub.bytes_sent() < 400 << 20, "{} bytes were read", hub.bytes_sent());
}

fn run(hub: &LyingHub, case: &Case) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
    c.args(["--dataset", &format!("evil/{}", case.name), "--engine", "fast", "--tokenizer"])
        .arg(sample("tokenizer"))
        .arg("--out")
        .arg(&out)
        .current_dir(dir.path());
    let run = finish(&mut c, dir.path(), &hub.at.hub, case.patience)?;
    let fail = |why: String| Err(format!("{why}\n{}", run.said));
    match case.end {
        End::Fine if run.code != Some(0) => return fail(format!("exit {:?}", run.code)),
        End::Says(_) if run.code != Some(1) => return fail(format!("exit {:?}", run.code)),
        End::Says(what) if !run.said.contains(what) => return fail(format!("expected {what:?}")),
        _ => {}
    }
    if matches!(case.end, End::Fine) {
        let manifest = std::fs::read_to_string(out.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let read = manifest["counts"]["rows_read"].as_u64().unwrap();
        if read == 0 || !read.is_multiple_of(50) {
            return fail(format!("{read} rows"));
        }
    } else if out.join("manifest.json").exists() {
        return fail("there is a dataset".to_string());
    }
    let asked = hub.asked(&case.name);
    let lied = asked.iter().filter(|r| r.kind == case.kind && !r.elsewhere).count();
    if lied > case.most {
        return fail(format!("asked {lied} times, {} at most", case.most));
    }
    if asked.iter().any(|r| r.elsewhere && r.token) {
        return fail("the token went to another origin".to_string());
    }
    if asked.iter().any(|r| !r.elsewhere && !r.token && r.kind != Kind::Other) {
        return fail("the hub itself did not get the token".to_string());
    }
    Ok(())
}

/// What a run said.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

/// Runs a command with the hub's settings; checks what holds for every run.
pub(crate) fn finish(c: &mut Command, dir: &Path, hub: &str, patience: u64) -> Result<Run, String> {
    c.env("HF_ENDPOINT", hub)
        .env("HF_HOME", dir.join("home"))
        .env("HF_TOKEN", TOKEN)
        .env("DLM_HUB_PAUSE_MS", "1")
        .env("DLM_HUB_PATIENCE_MS", patience.to_string());
    for key in ["HF_HUB_OFFLINE", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy"] {
        c.env_remove(key);
    }
    let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
    let file = |path: &Path| Stdio::from(std::fs::File::create(path).unwrap());
    let mut child = c.stdout(file(&stdout)).stderr(file(&stderr)).spawn().unwrap();
    let begin = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if begin.elapsed() > Duration::from_secs(50) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no end; {}", std::fs::read_to_string(&stderr).unwrap()));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let said = read(&stdout) + &read(&stderr);
    if said.contains(TOKEN) {
        return Err("the token was printed".to_string());
    }
    if said.contains("panicked") || said.chars().any(|c| c.is_control() && c != '\n') {
        return Err(format!("{said:?}"));
    }
    let known = ["home", "out", "stdout", "stderr"];
    let beside = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    let stray: Vec<_> = beside.filter(|n| !known.iter().any(|k| n == *k)).collect();
    if !stray.is_empty() {
        return Err(format!("wrote {stray:?}"));
    }
    Ok(Run { code, said })
}

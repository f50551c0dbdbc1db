//! Terminals and pipes that fail: no command of the three programs ends otherwise because stdout or
//! stderr is closed, nobody reads it, it is full, or its terminal has hung up. Lines are dropped,
//! the work is done to its end, and the exit code is the work's own; results that meet a full disk
//! are an error that says so.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "libc::close, ptsname_r and setsid")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dlm_test_support::{command, families, fixtures, sample, skip};

/// What is wrong with stdout or stderr.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Not open at all (`>&-`).
    Closed,
    /// A pipe whose reader is gone.
    NoReader,
    /// `/dev/full`.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// A command line, and a file that it leaves in the folder `out` where it writes one.
struct Call {
    program: &'static str,
    arguments: Vec<String>,
    leaves: &'static str,
}

fn call(program: &'static str, arguments: &str, leaves: &'static str) -> Call {
    let arguments = arguments.split_whitespace().map(String::from).collect();
    Call { program, arguments, leaves }
}

/// Every command, to be run in a folder made by [`ground`].
fn calls() -> Vec<Call> {
    let tokenizer = sample("tokenizer").display().to_string();
    let model = fixtures().join("qwen2_peaky").display().to_string();
    let (tiny, case) =
        (fixtures().join("llama_tiny"), fixtures().join("causal_llama_tiny.safetensors"));
    let (tiny, case) = (tiny.display(), case.display());
    let prep = format!("--input in.jsonl --tokenizer {tokenizer} --seq-len 128 --bd-size 16");
    let train = "--data data --device cpu model.name=t source.init=random source.config=config.json \
                 train.batch_rows=2 train.eval_every=0 train.max_steps=2 output.dir=out";
    vec![
        call("dlm-prep", "--help", ""),
        call("dlm-prep", "--version", ""),
        call("dlm-prep", "--no-such-option", ""),
        call("dlm-prep", "completions zsh", ""),
        call("dlm-prep", "man out", "dlm-prep.1"),
        call("dlm-prep", &format!("{prep} --out out"), "manifest.json"),
        call("dlm-prep", &format!("{prep} --out out --json"), "manifest.json"),
        call("dlm-prep", &format!("{prep} --dry-run"), ""),
        call("dlm-prep", "inspect packed", ""),
        call("dlm-prep", "stats packed --json", ""),
        call("dlm-prep", "verify packed", ""),
        call("dlm-prep", "verify nowhere", ""),
        call("dlm-prep", &format!("render --input in.jsonl --tokenizer {tokenizer} --json"), ""),
        call("dlm-prep", "merge packed --out out", "manifest.json"),
        call("dlm-prep", "export-hf packed --out out", "dataset_dict.json"),
        call("dlm-prep", &format!("bench --input in.jsonl --tokenizer {tokenizer} --repeat 1"), ""),
        call("dlm-train", "--help", ""),
        call("dlm-train", "--version", ""),
        call("dlm-train", "--no-such-option", ""),
        call("dlm-train", "completions fish", ""),
        call("dlm-train", "man out", "dlm-train-generate.1"),
        call("dlm-train", &format!("serve --device cpu --model {tiny}"), ""),
        call("dlm-train", &format!("{train} --print-config"), ""),
        call("dlm-train", train, "dlm_config.json"),
        call(
            "dlm-train",
            &format!(
                "generate --device cpu --model {model} --ids 304 --mode ar --max-new-tokens 4"
            ),
            "",
        ),
        call("dlm-train", "generate --device cpu --model nowhere --ids 1", ""),
        call("dlm-train", "eval --device cpu --model run --data data --rows 2", ""),
        call("dlm-train", "export run --out out", "dlm_config.json"),
        call("dlm-train", &format!("parity --device cpu --model {tiny} --case {case}"), ""),
        call("dlm-train", "plot run --out out/plot.html", "plot.html"),
        call(
            "dlm-train",
            "bench train --device cpu --preset tiny_llama --batch 1 --seq 64 --steps 1 --warmup 0",
            "",
        ),
        call("wf", "--help", ""),
        call("wf", "dlm -m smollm2_135m --bucket gs://b --dry-run --name n data.dir=data", ""),
        call("wf", "dlm -m nothing --dry-run", ""),
        call("wf", "runs", ""),
        call("wf", "logs n", ""),
    ]
}

/// A folder with conversations, a packed dataset, a config and a finished run.
fn ground() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let messages = |i: usize| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "a name of a town {i}"}}, {{"role": "assistant", "content": "the map of the town is on a map {i}"}}]}}"#
        )
    };
    let lines: Vec<String> = (0..20).map(messages).collect();
    std::fs::write(dir.path().join("in.jsonl"), lines.join("\n") + "\n").unwrap();
    families::dataset(&dir.path().join("data"), families::MASK, 16);
    std::fs::write(dir.path().join("config.json"), families::own_config("Llama").to_string())
        .unwrap();
    let run = |program: &str, arguments: Vec<String>| {
        let done = command(program, dir.path()).unwrap().args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let moved = |call: Call, from: &str, to: &str| {
        run(call.program, call.arguments.iter().map(|a| a.replace(from, to)).collect());
    };
    let mut all = calls();
    let mut first = |leaves: &str| {
        let at = all.iter().position(|call| call.leaves == leaves).unwrap();
        all.remove(at)
    };
    moved(first("dlm_config.json"), "output.dir=out", "output.dir=run");
    let mut prepare = first("manifest.json");
    *prepare.arguments.last_mut().unwrap() = "packed".into();
    run(prepare.program, prepare.arguments);
    dir
}

/// Gives a stream of a command this fault.
fn spoil(command: &mut Command, stream: Stream, fault: Fault) {
    let spoilt = match fault {
        Fault::Closed => {
            // SAFETY: close is safe to call between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    libc::close(stream as i32);
                    Ok(())
                })
            };
            Stdio::null()
        }
        Fault::NoReader => {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer.into()
        }
        Fault::Full => File::options().write(true).open("/dev/full").unwrap().into(),
    };
    match stream {
        Stream::Stdout => command.stdout(spoilt),
        Stream::Stderr => command.stderr(spoilt),
    };
}

#[test]
fn no_command_ends_otherwise_because_of_its_console() {
    let dir = ground();
    let out = dir.path().join("out");
    let run = |call: &Call, fault: Option<(Stream, Fault)>| {
        let _ = std::fs::remove_dir_all(&out);
        if call.arguments.iter().any(|a| a == "plot") {
            std::fs::create_dir(&out).unwrap();
        }
        let mut c = command(call.program, dir.path()).unwrap();
        c.args(&call.arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        // neither SkyPilot nor anybody's notes are touched
        c.env("PATH", "/nowhere").env("HOME", dir.path()).env("XDG_STATE_HOME", dir.path());
        if let Some((stream, fault)) = fault {
            spoil(&mut c, stream, fault);
        }
        let done = c.output().unwrap();
        let name = format!("{} {:?} with {fault:?}", call.program, call.arguments);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!said.contains("panicked"), "{name}: {said}");
        let code = done.status.code();
        if code == Some(0) && !call.leaves.is_empty() {
            assert!(out.join(call.leaves).is_file(), "{name}: {} is missing", call.leaves);
        }
        (code, done.stdout, said, name)
    };
    for call in calls() {
        let (code, results, said, name) = run(&call, None);
        assert!(matches!(code, Some(0..=2)), "{name}: {code:?}: {said}");
        for fault in [Fault::Closed, Fault::NoReader, Fault::Full] {
            let (found, stdout, _, name) = run(&call, Some((Stream::Stderr, fault)));
            assert_eq!(found, code, "{name}");
            assert_eq!(stdout.is_empty(), results.is_empty(), "{name}");
            let (found, _, said, name) = run(&call, Some((Stream::Stdout, fault)));
            if fault == Fault::Full && !results.is_empty() {
                assert_eq!(found, Some(1), "{name}: {said}");
                let named = said.contains("stdout") || said.contains("standard output");
                assert!(named && said.contains("No space left"), "{name}: {said}");
                // the work is whole all the same
                if !call.leaves.is_empty() {
                    assert!(out.join(call.leaves).is_file(), "{name}");
                }
            } else {
                assert_eq!(found, code, "{name}: {said}");
            }
        }
    }
}

/// A terminal: the end that a person sits at, which no child inherits, and the end that a program
/// writes to.
fn terminal() -> Option<(File, File)> {
    let mut both = File::options();
    both.read(true).write(true).custom_flags(libc::O_NOCTTY);
    let master = both.open("/dev/ptmx").ok()?;
    let mut name = [0u8; 64];
    // SAFETY: the descriptor is open, and the name has the length that is given.
    let named = unsafe {
        libc::unlockpt(master.as_raw_fd()) == 0
            && libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr().cast(), name.len()) == 0
    };
    let name = std::ffi::CStr::from_bytes_until_nul(&name).ok()?.to_str().ok()?;
    let slave = both.open(name).ok()?;
    named.then_some((master, slave))
}

/// Starts a command with all its streams on a terminal of its own, in a session of its own, so that
/// a terminal that hangs up sends no SIGHUP but lets every write fail.
fn on_a_terminal(command: &mut Command) -> Option<(File, std::process::Child)> {
    let Some((master, slave)) = terminal() else {
        skip("a terminal that hangs up: no pseudo-terminals here");
        return None;
    };
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    // SAFETY: setsid is safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        })
    };
    let child = command.spawn().unwrap();
    // the command's copies of the other end are the only ones now
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Some((master, child))
}

#[test]
fn a_terminal_that_hangs_up_ends_no_run() {
    let dir = ground();
    let train = |out: &str| {
        let mut c = command("dlm-train", dir.path()).unwrap();
        c.args("--data data --device cpu model.name=t source.init=random".split(' '));
        c.args(["source.config=config.json", "train.batch_rows=2", "train.log_every=1"]);
        c.args(["train.eval_every=0", "train.max_steps=60"]).arg(format!("output.dir={out}"));
        c
    };
    assert!(train("whole").output().unwrap().status.success());
    let mut command_line = train("hung");
    let Some((master, mut child)) = on_a_terminal(&mut command_line) else { return };
    let (metrics, begin) = (dir.path().join("hung/metrics.jsonl"), Instant::now());
    while std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 3 {
        assert!(begin.elapsed() < Duration::from_secs(60), "no third step");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(master);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let weights =
        |run: &str| std::fs::read(dir.path().join(run).join("model.safetensors")).unwrap();
    assert_eq!(weights("hung"), weights("whole"));
    // results, too, are dropped where the terminal is gone
    for call in calls().iter().filter(|call| call.program != "wf") {
        let run = |spoil: bool| {
            let _ = std::fs::remove_dir_all(dir.path().join("out"));
            std::fs::create_dir(dir.path().join("out")).unwrap();
            let mut c = command(call.program, dir.path()).unwrap();
            c.args(&call.arguments);
            if !spoil {
                return c.output().unwrap().status.code();
            }
            let (master, mut child) = on_a_terminal(&mut c)?;
            drop(master);
            child.wait().unwrap().code()
        };
        assert_eq!(run(true), run(false), "{} {:?}", call.program, call.arguments);
        whole(dir.path(), call);
    }
}

/// A terminal that closes stops `dlm-prep` as Ctrl-C does, and the same command goes on from there;
/// `dlm-train` is tested in `trainer/tests/nothing_lost.rs`.
#[test]
fn a_hang_up_stops_preparing_so_that_it_can_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "a name"}, {"role": "assistant", "content": "a map NUMBER"}]}"#;
    let lines: Vec<String> = (0..40_000).map(|i| line.replace("NUMBER", &i.to_string())).collect();
    std::fs::write(dir.path().join("in.jsonl"), lines.join("\n") + "\n").unwrap();
    let prepare = || {
        let mut c = command("dlm-prep", dir.path()).unwrap();
        c.args(["--input", "in.jsonl", "--seq-len", "128", "--bd-size", "16", "--out", "out"]);
        c.args(["--workers", "1", "--shard-rows", "50", "--tokenizer"]).arg(sample("tokenizer"));
        c.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: signal is safe to call between fork and exec.
        unsafe {
            c.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            })
        };
        c
    };
    let (mut child, begin) = (prepare().spawn().unwrap(), Instant::now());
    while !dir.path().join("out/prep-state.json").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "no data file");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: a signal to a process that this test started and has not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGHUP) };
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let manifest = dir.path().join("out/manifest.json");
    assert!(!manifest.exists() && !dir.path().join("out/.lock").exists());
    assert!(prepare().status().unwrap().success() && manifest.is_file());
}

/// What a command leaves is there.
fn whole(dir: &Path, call: &Call) {
    if !call.leaves.is_empty() {
        let path = dir.join("out").join(call.leaves);
        assert!(path.is_file(), "{} {:?}", call.program, call.arguments);
    }
}

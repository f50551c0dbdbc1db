//! Damaged files of every kind that the programs read: Arrow, packed datasets, parquet,
//! tokenizer.json, config.json, safetensors, chat templates, manifests, checkpoints.
//!
//! Each kind is damaged for `DLM_ATTACK_SECONDS` (default 2) in a process of its own, with 4 GiB of
//! address space. A case fails when the process dies (a panic, memory above the limit, a stack
//! overflow), when it takes longer than 20 seconds, or when a file was accepted whose result does
//! not verify. The file and the seed are kept and named:
//!
//! ```sh
//! DLM_ATTACK_SECONDS=600 cargo test --release --test fuzz_files
//! DLM_ATTACK_CASE=FILE cargo test --release --test fuzz_files arrow    # one file again
//! ```

mod mutate;
mod seeds;
mod targets;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mutate::Random;
use targets::{Ended, Target};

/// Kilobytes of address space of a worker: the models and files here need a few megabytes.
const ADDRESS_SPACE_KB: u64 = 4 << 20;
/// A case may take this long. The machines that run this may be busy.
const CASE: Duration = Duration::from_secs(20);

fn seconds() -> u64 {
    std::env::var("DLM_ATTACK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2)
}

/// A folder in memory where the system has one, since every case writes files.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let inside = tempfile::Builder::new().prefix("dlm-fuzz").tempdir_in(memory);
    inside.unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn append(log: &Path) -> std::fs::File {
    std::fs::File::options().append(true).create(true).open(log).unwrap()
}

/// Writes a line to stderr, past the test harness.
fn say(line: &str) {
    // Nothing can be reported when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a worker for `name` and fails with what it said when it did not end well.
fn fuzz(name: &str) {
    let base = folder();
    seeds::make(base.path());
    let log = base.path().join("log");
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("ulimit -v {ADDRESS_SPACE_KB}; exec \"$0\" --exact worker --nocapture"))
        .arg(std::env::current_exe().unwrap())
        .env("DLM_FUZZ_KIND", name)
        .env("DLM_FUZZ_BASE", base.path())
        .env("CUDA_VISIBLE_DEVICES", "")
        // One pool of threads a worker, however many cores there are.
        .env("RAYON_NUM_THREADS", "2")
        .stdin(Stdio::null())
        .stdout(append(&log))
        .stderr(append(&log))
        .status()
        .unwrap();
    let said = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let counts = said.lines().find(|line| line.contains(" cases of "));
    if let (true, Some(counts)) = (status.success(), counts) {
        return say(counts);
    }
    let last: Vec<&str> = said.lines().rev().take(40).collect();
    let said: String = last.into_iter().rev().map(|l| format!("{l}\n")).collect();
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
    std::fs::copy(base.path().join("case"), &kept).unwrap();
    panic!(
        "{name}: {status}\n{said}\nagain with DLM_ATTACK_CASE={} cargo test --release --test fuzz_files {name}",
        kept.display()
    );
}

/// The worker's loop; an ordinary run of the tests does nothing here.
#[test]
fn worker() {
    let Some(name) = std::env::var_os("DLM_FUZZ_KIND") else { return };
    let base = PathBuf::from(std::env::var_os("DLM_FUZZ_BASE").unwrap());
    let name = name.to_str().unwrap();
    let target = Target::new(name, &base);
    let one = std::env::var_os("DLM_ATTACK_CASE").map(|path| std::fs::read(path).unwrap());
    let seed = Instant::now().elapsed().as_nanos() as u64
        ^ u64::from(std::process::id()) << 32
        ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64);
    say(&format!("{name}: seed {seed}"));

    static BEGAN: Mutex<Option<Instant>> = Mutex::new(None);
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let began = *BEGAN.lock().unwrap();
            if began.is_some_and(|began| began.elapsed() > CASE) {
                say(&format!("a case takes longer than {} s", CASE.as_secs()));
                std::process::exit(3);
            }
        }
    });

    // Otherwise every damaged file could be refused for a reason that has nothing to do with it.
    if let (Some(refused), None) = (target.refused_seed(&base), &one) {
        say(&format!("an undamaged file is refused: {refused}"));
        std::process::exit(5);
    }
    let mut random = Random(seed);
    let end = Instant::now() + Duration::from_secs(seconds());
    let (mut read, mut refused, mut slowest) = (0u64, 0u64, Duration::ZERO);
    let mut reasons = std::collections::BTreeMap::<String, u64>::new();
    while Instant::now() < end {
        let data = one.clone().unwrap_or_else(|| target.damaged(&mut random));
        std::fs::write(base.join("case"), &data).unwrap();
        let place = base.join("place");
        std::fs::create_dir(&place).unwrap();
        let began = Instant::now();
        *BEGAN.lock().unwrap() = Some(began);
        match catch_unwind(AssertUnwindSafe(|| target.run(&data, &base, &place))) {
            Ok(Ended::Read) => read += 1,
            Ok(Ended::Refused(message)) => {
                assert!(!message.trim().is_empty(), "refused without a message");
                refused += 1;
                // Numbers and names differ between cases of one kind.
                let kind = message.replace(place.to_str().unwrap(), "");
                let kind: String =
                    kind.chars().filter(char::is_ascii_alphabetic).take(60).collect();
                *reasons.entry(kind).or_default() += 1;
            }
            Err(_) => {
                say(&format!("a panic in case {}", read + refused));
                std::process::exit(4);
            }
        }
        slowest = slowest.max(began.elapsed());
        std::fs::remove_dir_all(&place).unwrap();
        if one.is_some() {
            break;
        }
    }
    say(&format!(
        "{} cases of {name}: {read} read, {refused} refused in {} ways, slowest {:.2} s",
        read + refused,
        reasons.len(),
        slowest.as_secs_f64()
    ));
    // The harness would wait for the watching thread's lock only; leave at once.
    std::process::exit(0);
}

/// One test for each kind, so that they run side by side and are named in the output.
macro_rules! kinds {
    ($($name:ident)+) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })+

        #[test]
        fn every_kind_has_a_test() {
            assert_eq!([$(stringify!($name)),+], targets::NAMES);
        }
    };
}

kinds! { arrow packed parquet tokenizer config safetensors template manifest checkpoint }

//! Files with other content than the right one, and the programs that must survive them.

#![allow(unsafe_code, reason = "libc::setrlimit, libc::getrusage and libc::mkfifo")]
#![allow(clippy::print_stdout, reason = "the number of cases")]

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dlm_datasets::rng;
use serde_json::{Value, json};

/// Address space of a child, bytes. The allocator reserves some GiB that it does not use.
const MOST_ADDRESSES: u64 = 16 << 30;
/// Resident memory of a child, KiB.
const MOST_RESIDENT: i64 = 400 << 10;

/// What must come of a case.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Expected {
    /// An error whose text holds the case's word.
    Refused,
    /// An error, or nothing: the damage may be where nobody looks.
    Survived,
}

/// A file with other content.
pub(crate) struct Case {
    name: String,
    content: Vec<u8>,
    word: String,
    expected: Expected,
}

impl Case {
    /// Content that must be refused with this word.
    pub(crate) fn refused(
        name: impl Into<String>,
        content: impl Into<Vec<u8>>,
        word: &str,
    ) -> Self {
        let expected = Expected::Refused;
        Case { name: name.into(), content: content.into(), word: word.into(), expected }
    }

    /// Content that may have no effect.
    pub(crate) fn any(name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Case { expected: Expected::Survived, ..Case::refused(name, content, "") }
    }
}

/// Copies the files of `from` and of its folders into a new folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// Tries every case: `original` is copied to a new folder, `file` in it gets the case's content,
/// and `command` is run there.
pub(crate) fn try_all(
    original: &Path,
    file: &str,
    cases: &[Case],
    command: impl Fn(&Path) -> Command + Sync,
) {
    let (next, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = tempfile::tempdir().unwrap();
    let try_one = |number: usize, case: &Case| -> Result<(), String> {
        let dir = work.path().join(number.to_string());
        copy(original, &dir);
        fs::write(dir.join(file), &case.content).unwrap();
        let mut command = command(&dir);
        // SAFETY: setrlimit is safe to call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: MOST_ADDRESSES, rlim_max: MOST_ADDRESSES };
                libc::setrlimit(libc::RLIMIT_AS, &limit);
                Ok(())
            })
        };
        let done = command.env("RAYON_NUM_THREADS", "1").output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        fs::remove_dir_all(&dir).unwrap();
        if done.status.signal().is_some() || said.contains("panicked") {
            return Err(format!("{:?}: {said}", done.status));
        }
        let refused = matches!(done.status.code(), Some(1 | 2)) && !said.trim().is_empty();
        match case.expected {
            Expected::Refused if refused && said.contains(&case.word) => Ok(()),
            Expected::Survived if refused || done.status.code() == Some(0) => Ok(()),
            _ => Err(format!("{:?}, expected {:?} in: {said}", done.status, case.word)),
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { break };
                    if let Err(problem) = try_one(number, case) {
                        problems.lock().unwrap().push(format!("{}: {problem}", case.name));
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    println!("{file}: {} cases", cases.len());
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), cases.len(), problems.join("\n"));
    // SAFETY: rusage is a plain C struct; the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    assert!(usage.ru_maxrss < MOST_RESIDENT, "{} KiB of memory", usage.ru_maxrss);
}

/// Values that a key may have and should not.
fn values() -> Vec<Value> {
    vec![
        json!("x"),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(1e308),
        json!(1u64 << 28),
        json!(u64::MAX),
        json!([]),
        json!({"a": [[[1]]]}),
        json!(true),
        json!([4_294_967_296u64, "7"]),
    ]
}

/// Some of the values for every key of an object, in turn.
pub(crate) fn every_key(original: &Value, values_of_a_key: usize) -> Vec<Case> {
    let values = values();
    let mut cases = Vec::new();
    for (k, key) in original.as_object().unwrap().keys().enumerate() {
        for i in 0..values_of_a_key {
            let value = &values[(k * values_of_a_key + i) % values.len()];
            let mut changed = original.clone();
            changed[key] = value.clone();
            cases.push(Case::any(format!("{key} = {value}"), changed.to_string()));
        }
    }
    cases
}

/// The text cut off and with single bytes changed, at places that a seed gives.
pub(crate) fn noise(original: &[u8], end: usize, count: u64) -> Vec<Case> {
    let place = |i: u64, salt: u64| {
        let share = rng::uniform(rng::key(&[i, salt]), 0);
        (share * end as f64) as usize
    };
    (0..count)
        .map(|i| {
            let (at, mut bytes) = (place(i, 1), original.to_vec());
            if i % 3 == 0 {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << (i % 8);
            }
            Case::any(format!("noise {i} at {at}"), bytes)
        })
        .collect()
}

/// Puts a pipe, which nobody writes to, in the place of a file.
pub(crate) fn pipe_instead(path: &Path) {
    let _ = fs::remove_file(path);
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the name is a C string; the call creates a file of that name.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

//! Buckets: checked transfers over a loopback S3 that answers 503, stalls, cuts connections, loses
//! halves of uploads, stores wrong bytes and ends listings early.
//!
//! The environment leads the library there, so each case runs the program or a copy of this test in
//! a process of its own.

#![allow(clippy::print_stdout, reason = "what the process of a case hands to the test")]

use dlm_prep::Silent;
use dlm_prep::bucket::{BucketAddress, BucketFolder, BucketObject, fetch_dataset};
use dlm_test_support::s3::S3;
use dlm_test_support::{binaries, sample};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

/// Runs test `name` of this file again in a process whose environment leads to `s3`.
fn in_child(name: &str, s3: &S3, more: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--include-ignored"]);
    command.env("DLM_CHILD", name).envs(s3.environment()).envs(more.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("hunter2"), "a secret is shown: {text}");
    text
}

fn is_child(name: &str) -> bool {
    std::env::var("DLM_CHILD").is_ok_and(|child| child == name)
}

fn folder(text: &str) -> BucketFolder<'static> {
    let address = BucketAddress::parse("x", text).unwrap().unwrap();
    BucketFolder::open(&address, &Silent).unwrap()
}

/// 20 MB, so that it has three parts.
fn large() -> Vec<u8> {
    (0..20_000_000u32).map(|k| (k.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn what_arrives_is_what_was_sent_whatever_the_bucket_does() {
    const NAME: &str = "what_arrives_is_what_was_sent_whatever_the_bucket_does";
    if is_child(NAME) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let bucket = folder("s3://b/x y");
        for (name, content) in
            [("large.bin", large()), ("small", b"abc".to_vec()), ("empty", vec![])]
        {
            std::fs::write(&from, &content).unwrap();
            let sha256 = bucket.upload(name, &from, None).unwrap();
            assert_eq!(sha256, dlm_datasets::hash::sha256(&content));
            let object = bucket.stat(name).unwrap().unwrap();
            assert_eq!(object.bytes, content.len() as u64);
            assert_eq!(bucket.fetch(&object, &to, Some(&sha256)).unwrap(), sha256);
            assert_eq!(std::fs::read(&to).unwrap(), content);
            assert_eq!(bucket.fetch(&object, &to, None).unwrap(), sha256);
        }
        for k in 0..12 {
            bucket.write(&format!("many/{k}"), &[k]).unwrap();
        }
        let names: Vec<String> = bucket.list().unwrap().into_iter().map(|o| o.name).collect();
        assert_eq!(names.len(), 15, "{names:?}");
        assert_eq!(bucket.read("many/7", 10).unwrap().unwrap(), [7]);
        assert_eq!(bucket.read("many/77", 10).unwrap(), None);
        bucket.remove("many/7").unwrap();
        bucket.remove("many/7").unwrap();
        assert_eq!(bucket.stat("many/7").unwrap(), None);
        return;
    }
    let good = S3::start();
    in_child(NAME, &good, &[]);
    let bad = S3::start();
    bad.faults.mixed.store(true, SeqCst);
    bad.faults.stalls.store(1, SeqCst);
    bad.faults.halves.store(1, SeqCst);
    bad.faults.wrong.store(1, SeqCst);
    bad.faults.short_lists.store(1, SeqCst);
    in_child(NAME, &bad, &[]);
    for s3 in [good, bad] {
        assert_eq!(s3.get("b/x y/large.bin").unwrap(), large());
        assert_eq!(s3.get("b/x y/small").unwrap(), b"abc");
        assert_eq!(s3.keys("b/x y/many/").len(), 11);
    }
}

#[test]
fn a_download_goes_on_where_it_was_interrupted() {
    const NAME: &str = "a_download_goes_on_where_it_was_interrupted";
    if is_child(NAME) {
        let dir = std::env::var("DLM_DIR").unwrap();
        let bucket = folder("s3://b/x");
        let object = bucket.stat("large").unwrap().unwrap();
        bucket.fetch(&object, &Path::new(&dir).join("large"), None).unwrap();
        println!("moved {}", bucket.bytes_moved());
        return;
    }
    let (s3, dir) = (S3::start(), tempfile::tempdir().unwrap());
    s3.put("b/x/large", &large());
    let run = || in_child(NAME, &s3, &[("DLM_DIR", dir.path().to_str().unwrap())]);
    assert!(run().contains("moved 20000000"));
    assert_eq!(std::fs::read(dir.path().join("large")).unwrap(), large());
    // What a killed process left: the first bytes, under the name that the object's version gives.
    let part = {
        let key = format!(
            "s3://b/x {:?} {}",
            Some(&s3.objects.lock().unwrap()["b/x/large"].tag),
            20_000_000
        );
        dir.path().join(format!(".large.{}.part", &dlm_datasets::hash::sha256(key.as_bytes())[..8]))
    };
    std::fs::write(&part, &large()[..12_345_678]).unwrap();
    assert!(run().contains(&format!("moved {}", 20_000_000 - 12_345_678)));
    assert_eq!(std::fs::read(dir.path().join("large")).unwrap(), large());
    // What it left is wrong: its MD5 is not the tag's, and it is fetched again.
    std::fs::write(&part, vec![7; 12_345_678]).unwrap();
    run();
    assert_eq!(std::fs::read(dir.path().join("large")).unwrap(), large());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn wrong_content_is_an_error_and_leaves_no_file() {
    const NAME: &str = "wrong_content_is_an_error_and_leaves_no_file";
    if is_child(NAME) {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let bucket = folder("s3://b/x");
        let object = bucket.stat("a").unwrap().unwrap();
        let e = bucket.fetch(&object, &to, Some(&"0".repeat(64))).unwrap_err();
        assert!(matches!(e, dlm_prep::Error::Damaged { .. }), "{e}");
        assert!(e.to_string().contains("s3://b/x/a: fetched 2 times"), "{e}");
        let longer = BucketObject { bytes: 99, ..object.clone() };
        let e = bucket.fetch(&longer, &to, None).unwrap_err().to_string();
        assert!(e.contains("s3://b/x/a"), "{e}");
        let outside = BucketObject { name: "../a".into(), ..object };
        let e = bucket.fetch(&outside, &to, None).unwrap_err().to_string();
        assert!(e.contains("could lead out"), "{e}");
        let from = dir.path().join("from");
        std::fs::write(&from, "abc").unwrap();
        let e = bucket.upload("b", &from, Some(&"0".repeat(64))).unwrap_err().to_string();
        assert!(e.contains("it is damaged"), "{e}");
        assert_eq!(bucket.stat("b").unwrap(), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        return;
    }
    let s3 = S3::start();
    s3.put("b/x/a", b"abc");
    in_child(NAME, &s3, &[("DLM_BUCKET_PATIENCE_MS", "300")]);
}

#[test]
fn failures_are_told_with_address_and_reason_and_without_secrets() {
    const NAME: &str = "failures_are_told_with_address_and_reason_and_without_secrets";
    if is_child(NAME) {
        println!("{}", folder("s3://b/x").list().unwrap_err());
        println!("{}", folder("s3://b/x").write("y", b"z").unwrap_err());
        return;
    }
    let s3 = S3::start();
    s3.faults.denied.store(true, SeqCst);
    let told = in_child(NAME, &s3, &[]);
    assert!(told.contains("s3://b/x: the bucket answers 403 (AccessDenied)"), "{told}");
    assert!(told.contains("AWS_ACCESS_KEY_ID"), "{told}");
    s3.faults.denied.store(false, SeqCst);
    s3.faults.down.store(true, SeqCst);
    let told = in_child(NAME, &s3, &[("DLM_BUCKET_PATIENCE_MS", "100")]);
    assert!(
        told.contains("s3://b/x/y: the bucket answers 503 (ServiceUnavailable), for"),
        "{told}"
    );
    let told = in_child(
        NAME,
        &s3,
        &[("AWS_ENDPOINT_URL", "http://127.0.0.1:1"), ("DLM_BUCKET_PATIENCE_MS", "100")],
    );
    assert!(told.contains("the bucket cannot be connected to"), "{told}");
}

#[test]
fn a_dataset_is_fetched_by_its_manifest() {
    const NAME: &str = "a_dataset_is_fetched_by_its_manifest";
    if is_child(NAME) {
        let address = BucketAddress::parse("--data", "s3://b/packed").unwrap().unwrap();
        match fetch_dataset(&address, "--data", &Silent) {
            Ok(dir) => println!("at {} {}", dir.display(), dlm_prep::verify(&dir).unwrap().tokens),
            Err(e) => println!("error {e}"),
        }
        return;
    }
    let (s3, dir) = (S3::start(), tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    dlm_prep::Prepare::new(sample("tokenizer"))
        .input(sample("train.parquet"))
        .max_rows(300)
        .seq_len(128)
        .shard_rows(64)
        .run(&data)
        .unwrap();
    s3.put_folder("b/packed", &data);
    let run = |cache: &str| {
        in_child(NAME, &s3, &[("DLM_CACHE", dir.path().join(cache).to_str().unwrap())])
    };
    s3.faults.mixed.store(true, SeqCst);
    assert!(run("a").contains("at "));
    s3.faults.mixed.store(false, SeqCst);
    let before = s3.log.lock().unwrap().len();
    assert!(run("a").contains("at "));
    assert!(s3.log.lock().unwrap().len() - before <= 2, "a cached dataset costs two requests");
    // Half a data file, another byte in it, no manifest: none is taken for a dataset.
    let file = "b/packed/train-00000.arrow";
    let whole = s3.get(file).unwrap();
    s3.put(file, &whole[..whole.len() / 2]);
    assert!(run("b").contains("the manifest says"));
    let mut other = whole.clone();
    other[5000] ^= 1;
    s3.put(file, &other);
    let told = run("b");
    assert!(
        told.contains("error s3://b/packed/train-00000.arrow") && told.contains("sha256"),
        "{told}"
    );
    s3.put(file, &whole);
    assert!(run("b").contains("at "));
    s3.objects.lock().unwrap().remove("b/packed/manifest.json");
    assert!(run("c").contains("there is no manifest.json"));
}

#[test]
fn a_dataset_goes_from_bucket_to_bucket_and_a_killed_run_goes_on_elsewhere() {
    let (s3, dir) = (S3::start(), tempfile::tempdir().unwrap());
    s3.put("in/chat/train-0.parquet", &std::fs::read(sample("train.parquet")).unwrap());
    s3.put_folder("in/tok", &sample("tokenizer"));
    let tokenizer = sample("tokenizer");
    let prep = |cache: &str, arguments: &[&str]| {
        let mut command = binaries::command("dlm-prep", dir.path()).unwrap();
        command.envs(s3.environment()).env("DLM_CACHE", dir.path().join(cache));
        command.args(arguments);
        binaries::capture(&mut command).unwrap()
    };
    let settings = ["--max-rows", "3000", "--seq-len", "128", "--shard-rows", "64"];
    let local = dir.path().join("local");
    let here = sample("train.parquet");
    let mut arguments = vec!["--input", here.to_str().unwrap(), "--tokenizer"];
    arguments.extend([tokenizer.to_str().unwrap(), "--out", local.to_str().unwrap()]);
    arguments.extend(settings);
    prep("none", &arguments).ok().unwrap();
    let mut arguments = vec!["--input", "s3://in/chat/*.parquet", "--tokenizer", "s3://in/tok"];
    arguments.extend(["--out", "s3://out/packed"]);
    arguments.extend(settings);
    s3.faults.mixed.store(true, SeqCst);
    let told = prep("a", &arguments).ok().unwrap();
    s3.faults.mixed.store(false, SeqCst);
    assert!(told.stderr.contains("to s3://out/packed"), "{}", told.stderr);
    for entry in std::fs::read_dir(&local).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "arrow") {
            let key = format!("out/packed/{}", path.file_name().unwrap().to_string_lossy());
            assert_eq!(s3.get(&key), Some(std::fs::read(&path).unwrap()), "{key}");
        }
    }
    assert!(s3.get("out/packed/manifest.json").is_some());
    assert!(s3.keys("out/packed/prep-state").is_empty());
    assert!(s3.open_uploads.lock().unwrap().is_empty());
    let again = prep("b", &arguments).ok().unwrap();
    assert!(again.stderr.contains("is already prepared"), "{}", again.stderr);
    let whole = s3.keys("out/packed/");

    // The state after some files, as a killed run leaves it in the bucket, and an empty disk.
    let unfinished = dir.path().join("unfinished");
    let mut few = vec!["--input", "s3://in/chat/*.parquet", "--tokenizer", "s3://in/tok"];
    few.extend(["--out", unfinished.to_str().unwrap()]);
    few.extend(settings);
    let mut command = binaries::command("dlm-prep", dir.path()).unwrap();
    command.envs(s3.environment()).env("DLM_CACHE", dir.path().join("c")).args(&few);
    let mut child = command
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !unfinished.join("train-00001.arrow").exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if unfinished.join("manifest.json").exists() {
        dlm_test_support::skip("the run was over before it could be killed");
        return;
    }
    s3.objects.lock().unwrap().retain(|key, _| !key.starts_with("out/"));
    std::fs::remove_file(unfinished.join(".lock")).unwrap();
    s3.put_folder("out/packed", &unfinished);
    let resumed = prep("d", &arguments).ok().unwrap();
    assert!(resumed.stderr.contains("resuming after row"), "{}", resumed.stderr);
    assert_eq!(s3.keys("out/packed/"), whole);
    let file = "train-00002.arrow";
    assert_eq!(s3.get(&format!("out/packed/{file}")), std::fs::read(local.join(file)).ok());
    let refused = prep(
        "e",
        &["--input", "s3://in/chat", "--tokenizer", "s3://in/tok", "--out", "s3://out/packed"],
    );
    assert!(refused.expect(1).unwrap().stderr.contains("holds a finished dataset"));
}

#[test]
fn parts_are_joined_from_bucket_to_bucket_and_a_second_call_changes_nothing() {
    let (s3, dir) = (S3::start(), tempfile::tempdir().unwrap());
    let (input, tokenizer) = (sample("train.parquet"), sample("tokenizer"));
    let prep = |cache: &str, arguments: &[&str]| {
        let mut command = binaries::command("dlm-prep", dir.path()).unwrap();
        command.envs(s3.environment()).env("DLM_CACHE", dir.path().join(cache));
        command.args(arguments);
        binaries::capture(&mut command).unwrap()
    };
    let common = ["--input", input.to_str().unwrap(), "--tokenizer", tokenizer.to_str().unwrap()];
    let settings = ["--max-rows", "300", "--seq-len", "128"];
    let mut parts = Vec::new();
    for part in ["0/2", "1/2"] {
        let out = format!("s3://out/parts/{}", &part[..1]);
        let arguments = [&common[..], &settings, &["--shard", part, "--out", &out]].concat();
        prep("a", &arguments).ok().unwrap();
        parts.push(out);
    }
    let join = |cache: &str, out: &str| prep(cache, &["merge", &parts[0], &parts[1], "--out", out]);
    let local = dir.path().join("joined");
    join("b", local.to_str().unwrap()).ok().unwrap();
    join("c", "s3://out/joined").ok().unwrap();
    for entry in std::fs::read_dir(&local).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "arrow") {
            let key = format!("out/joined/{}", path.file_name().unwrap().to_string_lossy());
            assert_eq!(s3.get(&key), Some(std::fs::read(&path).unwrap()), "{key}");
        }
    }
    let before = s3.objects.lock().unwrap().len();
    join("d", "s3://out/joined").ok().unwrap();
    assert_eq!(s3.objects.lock().unwrap().len(), before);
    let verified = prep("d", &["verify", "s3://out/joined"]).ok().unwrap();
    assert!(verified.stdout.contains("ok:"), "{}", verified.stdout);
    let refused = prep("d", &["merge", &parts[0], "--out", "s3://out/joined"]).expect(1).unwrap();
    assert!(refused.stderr.contains("holds a finished dataset"), "{}", refused.stderr);
}

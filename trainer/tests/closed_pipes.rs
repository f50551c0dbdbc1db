//! Commands whose reader has gone: a closed stdout ends them quietly with the exit code of their
//! work, and a closed stderr makes no difference.

use std::process::Stdio;

use dlm_test_support::fixtures;

/// The pipe that nobody reads.
#[derive(Clone, Copy, PartialEq)]
enum Closed {
    Stdout,
    Stderr,
}

/// Runs `dlm-train`; returns the exit code and what it wrote to the pipe that is read. The pipe is
/// closed before the program, which first loads a model, can write to it.
fn run(arguments: &[&str], closed: Closed) -> (Option<i32>, String) {
    let mut command = dlm_test_support::on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.args(arguments).args(["--device", "cpu"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    match closed {
        Closed::Stdout => drop(child.stdout.take()),
        Closed::Stderr => drop(child.stderr.take()),
    }
    let output = child.wait_with_output().unwrap();
    let text = if closed == Closed::Stdout { output.stderr } else { output.stdout };
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn generate_without_a_reader() {
    let model = fixtures().join("qwen2_peaky");
    let model = model.to_str().unwrap();
    let arguments =
        ["generate", "--model", model, "--ids", "304", "--mode", "ar", "--max-new-tokens", "4"];
    let (code, stderr) = run(&arguments, Closed::Stdout);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let (code, stdout) = run(&arguments, Closed::Stderr);
    assert_eq!(code, Some(0));
    assert_eq!(stdout.trim().split(',').count(), 4, "{stdout}");
}

#[test]
fn parity_without_a_reader_keeps_its_exit_code() {
    let model = fixtures().join("llama_tiny");
    let case = fixtures().join("causal_llama_tiny.safetensors");
    let arguments =
        ["parity", "--model", model.to_str().unwrap(), "--case", case.to_str().unwrap()];
    assert_eq!(run(&arguments, Closed::Stdout).0, Some(0));
    assert_eq!(run(&arguments, Closed::Stderr).0, Some(0));
    // out of tolerance
    let strict = [&arguments[..], &["--tol-loss", "0"]].concat();
    let code = run(&strict, Closed::Stdout).0;
    assert_eq!(code, Some(1));
}

#[test]
fn errors_without_a_reader_keep_their_exit_code() {
    let model = fixtures().join("no_such_model");
    let arguments = ["generate", "--model", model.to_str().unwrap(), "--ids", "1"];
    assert_eq!(run(&arguments, Closed::Stderr).0, Some(2));
}

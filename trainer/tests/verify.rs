//! Decoding that verifies the proposals of gated adapters, as a program: `generate`, `eval --tasks`
//! and `serve` beside an untouched source.
#![cfg(unix)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::sample_tasks::sample_tasks;
use common::{ok, refused, train};
use dlm_test_support::on_the_cpu;
use serde_json::{Value, json};

/// Held-out prompts of the sample.
const TASKS: usize = 6;

/// A folder with a model trained for a moment on the sample (`ar`), adapters that propose for it
/// (`proposals`), adapters for all tokens (`adapter`), and `tasks.jsonl`.
fn models(dir: &Path) {
    sample_tasks(dir, 48, TASKS, 8);
    let budget = "conversion.total_tokens=40000";
    ok(&mut train(dir, "ar", &["conversion.objective=sft", budget]));
    let adapters = ["source.init=pretrained", "source.path=ar", "export.lora=adapter"];
    let adapters = [&adapters[..], &["conversion.lora={rank: 8}", "optim.lr=1e-2"]].concat();
    let lossless = ["conversion.objective=lossless", "conversion.total_tokens=20000"];
    ok(&mut train(dir, "proposals", &[&adapters[..], &lossless].concat()));
    let budget = ["conversion.total_tokens=2000"];
    ok(&mut train(dir, "adapter", &[&adapters[..], &budget].concat()));
}

fn dlm_train(dir: &Path, command: &str, more: &[&str]) -> Command {
    let mut program = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    program.current_dir(dir).args([command, "--model", "ar", "--device", "cpu"]).args(more);
    program
}

/// The objects that `generate --json` prints for the tasks.
fn generated(dir: &Path, more: &[&str]) -> Vec<Value> {
    let usual = ["--input", "tasks.jsonl", "--max-new-tokens", "40", "--json"];
    let out = ok(&mut dlm_train(dir, "generate", &[&usual, more].concat())).stdout;
    let lines = String::from_utf8(out).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check_generate(dir: &Path) {
    const ADAPTER: [&str; 2] = ["--adapter", "proposals"];
    let source = generated(dir, &["--mode", "ar"]);
    let beside = generated(dir, &[&ADAPTER[..], &["--mode", "ar"]].concat());
    let found = [
        generated(dir, &ADAPTER),
        generated(dir, &[&ADAPTER[..], &["--mode", "verify", "--batch-size", "4"]].concat()),
        generated(dir, &[&ADAPTER[..], &["--propose", "3", "--engine", "burn"]].concat()),
    ];
    for (i, source) in source.iter().enumerate() {
        assert_eq!(beside[i]["mode"], "ar");
        assert_eq!(beside[i]["completion_ids"], source["completion_ids"], "task {i}");
        assert!(beside[i].get("proposals").is_none() && source["mode"] == "ar");
        for found in &found {
            let found = &found[i];
            assert_eq!(found["mode"], "verify", "{found}");
            for key in ["prompt_ids", "completion_ids", "text", "finish_reason"] {
                assert_eq!(found[key], source[key], "task {i}, {key}");
            }
            let tokens = found["completion_ids"].as_array().unwrap().len() as u64;
            let passes = found["passes"]["total"].as_u64().unwrap();
            let accepted = found["proposals"]["accepted"].as_u64().unwrap();
            assert!(found["proposals"]["verified"].as_u64().unwrap() >= accepted);
            // every pass decides its accepted proposals and one token more, the last one up to its
            // end
            assert!(passes + accepted >= tokens && passes <= tokens, "{found}");
        }
        assert_eq!(found[0][i]["token_logprobs"], source["token_logprobs"], "task {i}");
        assert_eq!(found[0][i]["passes"], found[1][i]["passes"], "a batch changes nothing");
    }
    let passes = |found: &[Value]| -> u64 {
        found.iter().map(|found| found["passes"]["total"].as_u64().unwrap()).sum()
    };
    assert!(passes(&found[0]) < passes(&source), "{} of {}", passes(&found[0]), passes(&source));
    // drawn: a seed fixes the tokens, in any batch
    let warm = ["--temperature", "0.9", "--top-p", "0.95", "--seed", "5"];
    let alone = generated(dir, &[&ADAPTER[..], &warm].concat());
    let batch = generated(dir, &[&ADAPTER[..], &warm, &["--batch-size", "6"]].concat());
    for (i, (alone, batch)) in alone.iter().zip(&batch).enumerate() {
        assert_eq!(alone["completion_ids"], batch["completion_ids"], "task {i}");
        assert_eq!(alone["seed"], json!(5 + i));
    }
    // a text that is streamed, and one that is shown pass by pass
    let text = |more: &[&str]| {
        let usual = ["--prompt", "a name", "--raw", "--max-new-tokens", "24"];
        let out = ok(&mut dlm_train(dir, "generate", &[&usual, more].concat())).stdout;
        String::from_utf8(out).unwrap()
    };
    let whole = text(&["--mode", "ar"]);
    assert_eq!(text(&[&ADAPTER[..], &["--stream"]].concat()), whole);
    let shown = text(&[&ADAPTER[..], &["--show-passes"]].concat());
    assert!(shown.ends_with(&whole) && shown.trim_start().starts_with("1 ["), "{shown}");

    let prompt = ["--prompt", "x"];
    for (more, words) in [
        (&["--adapter", "proposals", "--mode", "block"][..], &["--mode verify", "block"][..]),
        (&["--adapter", "proposals", "--threshold", "0.9"], &["--threshold", "verify"]),
        (&["--adapter", "proposals", "--mode", "ar", "--propose", "4"], &["--propose", "ar"]),
        (&["--adapter", "proposals", "--propose", "0"], &["--propose", "1 to"]),
        (&["--mode", "verify"], &["--adapter", "lossless"]),
        (&["--adapter", "adapter", "--mode", "verify"], &["act on all tokens"]),
    ] {
        refused(&mut dlm_train(dir, "generate", &[&prompt, more].concat()), 2, words);
    }
}

fn check_eval(dir: &Path) {
    let usual = ["--tasks", "tasks.jsonl", "--max-new-tokens", "40"];
    let eval = |more: &[&str]| dlm_train(dir, "eval", &[&usual, more].concat());
    let report = |more: &[&str]| -> Value {
        serde_json::from_slice(&ok(&mut eval(&[more, &["--json"]].concat())).stdout).unwrap()
    };
    let whole = report(&["--adapter", "proposals", "--propose", "2,9", "--out", "kept"]);
    let runs = whole["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["source ar", "verify 2", "verify 9"]);
    for run in &runs[1..] {
        assert_eq!(run["beside_baseline"]["same_completion"], TASKS, "{run}");
        assert_eq!((&run["right"], &run["mode"]), (&runs[0]["right"], &json!("verify")));
        assert!(run["passes"].as_u64() < runs[0]["passes"].as_u64(), "{run}");
        assert!(run["proposals"]["accepted"].as_u64().unwrap() > 0, "{run}");
    }
    // other adapters are other answers
    let text = ok(&mut eval(&["--adapter", "proposals", "--batch-size", "6", "--out", "kept"]));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("6 of 6 completions (100.0 %) have the source's own tokens"), "{text}");
    assert!(text.contains("ar with the adapter proposals"), "{text}");
    // adapters for all tokens are merged
    let whole = report(&["--adapter", "adapter", "--out", "kept"]);
    let runs = whole["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["source ar", "ar", "block 0.95/8"]);
    let by_hand = generated(dir, &["--adapter", "adapter"]);
    let tokens = |found: &Value| found["completion_ids"].as_array().unwrap().len() as u64;
    assert_eq!(runs[2]["tokens"], json!(by_hand.iter().map(tokens).sum::<u64>()));
    refused(&mut eval(&["--mode", "verify"]), 2, &["--adapter", "lossless"]);
    // what no mode reads that is decoded in, typed or usual
    for (more, words) in [
        (&["--mode", "ar", "--propose", "4"][..], ["--propose", "--mode ar"]),
        (&["--adapter", "proposals", "--threshold", "0.3"], ["--threshold", "--mode verify"]),
        (&["--adapter", "adapter", "--propose", "4"], ["--propose", "--mode ar,block"]),
        (&["--propose", "4"], ["--propose", "--mode ar,block"]),
    ] {
        refused(&mut eval(more), 2, &words);
    }
}

/// Beside other weights than those it was trained with an adapter works, and it is said.
fn check_another_source(dir: &Path) {
    let said = || {
        let call = ["--adapter", "proposals", "--prompt", "x", "--max-new-tokens", "4"];
        String::from_utf8(ok(&mut dlm_train(dir, "generate", &call)).stderr).unwrap()
    };
    assert!(!said().contains("warning"), "{}", said());
    let weights = dir.join("ar/model.safetensors");
    let own = fs::read(&weights).unwrap();
    let mut other = own.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&weights, other).unwrap();
    let words = ["warning: the adapter was trained beside a model", "source_sha256"];
    assert!(words.iter().all(|word| said().contains(word)), "{}", said());
    fs::write(&weights, own).unwrap();
}

/// A running server; killed at its end.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on http://").unwrap().to_string();
        Server { child, address }
    }

    fn send(&self, body: &Value) -> TcpStream {
        let (mut stream, body) = (TcpStream::connect(&self.address).unwrap(), body.to_string());
        let length = body.len();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        let kind = "content-type: application/json\r\n";
        write!(stream, "{head}{kind}content-length: {length}\r\n\r\n{body}").unwrap();
        stream
    }
}

fn answer(mut stream: TcpStream) -> Value {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

fn check_serve(dir: &Path) {
    let mut command = dlm_train(dir, "serve", &["--port", "0", "--slots", "3"]);
    let server = Server::start(command.env_remove("DLM_API_KEY").args(["--adapter", "proposals"]));
    let tasks = fs::read_to_string(dir.join("tasks.jsonl")).unwrap();
    let tasks: Vec<Value> = tasks.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ask = |i: usize, mode: Option<&str>| {
        let messages = &tasks[i % 5]["messages"];
        let mut body = json!({"messages": messages, "max_tokens": 20 + 3 * (i % 5)});
        if let Some(mode) = mode {
            body["mode"] = json!(mode);
        }
        server.send(&body)
    };
    let expected: Vec<Value> = (0..5).map(|i| answer(ask(i, Some("ar")))).collect();
    // more at once than there are slots, some of which hang up
    let waiting: Vec<TcpStream> = (0..20).map(|i| ask(i, [None, Some("verify")][i % 2])).collect();
    let mut fewer = 0;
    for (i, stream) in waiting.into_iter().enumerate() {
        if i % 6 == 4 {
            drop(stream);
            continue;
        }
        let (found, expected) = (answer(stream), &expected[i % 5]);
        let text = |reply: &Value| reply["choices"][0]["message"]["content"].clone();
        assert_eq!(text(&found), text(expected), "{found}");
        let passes = |reply: &Value| reply["usage"]["forward_passes"].as_u64().unwrap();
        fewer += u64::from(passes(&found) < passes(expected));
    }
    assert!(fewer > 8, "{fewer} answers took fewer passes");
    let refusal = answer(ask(0, Some("block")));
    let message = refusal["error"]["message"].as_str().unwrap();
    assert!(message.contains("verify"), "{message}");
    for (more, words) in [
        (&["--adapter", "proposals", "--threshold", "0.4"][..], ["--threshold", "ar,verify"]),
        (&["--adapter", "proposals", "--block-size", "8"], ["--block-size", "ar,verify"]),
        (&["--propose", "4"], ["--propose", "--mode ar,block"]),
        (&["--adapter", "adapter", "--propose", "4"], ["--propose", "--mode ar,block"]),
    ] {
        let more = [&["--port", "0"], more].concat();
        refused(&mut dlm_train(dir, "serve", &more), 2, &words);
    }
}

#[test]
fn the_source_s_own_answers_in_fewer_passes() {
    let folder = tempfile::tempdir().unwrap();
    models(folder.path());
    check_generate(folder.path());
    check_eval(folder.path());
    check_another_source(folder.path());
    check_serve(folder.path());
}

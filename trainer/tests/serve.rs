//! `dlm-train serve` as a program: its address, its key, its end.
#![cfg(unix)]
#![allow(unsafe_code, reason = "kill is a libc call")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{ok, refused, train};
use dlm_prep::Prepare;
use dlm_test_support::{on_the_cpu, sample};
use serde_json::{Value, json};

/// A folder with `out`, a model that was trained for a moment on the sample.
fn model(dir: &Path) {
    let rows = std::fs::read_to_string(sample("heldout.jsonl")).unwrap();
    let rows: Vec<String> = rows
        .lines()
        .take(32)
        .map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            let mut messages = row["messages"].as_array().unwrap().clone();
            messages.push(json!({"role": "assistant", "content": row["expected"]}));
            json!({"messages": messages}).to_string()
        })
        .collect();
    std::fs::write(dir.join("rows.jsonl"), rows.join("\n")).unwrap();
    let prepare = Prepare::new(sample("tokenizer")).input(dir.join("rows.jsonl"));
    prepare.seq_len(128).bd_size(16).run(dir.join("data")).unwrap();
    let config = std::fs::read(sample("../../configs/model/sample.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for (key, value) in [("hidden_size", 64), ("intermediate_size", 128), ("num_hidden_layers", 1)]
    {
        config[key] = json!(value);
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    ok(&mut train(dir, "out", &["conversion.total_tokens=1000"]));
}

fn serve(dir: &Path, more: &[&str]) -> Command {
    let mut command = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    command.current_dir(dir).env_remove("DLM_API_KEY");
    command.args(["serve", "--device", "cpu", "--port", "0", "--model", "out"]).args(more);
    command
}

/// A running server; killed if the test ends before it.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim_end().strip_prefix("listening on http://") else {
            panic!("{line:?}, {}", said(&mut child));
        };
        Server { child, address: address.into() }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request that closes the connection, and returns the connection.
    fn send(&self, body: &Value, headers: &str) -> TcpStream {
        let (mut stream, body) = (self.connect(), body.to_string());
        let length = body.len();
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes a process id, which is that of a child that was not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn said(child: &mut Child) -> String {
    let mut said = String::new();
    child.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
    said
}

fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn question(max_tokens: usize, more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "the map"}],
        "max_tokens": max_tokens, "ignore_eos": true
    });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn a_server_prints_its_address_wants_its_key_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let secret = "a-secret-of-the-test";
    let mut server = Server::start(serve(dir.path(), &[]).env("DLM_API_KEY", secret));
    let body = question(8, json!({}));
    assert!(answer(server.send(&body, "")).starts_with("HTTP/1.1 401 "));
    let key = format!("authorization: Bearer {secret}\r\n");
    let text = answer(server.send(&body, &key));
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    let object: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(object["model"], "out");
    assert_eq!(object["usage"]["completion_tokens"], 8);
    assert_eq!(object["choices"][0]["finish_reason"], "length");

    // a live stream is answered to its end after a signal
    let mut live = BufReader::new(server.send(&question(400, json!({"stream": true})), &key));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert_ne!(live.read_line(&mut line).unwrap(), 0);
    }
    server.signal(libc::SIGTERM);
    let mut rest = String::new();
    live.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let said = said(&mut server.child);
    assert!(said.contains("out is on cpu") && said.contains("stopping"), "{said}");
    assert!(!said.contains(secret), "{said}");
}

#[test]
fn a_wrong_call_is_refused_before_the_weights_are_read() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    refused(&mut serve(dir.path(), &["--host", "192.0.2.1"]), 2, &["192.0.2.1", "--host"]);
    refused(&mut serve(dir.path(), &["--host", "no such host"]), 2, &["--host"]);
    refused(&mut serve(dir.path(), &["--slots", "0"]), 2, &["--slots 0"]);
    refused(&mut serve(dir.path(), &["--positions", "513"]), 2, &["--positions 513", "512"]);
    refused(&mut serve(dir.path(), &["--grace=-1"]), 2, &["--grace -1"]);
    refused(&mut serve(dir.path(), &["--temperature", "3"]), 2, &["--temperature 3"]);
    refused(&mut serve(dir.path(), &["--threshold", "1.5"]), 2, &["threshold 1.5"]);
    refused(serve(dir.path(), &[]).env("DLM_API_KEY", "two words"), 2, &["DLM_API_KEY"]);
    let warned = |more: &[&str], key: Option<&str>| {
        let mut command = serve(dir.path(), more);
        command.envs(key.map(|key| ("DLM_API_KEY", key)));
        let mut server = Server::start(&mut command);
        server.signal(libc::SIGINT);
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        said(&mut server.child).contains("warning: everybody who reaches")
    };
    assert!(!warned(&[], None));
    assert!(warned(&["--host", "0.0.0.0"], None));
    assert!(!warned(&["--host", "0.0.0.0"], Some("secret")));
    // no tokenizer, no text
    std::fs::remove_file(dir.path().join("out/tokenizer.json")).unwrap();
    refused(&mut serve(dir.path(), &[]), 2, &["no tokenizer.json"]);
}

/// A model without the token shift answers with the tokens of `generate`, exactly as many as were
/// asked for, and refuses autoregressive mode by name.
#[test]
fn a_model_without_the_token_shift() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    model(dir);
    let record = dir.join("out/dlm_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    config["token_shift"] = json!(false);
    std::fs::write(&record, config.to_string()).unwrap();
    let server = Server::start(&mut serve(dir, &[]));
    let body = |reply: String| -> Value {
        serde_json::from_str(reply.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let mut generate = on_the_cpu(env!("CARGO_BIN_EXE_dlm-train"));
    generate.current_dir(dir).args(["generate", "--model", "out", "--prompt", "the map", "--json"]);
    generate.args(["--device", "cpu", "--max-new-tokens", "21", "--stop-token-id", "none"]);
    let wanted: Value = serde_json::from_slice(&ok(&mut generate).stdout).unwrap();
    let reply = body(answer(server.send(&question(21, json!({})), "")));
    assert_eq!(reply["choices"][0]["message"]["content"], wanted["text"], "{reply}");
    assert_eq!(reply["usage"]["completion_tokens"], 21, "{reply}");
    let refused = body(answer(server.send(&question(21, json!({"mode": "ar"})), "")));
    let said = refused["error"]["message"].as_str().unwrap();
    assert!(said.contains("without the token shift"), "{refused}");
}

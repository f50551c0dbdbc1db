//! Every limit answers with its status, and a server that met it goes on.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use super::super::Settings;
use super::super::options::{ApiKey, Limits};
use super::support::{
    CHAT, COMPLETIONS, Client, Failure, Running, ask, chat, settings, wait_until, with,
};

fn limited(limits: Limits) -> Settings {
    Settings { limits, ..settings() }
}

const SOON: Duration = Duration::from_millis(500);

#[test]
fn wrong_addresses_methods_and_types_are_named() {
    let server = Running::start(settings());
    let status = |request: &str| {
        let mut client = Client::new(server.address);
        client.send(request.as_bytes());
        let reply = client.reply();
        (reply.status, reply.code())
    };
    let host = "HTTP/1.1\r\nhost: localhost\r\n";
    assert_eq!(status(&format!("GET /v2 {host}\r\n")), (404, "not_found".into()));
    assert_eq!(status(&format!("GET {CHAT} {host}\r\n")), (405, "method_not_allowed".into()));
    for kind in ["", "content-type: text/plain\r\n"] {
        let request = format!("POST {CHAT} {host}{kind}content-length: 2\r\n\r\n{{}}");
        assert_eq!(status(&request), (415, "unsupported_media_type".into()));
    }
    let kind = "content-type: application/json; charset=utf-8\r\n";
    let request = format!("POST {CHAT} {host}{kind}content-length: 2\r\n\r\n{{}}");
    assert_eq!(status(&request), (400, "invalid_value".into()));
    let coded = format!("{kind}content-encoding: gzip\r\n");
    let request = format!("POST {CHAT} {host}{coded}content-length: 2\r\n\r\n{{}}");
    assert_eq!(status(&request), (415, "unsupported_media_type".into()));
    let models = Client::new(server.address).get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(Client::new(server.address).get("/v1/models/tiny").json(), models["data"][0]);
    assert_eq!(Client::new(server.address).get("/v1/models/a/b").status, 404);
    assert_eq!(Client::new(server.address).get("/health").json(), json!({"status": "ok"}));
    let metrics = Client::new(server.address).get("/metrics");
    assert!(metrics.header("content-type").unwrap().contains("version=0.0.4"));
}

#[test]
fn the_key_is_wanted_everywhere_but_for_health() {
    let key = Some(ApiKey::new("a-secret").unwrap());
    let server = Running::start(Settings { key, ..settings() });
    let status = |path: &str, header: &str| {
        let mut client = Client::new(server.address);
        client.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}\r\n").as_bytes());
        client.reply().status
    };
    for path in ["/v1/models", "/metrics"] {
        assert_eq!(status(path, "authorization: Bearer a-secret\r\n"), 200);
        for wrong in ["", "authorization: a-secret\r\n", "authorization: Bearer a-secre\r\n"] {
            assert_eq!(status(path, wrong), 401, "{wrong}");
        }
    }
    assert_eq!(status("/health", ""), 200);
    let reply = ask(server.address, CHAT, &chat("hello"));
    assert_eq!((reply.status, reply.code().as_str()), (401, "invalid_api_key"));
    assert!(!reply.text().contains("secret"));
    let mut client = Client::new(server.address);
    client.post(CHAT, &chat("hello").to_string(), "authorization: Bearer a-secret\r\n");
    assert_eq!(client.reply().status, 200);
}

#[test]
fn a_loopback_server_without_a_key_answers_to_its_own_names_only() {
    let server = Running::start(settings());
    let status = |host: &str| {
        let mut client = Client::new(server.address);
        client.send(format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
        client.reply().status
    };
    for own in ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000"] {
        assert_eq!(status(own), 200, "{own}");
    }
    for other in [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "192.168.0.1",
        "[2001:db8::1]",
    ] {
        assert_eq!(status(other), 403, "{other}");
    }
    // as a checker of health without a host name
    let mut client = Client::new(server.address);
    client.send(b"GET /health HTTP/1.0\r\n\r\n");
    assert!(client.line().contains(" 200 "));
}

#[test]
fn a_body_that_is_too_long_is_refused_with_and_without_its_length() {
    let server = Running::start(limited(Limits { body_bytes: 2000, ..Limits::default() }));
    let body = |letters: usize| with(chat("hello"), json!({"user": "x".repeat(letters)}));
    assert_eq!(ask(server.address, CHAT, &body(1000)).status, 200);
    for letters in [2000, 3_000_000] {
        let reply = ask(server.address, CHAT, &body(letters));
        assert_eq!((reply.status, reply.code().as_str()), (413, "body_too_large"));
        let mut client = Client::new(server.address);
        client.send(format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes());
        let text = body(letters).to_string();
        for part in text.as_bytes().chunks(10_000) {
            client.send(format!("{:x}\r\n", part.len()).as_bytes());
            client.send(part);
            client.send(b"\r\n");
        }
        client.send(b"0\r\n\r\n");
        assert_eq!(client.reply().status, 413);
    }
    // a header that is too long is not read to its end
    let mut client = Client::new(server.address);
    let long = "x".repeat(300_000);
    let header = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n");
    let _ = client.stream.get_mut().write_all(header.as_bytes());
    let mut answer = Vec::new();
    let _ = client.stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    // one who asks for leave first is told before it sends anything
    let mut client = Client::new(server.address);
    client.send(format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9000000000\r\nexpect: 100-continue\r\n\r\n").as_bytes());
    assert_eq!(client.reply().status, 413);
}

#[test]
fn headers_and_bodies_that_trickle_are_cut_off() {
    let limits = Limits { header: SOON, body: SOON, ..Limits::default() };
    let server = Running::start(limited(limits));
    let mut silent = Client::new(server.address);
    let mut header = Client::new(server.address);
    header.send(b"POST /v1/completions HTTP/1.1\r\nhost: loc");
    let mut body = Client::new(server.address);
    body.send(format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{").as_bytes());
    let reply = body.reply();
    assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"));
    let mut rest = Vec::new();
    header.stream.read_to_end(&mut rest).unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains(" 200 "));
    assert_eq!(silent.stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert_eq!(ask(server.address, CHAT, &chat("hello")).status, 200);
}

#[test]
fn more_connections_than_allowed_are_turned_away() {
    let server = Running::start(limited(Limits { connections: 3, ..Limits::default() }));
    let mut held: Vec<Client> = (0..3).map(|_| Client::new(server.address)).collect();
    for client in &mut held {
        // answered, so that it is known to have been let in
        client.send(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
        assert_eq!(client.reply().status, 200);
    }
    let mut turned = Client::new(server.address);
    let reply = turned.reply();
    assert_eq!((reply.status, reply.code().as_str()), (503, "too_many_connections"));
    assert_eq!(reply.header("retry-after"), Some("1"));
    drop(held);
    wait_until(|| {
        let mut client = Client::new(server.address);
        client.post(CHAT, &chat("hello").to_string(), "");
        client.reply().status == 200
    });
}

#[test]
fn a_full_queue_answers_429_and_takes_more_when_it_is_not_full() {
    let settings = limited(Limits { queue: 2, ..Limits::default() });
    let server = Running::start(Settings { slots: 2, ..settings });
    server.hold(true);
    let mut waiting: Vec<Client> = Vec::new();
    for i in 0..4 {
        let mut client = Client::new(server.address);
        client.post(CHAT, &chat(&format!("number {i}")).to_string(), "");
        waiting.push(client);
        wait_until(|| {
            server.metric("dlm_live_rows") + server.metric("dlm_queue_rows") == f64::from(i + 1)
        });
    }
    assert_eq!(server.metric("dlm_queue_rows"), 2.0);
    let reply = ask(server.address, CHAT, &chat("one more"));
    assert_eq!((reply.status, reply.code().as_str()), (429, "queue_full"));
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    // what never fits is not a matter of waiting
    let never = ask(server.address, CHAT, &with(chat("x"), json!({"n": 5})));
    assert_eq!((never.status, never.json()["error"]["param"].as_str()), (400, Some("n")));
    let many = json!({"prompt": vec!["x"; 5]});
    let never = ask(server.address, COMPLETIONS, &many);
    assert_eq!((never.status, never.json()["error"]["param"].as_str()), (400, Some("prompt")));
    server.hold(false);
    for client in &mut waiting {
        assert_eq!(client.reply().status, 200);
    }
    assert_eq!(ask(server.address, CHAT, &with(chat("x"), json!({"n": 4}))).status, 200);
    assert_eq!(server.controls.most_rows.load(Ordering::Acquire), 2);
    assert_eq!(server.metric("dlm_requests_total{endpoint=\"chat\",outcome=\"queue_full\"}"), 1.0);
}

#[test]
fn a_request_that_takes_too_long_gets_504_in_the_queue_and_in_the_batch() {
    let settings = limited(Limits { request: SOON, ..Limits::default() });
    let server = Running::start(Settings { slots: 1, ..settings });
    server.hold(true);
    let mut clients: Vec<Client> = (0..2).map(|_| Client::new(server.address)).collect();
    clients[0].post(CHAT, &chat("one").to_string(), "");
    clients[1].post(CHAT, &with(chat("two"), json!({"stream": true})).to_string(), "");
    for client in &mut clients {
        let reply = client.reply();
        assert_eq!((reply.status, reply.code().as_str()), (504, "timeout"));
    }
    server.wait_for_rows(0);
    server.hold(false);
    wait_until(|| ask(server.address, CHAT, &chat("three")).status == 200);
}

#[test]
fn a_stream_that_takes_too_long_ends_with_an_error() {
    let limits = Limits { request: SOON * 2, max_tokens: 200_000, ..Limits::default() };
    let server = Running::start(Settings { positions: 300_000, ..limited(limits) });
    let mut client = Client::new(server.address);
    let body = with(chat("one"), json!({"stream": true, "max_tokens": 200_000}));
    client.post(CHAT, &body.to_string(), "");
    wait_until(|| server.metric("dlm_completion_tokens_total") >= 1.0);
    server.hold(true);
    let reply = client.reply();
    assert_eq!(reply.status, 200);
    let events = reply.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "timeout");
    assert!(!reply.text().contains("[DONE]"));
    server.wait_for_rows(0);
}

/// A client that does not read: the server stops sending, keeps no more than the answer, and closes
/// the connection in the end.
#[test]
fn a_reader_that_does_not_read_is_given_up() {
    let limits = Limits { write: SOON, max_tokens: 200_000, ..Limits::default() };
    let server = Running::start(Settings { positions: 300_000, ..limited(limits) });
    server.controls.per_step.store(500, Ordering::Release);
    let mut client = Client::new(server.address);
    let body = json!({"prompt": "x", "max_tokens": 200_000, "logprobs": 0, "stream": true});
    client.post(COMPLETIONS, &body.to_string(), "");
    let cancelled = "dlm_requests_total{endpoint=\"completions\",outcome=\"cancelled\"}";
    wait_until(|| server.metric(cancelled) == 1.0);
    server.wait_for_rows(0);
    assert_eq!(ask(server.address, CHAT, &chat("hello")).status, 200);
    drop(client);
}

#[test]
fn a_failure_of_the_model_is_told_and_forgotten_when_it_works_again() {
    let server = Running::start(settings());
    for failure in [Failure::Error, Failure::Panic] {
        server.hold(true);
        let mut clients: Vec<Client> = (0..2).map(|_| Client::new(server.address)).collect();
        clients[0].post(CHAT, &chat("one").to_string(), "");
        clients[1].post(CHAT, &with(chat("two"), json!({"stream": true})).to_string(), "");
        server.wait_for_rows(2);
        *server.controls.fails.lock().unwrap() = Some(failure);
        for client in &mut clients {
            let reply = client.reply();
            assert_eq!((reply.status, reply.code().as_str()), (500, "server_error"));
        }
        let health = Client::new(server.address).get("/health");
        assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("failed")));
        assert_eq!(server.metric("dlm_healthy"), 0.0);
        server.hold(false);
        assert_eq!(ask(server.address, CHAT, &chat("three")).status, 200);
        assert_eq!(Client::new(server.address).get("/health").status, 200);
    }
    assert_eq!(server.metric("dlm_model_failures_total"), 2.0);
}

#[test]
fn a_step_that_does_not_end_is_told_by_health() {
    let server = Running::start(limited(Limits { request: SOON, ..Limits::default() }));
    server.controls.hangs.store(true, Ordering::Release);
    assert_eq!(ask(server.address, CHAT, &chat("one")).status, 504);
    let health = || Client::new(server.address).get("/health");
    wait_until(|| health().status == 503);
    assert!(health().text().contains("at one step for"));
    server.controls.hangs.store(false, Ordering::Release);
    wait_until(|| health().status == 200);
    wait_until(|| ask(server.address, CHAT, &chat("two")).status == 200);
}

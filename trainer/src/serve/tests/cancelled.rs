//! A client that goes away frees the slots of its request, wherever the request is.

use serde_json::json;

use super::super::Settings;
use super::super::options::Limits;
use super::support::{CHAT, COMPLETIONS, Client, Running, ask, chat, settings, wait_until, with};

#[test]
fn a_dropped_connection_cancels_its_rows_at_the_next_step() {
    let server = Running::start(settings());
    server.hold(true);
    for stream in [false, true] {
        let mut client = Client::new(server.address);
        let more = json!({"n": 3, "stream": stream});
        client.post(CHAT, &with(chat("hello"), more).to_string(), "");
        server.wait_for_rows(3);
        drop(client);
        server.wait_for_rows(0);
    }
    let cancelled = "dlm_requests_total{endpoint=\"chat\",outcome=\"cancelled\"}";
    wait_until(|| server.metric(cancelled) == 2.0);
    server.hold(false);
    assert_eq!(ask(server.address, CHAT, &chat("hello")).status, 200);
}

#[test]
fn a_stream_that_has_begun_is_cancelled_too() {
    let limits = Limits { max_tokens: 200_000, ..Limits::default() };
    let server = Running::start(Settings { positions: 300_000, limits, ..settings() });
    let mut client = Client::new(server.address);
    let body = json!({"prompt": "hello", "max_tokens": 200_000, "stream": true});
    client.post(COMPLETIONS, &body.to_string(), "");
    wait_until(|| server.metric("dlm_completion_tokens_total") >= 1.0);
    server.hold(true);
    while !client.line().starts_with("data: ") {}
    server.wait_for_rows(1);
    drop(client);
    server.wait_for_rows(0);
}

#[test]
fn rows_that_wait_are_cancelled_and_the_others_go_on() {
    let server = Running::start(Settings { slots: 1, ..settings() });
    server.hold(true);
    let mut first = Client::new(server.address);
    first.post(CHAT, &chat("first").to_string(), "");
    server.wait_for_rows(1);
    let mut second = Client::new(server.address);
    second.post(CHAT, &chat("second").to_string(), "");
    wait_until(|| server.metric("dlm_queue_rows") == 1.0);
    drop(second);
    wait_until(|| server.metric("dlm_queue_rows") == 0.0);
    server.hold(false);
    assert_eq!(first.reply().status, 200);
}

/// One bad prompt of several refuses the request, and its other rows leave.
#[test]
fn the_other_rows_of_a_refused_request_leave() {
    let server = Running::start(settings());
    server.hold(true);
    let reply = ask(server.address, COMPLETIONS, &json!({"prompt": [[3, 4], [5], [400]]}));
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("prompt")));
    server.wait_for_rows(0);
}

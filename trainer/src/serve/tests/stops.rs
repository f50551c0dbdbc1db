//! A server that is told to stop: live requests get their answers, new ones are turned away.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::super::Settings;
use super::super::options::Limits;
use super::support::{CHAT, Client, Running, chat, settings, wait_until, with};

#[test]
fn live_and_queued_requests_end_and_new_ones_are_turned_away() {
    let server = Running::start(Settings { slots: 1, ..settings() });
    server.hold(true);
    let mut clients: Vec<Client> = Vec::new();
    for stream in [false, true] {
        let mut client = Client::new(server.address);
        client.post(CHAT, &with(chat("hello"), json!({"stream": stream})).to_string(), "");
        clients.push(client);
        wait_until(|| {
            server.metric("dlm_live_rows") + server.metric("dlm_queue_rows") == clients.len() as f64
        });
    }
    server.signal();
    wait_until(|| TcpStream::connect(server.address).is_err());
    server.hold(false);
    let whole = clients[0].reply();
    assert_eq!((whole.status, whole.header("connection")), (200, Some("close")));
    assert!(clients[1].reply().text().ends_with("data: [DONE]\n\n"));
    server.ended().unwrap();
}

#[test]
fn what_is_live_after_the_grace_or_a_second_signal_is_refused() {
    let short = Limits { grace: Duration::from_millis(50), ..Limits::default() };
    for (limits, signals) in [(short, 1), (Limits::default(), 2)] {
        let server = Running::start(Settings { limits, ..settings() });
        server.hold(true);
        let mut client = Client::new(server.address);
        client.post(CHAT, &chat("hello").to_string(), "");
        server.wait_for_rows(1);
        for _ in 0..signals {
            server.signal();
        }
        let reply = client.reply();
        assert_eq!((reply.status, reply.code().as_str()), (503, "stopping"));
        assert_eq!(server.ended().unwrap_err().exit_code(), 130);
    }
}

#[test]
fn an_idle_connection_does_not_keep_the_server() {
    let server = Running::start(settings());
    let mut client = Client::new(server.address);
    client.post(CHAT, &chat("hello").to_string(), "");
    assert_eq!(client.reply().status, 200);
    server.signal();
    server.ended().unwrap();
    assert_eq!(client.line(), "");
}

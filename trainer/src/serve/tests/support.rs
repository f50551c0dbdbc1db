//! A server in this process, a stand-in for its model, and a client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::options::Limits;
use super::super::schedule::Rows;
use super::super::{Server, Settings, run};
use crate::decode::continuous::RowId;
use crate::decode::{Decided, DecodedSequence, Event, FinishReason, Passes, Request};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, ModelFiles};

/// Longer than anything here takes: what waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the tests change while the stand-in runs.
#[derive(Default)]
pub(super) struct Controls {
    /// Rows get no tokens while this is set.
    pub holds: AtomicBool,
    /// A step does not end while this is set.
    pub hangs: AtomicBool,
    /// The next step fails with this.
    pub fails: Mutex<Option<Failure>>,
    /// Rows that the stand-in holds.
    pub rows: AtomicUsize,
    /// Most rows that it ever held.
    pub most_rows: AtomicUsize,
    /// Tokens of a row in one step.
    pub per_step: AtomicUsize,
}

#[derive(Clone, Copy)]
pub(super) enum Failure {
    Error,
    Panic,
}

/// Decodes without a model: the tokens of a row depend on its prompt alone.
pub(super) struct StandIn {
    rows: Vec<(RowId, Request, usize)>,
    slots: usize,
    next: u64,
    controls: Arc<Controls>,
}

/// The token at a place of an answer.
fn token(prompt: &[i64], at: usize) -> i64 {
    let sum = prompt.iter().fold(7u64, |sum, id| sum.wrapping_mul(31).wrapping_add(*id as u64));
    // ids of printable single characters in the sample's tokenizer
    30 + ((sum >> 7).wrapping_add(at as u64 * 5) % 60) as i64
}

impl Rows for StandIn {
    fn add(&mut self, request: Request) -> Result<RowId> {
        if request.prompt.contains(&400) {
            return Err(Error::Usage("token 400 is not liked".into()));
        }
        self.next += 1;
        let id = RowId(self.next);
        self.rows.push((id, request, 0));
        self.count();
        Ok(id)
    }

    fn remove(&mut self, row: RowId) {
        self.rows.retain(|(id, _, _)| *id != row);
        self.count();
    }

    fn step(&mut self) -> Result<Vec<Event>> {
        while self.controls.hangs.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let failure = self.controls.fails.lock().unwrap().take();
        match failure {
            Some(Failure::Error) => return Err(Error::Numeric("logits hold NaN".into())),
            Some(Failure::Panic) => panic!("the device is gone"),
            None => {}
        }
        if self.controls.holds.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
            return Ok(Vec::new());
        }
        let per_step = self.controls.per_step.load(Ordering::Acquire).max(1);
        let mut events = Vec::new();
        for (id, request, told) in &mut self.rows {
            let until = (*told + per_step).min(request.max_new_tokens);
            let ids: Vec<i64> = (*told..until).map(|at| token(&request.prompt, at)).collect();
            let decided = |at| Decided { pass: at + 1, probability: 0.5 };
            let decided = (*told..until).map(decided).collect();
            *told = until;
            events.push(Event::Tokens { row: *id, ids, decided });
            if until == request.max_new_tokens {
                let prompt = request.prompt.len();
                let passes = Passes { block: until, ..Passes::default() };
                let (ids, decided) = (request.prompt.clone(), Vec::new());
                let sequence = DecodedSequence {
                    ids,
                    prompt,
                    decided,
                    finish_reason: FinishReason::Length,
                    text_end: None,
                    passes,
                    proposals: None,
                };
                events.push(Event::Finished { row: *id, sequence });
            }
        }
        self.rows.retain(|(_, request, told)| *told < request.max_new_tokens);
        self.count();
        Ok(events)
    }

    fn free_slots(&self) -> usize {
        self.slots - self.rows.len()
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.count();
    }
}

impl StandIn {
    fn count(&self) {
        self.controls.rows.store(self.rows.len(), Ordering::Release);
        self.controls.most_rows.fetch_max(self.rows.len(), Ordering::AcqRel);
    }
}

/// A folder with the sample's tokenizer and the shapes of a tiny model; no weights.
pub(in crate::serve) fn folder() -> (tempfile::TempDir, ModelFiles) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(sample).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    std::fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
    let record = r#"{"bd_size": 8, "mask_token_id": 831}"#;
    std::fs::write(dir.path().join("dlm_config.json"), record).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    (dir, files)
}

/// Shapes of a tiny model with the sample's vocabulary, whose random weights make distinct answers.
pub(super) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 832, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "initializer_range": 0.3
    })
}

pub(super) fn settings() -> Settings {
    Settings {
        name: "tiny".into(),
        slots: 4,
        positions: 512,
        decoding: GenerateOptions { max_new_tokens: 16, ..GenerateOptions::default() },
        limits: Limits::default(),
        key: None,
        is_loopback: true,
    }
}

/// A running server.
pub(super) struct Running {
    pub address: SocketAddr,
    pub controls: Arc<Controls>,
    signals: tokio::sync::mpsc::Sender<()>,
    thread: Option<JoinHandle<Result<()>>>,
    _dir: tempfile::TempDir,
}

impl Running {
    /// A server with the stand-in.
    pub(super) fn start(settings: Settings) -> Self {
        let controls = Arc::new(Controls::default());
        let (slots, own) = (settings.slots, controls.clone());
        Running::with(settings, controls, move |_| {
            Ok(StandIn { rows: Vec::new(), slots, next: 0, controls: own })
        })
    }

    pub(super) fn with<R: Rows>(
        settings: Settings,
        controls: Arc<Controls>,
        load: impl FnOnce(&Server) -> Result<R> + Send + 'static,
    ) -> Self {
        let (dir, files) = folder();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (signals, receiver) = tokio::sync::mpsc::channel(4);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let ready = move |_| {
                ready.send(()).unwrap();
                Ok(())
            };
            run(files, listener, settings, load, || Ok(receiver), ready)
        });
        is_ready.recv_timeout(PATIENCE).expect("the server is up");
        Running { address, controls, signals, thread: Some(thread), _dir: dir }
    }

    /// What a signal does.
    pub(super) fn signal(&self) {
        self.signals.blocking_send(()).unwrap();
    }

    /// Waits for the end.
    pub(super) fn ended(mut self) -> Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }

    pub(super) fn hold(&self, holds: bool) {
        self.controls.holds.store(holds, Ordering::Release);
    }

    /// Waits until so many rows are decoded.
    pub(super) fn wait_for_rows(&self, rows: usize) {
        wait_until(|| self.controls.rows.load(Ordering::Acquire) == rows);
    }

    /// The value of a line of /metrics.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let text = Client::new(self.address).get("/metrics").text();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.hold(false);
            self.controls.hangs.store(false, Ordering::Release);
            let _ = self.signals.try_send(());
            let _ = self.signals.try_send(());
            drop(thread.join());
        }
    }
}

pub(super) fn wait_until(mut is_so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A response.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The events of a stream.
    pub(super) fn events(&self) -> Vec<Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// `code` of a refusal, whose form is checked.
    pub(super) fn code(&self) -> String {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["type"].is_string() && error.get("param").is_some(), "{error}");
        error["code"].as_str().unwrap().to_string()
    }
}

/// A connection.
pub(super) struct Client {
    pub stream: BufReader<TcpStream>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Sends a request with a JSON body, without waiting for the answer.
    pub(super) fn post(&mut self, path: &str, body: &str, more_headers: &str) {
        self.send(
            format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{more_headers}\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
    }

    pub(super) fn get(mut self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes());
        self.reply()
    }

    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    /// Reads a response whole.
    pub(super) fn reply(&mut self) -> Reply {
        let first = self.line();
        let status = first.split(' ').nth(1).unwrap_or_else(|| panic!("{first:?}"));
        let (status, mut headers) = (status.parse().unwrap(), Vec::new());
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_string()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if let Some(length) = reply.header("content-length") {
            reply.body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut reply.body).unwrap();
            return reply;
        }
        loop {
            let length = usize::from_str_radix(&self.line(), 16).unwrap();
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk).unwrap();
            if length == 0 {
                return reply;
            }
            reply.body.extend_from_slice(&chunk[..length]);
        }
    }
}

/// Asks once on a connection of its own.
pub(super) fn ask(address: SocketAddr, path: &str, body: &Value) -> Reply {
    let mut client = Client::new(address);
    client.post(path, &body.to_string(), "");
    client.reply()
}

pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const COMPLETIONS: &str = "/v1/completions";

/// A conversation of one message.
pub(super) fn chat(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": text}]})
}

/// An object with other fields too.
pub(super) fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

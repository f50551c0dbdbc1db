//! Two servers on the loopback interface: a hub whose answers a test makes up, and another origin
//! (the same host, another port) to which nothing secret may be sent.
//!
//! In: a function from requests to answers, of which any part may be a lie. Out: addresses, a log
//! of all requests, the number of bytes sent. Real HTTP over TCP.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The commit that right answers name.
pub const COMMIT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// What a test waits for at most, and a server sends or stays silent at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The commit of a revision.
    Revision,
    /// A page of the listing.
    Tree,
    /// A file's content.
    File,
    /// Any other path.
    Other,
}

/// What a server was asked, as the test's function sees it.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it is for.
    pub kind: Kind,
    /// Name of the repository behind the slash.
    pub repo: String,
    /// Path and query as they were sent.
    pub target: String,
    /// First and last byte, where a range is asked for.
    pub range: Option<(usize, usize)>,
    /// Whether it carries a token.
    pub token: bool,
    /// Whether it came to the other origin.
    pub elsewhere: bool,
    /// Requests of this kind for this repository before it.
    pub number: usize,
}

/// An answer.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Status, headers and body. The length is the body's unless a header says another; then the
    /// connection is closed behind it.
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Bytes as they are, then others again and again, with a pause before each.
    Stream(Vec<u8>, Vec<u8>, Duration),
    /// Nothing, and the connection stays open.
    Silence,
}

/// JSON with status 200.
pub fn json(text: impl Into<String>) -> Reply {
    Reply::Whole(200, Vec::new(), text.into().into_bytes())
}

/// A status without headers.
pub fn status(status: u16) -> Reply {
    Reply::Whole(status, Vec::new(), b"{}".to_vec())
}

/// Status 302 with a Location header and no body.
pub fn redirect(to: impl Into<String>) -> Reply {
    Reply::Whole(302, vec![("Location", to.into())], Vec::new())
}

/// The part of `content` that is asked for, as a hub sends it.
pub fn part(request: &Request, content: &[u8]) -> Reply {
    match request.range {
        None => Reply::Whole(200, Vec::new(), content.to_vec()),
        Some((first, last)) => {
            let last = last.min(content.len().saturating_sub(1));
            let place = format!("bytes {first}-{last}/{}", content.len());
            let body = content.get(first..=last).unwrap_or_default().to_vec();
            Reply::Whole(206, vec![("Content-Range", place)], body)
        }
    }
}

/// What makes up answers.
type Answer = dyn Fn(&Request, &Addresses) -> Reply + Send + Sync;

/// Where the two servers are.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// For `HF_ENDPOINT`.
    pub hub: String,
    /// The other origin.
    pub elsewhere: String,
}

/// The servers; they run until the process ends.
pub struct LyingHub {
    /// Where they are.
    pub at: Addresses,
    log: Arc<Mutex<Vec<Request>>>,
    sent: Arc<AtomicU64>,
}

impl LyingHub {
    /// Starts both servers.
    pub fn start(
        answer: impl Fn(&Request, &Addresses) -> Reply + Send + Sync + 'static,
    ) -> LyingHub {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [hub, elsewhere] =
            [0, 1].map(|k: usize| format!("http://{}", listeners[k].local_addr().unwrap()));
        let hub = LyingHub {
            at: Addresses { hub, elsewhere },
            log: Arc::default(),
            sent: Arc::default(),
        };
        let answer: Arc<Answer> = Arc::new(answer);
        for (k, listener) in listeners.into_iter().enumerate() {
            let served = Served {
                at: hub.at.clone(),
                log: hub.log.clone(),
                sent: hub.sent.clone(),
                answer: answer.clone(),
                elsewhere: k == 1,
            };
            let served = Arc::new(served);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let served = served.clone();
                    std::thread::spawn(move || while served.serve(&stream).unwrap_or(false) {});
                }
            });
        }
        hub
    }

    /// The requests for a repository so far.
    pub fn asked(&self, repo: &str) -> Vec<Request> {
        self.log.lock().unwrap().iter().filter(|r| r.repo == repo).cloned().collect()
    }

    /// Bytes that both servers have sent.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

struct Served {
    at: Addresses,
    log: Arc<Mutex<Vec<Request>>>,
    sent: Arc<AtomicU64>,
    answer: Arc<Answer>,
    elsewhere: bool,
}

impl Served {
    /// Answers one request; whether the connection stays open.
    fn serve(&self, stream: &TcpStream) -> std::io::Result<bool> {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(false);
        }
        let (mut range, mut token) = (None, false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(false);
            }
            match line.trim().split_once(':') {
                Some((k, _)) if k.eq_ignore_ascii_case("authorization") => token = true,
                Some((k, v)) if k.eq_ignore_ascii_case("range") => {
                    let ends = v.trim().trim_start_matches("bytes=").split_once('-');
                    range = ends.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                }
                Some(_) => {}
                None => break,
            }
        }
        let target = first.split_whitespace().nth(1).unwrap_or("/").to_string();
        let request = self.note(target, range, token);
        match (self.answer)(&request, &self.at) {
            Reply::Whole(status, headers, body) => {
                let lies = headers.iter().any(|(k, _)| k.eq_ignore_ascii_case("content-length"));
                let mut head = format!("HTTP/1.1 {status} X\r\n");
                for (k, v) in &headers {
                    head.push_str(&format!("{k}: {v}\r\n"));
                }
                if !lies {
                    head.push_str(&format!("Content-Length: {}\r\n", body.len()));
                }
                self.send(stream, &[head.as_bytes(), b"\r\n", &body].concat())?;
                Ok(!lies)
            }
            Reply::Stream(head, again, pause) => {
                let end = Instant::now() + PATIENCE;
                self.send(stream, &head)?;
                while !again.is_empty() && Instant::now() < end {
                    std::thread::sleep(pause);
                    self.send(stream, &again)?;
                }
                Ok(false)
            }
            Reply::Silence => {
                std::thread::sleep(PATIENCE);
                Ok(false)
            }
        }
    }

    fn send(&self, mut stream: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        stream.write_all(bytes)?;
        self.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    /// The request, which is noted in the log.
    fn note(&self, target: String, range: Option<(usize, usize)>, token: bool) -> Request {
        let path = target.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (kind, repo) = match parts[..] {
            ["api", _, _, repo, "revision", ..] => (Kind::Revision, repo),
            ["api", _, _, repo, "tree", ..] => (Kind::Tree, repo),
            ["datasets", _, repo, "resolve", ..] | [_, repo, "resolve", ..] => (Kind::File, repo),
            _ => (Kind::Other, parts.last().copied().unwrap_or_default()),
        };
        let repo = repo.to_string();
        let mut log = self.log.lock().unwrap();
        let number = log.iter().filter(|r| r.kind == kind && r.repo == repo).count();
        let request =
            Request { kind, repo, target, range, token, elsewhere: self.elsewhere, number };
        log.push(request.clone());
        request
    }
}

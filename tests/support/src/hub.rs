//! A Hugging Face hub on the loopback interface, with faults.
//!
//! Real HTTP over TCP: revision and tree endpoints (paged), resolve with a redirect to a second
//! path, ETag, byte ranges. Faults are spread deterministically over the requests, so that every
//! test run meets each of them. It serves one dataset, [`ID`], and models whose main branch a test
//! can move.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What the hub does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// At fixed intervals of requests: status 429, status 503, a connection that is cut in the
    /// middle of a body, a range that is ignored.
    pub mixed: bool,
    /// The listing's sizes are too small by one.
    pub wrong_length: bool,
    /// How many times a file's content differs from the listing's sha256.
    pub wrong_bytes: usize,
    /// The listing names a path that leads out of the cache.
    pub traversal: bool,
    /// Every token is refused as expired.
    pub expired: bool,
    /// Files need conditions accepted by the account, which none has done; listings are open.
    pub gated: bool,
    /// Files of models are redirected to another host.
    pub other_host: bool,
}

/// A model repository: its main branch, and what each commit holds.
#[derive(Debug, Clone, Default)]
pub struct ModelRepo {
    /// The commit that `main` names.
    pub main: String,
    /// Commit → path → content.
    pub commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// Model repositories by id.
pub type Models = Arc<Mutex<BTreeMap<String, ModelRepo>>>;

/// A running hub.
pub struct Hub {
    /// For `HF_ENDPOINT`.
    pub url: String,
    /// Number of requests so far.
    pub requests: Arc<AtomicUsize>,
    /// A line per request: target, range, and whether it carried a token.
    pub log: Arc<Mutex<Vec<String>>>,
    /// What it serves beside the dataset [`ID`].
    pub models: Models,
}

/// Commit of the dataset's main branch.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Commit of its conversion to parquet.
pub const CONVERTED: &str = "fedcba9876543210fedcba9876543210fedcba98";
/// Name of the dataset.
pub const ID: &str = "nvidia/Llama-Nemotron-Post-Training-Dataset";

struct Served {
    main: BTreeMap<String, Vec<u8>>,
    converted: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    wrong_left: AtomicUsize,
    count: Arc<AtomicUsize>,
    log: Arc<Mutex<Vec<String>>>,
    models: Models,
    url: String,
}

impl Hub {
    /// Serves `main` (path → content) and a conversion branch until the process ends.
    pub fn start(
        main: BTreeMap<String, Vec<u8>>,
        converted: BTreeMap<String, Vec<u8>>,
        faults: Faults,
    ) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (count, log) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let wrong_left = AtomicUsize::new(faults.wrong_bytes);
        let models = Models::default();
        let served = Arc::new(Served {
            main,
            converted,
            faults,
            wrong_left,
            count: count.clone(),
            log: log.clone(),
            models: models.clone(),
            url: url.clone(),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || while served.answer(&stream) {});
            }
        });
        Hub { url, requests: count, log, models }
    }

    /// Serves models only.
    pub fn of_models(faults: Faults) -> Hub {
        Hub::start(BTreeMap::new(), BTreeMap::new(), faults)
    }

    /// Puts a commit on the main branch of model `id`.
    pub fn push(&self, id: &str, commit: &str, files: BTreeMap<String, Vec<u8>>) {
        let mut models = self.models.lock().unwrap();
        let repo = models.entry(id.to_string()).or_default();
        repo.main = commit.to_string();
        repo.commits.insert(commit.to_string(), files);
    }

    /// The log from request `from` on.
    pub fn asked(&self, from: usize) -> Vec<String> {
        self.log.lock().unwrap()[from..].to_vec()
    }
}

/// The files of a folder, by name.
pub fn files_of(dir: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let entries =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    entries
        .map(|p| {
            (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap())
        })
        .collect()
}

impl Served {
    /// Answers one request and returns whether the connection stays open.
    fn answer(&self, stream: &TcpStream) -> bool {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return false;
        }
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return false;
            }
            match line.trim().split_once(':') {
                Some((k, v)) => headers.insert(k.to_ascii_lowercase(), v.trim().to_string()),
                None => break,
            };
        }
        let n = self.count.fetch_add(1, Ordering::SeqCst);
        let target = first.split_whitespace().nth(1).unwrap_or("/").to_string();
        self.log.lock().unwrap().push(format!(
            "{target} range={:?} auth={}",
            headers.get("range"),
            headers.contains_key("authorization")
        ));
        if self.faults.expired {
            return self.send(
                stream,
                401,
                &[],
                b"{\"error\":\"Invalid credentials in Authorization header\"}",
            );
        }
        if self.faults.mixed {
            match n % 7 {
                2 => return self.send(stream, 429, &[("Retry-After", "0")], b"slow down"),
                4 => return self.send(stream, 503, &[], b"overloaded"),
                _ => {}
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let path = decode(path);
        if let Some(rest) = path.strip_prefix(&format!("/api/datasets/{ID}/")) {
            return self.api(stream, rest, query);
        }
        if let Some(rest) = path.strip_prefix(&format!("/datasets/{ID}/resolve/")) {
            // As on the real hub, the file itself is at another path.
            return self.send(stream, 302, &[("Location", &format!("/cdn/{}", encode(rest)))], b"");
        }
        if let Some((commit, file)) = path.strip_prefix("/cdn/").and_then(|r| r.split_once('/')) {
            let files = if commit == COMMIT { &self.main } else { &self.converted };
            if let Some(content) = files.get(file) {
                return self.file(stream, content, headers.get("range"), n);
            }
        }
        if let Some(rest) = path.strip_prefix("/api/models/") {
            return self.model_api(stream, rest, query);
        }
        // ORG/NAME/resolve/COMMIT/FILE, or the path that it redirects to.
        let (cdn, rest) = match path.strip_prefix("/cdn-models/") {
            Some(rest) => (true, rest),
            None => (false, path.trim_start_matches('/')),
        };
        let parts: Vec<&str> = rest.splitn(5, '/').collect();
        if let [org, name, "resolve", commit, file] = parts[..] {
            if self.faults.gated {
                return self.send(stream, 403, &[("X-Error-Code", "GatedRepo")], b"{}");
            }
            let models = self.models.lock().unwrap();
            let content = models
                .get(&format!("{org}/{name}"))
                .and_then(|r| r.commits.get(commit)?.get(file))
                .cloned();
            drop(models);
            return match content {
                Some(_) if !cdn => {
                    let host = if self.faults.other_host {
                        self.url.replace("127.0.0.1", "localhost")
                    } else {
                        String::new()
                    };
                    self.send(
                        stream,
                        302,
                        &[("Location", &format!("{host}/cdn-models/{}", encode(rest)))],
                        b"",
                    )
                }
                Some(content) => self.file(stream, &content, headers.get("range"), n),
                None => self.send(stream, 404, &[("X-Error-Code", "EntryNotFound")], b"{}"),
            };
        }
        self.send(stream, 404, &[("X-Error-Code", "EntryNotFound")], b"{}")
    }

    /// ORG/NAME/revision/REV, ORG/NAME/tree/COMMIT.
    fn model_api(&self, stream: &TcpStream, rest: &str, query: &str) -> bool {
        let parts: Vec<&str> = rest.splitn(4, '/').collect();
        let models = self.models.lock().unwrap();
        let found = match parts[..] {
            [org, name, what, which] => models
                .get(&format!("{org}/{name}"))
                .map(|repo| (repo.clone(), what, which, format!("{org}/{name}"))),
            _ => None,
        };
        drop(models);
        let Some((repo, what, which, id)) = found else {
            return self.send(stream, 401, &[("X-Error-Code", "RepoNotFound")], b"{}");
        };
        if what == "revision" {
            let commit = if which == "main" { &repo.main } else { which };
            return match repo.commits.contains_key(commit) {
                true => {
                    self.send(stream, 200, &[], format!("{{\"sha\": \"{commit}\"}}").as_bytes())
                }
                false => self.send(stream, 404, &[("X-Error-Code", "RevisionNotFound")], b"{}"),
            };
        }
        let none = BTreeMap::new();
        let files = repo.commits.get(which).unwrap_or(&none);
        let entries: Vec<String> = files
            .iter()
            .filter(|(path, _)| !path.contains('/') || query.contains("recursive=true"))
            .map(|(path, content)| {
                let (size, sha) = (content.len(), dlm_datasets::hash::sha256(content));
                let large = path.ends_with(".safetensors") || path.ends_with(".bin");
                let lfs = if large {
                    format!(",\"lfs\":{{\"oid\":\"{sha}\",\"size\":{size}}}")
                } else {
                    String::new()
                };
                format!(
                    "{{\"type\":\"file\",\"path\":{path:?},\"size\":{size},\"oid\":\"{}\"{lfs}}}",
                    &sha[..40]
                )
            })
            .collect();
        let page: usize = query
            .split('&')
            .find_map(|q| q.strip_prefix("cursor="))
            .and_then(|c| c.parse().ok())
            .unwrap_or(0);
        let shown: Vec<String> = entries.iter().skip(page * 2).take(2).cloned().collect();
        let link = format!(
            "<{}/api/models/{id}/tree/{which}?recursive=false&cursor={}>; rel=\"next\"",
            self.url,
            page + 1
        );
        let headers: Vec<(&str, &str)> =
            if entries.len() > page * 2 + 2 { vec![("Link", &link)] } else { Vec::new() };
        self.send(stream, 200, &headers, format!("[{}]", shown.join(",")).as_bytes())
    }

    fn api(&self, stream: &TcpStream, rest: &str, query: &str) -> bool {
        if let Some(revision) = rest.strip_prefix("revision/") {
            let sha = match revision {
                "main" | COMMIT => COMMIT,
                "refs/convert/parquet" | CONVERTED if !self.converted.is_empty() => CONVERTED,
                _ => return self.send(stream, 404, &[("X-Error-Code", "RevisionNotFound")], b"{}"),
            };
            return self.send(stream, 200, &[], format!("{{\"sha\": \"{sha}\"}}").as_bytes());
        }
        let commit = rest.strip_prefix("tree/").unwrap_or("");
        let files = if commit == COMMIT { &self.main } else { &self.converted };
        let mut entries: Vec<String> = files
            .iter()
            .map(|(path, content)| {
                let size = content.len() - usize::from(self.faults.wrong_length);
                let path = if self.faults.traversal { format!("../../{path}") } else { path.clone() };
                let sha = dlm_datasets::hash::sha256(content);
                format!(
                    "{{\"type\":\"file\",\"path\":{path:?},\"size\":{size},\"oid\":\"{}\",\"lfs\":{{\"oid\":\"{sha}\",\"size\":{size}}}}}",
                    &sha[..40]
                )
            })
            .collect();
        entries.insert(
            0,
            "{\"type\":\"directory\",\"path\":\"SFT\",\"size\":0,\"oid\":\"x\"}".to_string(),
        );
        // Two entries per page.
        let page: usize = query
            .split('&')
            .find_map(|q| q.strip_prefix("cursor="))
            .and_then(|c| c.parse().ok())
            .unwrap_or(0);
        let shown: Vec<String> = entries.iter().skip(page * 2).take(2).cloned().collect();
        let link = format!(
            "<{}/api/datasets/{ID}/tree/{commit}?recursive=true&cursor={}>; rel=\"next\"",
            self.url,
            page + 1
        );
        let more = entries.len() > page * 2 + 2;
        let headers: Vec<(&str, &str)> = if more { vec![("Link", &link)] } else { Vec::new() };
        self.send(stream, 200, &headers, format!("[{}]", shown.join(",")).as_bytes())
    }

    fn file(&self, stream: &TcpStream, content: &[u8], range: Option<&String>, n: usize) -> bool {
        let mut content = content.to_vec();
        // A listing has no sha256 of small files, only their length.
        if content.len() > 4096
            && self
                .wrong_left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |w| w.checked_sub(1))
                .is_ok()
            && let Some(b) = content.last_mut()
        {
            *b ^= 1;
        }
        let total = content.len();
        let asked = range
            .and_then(|r| r.strip_prefix("bytes="))
            .and_then(|r| r.split_once('-'))
            .and_then(|(a, b)| Some((a.parse::<usize>().ok()?, b.parse::<usize>().ok()?)));
        let ignore = self.faults.mixed && n % 11 == 5;
        let etag = format!("\"{}\"", dlm_datasets::hash::sha256(&content));
        let (status, body, place) = match asked {
            Some((a, b)) if !ignore && a < total => (
                206,
                &content[a..(b + 1).min(total)],
                format!("bytes {a}-{}/{total}", b.min(total - 1)),
            ),
            Some((a, _)) if a >= total && !ignore => return self.send(stream, 416, &[], b""),
            _ => (200, &content[..], String::new()),
        };
        let mut headers = vec![("ETag", etag.as_str()), ("X-Repo-Commit", COMMIT)];
        if status == 206 {
            headers.push(("Content-Range", &place));
        }
        if self.faults.mixed && n % 3 == 0 && body.len() > 10 {
            // Cut the connection in the middle.
            let _ = head(stream, status, &headers, body.len());
            let mut s = stream;
            let _ = s.write_all(&body[..body.len() / 2]);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return false;
        }
        self.send(stream, status, &headers, body)
    }

    fn send(
        &self,
        mut stream: &TcpStream,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> bool {
        head(stream, status, headers, body.len()).is_ok() && stream.write_all(body).is_ok()
    }
}

fn head(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    length: usize,
) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
    for (k, v) in headers {
        text.push_str(&format!("{k}: {v}\r\n"));
    }
    stream.write_all((text + "\r\n").as_bytes())
}

fn encode(s: &str) -> String {
    s.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-_./".contains(&b) {
                (b as char).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

fn decode(s: &str) -> String {
    let (mut out, bytes, mut i) = (Vec::new(), s.as_bytes(), 0);
    while i < bytes.len() {
        match (bytes[i], s.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(b)) => {
                out.push(b);
                i += 3;
            }
            (b, _) => {
                out.push(b);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

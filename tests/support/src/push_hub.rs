//! A hub on the loopback interface that receives pushes, and checks each commit by itself.
//!
//! In: the requests of a push: repository, listing, preupload, LFS batch, xet token, xorbs and
//! shards, commit as NDJSON. Out: repositories whose files are put together from what was sent, a
//! list of what was wrong, the bytes that arrived. Nothing of the client's code is used: the
//! storage format is read by [`xet_store`](crate::xet_store).

use crate::xet_store::Store;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The token that may write.
pub const TOKEN: &str = "hf_thetokenthatmaywrite";
/// What the storage is asked with; a hub hands it out.
const STORAGE_TOKEN: &str = "xet_tokenofthestorage";

/// A repository on its main branch.
#[derive(Debug, Clone, Default)]
pub struct Repo {
    /// Whether only its owner sees it.
    pub private: bool,
    /// Titles of the commits, oldest first.
    pub commits: Vec<String>,
    /// Path → content, on the main branch.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// What the hub does wrong.
#[derive(Debug, Clone, Default)]
pub struct PushFaults {
    /// Xorbs that are answered before the storage fails for good, once; then it works.
    pub xorbs_before_a_cut: Option<usize>,
    /// The storage takes xorbs, and fails where files are made of them.
    pub refuses_shards: bool,
    /// Requests to make a repository are redirected there.
    pub redirects_to: Option<String>,
    /// What LFS batches answer instead of `xet`.
    pub transfer: Option<&'static str>,
    /// The address of the storage, instead of the right one.
    pub storage: Option<String>,
    /// The commit is answered, and nothing happens.
    pub loses_commits: bool,
    /// Somebody else commits before each commit.
    pub moves: bool,
    /// What refusals say.
    pub says: Option<String>,
}

/// What a hub holds and has seen.
#[derive(Default)]
pub struct Held {
    /// By `datasets/ORG/NAME` or `models/ORG/NAME`.
    pub repos: BTreeMap<String, Repo>,
    /// What cannot be right in what was sent.
    pub wrong: Vec<String>,
    /// Method and path of each request, to the hub and to its storage.
    pub asked: Vec<String>,
    /// Bytes of xorbs that arrived.
    pub xorb_bytes: u64,
    /// Called before a commit is looked at.
    pub before_commit: Option<Box<dyn FnMut() + Send>>,
    /// Called when a xorb arrives.
    pub on_xorb: Option<Box<dyn FnMut() + Send>>,
    /// What it does wrong.
    pub faults: PushFaults,
    store: Store,
    xorbs: usize,
}

/// A running hub with its storage.
pub struct PushHub {
    /// For `HF_ENDPOINT`.
    pub url: String,
    /// The storage's own origin.
    pub storage: String,
    held: Arc<Mutex<Held>>,
}

struct Asked {
    method: String,
    path: String,
    query: String,
    token: Option<String>,
    body: Vec<u8>,
}

impl PushHub {
    /// Starts a hub without repositories; it runs until the process ends.
    pub fn start(faults: PushFaults) -> PushHub {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [url, storage] =
            [0, 1].map(|k: usize| format!("http://{}", listeners[k].local_addr().unwrap()));
        let held = Arc::new(Mutex::new(Held { faults, ..Default::default() }));
        for (k, listener) in listeners.into_iter().enumerate() {
            let (held, url, storage) = (held.clone(), url.clone(), storage.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (held, url, storage) = (held.clone(), url.clone(), storage.clone());
                    std::thread::spawn(move || {
                        while let Some(asked) = read(&stream) {
                            let mut held = held.lock().unwrap();
                            held.asked.push(format!("{} {}", asked.method, asked.path));
                            let (status, headers, body) = match k {
                                0 => held.hub(&asked, &url, &storage),
                                _ => held.storage(&asked),
                            };
                            drop(held);
                            if answer(&stream, status, &headers, &body).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        }
        PushHub { url, storage, held }
    }

    /// What it holds.
    pub fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    /// A copy of a repository: `datasets/ORG/NAME` or `models/ORG/NAME`.
    pub fn repo(&self, name: &str) -> Option<Repo> {
        self.held().repos.get(name).cloned()
    }
}

type Answer = (u16, Vec<(String, String)>, Vec<u8>);

fn plain(status: u16, body: Value) -> Answer {
    (status, Vec::new(), body.to_string().into_bytes())
}

/// The commit that stands for a number of commits.
fn commit_id(n: usize) -> String {
    format!("{n:040x}")
}

/// git's id of a content, by the `sha1sum` of the system; its sha256's beginning where there is
/// none.
fn git_id(content: &[u8]) -> String {
    let mut blob = format!("blob {}\0", content.len()).into_bytes();
    blob.extend_from_slice(content);
    let run = std::process::Command::new("sha1sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut run) = run else { return dlm_datasets::hash::sha256(content)[..40].to_string() };
    run.stdin.take().unwrap().write_all(&blob).unwrap();
    let said = run.wait_with_output().unwrap().stdout;
    String::from_utf8_lossy(&said[..40]).into_owned()
}

/// Whether a hub stores a file as a large one.
fn is_large(path: &str, bytes: u64) -> bool {
    bytes > 10_000_000 || path.ends_with(".safetensors") || path.ends_with(".arrow")
}

impl Held {
    fn refuse(&self, status: u16, code: &str) -> Answer {
        let says = self.faults.says.clone().unwrap_or_else(|| "no".to_string());
        let header = vec![("X-Error-Code".to_string(), code.to_string())];
        (status, header, json!({"error": says}).to_string().into_bytes())
    }

    fn hub(&mut self, asked: &Asked, url: &str, storage: &str) -> Answer {
        if asked.token.as_deref() != Some(TOKEN) {
            return self.refuse(401, "");
        }
        let parts: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
        match (asked.method.as_str(), &parts[..]) {
            ("POST", ["api", "repos", "create"]) => self.create(&asked.body),
            (_, ["api", kind @ ("datasets" | "models"), org, name, rest @ ..]) => {
                let key = format!("{kind}/{org}/{name}");
                if !self.repos.contains_key(&key) {
                    return self.refuse(404, "RepoNotFound");
                }
                self.api(asked, &key, rest, url, storage)
            }
            ("POST", [.., last, "info", "lfs", "objects", "batch"]) if last.ends_with(".git") => {
                let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
                let objects = body["objects"].as_array().cloned().unwrap_or_default();
                let whole = |o: &Value| o["oid"].as_str().is_some_and(|s| s.len() == 64);
                if objects.is_empty() || !objects.iter().all(whole) {
                    self.wrong.push(format!("LFS batch: {body}"));
                }
                let transfer = self.faults.transfer.unwrap_or("xet");
                plain(200, json!({"transfer": transfer, "objects": objects}))
            }
            _ => self.refuse(404, "EntryNotFound"),
        }
    }

    fn create(&mut self, body: &[u8]) -> Answer {
        if let Some(to) = &self.faults.redirects_to {
            return (307, vec![("Location".to_string(), to.clone())], Vec::new());
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let (org, name) = (body["organization"].as_str(), body["name"].as_str());
        let (Some(org), Some(name), Some(private)) = (org, name, body["private"].as_bool()) else {
            self.wrong.push(format!("create: {body}"));
            return self.refuse(400, "");
        };
        if org == "theirs" {
            return self.refuse(403, "");
        }
        let key = format!("{}s/{org}/{name}", body["type"].as_str().unwrap_or("model"));
        if self.repos.contains_key(&key) {
            return self.refuse(409, "");
        }
        // As hubs do, the first commit is theirs.
        let files = BTreeMap::from([(".gitattributes".to_string(), b"*.arrow lfs\n".to_vec())]);
        let commits = vec!["initial commit".to_string()];
        self.repos.insert(key, Repo { private, commits, files });
        plain(200, json!({"url": format!("https://hub/{org}/{name}")}))
    }

    fn api(&mut self, asked: &Asked, key: &str, rest: &[&str], url: &str, storage: &str) -> Answer {
        match (asked.method.as_str(), rest) {
            ("GET", ["revision", "main"]) => {
                let n = self.repos[key].commits.len();
                plain(200, json!({"sha": commit_id(n)}))
            }
            ("GET", ["tree", _]) => self.tree(asked, key, url),
            ("GET", ["xet-write-token", "main"]) => {
                let at = self.faults.storage.clone().unwrap_or_else(|| storage.to_string());
                plain(
                    200,
                    json!({"casUrl": at, "accessToken": STORAGE_TOKEN, "exp": 4102444800u64}),
                )
            }
            ("POST", ["preupload", "main"]) => {
                let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
                let mode = |f: &Value| {
                    let path = f["path"].as_str().unwrap_or_default();
                    let large = is_large(path, f["size"].as_u64().unwrap_or(0));
                    json!({"path": path, "uploadMode": if large { "lfs" } else { "regular" }})
                };
                let files: Vec<Value> =
                    body["files"].as_array().into_iter().flatten().map(mode).collect();
                plain(200, json!({"files": files}))
            }
            ("POST", ["commit", "main"]) => self.commit(asked, key),
            _ => self.refuse(404, "EntryNotFound"),
        }
    }

    /// A page of the listing, three entries long.
    fn tree(&self, asked: &Asked, key: &str, url: &str) -> Answer {
        let entries: Vec<Value> = self.repos[key]
            .files
            .iter()
            .filter(|(path, _)| asked.query.contains("recursive=true") || !path.contains('/'))
            .map(|(path, content)| {
                let size = content.len();
                let mut entry =
                    json!({"type": "file", "path": path, "size": size, "oid": git_id(content)});
                if is_large(path, size as u64) {
                    let sha256 = dlm_datasets::hash::sha256(content);
                    entry["lfs"] = json!({"oid": sha256, "size": size, "pointerSize": 134});
                    entry["xetHash"] = json!("ab".repeat(32));
                }
                entry
            })
            .collect();
        let page = asked.query.split('&').find_map(|q| q.strip_prefix("cursor="));
        let from = page.and_then(|c| c.parse().ok()).unwrap_or(0) * 3;
        let shown: Vec<&Value> = entries.iter().skip(from).take(3).collect();
        let next =
            format!("<{url}{}?recursive=true&cursor={}>; rel=\"next\"", asked.path, from / 3 + 1);
        let headers = match entries.len() > from + 3 {
            true => vec![("Link".to_string(), next)],
            false => Vec::new(),
        };
        (200, headers, json!(shown).to_string().into_bytes())
    }

    fn commit(&mut self, asked: &Asked, key: &str) -> Answer {
        if let Some(mut call) = self.before_commit.take() {
            call();
        }
        if self.faults.moves
            && let Some(repo) = self.repos.get_mut(key)
        {
            repo.commits.push("somebody else's".to_string());
        }
        let mut repo = self.repos[key].clone();
        let mut title = None;
        for line in asked.body.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let Ok(line) = serde_json::from_slice::<Value>(line) else {
                self.wrong.push("commit: a line that is no JSON".to_string());
                return self.refuse(400, "");
            };
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_string();
            match line["key"].as_str().unwrap_or_default() {
                "header" => {
                    title = value["summary"].as_str().map(String::from);
                    let parent = value["parentCommit"].as_str();
                    if parent.is_some_and(|p| p != commit_id(repo.commits.len())) {
                        return self.refuse(412, "");
                    }
                }
                "file" => {
                    let content = base64(value["content"].as_str().unwrap_or_default());
                    let Some(content) = content.filter(|c| !is_large(&path, c.len() as u64)) else {
                        self.wrong.push(format!("commit: {path} within the commit"));
                        return self.refuse(400, "");
                    };
                    repo.files.insert(path, content);
                }
                "lfsFile" => {
                    let oid = value["oid"].as_str().unwrap_or_default();
                    match self.store.file(oid) {
                        Some(content) if value["size"].as_u64() == Some(content.len() as u64) => {
                            repo.files.insert(path, content);
                        }
                        _ => {
                            self.wrong.push(format!("commit: {path} is not in the storage"));
                            return self.refuse(400, "LfsFileMissing");
                        }
                    }
                }
                "deletedFile" => {
                    if repo.files.remove(&path).is_none() {
                        self.wrong.push(format!("commit: removes {path}, which is not there"));
                    }
                }
                other => self.wrong.push(format!("commit: {other}")),
            }
        }
        repo.commits.push(title.unwrap_or_default());
        let oid = commit_id(repo.commits.len());
        if !self.faults.loses_commits {
            self.repos.insert(key.to_string(), repo);
        }
        plain(200, json!({"success": true, "commitOid": oid, "commitUrl": "https://hub/x"}))
    }

    fn storage(&mut self, asked: &Asked) -> Answer {
        if asked.token.as_deref() != Some(STORAGE_TOKEN) {
            let told = asked.token.clone().unwrap_or_default();
            self.wrong.push(format!("storage: asked {} with the token {told:?}", asked.path));
            return self.refuse(401, "");
        }
        let parts: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
        match (asked.method.as_str(), &parts[..]) {
            ("POST", ["v1", "xorbs", _, hash]) => {
                if let Some(mut call) = self.on_xorb.take() {
                    call();
                }
                self.xorbs += 1;
                if self.faults.xorbs_before_a_cut.is_some_and(|n| self.xorbs > n) {
                    return self.refuse(403, "");
                }
                self.xorb_bytes += asked.body.len() as u64;
                match self.store.add_xorb(hash, &asked.body) {
                    Ok(new) => plain(200, json!({"was_inserted": new})),
                    Err(why) => {
                        self.wrong.push(format!("xorb: {why}"));
                        self.refuse(400, "")
                    }
                }
            }
            // Asked before a xorb is sent: what is there is not sent again.
            ("POST", ["v1", "xorb-grants", _, hash]) if self.store.has_xorb(hash) => {
                plain(200, json!({}))
            }
            ("POST", ["v1", "shards"]) if self.faults.refuses_shards => self.refuse(403, ""),
            ("POST", ["v1", "shards"]) => match self.store.add_shard(&asked.body) {
                Ok(()) => plain(200, json!({"result": 1})),
                Err(why) => {
                    self.wrong.push(format!("shard: {why}"));
                    self.refuse(400, "")
                }
            },
            _ => self.refuse(404, ""),
        }
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(u32::from(c - b'A')),
        b'a'..=b'z' => Some(u32::from(c - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(c - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let text = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::new();
    for four in text.chunks(4) {
        let bits = four.iter().try_fold(0u32, |bits, c| Some(bits << 6 | digit(*c)?))?;
        let bits = bits << (6 * (4 - four.len()));
        out.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    Some(out)
}

/// Reads a request whole; none when the connection has ended.
fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    let (mut length, mut token, mut chunked) = (0, None, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((key, value)) = line.trim().split_once(':') else { break };
        match key.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "transfer-encoding" => chunked = true,
            "authorization" => {
                token = value.trim().strip_prefix("Bearer ").map(String::from);
            }
            "expect" => {
                let mut stream = stream;
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    while chunked {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        body.extend_from_slice(&chunk[..size]);
        chunked = size > 0;
    }
    let mut words = first.split_whitespace();
    let method = words.next()?.to_string();
    let target = words.next()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Some(Asked { method, path: path.to_string(), query: query.to_string(), token, body })
}

fn answer(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (key, value) in headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    stream.write_all(&[head.as_bytes(), b"\r\n", body].concat())
}

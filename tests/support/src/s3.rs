//! A bucket on the loopback interface that speaks S3's protocol, with faults.
//!
//! Real HTTP over TCP: objects whole and in parts, byte ranges, HEAD, listings in pages, deletion.
//! ETags are MD5s, as S3 gives them. Faults are spread deterministically over the requests.
//! Signatures are not checked; that there is one is.

use md5::{Digest, Md5};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the bucket does wrong.
#[derive(Debug, Default)]
pub struct S3Faults {
    /// At fixed intervals of requests: status 503, a connection that is cut before the answer, one
    /// that is cut in the middle of a body.
    pub mixed: AtomicBool,
    /// Every request is answered with 503.
    pub down: AtomicBool,
    /// Every request is answered with 403.
    pub denied: AtomicBool,
    /// Answers to uploads wait this many milliseconds.
    pub slow_ms: AtomicUsize,
    /// So many requests are never answered.
    pub stalls: AtomicUsize,
    /// So many uploads lose their second half, and are acknowledged.
    pub halves: AtomicUsize,
    /// So many uploads are stored with another byte, and are acknowledged.
    pub wrong: AtomicUsize,
    /// So many listings end after two names and do not say so.
    pub short_lists: AtomicUsize,
}

/// A stored object.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The bytes that a client sent.
    pub content: Vec<u8>,
    /// Its ETag, with quotes.
    pub tag: String,
}

type Objects = Arc<Mutex<BTreeMap<String, Stored>>>;

/// A running bucket.
pub struct S3 {
    /// For `AWS_ENDPOINT_URL`.
    pub url: String,
    /// Objects by `BUCKET/KEY`.
    pub objects: Objects,
    /// What it does wrong; may be changed at any time.
    pub faults: Arc<S3Faults>,
    /// A line per request: method and target.
    pub log: Arc<Mutex<Vec<String>>>,
    /// Uploads in parts that were begun and neither completed nor given up.
    pub open_uploads: Arc<Mutex<BTreeMap<String, BTreeMap<usize, Vec<u8>>>>>,
}

/// Names of a page of a listing.
const PAGE: usize = 5;

impl S3 {
    /// Serves empty buckets until the process ends.
    pub fn start() -> S3 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let s3 = S3 {
            url: format!("http://{}", listener.local_addr().unwrap()),
            objects: Objects::default(),
            faults: Arc::default(),
            log: Arc::default(),
            open_uploads: Arc::default(),
        };
        let served = Arc::new(Served {
            objects: s3.objects.clone(),
            faults: s3.faults.clone(),
            log: s3.log.clone(),
            uploads: s3.open_uploads.clone(),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || while served.answer(&stream).unwrap_or(false) {});
            }
        });
        s3
    }

    /// The variables of the environment that lead a program here. The secret is one to look for.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.url.clone()),
            ("AWS_ALLOW_HTTP", "true".to_string()),
            ("AWS_REGION", "us-east-1".to_string()),
            ("AWS_ACCESS_KEY_ID", "AKIDOFATEST".to_string()),
            ("AWS_SECRET_ACCESS_KEY", "hunter2secretofatest".to_string()),
            ("AWS_TIMEOUT", "4s".to_string()),
            ("DLM_BUCKET_PAUSE_MS", "5".to_string()),
            ("DLM_BUCKET_PATIENCE_MS", "20000".to_string()),
        ]
    }

    /// Puts an object.
    pub fn put(&self, key: &str, content: &[u8]) {
        let stored = Stored { content: content.to_vec(), tag: tag(content) };
        self.objects.lock().unwrap().insert(key.to_string(), stored);
    }

    /// Puts the files below a folder.
    pub fn put_folder(&self, key: &str, dir: &std::path::Path) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let key = format!("{key}/{}", path.file_name().unwrap().to_string_lossy());
            match path.is_dir() {
                true => self.put_folder(&key, &path),
                false => self.put(&key, &std::fs::read(&path).unwrap()),
            }
        }
    }

    /// The content of an object.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.objects.lock().unwrap().get(key).map(|stored| stored.content.clone())
    }

    /// The keys that begin with a text.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        objects.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }
}

/// The ETag of a content that is written at once.
fn tag(content: &[u8]) -> String {
    format!("\"{}\"", hex(&Md5::digest(content)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Served {
    objects: Objects,
    faults: Arc<S3Faults>,
    log: Arc<Mutex<Vec<String>>>,
    uploads: Arc<Mutex<BTreeMap<String, BTreeMap<usize, Vec<u8>>>>>,
}

struct Request {
    method: String,
    /// `BUCKET/KEY`.
    path: String,
    query: BTreeMap<String, String>,
    range: Option<(usize, usize)>,
    body: Vec<u8>,
}

impl Served {
    /// Answers one request and returns whether the connection stays open.
    fn answer(&self, stream: &TcpStream) -> std::io::Result<bool> {
        let Some((request, signed)) = read_request(stream)? else { return Ok(false) };
        let n = {
            let mut log = self.log.lock().unwrap();
            log.push(format!("{} {} {:?}", request.method, request.path, request.query));
            log.len()
        };
        let faults = &self.faults;
        if !signed || faults.denied.load(Ordering::SeqCst) {
            return send(stream, 403, &[], b"<Error><Code>AccessDenied</Code></Error>");
        }
        if faults.down.load(Ordering::SeqCst) {
            return send(stream, 503, &[], b"<Error><Code>ServiceUnavailable</Code></Error>");
        }
        if take_one(&faults.stalls) {
            std::thread::sleep(Duration::from_secs(5));
            return Ok(false);
        }
        let mixed = faults.mixed.load(Ordering::SeqCst);
        if mixed && n % 7 == 2 {
            return send(stream, 503, &[], b"<Error><Code>SlowDown</Code></Error>");
        }
        if mixed && n % 11 == 5 {
            return Ok(false);
        }
        let cut = mixed && n % 5 == 3;
        match request.method.as_str() {
            "PUT" => self.put(stream, request),
            "POST" => self.post(stream, request),
            "DELETE" => {
                match request.query.get("uploadId") {
                    Some(id) => drop(self.uploads.lock().unwrap().remove(id)),
                    None => drop(self.objects.lock().unwrap().remove(&request.path)),
                }
                send(stream, 204, &[], b"")
            }
            _ if request.query.contains_key("list-type") => self.list(stream, &request, cut),
            _ => self.get(stream, &request, cut),
        }
    }

    fn put(&self, stream: &TcpStream, mut request: Request) -> std::io::Result<bool> {
        let slow = self.faults.slow_ms.load(Ordering::SeqCst) as u64;
        std::thread::sleep(Duration::from_millis(slow));
        if !request.body.is_empty() && take_one(&self.faults.halves) {
            request.body.truncate(request.body.len() / 2);
        }
        if !request.body.is_empty() && take_one(&self.faults.wrong) {
            request.body[0] ^= 1;
        }
        let tag = tag(&request.body);
        if let (Some(id), Some(part)) =
            (request.query.get("uploadId"), request.query.get("partNumber"))
        {
            let mut uploads = self.uploads.lock().unwrap();
            let Some(parts) = uploads.get_mut(id) else {
                return send(stream, 404, &[], b"<Error><Code>NoSuchUpload</Code></Error>");
            };
            parts.insert(part.parse().unwrap_or_default(), request.body);
            return send(stream, 200, &[("ETag", &tag)], b"");
        }
        let stored = Stored { content: request.body, tag: tag.clone() };
        self.objects.lock().unwrap().insert(request.path, stored);
        send(stream, 200, &[("ETag", &tag)], b"")
    }

    fn post(&self, stream: &TcpStream, request: Request) -> std::io::Result<bool> {
        if request.query.contains_key("uploads") {
            let mut uploads = self.uploads.lock().unwrap();
            let id = format!("upload{}", self.log.lock().unwrap().len());
            uploads.insert(id.clone(), BTreeMap::new());
            let text = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            return send(stream, 200, &[], text.as_bytes());
        }
        if let Some(id) = request.query.get("uploadId") {
            let Some(parts) = self.uploads.lock().unwrap().remove(id) else {
                return send(stream, 404, &[], b"<Error><Code>NoSuchUpload</Code></Error>");
            };
            let sums: Vec<u8> =
                parts.values().flat_map(|p| <[u8; 16]>::from(Md5::digest(p))).collect();
            let tag = format!("\"{}-{}\"", hex(&Md5::digest(sums)), parts.len());
            let content = parts.into_values().flatten().collect();
            let text = format!(
                "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
            );
            self.objects.lock().unwrap().insert(request.path, Stored { content, tag });
            return send(stream, 200, &[], text.as_bytes());
        }
        // deletion of several objects
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let bucket = request.path.split('/').next().unwrap_or_default().to_string();
        let mut deleted = String::new();
        for key in body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
            self.objects.lock().unwrap().remove(&format!("{bucket}/{key}"));
            deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        send(stream, 200, &[], format!("<DeleteResult>{deleted}</DeleteResult>").as_bytes())
    }

    fn list(&self, stream: &TcpStream, request: &Request, cut: bool) -> std::io::Result<bool> {
        let of = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let bucket = request.path.trim_end_matches('/').to_string();
        let prefix = format!("{bucket}/{}", of("prefix"));
        let after = match (of("continuation-token"), of("start-after")) {
            (token, _) if !token.is_empty() => token,
            (_, after) => after,
        };
        let objects = self.objects.lock().unwrap();
        let from = (Bound::Excluded(format!("{bucket}/{after}")), Bound::Unbounded);
        let mut found: Vec<(&String, &Stored)> =
            objects.range(from).filter(|(key, _)| key.starts_with(&prefix)).collect();
        let more = found.len() > PAGE;
        let short = found.len() > 2 && take_one(&self.faults.short_lists);
        found.truncate(if short { 2 } else { PAGE });
        let mut text = String::from("<ListBucketResult>");
        for (key, stored) in &found {
            text += &format!(
                "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
                &key[bucket.len() + 1..],
                stored.tag.replace('"', "&quot;"),
                stored.content.len()
            );
        }
        if let Some((last, _)) = found.last().filter(|_| more && !short) {
            let last = &last[bucket.len() + 1..];
            text += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
        }
        text += "</ListBucketResult>";
        send_cut(stream, 200, &[], text.as_bytes(), cut)
    }

    fn get(&self, stream: &TcpStream, request: &Request, cut: bool) -> std::io::Result<bool> {
        let Some(stored) = self.objects.lock().unwrap().get(&request.path).cloned() else {
            let body: &[u8] = b"<Error><Code>NoSuchKey</Code></Error>";
            let body = if request.method == "HEAD" { b"" } else { body };
            return send(stream, 404, &[], body);
        };
        let total = stored.content.len();
        let when = ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT");
        let headers = [("ETag", stored.tag.as_str()), when];
        if request.method == "HEAD" {
            return head(stream, total, &headers);
        }
        let Some((from, to)) = request.range else {
            return send_cut(stream, 200, &headers, &stored.content, cut);
        };
        let to = (to + 1).min(total);
        let range = format!("bytes {from}-{}/{total}", to - 1);
        let headers = [headers[0], headers[1], ("Content-Range", &range)];
        send_cut(stream, 206, &headers, &stored.content[from..to], cut)
    }
}

/// Takes one of a number of faults.
pub(crate) fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

/// A request, and whether it is signed; none at the end of the connection.
fn read_request(stream: &TcpStream) -> std::io::Result<Option<(Request, bool)>> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let (mut length, mut range, mut signed) = (0, None, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((key, value)) = line.trim().split_once(':') else { break };
        let value = value.trim();
        match key.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "authorization" => signed = true,
            "range" => {
                let ends = value.strip_prefix("bytes=").and_then(|r| r.split_once('-'));
                range = ends.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key.to_string(), decode(&value.replace('+', " ")))
    });
    let request = Request {
        method: method.to_string(),
        path: decode(path.trim_start_matches('/')),
        query: query.collect(),
        range,
        body,
    };
    Ok(Some((request, signed)))
}

fn decode(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(b) = bytes.next() {
        let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16)).unwrap_or(0) as u8;
        out.push(match b {
            b'%' => digit(bytes.next()) << 4 | digit(bytes.next()),
            b => b,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn send(
    stream: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<bool> {
    send_cut(stream, status, headers, body, false)
}

/// Sends an answer; with `cut` the connection ends in the middle of its body.
fn send_cut(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    cut: bool,
) -> std::io::Result<bool> {
    stream.write_all(start(status, body.len(), headers).as_bytes())?;
    let cut = cut && body.len() > 1;
    stream.write_all(&body[..if cut { body.len() / 2 } else { body.len() }])?;
    Ok(!cut)
}

fn head(mut stream: &TcpStream, length: usize, headers: &[(&str, &str)]) -> std::io::Result<bool> {
    stream.write_all(start(200, length, headers).as_bytes())?;
    Ok(true)
}

fn start(status: u16, length: usize, headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
    let length =
        if status == 204 { String::new() } else { format!("Content-Length: {length}\r\n") };
    format!("HTTP/1.1 {status} x\r\n{length}{headers}\r\n")
}

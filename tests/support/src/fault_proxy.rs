//! A proxy on the loopback interface that hands HTTP requests on to a server and does some of them
//! wrong.
//!
//! At fixed intervals of requests: status 503, a connection that is cut before the answer, an
//! answer that is cut in its middle. On demand: uploads with another byte, requests that are never
//! answered.

use crate::s3::{S3Faults, take_one};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A running proxy.
pub struct FaultProxy {
    /// For `AWS_ENDPOINT_URL`.
    pub url: String,
    /// What it does wrong: `mixed`, `stalls` and `wrong`.
    pub faults: Arc<S3Faults>,
}

impl FaultProxy {
    /// Hands requests on to a port of this machine until the process ends.
    pub fn start(port: u16) -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (faults, count) = (Arc::<S3Faults>::default(), Arc::new(AtomicUsize::new(0)));
        let of_proxy = faults.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (faults, count) = (of_proxy.clone(), count.clone());
                std::thread::spawn(move || {
                    while hand_on(&stream, port, &faults, &count).unwrap_or(false) {}
                });
            }
        });
        FaultProxy { url, faults }
    }
}

/// Hands one request on and returns whether the connection stays open.
fn hand_on(
    mut stream: &TcpStream,
    port: u16,
    faults: &S3Faults,
    count: &AtomicUsize,
) -> std::io::Result<bool> {
    let Some((mut head, length)) = read_head(&mut BufReader::with_capacity(1, stream))? else {
        return Ok(false);
    };
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let n = count.fetch_add(1, Ordering::SeqCst);
    if take_one(&faults.stalls) {
        std::thread::sleep(Duration::from_secs(5));
        return Ok(false);
    }
    let mixed = faults.mixed.load(Ordering::SeqCst);
    if mixed && n % 13 == 2 {
        let answer = "HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n";
        return stream.write_all(answer.as_bytes()).map(|()| true);
    }
    if mixed && n % 17 == 5 {
        return Ok(false);
    }
    if head.starts_with("PUT") && length > 100_000 && take_one(&faults.wrong) {
        body[length / 2] ^= 1;
    }
    // One request a connection, so that the answer ends with it.
    head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let mut server = TcpStream::connect(("127.0.0.1", port))?;
    server.write_all(head.as_bytes())?;
    server.write_all(&body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let cut = mixed && n % 11 == 3;
    stream.write_all(&answer[..if cut { answer.len() / 2 } else { answer.len() }])?;
    Ok(false)
}

/// The head of a request, without headers about the connection, and the length of its body; none at
/// the end of the connection.
fn read_head(reader: &mut impl BufRead) -> std::io::Result<Option<(String, usize)>> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if !lower.starts_with("connection:") {
            head += &line;
        }
        if line == "\r\n" {
            return Ok(Some((head, length)));
        }
    }
}

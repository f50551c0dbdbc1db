//! One HTTP request and its answer, read by the calling thread: time limits, failures in words.
//!
//! In: an address. Out: status, headers, and the body in chunks as they arrive. Nothing is followed
//! or sent again here (`client.rs` does). Connections live on the one thread of `runtime.rs`.

use crate::error::{Error, Result};
use crate::runtime::block_on;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE};
use std::error::Error as Source;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

/// How long a thread waits before it looks whether it shall stop.
const LOOK: Duration = Duration::from_millis(100);
/// What this program calls itself.
pub(crate) const AGENT: &str = concat!("dlm/", env!("CARGO_PKG_VERSION"));

/// Sends requests.
pub(crate) struct Transport {
    http: reqwest::Client,
    /// The longest time for headers, and between two chunks of a body.
    limit: Duration,
}

/// What is asked of an address.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What<'a> {
    /// Its content.
    All,
    /// Bytes of its content, the first and the last one.
    Part(u64, u64),
    /// What it answers to JSON.
    Post(&'a [u8]),
}

/// Why there is no answer, or no more of it.
pub(crate) enum Failed {
    /// The request or the body failed.
    Http(reqwest::Error),
    /// Nothing came in time.
    Late,
    /// The caller wants to stop.
    Stopped,
    /// There is no runtime.
    Here(Error),
}

impl Transport {
    /// A transport that waits at most `patience` for anything; `tls` says whether the hub's address
    /// needs certificates.
    pub(crate) fn new(patience: Duration, tls: bool) -> Result<Transport> {
        let connect = Duration::from_secs(20).min(patience);
        let settings = || {
            reqwest::Client::builder()
                .user_agent(AGENT)
                .connect_timeout(connect)
                // Redirects are followed where whole origins are compared, failures tried again
                // where the user is told.
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                // A compressed answer could be small on the wire and without an end in memory.
                .no_gzip()
                .no_brotli()
                .no_deflate()
                .no_zstd()
                // Each download has a connection, and so a window, of its own.
                .http1_only()
        };
        let http = match settings().build() {
            // A system without certificates; a hub on the loopback needs none.
            Err(_) if !tls => settings().tls_certs_only([]).build(),
            made => made,
        };
        let http = http.map_err(|e| no_client(&e))?;
        Ok(Transport { http, limit: Duration::from_secs(60).min(patience) })
    }

    /// Asks `url`, with the token.
    pub(crate) fn ask(
        &self,
        url: &str,
        what: What,
        token: Option<&str>,
        stop: &dyn Fn() -> bool,
    ) -> std::result::Result<Answer, Failed> {
        let request = match what {
            What::All => self.http.get(url),
            What::Part(from, to) => self.http.get(url).header(RANGE, format!("bytes={from}-{to}")),
            What::Post(json) => {
                let json = Bytes::copy_from_slice(json);
                self.http.post(url).header(CONTENT_TYPE, "application/json").body(json)
            }
        };
        let request = authorized(request, token)?;
        let response = wait(async { request.send().await }, self.limit, stop)?;
        Ok(Answer { response, limit: self.limit })
    }
}

/// An answer whose headers have arrived.
pub(crate) struct Answer {
    response: reqwest::Response,
    limit: Duration,
}

impl Answer {
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The first header of a name, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|v| v.to_str().ok())
    }

    /// All headers of a name.
    pub(crate) fn headers(&self, name: &str) -> Vec<String> {
        let all = self.response.headers().get_all(name).iter();
        all.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect()
    }

    /// The length that the headers state.
    pub(crate) fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// The longest time between two chunks.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// The next bytes of the body; none at its end.
    pub(crate) fn chunk(
        &mut self,
        stop: &dyn Fn() -> bool,
    ) -> std::result::Result<Option<Bytes>, Failed> {
        wait(self.response.chunk(), self.limit, stop)
    }
}

/// The request with the token, which no library may print.
fn authorized(
    request: reqwest::RequestBuilder,
    token: Option<&str>,
) -> std::result::Result<reqwest::RequestBuilder, Failed> {
    let Some(token) = token else { return Ok(request) };
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Failed::Here(Error::Internal("a token that is none".to_string())))?;
    value.set_sensitive(true);
    Ok(request.header(AUTHORIZATION, value))
}

/// Waits for `future` until `limit`, while `stop` is false.
fn wait<T>(
    future: impl Future<Output = reqwest::Result<T>>,
    limit: Duration,
    stop: &dyn Fn() -> bool,
) -> std::result::Result<T, Failed> {
    let end = Instant::now() + limit;
    let waiting = async {
        let mut future = pin!(future);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left.min(LOOK), &mut future).await {
                Ok(done) => return done.map_err(Failed::Http),
                Err(_) if stop() => return Err(Failed::Stopped),
                Err(_) if left <= LOOK => return Err(Failed::Late),
                Err(_) => {}
            }
        }
    };
    block_on(waiting).map_err(Failed::Here)?
}

impl Failed {
    /// Whether another attempt cannot succeed either.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Failed::Http(e) => {
                // How a certificate that is not trusted, or an answer without TLS, is reported.
                let no_tls =
                    system_error(e).is_some_and(|e| e.kind() == std::io::ErrorKind::InvalidData);
                e.is_builder() || no_tls || header_is_long(e)
            }
            Failed::Late => false,
            Failed::Stopped | Failed::Here(_) => true,
        }
    }

    /// Whether it may be that the host's name has no address: no connection, and no reason by the
    /// operating system.
    pub(crate) fn may_be_an_unknown_host(&self) -> bool {
        match self {
            Failed::Http(e) => {
                e.is_connect() && system_error(e).is_none_or(|e| e.raw_os_error().is_none())
            }
            _ => false,
        }
    }

    /// The cause in words, without addresses: a signed address is a secret.
    pub(crate) fn cause(&self) -> String {
        match self {
            Failed::Http(e) => cause(e),
            Failed::Late => "timed out".to_string(),
            Failed::Stopped => "stopped".to_string(),
            Failed::Here(e) => e.to_string(),
        }
    }
}

/// The cause of a failed request, without addresses.
pub(crate) fn cause(e: &reqwest::Error) -> String {
    match system_error(e) {
        // The operating system's own words hold no address.
        Some(e) if e.raw_os_error().is_some() => e.to_string(),
        Some(e) => e.kind().to_string(),
        None if e.is_timeout() => "timed out".to_string(),
        None if header_is_long(e) => "its header is too long".to_string(),
        None if e.is_redirect() => "it redirects elsewhere".to_string(),
        None if e.is_connect() => "connection failed".to_string(),
        None if e.is_body() || e.is_decode() => "it ended early".to_string(),
        None => "protocol error".to_string(),
    }
}

/// Why there is no HTTPS client, most often because the system has no certificates.
pub(crate) fn no_client(e: &reqwest::Error) -> Error {
    Error::Remote(format!(
        "no HTTPS client: {}; install the system's certificates (package ca-certificates), or name a file of them in SSL_CERT_FILE",
        innermost(e).trim_start_matches("unexpected error: ")
    ))
}

/// The causes of an error, from the outside in.
fn causes(e: &reqwest::Error) -> impl Iterator<Item = &(dyn Source + 'static)> {
    std::iter::successors(e.source(), |e| (*e).source())
}

/// The innermost cause, in its own words.
fn innermost(e: &reqwest::Error) -> String {
    causes(e).last().map_or_else(|| "unknown".to_string(), |e| e.to_string())
}

/// The input or output error among the causes.
fn system_error(e: &reqwest::Error) -> Option<&std::io::Error> {
    causes(e).filter_map(|e| e.downcast_ref::<std::io::Error>()).last()
}

fn header_is_long(e: &reqwest::Error) -> bool {
    causes(e).any(|e| e.to_string() == "message head is too large")
}

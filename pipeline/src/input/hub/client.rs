//! HTTP requests to a hub: token, time limits, retries with back-off, errors that say what to do.
//!
//! In: addresses under the endpoint. Out: responses. The token is sent to the endpoint's host only
//! and appears in no message.

use super::settings::HubSettings;
use crate::error::{Error, Result};
use crate::progress::Progress;
use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ATTEMPTS: u32 = 8;
/// Attempts if the host name cannot be resolved and the hub has never answered: most often a
/// mistyped folder on a machine without network.
const ATTEMPTS_UNKNOWN_HOST: u32 = 2;

/// An HTTP client for one hub, shared by the threads of a download.
pub(crate) struct HubClient<'a> {
    agent: ureq::Agent,
    /// The client's settings.
    pub settings: HubSettings,
    /// Gets a notice when a request is retried; background downloads have none.
    progress: Option<&'a dyn Progress>,
    /// Whether the hub has ever answered.
    answered: AtomicBool,
}

/// Why a request failed for good.
pub enum HubError {
    /// The hub answered 404: there is no such repository, revision or file.
    NotFound(Error),
    Other(Error),
}

impl From<HubError> for Error {
    fn from(e: HubError) -> Error {
        match e {
            HubError::NotFound(e) | HubError::Other(e) => e,
        }
    }
}

/// Why a response could not be read to its end.
pub(crate) enum TransferError {
    /// The request is sent again.
    Retry(String),
    /// The request has failed.
    Fatal(Error),
}

/// What follows from a failed attempt.
enum Failure {
    /// Another attempt, after the given pause if the hub names one.
    Retry(String, Option<Duration>),
    NotFound(Error),
    Fatal(Error),
}

impl<'a> HubClient<'a> {
    /// A client that retries silently.
    pub(crate) fn new(settings: HubSettings) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("dlm/", env!("CARGO_PKG_VERSION")))
            // For some files of a gated repository the hub redirects to another path of its own
            // host, which needs the token, too.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        HubClient {
            agent: config.new_agent(),
            settings,
            progress: None,
            answered: AtomicBool::new(false),
        }
    }

    /// A client that reports retries as notices.
    pub(crate) fn with_progress(settings: HubSettings, progress: &'a dyn Progress) -> Self {
        HubClient { progress: Some(progress), ..HubClient::new(settings) }
    }

    /// `url` as it may be shown: without user name, password and query.
    fn shown(url: &str) -> String {
        match url.split_once("://") {
            Some((scheme, rest)) => {
                let (host, tail) = rest.split_once('/').unwrap_or((rest, ""));
                let tail = tail.split('?').next().unwrap_or("");
                format!("{scheme}://{}/{tail}", host.rsplit('@').next().unwrap_or(host))
            }
            None => url.to_string(),
        }
    }

    fn remote(url: &str, reason: impl Into<String>) -> Error {
        Error::Input { path: Self::shown(url), reason: reason.into() }
    }

    /// GETs `url`, of the content only bytes `range.0..=range.1` if a range is given. `read` reads
    /// the response; after [`TransferError::Retry`] the request is sent again. `stop` is polled and
    /// ends the request early with [`Error::Interrupted`].
    pub(crate) fn get<T>(
        &self,
        url: &str,
        range: Option<(u64, u64)>,
        stop: &dyn Fn() -> bool,
        mut read: impl FnMut(ureq::http::Response<ureq::Body>) -> std::result::Result<T, TransferError>,
    ) -> std::result::Result<T, HubError> {
        let other = |e: Error| Err(HubError::Other(e));
        if !url.starts_with(&format!("{}/", self.settings.endpoint)) {
            return other(Self::remote(url, "is not on the hub's own host; refused"));
        }
        let mut pause = self.settings.pause;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if stop() {
                return other(Error::Interrupted);
            }
            if attempt > 0 {
                if let (Some(progress), 2..) = (self.progress, attempt) {
                    progress.notice(&format!(
                        "{}: {last}; attempt {} of {ATTEMPTS} in {:.0} s",
                        Self::shown(url),
                        attempt + 1,
                        pause.as_secs_f64().ceil()
                    ));
                }
                sleep(pause, stop);
                pause = (pause * 2).min(Duration::from_secs(30));
            }
            let mut request = self.agent.get(url);
            if let Some(token) = &self.settings.token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if let Some((from, to)) = range {
                request = request.header("Range", format!("bytes={from}-{to}"));
            }
            let failure = match request.call() {
                Ok(response) => {
                    self.answered.store(true, Ordering::Relaxed);
                    match self.failure_of(url, &response) {
                        Some(failure) => failure,
                        None => match read(response) {
                            Ok(v) => return Ok(v),
                            Err(TransferError::Retry(why)) => Failure::Retry(why, None),
                            Err(TransferError::Fatal(e)) => Failure::Fatal(e),
                        },
                    }
                }
                Err(e) if !self.answered.load(Ordering::Relaxed) && self.host_is_unknown(&e) => {
                    if attempt + 1 < ATTEMPTS_UNKNOWN_HOST {
                        Failure::Retry("no answer (host not found)".to_string(), None)
                    } else {
                        let reason = "its host is not found; is the network there, and HF_ENDPOINT right? (a local folder needs neither)";
                        Failure::Fatal(Self::remote(url, reason))
                    }
                }
                Err(e) => Failure::Retry(format!("no answer ({})", describe(&e)), None),
            };
            match failure {
                Failure::NotFound(e) => return Err(HubError::NotFound(e)),
                Failure::Fatal(e) => return other(e),
                Failure::Retry(why, wait) => {
                    last = why;
                    if let Some(w) = wait {
                        pause = w.min(Duration::from_secs(120));
                    }
                }
            }
        }
        other(Self::remote(
            url,
            format!(
                "gave up after {ATTEMPTS} attempts: {last}; is the network there, and HF_ENDPOINT right? (a local folder needs neither)"
            ),
        ))
    }

    /// Whether a request failed because the endpoint's host name has no address. The system's
    /// resolver reports that as an I/O error without a kind of its own, so the name is looked up
    /// again to tell.
    fn host_is_unknown(&self, e: &ureq::Error) -> bool {
        match e {
            ureq::Error::HostNotFound => true,
            ureq::Error::Io(e) if e.raw_os_error().is_none() => {
                let endpoint = self.settings.endpoint.parse::<ureq::http::Uri>();
                let host = endpoint.ok().and_then(|u| u.host().map(String::from));
                host.is_some_and(|host| (host.as_str(), 443).to_socket_addrs().is_err())
            }
            _ => false,
        }
    }

    /// What follows from the status of a response; none if it was successful.
    fn failure_of(&self, url: &str, r: &ureq::http::Response<ureq::Body>) -> Option<Failure> {
        let status = r.status().as_u16();
        let header = |k: &str| r.headers().get(k).and_then(|v| v.to_str().ok());
        Some(match status {
            200..=299 => return None,
            429 | 500 | 502 | 503 | 504 | 408 => {
                let wait = header("retry-after")
                    .and_then(|v| v.trim().parse().ok())
                    .map(Duration::from_secs);
                Failure::Retry(format!("the hub answers {status}"), wait)
            }
            401 | 403 => {
                let gated = header("x-error-code") == Some("GatedRepo");
                let cause = match (gated, &self.settings.token) {
                    (true, None) => {
                        "the repository is gated: open its page on the hub, accept its conditions, then set HF_TOKEN to a token of that account"
                    }
                    (true, Some(_)) => {
                        "the repository is gated and the account of this token has no access yet: open its page on the hub and accept its conditions (some wait for approval)"
                    }
                    (false, Some(_)) => {
                        "the token in HF_TOKEN is expired, or has no access to this repository"
                    }
                    (false, None) => {
                        "there is no such repository, or it is gated or private: check the name, or set HF_TOKEN"
                    }
                };
                Failure::Fatal(Self::remote(url, format!("the hub answers {status}: {cause}")))
            }
            404 => {
                let code = header("x-error-code")
                    .unwrap_or("no such repository, revision or file (a private one looks the same without HF_TOKEN)");
                Failure::NotFound(Self::remote(url, format!("the hub answers 404: {code}")))
            }
            _ => Failure::Fatal(Self::remote(url, format!("the hub answers {status}"))),
        })
    }

    /// GETs JSON; the value, and the address of the next page if there is one.
    pub(crate) fn json(
        &self,
        url: &str,
    ) -> std::result::Result<(serde_json::Value, Option<String>), HubError> {
        self.get(url, None, &|| false, |mut response| {
            let link =
                response.headers().get("link").and_then(|v| v.to_str().ok()).and_then(next_page);
            let text =
                response.body_mut().with_config().limit(256 << 20).read_to_string().map_err(
                    |e| TransferError::Retry(format!("answer cut short ({})", describe(&e))),
                )?;
            let value = serde_json::from_str(&text)
                .map_err(|e| TransferError::Retry(format!("answer is not JSON ({e})")))?;
            Ok((value, link))
        })
    }

    /// GETs JSON; none if the hub answers 404.
    pub(crate) fn json_if_found(&self, url: &str) -> Result<Option<serde_json::Value>> {
        match self.json(url) {
            Ok((value, _)) => Ok(Some(value)),
            Err(HubError::NotFound(_)) => Ok(None),
            Err(HubError::Other(e)) => Err(e),
        }
    }
}

/// The cause of a failed request, without addresses: a signed address is a secret.
fn describe(e: &ureq::Error) -> String {
    match e {
        // The operating system's own words hold no address.
        ureq::Error::Io(e) if e.raw_os_error().is_some() => e.to_string(),
        ureq::Error::Io(e) => e.kind().to_string(),
        ureq::Error::Timeout(_) => "timed out".to_string(),
        ureq::Error::HostNotFound => "host not found".to_string(),
        ureq::Error::ConnectionFailed => "connection failed".to_string(),
        ureq::Error::TooManyRedirects => "too many redirects".to_string(),
        _ => "protocol error".to_string(),
    }
}

fn sleep(pause: Duration, stop: &dyn Fn() -> bool) {
    let end = std::time::Instant::now() + pause;
    while std::time::Instant::now() < end && !stop() {
        std::thread::sleep(Duration::from_millis(20).min(pause));
    }
}

/// The `rel="next"` address of a Link header.
fn next_page(link: &str) -> Option<String> {
    link.split(',').find_map(|part| {
        let (address, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        rest.contains("rel=\"next\"").then(|| address.to_string())
    })
}

/// A path, percent-encoded for an address.
pub(crate) fn encode(path: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(b as char)
            }
            b'/' if keep_slash => out.push('/'),
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that cannot be resolved ends the request after two attempts; a refused connection,
    /// whose host is known, does not count as one.
    #[test]
    fn unknown_hosts() {
        let client = |endpoint: &str| {
            HubClient::new(HubSettings {
                endpoint: endpoint.to_string(),
                token: None,
                cache: "cache".into(),
                offline: false,
                pause: Duration::from_millis(1),
            })
        };
        let message = |endpoint: &str| {
            let url = format!("{endpoint}/api/models/a/b");
            client(endpoint).json_if_found(&url).unwrap_err().to_string()
        };
        let unknown = message("http://no-such-host.invalid");
        assert!(unknown.contains("its host is not found"), "{unknown}");
        let refused = message("http://127.0.0.1:9");
        assert!(refused.contains("gave up after 8 attempts"), "{refused}");
    }

    #[test]
    fn addresses() {
        assert_eq!(encode("refs/convert/parquet", false), "refs%2Fconvert%2Fparquet");
        assert_eq!(encode("SFT/a b/é.jsonl", true), "SFT/a%20b/%C3%A9.jsonl");
        assert_eq!(
            next_page("<https://h/x?cursor=a>; rel=\"next\""),
            Some("https://h/x?cursor=a".to_string())
        );
        assert_eq!(next_page("<https://h/x>; rel=\"prev\""), None);
        assert_eq!(HubClient::shown("https://me:secret@h/x?sig=1"), "https://h/x");
    }
}

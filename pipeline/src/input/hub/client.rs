//! HTTP requests to a hub: token, time limits, retries with back-off, errors that say what to do.
//!
//! In: addresses under the endpoint. Out: responses. The token is sent to the endpoint's origin
//! only (scheme, host and port), also after redirects, and appears in no message. Every request
//! ends: its parts have time limits, its attempts together one of their own
//! ([`HubSettings::patience`]).

use super::address::{Origin, redirect, shown};
use super::settings::HubSettings;
use super::transport::{Answer, Failed, Transport, What};
use crate::error::{Error, Result};
use crate::progress::Progress;
use serde::de::DeserializeOwned;
use std::net::ToSocketAddrs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ATTEMPTS: u32 = 8;
/// Attempts if the host name cannot be resolved and the hub has never answered: most often a
/// mistyped folder on a machine without network.
const ATTEMPTS_UNKNOWN_HOST: u32 = 2;
/// Redirects that are followed for one request.
const REDIRECTS: usize = 10;
/// The longest answer that is not a file. A page of a listing has 1,000 entries, about 300 kB.
pub(crate) const ANSWER_BYTES: u64 = 8 << 20;

/// An HTTP client for one hub, shared by the threads of a download.
pub(crate) struct HubClient<'a> {
    /// Or why there is none, which each request then says.
    transport: std::result::Result<Transport, String>,
    /// The client's settings.
    pub settings: HubSettings,
    /// The endpoint's, which the token is sent to.
    origin: Option<Origin>,
    /// Gets a notice when a request is retried; background downloads have none.
    progress: Option<&'a dyn Progress>,
    /// Whether the hub has ever answered.
    answered: AtomicBool,
}

/// Why a request failed for good.
pub(crate) enum HubError {
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
        let origin = Origin::of(&settings.endpoint);
        let tls = origin.as_ref().is_none_or(Origin::is_encrypted);
        HubClient {
            transport: Transport::new(settings.patience, tls).map_err(|e| e.to_string()),
            origin,
            settings,
            progress: None,
            answered: AtomicBool::new(false),
        }
    }

    /// A client that reports retries as notices.
    pub(crate) fn with_progress(settings: HubSettings, progress: &'a dyn Progress) -> Self {
        HubClient { progress: Some(progress), ..HubClient::new(settings) }
    }

    /// Reports a notice, if this client reports any.
    pub(crate) fn notice(&self, line: &str) {
        if let Some(progress) = self.progress {
            progress.notice(line);
        }
    }

    fn remote(url: &str, reason: impl Into<String>) -> Error {
        Error::Input { path: shown(url), reason: reason.into() }
    }

    /// Refuses settings with which no request can succeed.
    pub(crate) fn check_settings(&self) -> Result<()> {
        if self.origin.is_none() {
            return Err(Error::Usage(format!(
                "HF_ENDPOINT {:?}: expected an address like https://huggingface.co",
                shown(&self.settings.endpoint)
            )));
        }
        let token = self.settings.token.as_deref().unwrap_or_default();
        match token.chars().position(|c| !c.is_ascii_graphic()) {
            None => Ok(()),
            Some(at) => Err(Error::Usage(format!(
                "HF_TOKEN (or the token file of `hf auth login`): character {} of {} is none that a token can have; set the token anew",
                at + 1,
                token.chars().count()
            ))),
        }
    }

    /// Asks `url`. `read` reads the answer; after [`TransferError::Retry`] the request is sent
    /// again. `stop` is polled and ends the request early with [`Error::Interrupted`].
    pub(crate) fn ask<T>(
        &self,
        url: &str,
        what: What,
        stop: &dyn Fn() -> bool,
        mut read: impl FnMut(Answer) -> std::result::Result<T, TransferError>,
    ) -> std::result::Result<T, HubError> {
        let other = |e: Error| Err(HubError::Other(e));
        self.check_settings().map_err(HubError::Other)?;
        if !url.starts_with(&format!("{}/", self.settings.endpoint)) {
            return other(Self::remote(url, "is not on the hub's own host; refused"));
        }
        let begin = Instant::now();
        let (mut pause, mut last) = (self.settings.pause, String::new());
        let mut tries = ATTEMPTS.to_string();
        for attempt in 1..=ATTEMPTS {
            if stop() {
                return other(Error::Interrupted);
            }
            let failure = match self.request(url, what, stop) {
                Ok(answer) => match read(answer) {
                    Ok(v) => return Ok(v),
                    Err(TransferError::Retry(why)) => Failure::Retry(why, None),
                    Err(TransferError::Fatal(e)) => Failure::Fatal(e),
                },
                Err(failure) => failure,
            };
            let wait = match failure {
                Failure::NotFound(e) => return Err(HubError::NotFound(e)),
                Failure::Fatal(e) => return other(e),
                Failure::Retry(why, wait) => {
                    last = why;
                    wait
                }
            };
            let unknown_host = last == UNKNOWN_HOST && attempt >= ATTEMPTS_UNKNOWN_HOST;
            if attempt == ATTEMPTS || unknown_host {
                break;
            }
            let next = wait.unwrap_or(pause);
            if begin.elapsed().saturating_add(next) > self.settings.patience {
                let later = wait.map_or(String::new(), |w| {
                    format!(" and asks to come back after {} s", w.as_secs())
                });
                last = format!("{last}{later}");
                tries = format!("{:.0} s and {attempt}", begin.elapsed().as_secs_f64());
                break;
            }
            if attempt > 1 {
                self.notice(&format!(
                    "{}: {last}; attempt {} of {ATTEMPTS} in {:.0} s",
                    shown(url),
                    attempt + 1,
                    next.as_secs_f64().ceil()
                ));
            }
            sleep(next, stop);
            pause = (pause * 2).min(Duration::from_secs(30));
        }
        if last == UNKNOWN_HOST {
            let reason = "its host is not found; is the network there, and HF_ENDPOINT right? (a local folder needs neither)";
            return other(Self::remote(url, reason));
        }
        other(Self::remote(
            url,
            format!(
                "gave up after {tries} attempts: {last}; is the network there, and HF_ENDPOINT right? (a local folder needs neither)"
            ),
        ))
    }

    /// Sends one request and follows its redirects, with the token where the origin is the
    /// endpoint's.
    fn request(
        &self,
        url: &str,
        what: What,
        stop: &dyn Fn() -> bool,
    ) -> std::result::Result<Answer, Failure> {
        let transport =
            self.transport.as_ref().map_err(|e| Failure::Fatal(Error::Remote(e.clone())))?;
        let mut at = url.to_string();
        for _ in 0..=REDIRECTS {
            let ours = Origin::of(&at) == self.origin;
            let token = self.settings.token.as_deref().filter(|_| ours);
            let mut answer = transport
                .ask(&at, what, token, stop)
                .map_err(|failed| self.failed_call(url, failed))?;
            self.answered.store(true, Ordering::Relaxed);
            if let (301 | 302 | 303 | 307 | 308, Some(location)) =
                (answer.status(), answer.header("location"))
            {
                at = redirect(&at, location).map_err(|e| Failure::Fatal(Self::remote(url, e)))?;
                // A short body is read, so that the connection can be used again.
                if answer.length().is_some_and(|l| l <= 4096) {
                    while let Ok(Some(_)) = answer.chunk(stop) {}
                }
                continue;
            }
            if let Some(failure) = self.failure_of(url, &answer) {
                return Err(failure);
            }
            let encoding = answer.header("content-encoding").filter(|e| *e != "identity");
            return match encoding {
                None => Ok(answer),
                Some(_) => Err(Failure::Fatal(Self::remote(
                    url,
                    "the hub compresses its answer, which was not asked for; is there a proxy in between?",
                ))),
            };
        }
        let reason = format!("the hub redirects more than {REDIRECTS} times; refused");
        Err(Failure::Fatal(Self::remote(url, reason)))
    }

    /// What follows from a request without a whole answer.
    fn failed_call(&self, url: &str, failed: Failed) -> Failure {
        if !self.answered.load(Ordering::Relaxed) && self.host_is_unknown(&failed) {
            return Failure::Retry(UNKNOWN_HOST.to_string(), None);
        }
        let reason = format!("no answer ({})", failed.cause());
        match failed {
            Failed::Stopped => Failure::Fatal(Error::Interrupted),
            Failed::Here(e) => Failure::Fatal(e),
            failed if failed.is_permanent() => Failure::Fatal(Self::remote(url, reason)),
            _ => Failure::Retry(reason, None),
        }
    }

    /// Whether a request failed because the endpoint's host name has no address. The system's
    /// resolver reports that as an I/O error without a kind of its own, so the name is looked up
    /// again to tell.
    fn host_is_unknown(&self, failed: &Failed) -> bool {
        let host = self.origin.as_ref().map(Origin::host);
        failed.may_be_an_unknown_host()
            && host.is_some_and(|host| (host, 443).to_socket_addrs().is_err())
    }

    /// What follows from the status of a response; none if it was successful. Only states that pass
    /// are retried.
    fn failure_of(&self, url: &str, answer: &Answer) -> Option<Failure> {
        let (status, header) = (answer.status(), |k: &str| answer.header(k));
        Some(match status {
            200 | 206 => return None,
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

    /// GETs a short answer; its bytes, and its Link headers.
    pub(crate) fn bytes(
        &self,
        url: &str,
        limit: u64,
    ) -> std::result::Result<(Vec<u8>, Vec<String>), HubError> {
        self.short(url, What::All, limit)
    }

    /// POSTs JSON and returns the short answer.
    pub(crate) fn post_json<T: DeserializeOwned>(
        &self,
        url: &str,
        body: &serde_json::Value,
    ) -> Result<T> {
        let (bytes, _) = self.short(url, What::Post(body.to_string().as_bytes()), ANSWER_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|e| Self::not_json(url, &e))
    }

    /// A short answer: its bytes, and its Link headers.
    fn short(
        &self,
        url: &str,
        what: What,
        limit: u64,
    ) -> std::result::Result<(Vec<u8>, Vec<String>), HubError> {
        self.ask(url, what, &|| false, |mut answer| {
            let links = answer.headers("link");
            let long = || {
                let reason = format!("the hub's answer has more than the {limit} bytes allowed");
                TransferError::Fatal(Self::remote(url, reason))
            };
            let cut = |why: &str| TransferError::Retry(format!("answer cut short ({why})"));
            if answer.length().is_some_and(|l| l > limit) {
                return Err(long());
            }
            // Files may take long, as long as they arrive; answers may not.
            let (mut bytes, end) = (Vec::new(), Instant::now() + answer.limit());
            while let Some(chunk) = answer.chunk(&|| false).map_err(|e| cut(&e.cause()))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > limit {
                    return Err(long());
                }
                if Instant::now() > end {
                    return Err(cut("timed out"));
                }
            }
            Ok((bytes, links))
        })
    }

    /// GETs JSON of at most `limit` bytes; none if the hub answers 404.
    pub(crate) fn json_if_found<T: DeserializeOwned>(
        &self,
        url: &str,
        limit: u64,
    ) -> Result<Option<T>> {
        match self.bytes(url, limit) {
            Ok((bytes, _)) => match serde_json::from_slice(&bytes) {
                Ok(value) => Ok(Some(value)),
                Err(e) => Err(Self::not_json(url, &e)),
            },
            Err(HubError::NotFound(_)) => Ok(None),
            Err(HubError::Other(e)) => Err(e),
        }
    }

    /// The error for an answer that is no JSON.
    pub(crate) fn not_json(url: &str, e: &serde_json::Error) -> Error {
        Self::remote(
            url,
            format!(
                "the answer is not what a hub sends ({e}); is HF_ENDPOINT right, and does the network want a login?"
            ),
        )
    }
}

/// What is noted of an attempt that failed because the endpoint's host has no address.
const UNKNOWN_HOST: &str = "no answer (host not found)";

fn sleep(pause: Duration, stop: &dyn Fn() -> bool) {
    let end = Instant::now() + pause;
    while Instant::now() < end && !stop() {
        std::thread::sleep(Duration::from_millis(20).min(pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn client(endpoint: &str, token: Option<&str>) -> HubClient<'static> {
        HubClient::new(HubSettings {
            endpoint: endpoint.to_string(),
            token: token.map(String::from),
            cache: "cache".into(),
            offline: false,
            pause: Duration::from_millis(1),
            patience: Duration::from_secs(60),
        })
    }

    /// A name that cannot be resolved ends the request after two attempts; a refused connection,
    /// whose host is known, does not count as one.
    #[test]
    fn unknown_hosts() {
        let message = |endpoint: &str| {
            let url = format!("{endpoint}/api/models/a/b");
            let answer = client(endpoint, None).json_if_found::<Value>(&url, ANSWER_BYTES);
            answer.unwrap_err().to_string()
        };
        let unknown = message("http://no-such-host.invalid");
        assert!(unknown.contains("its host is not found"), "{unknown}");
        let refused = message("http://127.0.0.1:9");
        assert!(refused.contains("gave up after 8 attempts"), "{refused}");
    }

    /// Said before anything is sent, and without the token.
    #[test]
    fn settings_that_cannot_work() {
        for token in ["hf_a\nb", "hf_ä", "hf_x y"] {
            let client = client("http://127.0.0.1:9", Some(token));
            let url = "http://127.0.0.1:9/api/x";
            let e = client.json_if_found::<Value>(url, ANSWER_BYTES).unwrap_err();
            assert!(e.to_string().contains("HF_TOKEN") && !e.to_string().contains(token), "{e}");
        }
        let client = client("hub.local", None);
        let e = client.json_if_found::<Value>("hub.local/api/x", ANSWER_BYTES).unwrap_err();
        assert!(e.to_string().contains("HF_ENDPOINT"), "{e}");
    }
}

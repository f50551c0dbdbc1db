//! HTTP to a hub: token, time limits, retries with back-off, errors a person can use.
//!
//! In: paths under the endpoint. Out: responses. The token goes to the endpoint's host only, and
//! into no message.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Attempts before giving up.
const ATTEMPTS: u32 = 8;
/// Attempts where the host's name is not known and nothing was ever heard from it: a mistyped
/// folder on a machine without network.
const ATTEMPTS_UNKNOWN: u32 = 2;

/// Environment a client reads, gathered in one place so that tests can set it.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or the token file's content.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `HF_HOME/hub`.
    pub cache: std::path::PathBuf,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// First pause between attempts.
    pub pause: Duration,
}

impl HubSettings {
    /// From the environment, as the Python client reads it.
    pub fn from_env() -> HubSettings {
        let var = |k: &str| std::env::var(k).ok().filter(|v| !v.trim().is_empty());
        let on = |k: &str| {
            var(k).is_some_and(|v| {
                !matches!(v.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off")
            })
        };
        let home = var("HF_HOME").map(Into::into).unwrap_or_else(|| {
            let base = var("XDG_CACHE_HOME").map(std::path::PathBuf::from);
            base.unwrap_or_else(|| {
                std::path::PathBuf::from(var("HOME").unwrap_or_else(|| ".".to_string()))
                    .join(".cache")
            })
            .join("huggingface")
        });
        let file = || {
            let path = var("HF_TOKEN_PATH")
                .map(std::path::PathBuf::from)
                .unwrap_or_else(|| home.join("token"));
            std::fs::read_to_string(path).ok()
        };
        let implicit = !on("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let token = var("HF_TOKEN")
            .or_else(|| file().filter(|_| implicit))
            .map(|t| t.trim().to_string())
            .filter(|t| !t.is_empty());
        let milliseconds = var("DLM_HUB_PAUSE_MS").and_then(|v| v.parse().ok()).unwrap_or(500);
        HubSettings {
            endpoint: var("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_string())
                .trim_end_matches('/')
                .to_string(),
            token,
            cache: var("HF_HUB_CACHE").map(Into::into).unwrap_or_else(|| home.join("hub")),
            offline: on("HF_HUB_OFFLINE"),
            pause: Duration::from_millis(milliseconds),
        }
    }
}

/// A client.
pub struct HubClient {
    agent: ureq::Agent,
    /// Its settings.
    pub settings: HubSettings,
    /// Whether it says on stderr that it is waiting; background downloads leave that to their
    /// reader.
    pub tells: bool,
    /// Whether the hub ever answered.
    answered: AtomicBool,
}

/// What to do about a failed attempt.
enum Verdict {
    Again(String, Option<Duration>),
    Never(Error),
}

impl HubClient {
    /// A client for a hub.
    pub fn new(settings: HubSettings) -> HubClient {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("dlm/", env!("CARGO_PKG_VERSION")))
            // The hub sends some files of a gated repository on to another path of its own, which
            // asks for the token again.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        HubClient {
            agent: config.new_agent(),
            settings,
            tells: false,
            answered: AtomicBool::new(false),
        }
    }

    /// `url` for people: without user names and passwords.
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

    /// GETs `url`, from byte range `range` (last byte included) if given, and lets `take` read the
    /// response; its `Err` is a transfer cut short, to be tried again.
    pub fn get<T>(
        &self,
        url: &str,
        range: Option<(u64, u64)>,
        stop: &dyn Fn() -> bool,
        mut take: impl FnMut(ureq::http::Response<ureq::Body>) -> std::result::Result<T, Cut>,
    ) -> Result<T> {
        if !url.starts_with(&format!("{}/", self.settings.endpoint)) {
            return Err(Self::remote(url, "is not on the hub's own host; refused"));
        }
        let mut pause = self.settings.pause;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if stop() {
                return Err(Error::Interrupted);
            }
            if attempt > 0 {
                if self.tells && attempt > 1 {
                    eprintln!(
                        "{}: {last}; attempt {} of {ATTEMPTS} in {:.0} s",
                        Self::shown(url),
                        attempt + 1,
                        pause.as_secs_f64().ceil()
                    );
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
            let verdict = match request.call() {
                Ok(response) => match self.heard(url, &response) {
                    None => match take(response) {
                        Ok(v) => return Ok(v),
                        Err(Cut::Again(why)) => Verdict::Again(why, None),
                        Err(Cut::Never(e)) => Verdict::Never(e),
                    },
                    Some(v) => v,
                },
                Err(e)
                    if unknown_host(&e)
                        && attempt + 1 >= ATTEMPTS_UNKNOWN
                        && !self.answered.load(Ordering::Relaxed) =>
                {
                    let reason = "its host is not found; is the network there, and HF_ENDPOINT right? (a local folder needs neither)";
                    Verdict::Never(Self::remote(url, reason))
                }
                Err(e) => Verdict::Again(format!("no answer ({})", kind(&e)), None),
            };
            match verdict {
                Verdict::Never(e) => return Err(e),
                Verdict::Again(why, wait) => {
                    last = why;
                    if let Some(w) = wait {
                        pause = w.min(Duration::from_secs(120));
                    }
                }
            }
        }
        Err(Self::remote(
            url,
            format!(
                "gave up after {ATTEMPTS} attempts: {last}; is the network there, and HF_ENDPOINT right? (a local folder needs neither)"
            ),
        ))
    }

    fn heard(&self, url: &str, r: &ureq::http::Response<ureq::Body>) -> Option<Verdict> {
        self.answered.store(true, Ordering::Relaxed);
        self.judge(url, r)
    }

    fn judge(&self, url: &str, r: &ureq::http::Response<ureq::Body>) -> Option<Verdict> {
        let status = r.status().as_u16();
        let header = |k: &str| r.headers().get(k).and_then(|v| v.to_str().ok());
        Some(match status {
            200..=299 => return None,
            429 | 500 | 502 | 503 | 504 | 408 => {
                let wait = header("retry-after")
                    .and_then(|v| v.trim().parse().ok())
                    .map(Duration::from_secs);
                Verdict::Again(format!("the hub answers {status}"), wait)
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
                        "the token given (HF_TOKEN) is expired, or has no access to this repository"
                    }
                    (false, None) => {
                        "there is no such repository, or it is gated or private: check the name, or set HF_TOKEN"
                    }
                };
                Verdict::Never(Self::remote(url, format!("the hub answers {status}: {cause}")))
            }
            404 => {
                let what = header("x-error-code")
                    .unwrap_or("no such repository, revision or file (a private one looks the same without HF_TOKEN)")
                    .to_string();
                Verdict::Never(Self::remote(url, format!("the hub answers 404: {what}")))
            }
            _ => Verdict::Never(Self::remote(url, format!("the hub answers {status}"))),
        })
    }

    /// GETs JSON; with the address of the next page, if there is one.
    pub fn json(&self, url: &str) -> Result<(serde_json::Value, Option<String>)> {
        self.get(url, None, &|| false, |mut response| {
            let link =
                response.headers().get("link").and_then(|v| v.to_str().ok()).and_then(next_page);
            let text = response
                .body_mut()
                .with_config()
                .limit(256 << 20)
                .read_to_string()
                .map_err(|e| Cut::Again(format!("answer cut short ({})", kind(&e))))?;
            let value = serde_json::from_str(&text)
                .map_err(|e| Cut::Again(format!("answer is not JSON ({e})")))?;
            Ok((value, link))
        })
    }

    /// Whether the hub knows `url`.
    pub fn exists(&self, url: &str) -> Result<Option<serde_json::Value>> {
        match self.json(url) {
            Ok((v, _)) => Ok(Some(v)),
            Err(Error::Input { reason, .. }) if reason.contains("answers 404") => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// A transfer that did not come whole.
pub enum Cut {
    /// Worth another attempt.
    Again(String),
    /// Not.
    Never(Error),
}

/// What kind of failure, without addresses (a signed address is a secret).
/// Whether no address was found for the host's name.
fn unknown_host(e: &ureq::Error) -> bool {
    match e {
        ureq::Error::HostNotFound => true,
        // the system's resolver; its errors have no kind of their own
        ureq::Error::Io(e) => e.to_string().contains("lookup address"),
        _ => false,
    }
}

fn kind(e: &ureq::Error) -> String {
    match e {
        // the name of an uncategorised kind says nothing; the system's words hold no address
        ureq::Error::Io(e) if e.kind().to_string().contains("uncategorized") => e.to_string(),
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

/// A path as it stands in an address.
pub fn encode(path: &str, keep_slash: bool) -> String {
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

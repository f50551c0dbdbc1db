//! What a server is started with: its address, its limits, and what a request gets that does not
//! say.

use std::time::Duration;

use crate::error::{Error, Result};

/// Limits on what clients may take. Every one of them answers with a status of its own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limits {
    /// Bytes of a request body; above: 413.
    pub body_bytes: usize,
    /// Tokens that a request may ask for; above: 400.
    pub max_tokens: usize,
    /// Rows that wait for a slot; above: 429.
    pub queue: usize,
    /// From the whole request to the whole answer; above: 504.
    pub request: Duration,
    /// Connections at once; above: 503.
    pub connections: usize,
    /// For the header of a request, counted from its first byte or from the last answer; above: the
    /// connection is closed.
    pub header: Duration,
    /// For the body of a request; above: 408.
    pub body: Duration,
    /// How long a client may refuse to take bytes; above: the connection is closed.
    pub write: Duration,
    /// For live requests after a stop signal; above: 503.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Limits {
            body_bytes: 2 << 20,
            max_tokens: 4096,
            queue: 128,
            request: seconds(600),
            connections: 256,
            header: seconds(10),
            body: seconds(30),
            write: seconds(30),
            grace: seconds(30),
        }
    }
}

/// The secret of `DLM_API_KEY`. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ApiKey(String);

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

impl ApiKey {
    /// A key that can stand in a header.
    ///
    /// # Errors
    /// [`Error::Usage`] for a key that is empty or holds anything but visible ASCII; the message
    /// does not repeat it.
    pub(crate) fn new(key: &str) -> Result<Self> {
        match !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(ApiKey(key.into())),
            false => Err(Error::Usage(
                "DLM_API_KEY is empty or holds spaces, line breaks or letters outside ASCII, which cannot stand in a header; unset it to serve without a key".into(),
            )),
        }
    }

    /// Whether a client gave this key. The time depends on the length of what was given alone.
    pub(super) fn is(&self, given: &[u8]) -> bool {
        let key = self.0.as_bytes();
        let mut differs = u8::from(key.len() != given.len());
        for (i, byte) in given.iter().enumerate() {
            let own = key.get(i % key.len()).copied().unwrap_or_default();
            differs = std::hint::black_box(differs | (own ^ byte));
        }
        differs == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_compared_whole_and_never_printed() {
        let key = ApiKey::new("secret").unwrap();
        assert!(key.is(b"secret"));
        for wrong in ["", "s", "secre", "secrets", "secretsecret", "Secret", "secreT"] {
            assert!(!key.is(wrong.as_bytes()), "{wrong}");
        }
        assert!(!format!("{key:?}").contains("secret"));
        for unusable in ["", "two words", "line\n", "schlüssel"] {
            let error = ApiKey::new(unusable).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(unusable.is_empty() || !error.to_string().contains(unusable));
        }
    }
}

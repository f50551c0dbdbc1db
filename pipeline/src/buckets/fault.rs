//! Why a request to a bucket failed, in words that hold nothing secret.
//!
//! In: an error of object_store. Out: [`Fault`]. The library's own texts are not shown: they hold
//! whole addresses, in which Azure's signatures stand, and what a server answered, which may repeat
//! parts of a signed request.

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};
use std::fmt;

/// What a failure means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// There is no such object or bucket.
    NotFound,
    /// Credentials are missing, wrong or do not suffice.
    Denied,
    /// The same request may succeed later.
    Passing,
    /// Unknown; worth a few more tries.
    Unclear,
    /// The same request fails again.
    Lasting,
}

/// A failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub kind: FaultKind,
    /// What happened, as in "the bucket answers 503 (SlowDown)".
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, text: impl Into<String>) -> Fault {
        Fault { kind, text: text.into() }
    }

    /// The fault behind a failed operation of the system, on files or on `file://`.
    pub(crate) fn of_io(action: &str, error: &std::io::Error) -> Fault {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::NotFound => FaultKind::NotFound,
            ErrorKind::PermissionDenied => FaultKind::Denied,
            ErrorKind::Interrupted | ErrorKind::TimedOut | ErrorKind::StaleNetworkFileHandle => {
                FaultKind::Passing
            }
            _ => FaultKind::Lasting,
        };
        Fault::new(kind, format!("{action}: {error}"))
    }

    /// The fault behind an error of object_store.
    pub(crate) fn of(error: &Error) -> Fault {
        let text = error.to_string();
        let status = number_after(&text, "status code: ");
        let code = code_of(&text);
        let answer = || match (status, &code) {
            (Some(status), Some(code)) => format!("the bucket answers {status} ({code})"),
            (Some(status), None) => format!("the bucket answers {status}"),
            (None, Some(code)) => format!("the bucket answers {code}"),
            (None, None) => "the bucket gives an answer that is not understood".to_string(),
        };
        let fault = |kind, text: String| Fault { kind, text };
        let is = |names: &[&str]| code.as_deref().is_some_and(|code| names.contains(&code));
        // What arrived was not what was sent, or not in time.
        if is(&[
            "RequestTimeout",
            "BadDigest",
            "InvalidDigest",
            "IncompleteBody",
            "SlowDown",
            "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch",
        ]) {
            return fault(FaultKind::Passing, answer());
        }
        match (error, status) {
            (Error::NotFound { .. }, _) => fault(FaultKind::NotFound, answer()),
            (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, _) => {
                fault(FaultKind::Denied, answer())
            }
            (_, Some(408 | 409 | 412 | 425 | 429 | 500..)) => fault(FaultKind::Passing, answer()),
            (_, Some(_)) => fault(FaultKind::Lasting, answer()),
            (Error::InvalidPath { .. } | Error::NotImplemented { .. }, _) => {
                fault(FaultKind::Lasting, "the bucket holds a name that cannot be read".to_string())
            }
            _ if text.contains("Received redirect without LOCATION") => fault(
                FaultKind::Lasting,
                "the bucket is in another region (set AWS_REGION)".to_string(),
            ),
            _ => match http_kind(error) {
                Some(HttpErrorKind::Connect) => {
                    fault(FaultKind::Passing, "the bucket cannot be connected to".to_string())
                }
                Some(HttpErrorKind::Timeout) => {
                    fault(FaultKind::Passing, "the bucket does not answer in time".to_string())
                }
                Some(_) => {
                    fault(FaultKind::Passing, "the connection to the bucket was cut".to_string())
                }
                None => fault(FaultKind::Unclear, answer()),
            },
        }
    }
}

/// The kind of the HTTP error in the chain of causes.
fn http_kind(error: &Error) -> Option<HttpErrorKind> {
    let mut current: &(dyn std::error::Error + 'static) = error;
    loop {
        if let Some(error) = current.downcast_ref::<HttpError>() {
            return Some(error.kind());
        }
        current = current.source()?;
    }
}

/// The number that follows `before`.
fn number_after(text: &str, before: &str) -> Option<u16> {
    let rest = &text[text.find(before)? + before.len()..];
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// The error code in an answer in XML, if it is a plain word.
fn code_of(text: &str) -> Option<String> {
    let rest = &text[text.find("<Code>")? + "<Code>".len()..];
    let code = &rest[..rest.find('<')?];
    let plain = !code.is_empty() && code.len() <= 40;
    (plain && code.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| code.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn answers_are_named_and_nothing_else_is_shown() {
        let text = "Error performing PUT https://a.blob.core.windows.net/c/x?sig=hunter2 in 1s - Server returned non-2xx status code: 503 Service Unavailable: <Error><Code>SlowDown</Code><Message>hunter2</Message></Error>";
        let fault = Fault::of(&generic(text));
        assert_eq!(fault.to_string(), "the bucket answers 503 (SlowDown)");
        assert_eq!(fault.kind, FaultKind::Passing);
        for (answer, kind, says) in [
            ("status code: 400 Bad Request: <Code>BadDigest</Code>", FaultKind::Passing, "400"),
            (
                "status code: 400 Bad Request: <Code>InvalidArgument</Code>",
                FaultKind::Lasting,
                "InvalidArgument",
            ),
            ("status code: 429 x", FaultKind::Passing, "answers 429"),
            ("status code: 301 x", FaultKind::Lasting, "answers 301"),
            ("status code: 400 x: <Code>hunter2 x</Code>", FaultKind::Lasting, "answers 400"),
            ("hunter2", FaultKind::Unclear, "is not understood"),
            ("Received redirect without LOCATION, x", FaultKind::Lasting, "AWS_REGION"),
        ] {
            let fault = Fault::of(&generic(answer));
            assert_eq!(fault.kind, kind, "{answer}");
            assert!(fault.text.contains(says) && !fault.text.contains("hunter2"), "{fault}");
        }
        let denied = Error::PermissionDenied {
            path: "x".into(),
            source: "status code: 403 Forbidden: <Code>SignatureDoesNotMatch</Code>".into(),
        };
        assert_eq!(Fault::of(&denied).kind, FaultKind::Denied);
        assert_eq!(Fault::of(&denied).text, "the bucket answers 403 (SignatureDoesNotMatch)");
    }
}

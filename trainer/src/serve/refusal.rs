//! What is answered to a request that is not served: a status and OpenAI's error object.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::Error;

/// A refusal, or a failure on the server's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    /// For people: what was found, what was expected, what to do.
    pub message: String,
    /// Field of the request that is wrong.
    pub param: Option<String>,
    /// A word that programs can compare.
    pub code: &'static str,
    /// Seconds after which the same request may be served.
    pub retry_after: Option<u64>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Refusal { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// A field that cannot be used as it is.
    pub(super) fn field(name: &str, message: impl Into<String>) -> Self {
        Refusal {
            param: Some(name.into()),
            ..Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message)
        }
    }

    /// A field that would change the answer and is not supported.
    pub(super) fn unsupported(name: &str, message: impl Into<String>) -> Self {
        Refusal { code: "unsupported_parameter", ..Refusal::field(name, message) }
    }

    /// The request waited or ran for longer than a request may.
    pub(super) fn too_slow(seconds: u64) -> Self {
        Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            format!(
                "the request was not done within {seconds} s (--request-seconds of the server); ask for fewer tokens"
            ),
        )
    }

    /// The server is about to end.
    pub(super) fn stopping() -> Self {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is stopping")
    }

    /// What an error of this crate means for the client: of a wrong call the whole message, of
    /// everything else that the server failed. Files of the server are not named.
    pub(super) fn of(error: &Error, param: &str) -> Self {
        use dlm_prep::Error as Prep;
        let of_client = match error {
            Error::Usage(what) | Error::Prep(Prep::Usage(what) | Prep::Render(what)) => {
                Some(what.clone())
            }
            Error::Prep(Prep::Template { reason, .. }) => {
                Some(format!("the model's chat template cannot be used: {reason}"))
            }
            _ => None,
        };
        match of_client {
            Some(message) => Refusal::field(param, message),
            None => Refusal::failed("the server could not encode the request; its log says why"),
        }
    }

    /// The model or the server failed.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "timeout_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {...}}`, as the OpenAI clients read it.
    pub(super) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

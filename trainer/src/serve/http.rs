//! The addresses of the server and who may use them.
//!
//! In: requests. Out: responses. `/v1/*` and `/metrics` need the key, if there is one; `/health`
//! does not.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::{Body as _, Bytes};
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer::{Choice, Usage};
use super::call::Endpoint;
use super::outbox::{Outbox, Part};
use super::prepare::{Prepared, prepare};
use super::refusal::Refusal;
use super::schedule::{Command, Job};
use super::server::Server;
use super::stream::EventStream;
use super::ticket::Ticket;

/// Bytes of a body that is too long which are read and thrown away, so that the client gets to see
/// the refusal instead of a closed connection.
const DRAINED: usize = 64 << 20;

/// The server's addresses.
pub(super) fn router(server: Arc<Server>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(server.clone(), needs_key))
        .route_layer(from_fn_with_state(server.clone(), names_this_host));
    guarded
        .route("/health", get(health))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .with_state(server)
}

/// Lets only requests with the key pass.
async fn needs_key(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    if let Some(key) = &server.settings.key {
        let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|given| given.strip_prefix(b"Bearer "));
        if !key.is(given.unwrap_or_default()) {
            return Refusal::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "this server wants its key: Authorization: Bearer KEY",
            )
            .into_response();
        }
    }
    next.run(request).await
}

/// Without a key, a server on the loopback answers to its own names only: a page in a browser that
/// had its host name point to 127.0.0.1 could ask it otherwise.
async fn names_this_host(
    State(server): State<Arc<Server>>,
    request: Request,
    next: Next,
) -> Response {
    if server.settings.key.is_none() && server.settings.is_loopback {
        let host = request.headers().get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        if !is_loopback_name(host) {
            return Refusal::new(
                StatusCode::FORBIDDEN,
                "wrong_host",
                "the header Host names another machine; without a key this server answers to localhost only",
            )
            .into_response();
        }
    }
    next.run(request).await
}

/// Whether `name[:port]` is this machine by its own name.
pub(super) fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn not_found() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "no such address; there are /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics",
    )
}

async fn wrong_method() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "completions are asked for with POST, everything else with GET",
    )
}

async fn health(State(server): State<Arc<Server>>) -> Response {
    let failure = server.metrics.failure(server.settings.limits.request);
    let (status, body) = match (server.is_stopping(), failure) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "stopping"})),
        (false, Some(reason)) => {
            (StatusCode::SERVICE_UNAVAILABLE, json!({"status": "failed", "reason": reason}))
        }
        (false, None) => (StatusCode::OK, json!({"status": "ok"})),
    };
    (status, Json(body)).into_response()
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let text = server.metrics.text(server.settings.slots);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn model_json(server: &Server) -> serde_json::Value {
    json!({
        "id": server.settings.name,
        "object": "model",
        "created": server.started,
        "owned_by": "dlm-train",
        "max_model_len": server.settings.positions,
    })
}

async fn models(State(server): State<Arc<Server>>) -> Response {
    Json(json!({"object": "list", "data": [model_json(&server)]})).into_response()
}

async fn model(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Response {
    match name == server.settings.name {
        true => Json(model_json(&server)).into_response(),
        false => Refusal::new(
            StatusCode::NOT_FOUND,
            "model_not_found",
            format!("this server serves {:?}", server.settings.name),
        )
        .into_response(),
    }
}

async fn chat(State(server): State<Arc<Server>>, request: Request) -> Response {
    answer(server, Endpoint::Chat, request).await
}

async fn completions(State(server): State<Arc<Server>>, request: Request) -> Response {
    answer(server, Endpoint::Completions, request).await
}

async fn answer(server: Arc<Server>, endpoint: Endpoint, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match read_body(&server, &parts.headers, body).await {
        Ok(body) => body,
        Err(refusal) => {
            let mut ticket = Ticket::new(server.metrics.clone(), endpoint);
            ticket.ends(refusal.code);
            return refusal.into_response();
        }
    };
    let ticket = Ticket::new(server.metrics.clone(), endpoint);
    match answered(&server, ticket, endpoint, body).await {
        Ok(response) => response,
        Err((refusal, mut ticket)) => {
            ticket.ends(refusal.code);
            refusal.into_response()
        }
    }
}

/// The body of a request: JSON, no longer than allowed, and there in time.
async fn read_body(server: &Server, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        // pages in a browser may send other types to any host without asking it
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!(
                "the body's type is {kind:?}; expected the header Content-Type: application/json"
            ),
        ));
    }
    let coding = headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes());
    if coding.is_some_and(|coding| coding != b"identity") {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "the body is compressed (Content-Encoding); send it as it is",
        ));
    }
    let limits = &server.settings.limits;
    let waits_for_leave = headers.contains_key(header::EXPECT);
    let too_slow = |_| {
        Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            format!("the body was not there within {} s", limits.body.as_secs_f64()),
        )
    };
    let whole = limited(body, limits.body_bytes, waits_for_leave);
    timeout(limits.body, whole).await.map_err(too_slow)?
}

/// At most `limit` bytes of a body.
async fn limited(mut body: Body, limit: usize, waits_for_leave: bool) -> Result<Bytes, Refusal> {
    let told = body.size_hint().lower();
    let too_long = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is longer than {limit} bytes"),
        )
    };
    let is_known_too_long = told > limit as u64;
    if is_known_too_long && waits_for_leave {
        return Err(too_long());
    }
    let (mut bytes, mut read) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let broken = |_| Refusal::field("body", "the body broke off");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        read += data.len();
        match read <= limit && !is_known_too_long {
            true => bytes.extend_from_slice(&data),
            false => bytes = Vec::new(),
        }
        if read > limit.saturating_add(DRAINED) {
            break;
        }
    }
    if read > limit || is_known_too_long { Err(too_long()) } else { Ok(bytes.into()) }
}

/// Encodes, queues and answers. A refusal gives the ticket back.
async fn answered(
    server: &Arc<Server>,
    mut ticket: Ticket,
    endpoint: Endpoint,
    body: Bytes,
) -> Result<Response, (Refusal, Ticket)> {
    let allowed = server.settings.limits.request;
    let deadline = Instant::from_std(ticket.came()) + allowed;
    let seconds = allowed.as_secs();
    let prepared = match prepared(server, endpoint, body, deadline, seconds).await {
        Ok(prepared) => prepared,
        Err(refusal) => return Err((refusal, ticket)),
    };
    if let Err(refusal) = enqueue(server, &prepared, &ticket) {
        return Err((refusal, ticket));
    }
    server.metrics.prompt_tokens(prepared.prompt_tokens);
    // a failure before the first token has a status of its own, also in a stream
    let first = match next_parts(&ticket.outbox, deadline, seconds).await {
        Ok(parts) => parts,
        Err(refusal) => return Err((refusal, ticket)),
    };
    if prepared.stream {
        let stream = EventStream::new(prepared, ticket, first, deadline, seconds);
        let headers =
            [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        return Ok((headers, Body::new(stream)).into_response());
    }
    let mut parts = first;
    let mut usage = Usage { prompt_tokens: prepared.prompt_tokens, ..Usage::default() };
    let echoed = |text: &Option<String>| Choice {
        text: text.clone().unwrap_or_default(),
        ..Choice::default()
    };
    let mut choices: Vec<Choice> = prepared.rows.iter().map(|row| echoed(&row.echo)).collect();
    let mut open = choices.len();
    loop {
        for part in parts {
            match part {
                Part::Text { choice, text, tokens } => {
                    if let Some(choice) = choices.get_mut(choice) {
                        choice.text.push_str(&text);
                        choice.tokens.extend(tokens);
                    }
                }
                Part::End { choice, reason, tokens, passes } => {
                    usage.add(tokens, passes);
                    open -= 1;
                    if let Some(choice) = choices.get_mut(choice) {
                        choice.reason = Some(reason);
                    }
                }
                Part::Failed(refusal) => return Err((refusal, ticket)),
            }
        }
        if open == 0 {
            break;
        }
        parts = match next_parts(&ticket.outbox, deadline, seconds).await {
            Ok(parts) => parts,
            Err(refusal) => return Err((refusal, ticket)),
        };
    }
    ticket.ends("ok");
    let json = [(header::CONTENT_TYPE, "application/json")];
    Ok((json, prepared.head.whole(&choices, usage)).into_response())
}

/// Reads and encodes a body on another thread.
async fn prepared(
    server: &Arc<Server>,
    endpoint: Endpoint,
    body: Bytes,
    deadline: Instant,
    seconds: u64,
) -> Result<Prepared, Refusal> {
    let task = {
        let server = server.clone();
        tokio::task::spawn_blocking(move || prepare(&server, endpoint, &body))
    };
    match timeout_at(deadline, task).await {
        Err(_) => Err(Refusal::too_slow(seconds)),
        Ok(Err(_)) => Err(Refusal::failed("reading the request failed; this is a bug")),
        Ok(Ok(prepared)) => prepared,
    }
}

/// Puts the rows of a request into the queue, if it has room for all of them.
fn enqueue(server: &Server, prepared: &Prepared, ticket: &Ticket) -> Result<(), Refusal> {
    if server.is_stopping() {
        return Err(Refusal::stopping());
    }
    let settings = &server.settings;
    let (most, count) = (settings.most_rows(), prepared.rows.len());
    let Some(places) = server.places.take(count, most) else {
        let taken = server.places.taken();
        let turns = taken.div_ceil(settings.slots) as f64;
        let wait = Duration::try_from_secs_f64(turns * server.metrics.mean_request());
        return Err(Refusal {
            retry_after: Some(wait.map_or(60, |wait| wait.as_secs()).clamp(1, 60)),
            ..Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue_full",
                format!("{taken} rows are decoded or wait, of at most {most}; ask again later"),
            )
        });
    };
    let job = |((choice, row), place): ((usize, &super::prepare::PreparedRow), _)| Job {
        request: row.request.clone(),
        max_tokens: row.max_tokens,
        stops: prepared.stops.clone(),
        logprobs: prepared.head.logprobs,
        choice,
        outbox: ticket.outbox.clone(),
        came: ticket.came(),
        is_over: false,
        _place: place,
    };
    let jobs = prepared.rows.iter().enumerate().zip(places).map(job).collect();
    // where the thread has ended, the jobs are dropped, and say so
    drop(server.commands.send(Command::Decode(jobs)));
    Ok(())
}

async fn next_parts(
    outbox: &Outbox,
    deadline: Instant,
    seconds: u64,
) -> Result<Vec<Part>, Refusal> {
    let parts = poll_fn(|context| outbox.poll_parts(context));
    let parts = timeout_at(deadline, parts).await.map_err(|_| Refusal::too_slow(seconds))?;
    match parts.iter().find_map(|part| match part {
        Part::Failed(refusal) => Some(refusal.clone()),
        _ => None,
    }) {
        Some(refusal) => Err(refusal),
        None => Ok(parts),
    }
}

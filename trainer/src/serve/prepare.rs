//! From a checked request to the rows that answer it.
//!
//! In: the bytes of a body. Out: [`Prepared`]: prompts as token ids with the options that the
//! server and the request give. Runs outside the threads of network and model, because a long text
//! takes a while to encode.

use super::answer::Head;
use super::call::{Call, Drawing, Endpoint};
use super::fields::Fields;
use super::refusal::Refusal;
use super::server::{Server, now, random};
use crate::decode::{Request, RowMode};
use crate::error::Error;
use crate::generate::{DecodeMode, GenerateOptions, Prompt};
use crate::report::console;

/// A row to decode.
#[derive(Debug, Clone)]
pub(super) struct PreparedRow {
    pub request: Request,
    /// Tokens after which the row ends.
    pub max_tokens: usize,
    /// Text of the prompt, where the answer repeats it.
    pub echo: Option<String>,
}

/// A request that can be decoded.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub head: Head,
    /// One for each choice; `n` of each prompt follow each other.
    pub rows: Vec<PreparedRow>,
    pub stops: Vec<String>,
    pub prompt_tokens: usize,
    pub stream: bool,
    pub include_usage: bool,
}

/// Reads a body and encodes its prompts.
pub(super) fn prepare(
    server: &Server,
    endpoint: Endpoint,
    body: &[u8],
) -> Result<Prepared, Refusal> {
    let call = Call::read(Fields::parse(body)?, endpoint, &server.settings.limits)?;
    let settings = &server.settings;
    if let Some(model) = call.model.as_ref().filter(|model| **model != settings.name) {
        return Err(Refusal {
            param: Some("model".into()),
            ..Refusal::new(
                axum::http::StatusCode::NOT_FOUND,
                "model_not_found",
                format!("this server has no model {model:?}; it serves {:?}", settings.name),
            )
        });
    }
    let (count, most) = (call.prompts.len().saturating_mul(call.n), settings.most_rows());
    if count > most {
        return Err(Refusal::field(
            if call.n > 1 { "n" } else { "prompt" },
            format!(
                "the request asks for {count} choices (prompts times n), but this server holds at most {most}"
            ),
        ));
    }
    let options = options(server, &call)?;
    let base = server.files.request(&options).map_err(|error| refusal(&error, "mode"))?;
    // the schedule looks for them itself, because it also cuts the text
    let (stop, base) = (base.stop.clone(), Request { stop: None, ..base });
    let param = if endpoint == Endpoint::Chat { "messages" } else { "prompt" };
    let encoded = server.files.encode(&call.prompts, &options);
    let encoded = encoded.map_err(|error| refusal(&error, param))?;
    let mut rows = Vec::new();
    let mut prompt_tokens = 0;
    for (i, prompt) in encoded.into_iter().enumerate() {
        prompt_tokens += prompt.len();
        let max_tokens = max_tokens(server, call.max_tokens, prompt.len())?;
        let echo = match call.echo {
            true => Some(echo(server, &call.prompts[i])?),
            false => None,
        };
        for _ in 0..call.n {
            let mut request = Request { prompt: prompt.clone(), ..base.clone() };
            request.max_new_tokens = row_limit(&request.mode, prompt.len(), max_tokens);
            if let Some(sampling) = &mut request.sampling {
                sampling.seed = sampling.seed.wrapping_add(rows.len() as u64);
            }
            rows.push(PreparedRow { request, max_tokens, echo: echo.clone() });
        }
    }
    let kind = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
    let head = Head {
        endpoint,
        id: format!("{kind}-{:016x}{:016x}", random(), random()),
        created: now(),
        model: settings.name.clone(),
        logprobs: call.logprobs,
    };
    let (stream, include_usage) = (call.stream, call.include_usage);
    let stops = stop.map(|stop| stop.strings).unwrap_or_default();
    Ok(Prepared { head, rows, stops, prompt_tokens, stream, include_usage })
}

/// What a failure of encoding means for the client; a failure of the server is also logged.
fn refusal(error: &Error, param: &str) -> Refusal {
    let refusal = Refusal::of(error, param);
    if refusal.status.is_server_error() {
        console::message(format_args!("dlm-train: {error}"));
    }
    refusal
}

/// The settings of the server, with those that the request gives.
fn options(server: &Server, call: &Call) -> Result<GenerateOptions, Refusal> {
    let defaults = &server.settings.decoding;
    let mode = call.mode.unwrap_or(defaults.mode);
    let given = [
        ("threshold", call.threshold.is_some()),
        ("sub_block_size", call.sub_block_size.is_some()),
    ];
    let block_only = given.iter().find(|(_, given)| *given);
    if let (true, Some((name, _))) = (mode != DecodeMode::Block, block_only) {
        let reason = format!("{name} has no meaning in {} mode", mode.name());
        return Err(Refusal::field(name, reason));
    }
    let has_blocks =
        server.files.usual_mode() == DecodeMode::Verify || server.files.is_converted(defaults);
    if mode == DecodeMode::Block && !has_blocks {
        return Err(Refusal::field(
            "mode",
            "the model was not converted, so that it has no block mode; use \"ar\"",
        ));
    }
    let Drawing { temperature, top_p, top_k, .. } = call.drawing;
    let names_more = top_p.is_some_and(|share| share < 1.0) || top_k.is_some();
    let usual = if names_more { 1.0 } else { defaults.temperature };
    let mut options = GenerateOptions {
        mode,
        raw: call.endpoint == Endpoint::Completions,
        template_kwargs: defaults.template_kwargs.clone(),
        threshold: call.threshold.unwrap_or(defaults.threshold),
        sub_block_size: call.sub_block_size.or(defaults.sub_block_size),
        stop: call.stop.clone(),
        temperature: temperature.unwrap_or(usual),
        top_p: top_p.unwrap_or(1.0),
        top_k: top_k.unwrap_or(0),
        seed: seed_of(&call.drawing),
        ..defaults.clone()
    };
    options.template_kwargs.extend(call.template_kwargs.clone());
    let block_size = server.files.block_size(&options);
    if let Some(size) = call.sub_block_size.filter(|size| !block_size.is_multiple_of(*size)) {
        return Err(Refusal::field(
            "sub_block_size",
            format!("sub_block_size is {size}; expected a divisor of the block size, {block_size}"),
        ));
    }
    if call.ignore_eos {
        options.stop_token_ids = Some(Vec::new());
    }
    if !call.stop_token_ids.is_empty() {
        let own = server.files.request(&options).map_err(|error| refusal(&error, "mode"))?;
        let mut ids = own.stop_ids;
        ids.extend(&call.stop_token_ids);
        options.stop_token_ids = Some(ids);
        server.files.request(&options).map_err(|error| refusal(&error, "stop_token_ids"))?;
    }
    Ok(options)
}

/// Tokens that a request gets: what it asks for, else the server's default as far as the model has
/// positions.
fn max_tokens(server: &Server, asked: Option<usize>, prompt: usize) -> Result<usize, Refusal> {
    let positions = server.settings.positions;
    let too_long = |more: &str| Refusal {
        code: "context_length_exceeded",
        ..Refusal::field(
            if asked.is_some() { "max_tokens" } else { "prompt" },
            format!("the prompt has {prompt} tokens{more}, but there are {positions} positions"),
        )
    };
    let left = positions.saturating_sub(prompt);
    match asked {
        Some(asked) if asked > left => Err(too_long(&format!(" and up to {asked} are to follow"))),
        Some(asked) => Ok(asked),
        None if left == 0 => Err(too_long("")),
        None => Ok(left.min(server.settings.decoding.max_new_tokens)),
    }
}

/// The limit that a row is decoded with so that it has at least `max_tokens` tokens. Block mode
/// with the token shift counts whole blocks from the one that the prompt ends in; the schedule cuts
/// at `max_tokens`.
fn row_limit(mode: &RowMode, prompt: usize, max_tokens: usize) -> usize {
    match mode {
        RowMode::Block(options) if options.token_shift => {
            let size = options.block_size.max(1);
            (prompt % size).saturating_add(max_tokens).div_ceil(size).saturating_mul(size)
        }
        RowMode::Block(_) | RowMode::Ar | RowMode::Verify(_) => max_tokens,
    }
}

/// Text of a prompt.
fn echo(server: &Server, prompt: &Prompt) -> Result<String, Refusal> {
    let ids = match prompt {
        Prompt::Text(text) => return Ok(text.clone()),
        Prompt::Ids(ids) => ids,
        Prompt::Messages(_) | Prompt::WithTools { .. } => return Ok(String::new()),
    };
    let codec = server.files.codec().map_err(|error| refusal(&error, "prompt"))?;
    codec.decode(ids).map_err(|error| refusal(&error, "prompt"))
}

/// The random numbers of a request that names no seed.
fn seed_of(drawing: &Drawing) -> u64 {
    drawing.seed.map_or_else(random, |seed| seed as u64)
}

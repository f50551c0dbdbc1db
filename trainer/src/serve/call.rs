//! A request body of `/v1/chat/completions` or `/v1/completions`, checked field by field.
//!
//! In: [`Fields`]. Out: a [`Call`]. Nothing is encoded yet.

use serde_json::{Map, Value};

use super::fields::{Fields, whole};
use super::options::Limits;
use super::refusal::Refusal;
use crate::decode::prompt;
use crate::generate::{DecodeMode, Prompt};

/// Most stop strings of a request, and most bytes of one: every one of them is looked for in all
/// text.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;
/// Most stop tokens of a request; each token of an answer is compared with all of them.
const MOST_STOP_IDS: usize = 128;
/// Most choices of a prompt.
const MOST_CHOICES: usize = 128;
/// Variables of a chat template that are fields of the request themselves.
const OWN_VARIABLES: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Which of the two interfaces was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

impl Endpoint {
    pub(super) fn name(self) -> &'static str {
        match self {
            Endpoint::Chat => "chat",
            Endpoint::Completions => "completions",
        }
    }
}

/// How tokens are drawn; everything that the request leaves open.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Drawing {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<usize>,
    pub seed: Option<i64>,
}

/// A request as it was asked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub endpoint: Endpoint,
    /// Prompts of one request are answered together.
    pub prompts: Vec<Prompt>,
    /// Name of the model that the client wants.
    pub model: Option<String>,
    pub template_kwargs: Map<String, Value>,
    /// Choices per prompt.
    pub n: usize,
    pub stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub include_usage: bool,
    pub max_tokens: Option<usize>,
    pub drawing: Drawing,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<i64>,
    pub ignore_eos: bool,
    /// Whether each token is told with its probability.
    pub logprobs: bool,
    /// Whether the answer begins with the prompt.
    pub echo: bool,
    pub mode: Option<DecodeMode>,
    pub threshold: Option<f64>,
    pub sub_block_size: Option<usize>,
}

impl Call {
    /// Reads and checks every field.
    pub(super) fn read(
        mut fields: Fields,
        endpoint: Endpoint,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        fields.refuse_unsupported()?;
        let prompts = match endpoint {
            Endpoint::Chat => vec![conversation(&mut fields)?],
            Endpoint::Completions => completion_prompts(&mut fields)?,
        };
        let stream = fields.take_bool("stream")?.unwrap_or(false);
        let call = Call {
            endpoint,
            prompts,
            model: fields
                .take("model", "the name of a model", |value| value.as_str().map(String::from))?,
            template_kwargs: template_kwargs(&mut fields)?,
            n: fields.take_count("n", 1, MOST_CHOICES)?.unwrap_or(1),
            stream,
            include_usage: include_usage(&mut fields, stream)?,
            max_tokens: max_tokens(&mut fields, limits)?,
            drawing: Drawing {
                temperature: fields.take_number("temperature", 0.0, 2.0)?,
                top_p: fields.take_number("top_p", f64::MIN_POSITIVE, 1.0)?,
                top_k: top_k(&mut fields)?,
                seed: fields.take("seed", "a whole number", whole)?,
            },
            stop: stops(&mut fields)?,
            stop_token_ids: fields
                .take("stop_token_ids", "a list of at most 128 token ids", stop_token_ids)?
                .unwrap_or_default(),
            ignore_eos: fields.take_bool("ignore_eos")?.unwrap_or(false),
            logprobs: logprobs(&mut fields, endpoint)?,
            echo: fields.take_bool("echo")?.unwrap_or(false),
            mode: fields.take("mode", "\"block\", \"ar\" or \"verify\"", |value| {
                match value.as_str()? {
                    "block" => Some(DecodeMode::Block),
                    "ar" => Some(DecodeMode::Ar),
                    "verify" => Some(DecodeMode::Verify),
                    _ => None,
                }
            })?,
            threshold: fields.take_number("threshold", 0.0, 1.0)?,
            sub_block_size: fields.take_count("sub_block_size", 1, usize::MAX)?,
        };
        if call.echo && call.endpoint == Endpoint::Chat {
            return Err(Refusal::unsupported("echo", "echo is for /v1/completions"));
        }
        if call.echo && call.logprobs {
            return Err(Refusal::unsupported(
                "echo",
                "echo with logprobs asks for the probabilities of the prompt's tokens, which are not computed",
            ));
        }
        Ok(call)
    }
}

/// `messages` and `tools`, as a line of `generate --input`.
fn conversation(fields: &mut Fields) -> Result<Prompt, Refusal> {
    let messages = fields
        .take_value("messages")
        .ok_or_else(|| Refusal::field("messages", "messages is missing; expected a list"))?;
    let tools = fields.take_value("tools").filter(|tools| tools != &Value::Array(Vec::new()));
    let choice = fields.take_value("tool_choice");
    let tools = match choice.as_ref().map(|choice| choice.as_str()) {
        None | Some(Some("auto")) => tools,
        // a model that is not told of tools does not call them
        Some(Some("none")) => None,
        Some(_) => {
            return Err(Refusal::unsupported(
                "tool_choice",
                "a call of a tool cannot be forced; expected \"auto\" or \"none\"",
            ));
        }
    };
    let mut line = Map::from_iter([("messages".to_string(), messages)]);
    line.extend(tools.map(|tools| ("tools".to_string(), tools)));
    prompt::of_value(Value::Object(line)).map_err(|reason| {
        let field = if reason.starts_with("tools") { "tools" } else { "messages" };
        Refusal::field(field, reason)
    })
}

/// `prompt`: a text, several, the ids of one, or those of several.
fn completion_prompts(fields: &mut Fields) -> Result<Vec<Prompt>, Refusal> {
    const EXPECTED: &str = "a text, a list of texts, a list of token ids or a list of such lists";
    let text = |value: &Value| value.as_str().map(|text| Prompt::Text(text.into()));
    let prompts = fields.take("prompt", EXPECTED, |value| match value {
        Value::String(_) => text(value).map(|prompt| vec![prompt]),
        Value::Array(list) => match list.first()? {
            Value::String(_) => list.iter().map(text).collect(),
            Value::Array(_) => list.iter().map(|value| ids(value).map(Prompt::Ids)).collect(),
            _ => ids(value).map(|ids| vec![Prompt::Ids(ids)]),
        },
        _ => None,
    })?;
    let missing = || Refusal::field("prompt", format!("prompt is missing; expected {EXPECTED}"));
    prompts.ok_or_else(missing)
}

fn ids(value: &Value) -> Option<Vec<i64>> {
    value.as_array().filter(|ids| !ids.is_empty())?.iter().map(Value::as_i64).collect()
}

fn stop_token_ids(value: &Value) -> Option<Vec<i64>> {
    let list = value.as_array().filter(|list| list.len() <= MOST_STOP_IDS)?;
    list.iter().map(Value::as_i64).collect()
}

fn template_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, Refusal> {
    let name = "chat_template_kwargs";
    let expected = "an object such as {\"enable_thinking\": false}";
    let kwargs = fields.take(name, expected, |value| value.as_object().cloned())?;
    let kwargs = kwargs.unwrap_or_default();
    match OWN_VARIABLES.iter().find(|own| kwargs.contains_key(**own)) {
        Some(own) => Err(Refusal::field(name, format!("{name}: {own} is set by the server"))),
        None => Ok(kwargs),
    }
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, Refusal> {
    let name = "stream_options";
    let expected = "an object such as {\"include_usage\": true}";
    let options = fields.take(name, expected, |value| value.as_object().cloned())?;
    match options {
        Some(_) if !stream => {
            Err(Refusal::field(name, "stream_options is for streams; set stream to true"))
        }
        options => {
            let mut options = Fields::of(options.unwrap_or_default());
            Ok(options.take_bool("include_usage")?.unwrap_or(false))
        }
    }
}

fn max_tokens(fields: &mut Fields, limits: &Limits) -> Result<Option<usize>, Refusal> {
    let names = ["max_completion_tokens", "max_tokens"];
    let mut asked = None;
    for name in names {
        let Some(count) = fields.take_count(name, 1, usize::MAX)? else { continue };
        if count > limits.max_tokens {
            return Err(Refusal::field(
                name,
                format!(
                    "{name} is {count}, but this server gives at most {} tokens (--max-tokens)",
                    limits.max_tokens
                ),
            ));
        }
        if asked.is_some_and(|other| other != count) {
            return Err(Refusal::field(
                name,
                format!("{} and {} differ; give one of them", names[0], names[1]),
            ));
        }
        asked = Some(count);
    }
    Ok(asked)
}

/// Tokens to choose from; 0 and -1 stand for all, as in other servers.
fn top_k(fields: &mut Fields) -> Result<Option<usize>, Refusal> {
    let top_k = fields.take("top_k", "a whole number of at least 1, or -1 for all", |value| {
        whole(value).filter(|count| *count >= -1)
    })?;
    Ok(top_k.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0))
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, Refusal> {
    let expected = format!(
        "a text or a list of at most {MOST_STOPS} texts, each of 1 to {LONGEST_STOP} bytes"
    );
    let text = |value: &Value| {
        value.as_str().filter(|text| (1..=LONGEST_STOP).contains(&text.len())).map(String::from)
    };
    let stops = fields.take("stop", &expected, |value| match value {
        Value::Array(list) if list.len() <= MOST_STOPS => list.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    })?;
    Ok(stops.unwrap_or_default())
}

/// Whether the tokens' own probabilities are wanted. Those of other tokens are refused.
fn logprobs(fields: &mut Fields, endpoint: Endpoint) -> Result<bool, Refusal> {
    const ADVICE: &str = "only the probability of the chosen token is computed";
    match endpoint {
        Endpoint::Chat => {
            let wanted = fields.take_bool("logprobs")?.unwrap_or(false);
            match fields.take_count("top_logprobs", 0, 20)? {
                Some(0) | None => Ok(wanted),
                Some(count) => Err(Refusal::unsupported(
                    "top_logprobs",
                    format!("top_logprobs is {count}, but {ADVICE}; set it to 0"),
                )),
            }
        }
        Endpoint::Completions => match fields.take_count("logprobs", 0, 20)? {
            None => Ok(false),
            Some(0) => Ok(true),
            Some(count) => Err(Refusal::unsupported(
                "logprobs",
                format!("logprobs is {count}, but {ADVICE}; set it to 0"),
            )),
        },
    }
}

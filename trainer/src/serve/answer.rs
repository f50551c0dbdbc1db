//! The answers as OpenAI's interface writes them: whole, or as chunks of a stream.
//!
//! In: parts of a request's choices. Out: JSON objects.

use serde::Serialize;

use super::call::Endpoint;
use super::outbox::{Reason, TokenText};

/// Numbers of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    /// Forward passes over all choices, counted per choice; a field of our own.
    pub forward_passes: usize,
}

impl Usage {
    /// Adds a choice that has ended.
    pub(super) fn add(&mut self, tokens: usize, passes: usize) {
        self.completion_tokens += tokens;
        self.forward_passes += passes;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// What all answers to a request begin with.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub endpoint: Endpoint,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub logprobs: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChoiceJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChoiceJson<'a> {
    index: usize,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Content<'a> {
    Message { role: &'static str, content: &'a str, refusal: Option<()> },
    Delta(Delta<'a>),
    Text(&'a str),
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Logprobs<'a> {
    Chat {
        content: Vec<ChatToken<'a>>,
        refusal: Option<()>,
    },
    Completions {
        tokens: Vec<&'a str>,
        token_logprobs: Vec<f32>,
        /// Those of the likeliest tokens, which are not computed.
        top_logprobs: Option<()>,
        /// In characters, from the beginning of the choice.
        text_offset: Vec<usize>,
    },
}

#[derive(Serialize)]
struct ChatToken<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
    top_logprobs: [(); 0],
}

/// A choice so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    pub text: String,
    pub tokens: Vec<TokenText>,
    pub reason: Option<Reason>,
}

/// A piece of a choice in a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub choice: usize,
    pub text: Option<&'a str>,
    pub tokens: &'a [TokenText],
    /// Characters of the choice before this piece.
    pub offset: usize,
    pub reason: Option<Reason>,
    pub is_first: bool,
}

impl Head {
    fn answer<'a>(&'a self, stream: bool, choices: Vec<ChoiceJson<'a>>) -> Answer<'a> {
        let object = match (self.endpoint, stream) {
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
            (Endpoint::Completions, _) => "text_completion",
        };
        let (id, model) = (self.id.as_str(), self.model.as_str());
        Answer { id, object, created: self.created, model, choices, usage: None }
    }

    fn logprobs<'a>(&self, tokens: &'a [TokenText], offset: usize) -> Option<Logprobs<'a>> {
        if !self.logprobs {
            return None;
        }
        // JSON has no infinity; a probability that is not above 0 gets the least logarithm of fp32
        let logprob = |token: &TokenText| token.logprob.max(f32::MIN_POSITIVE.ln());
        Some(match self.endpoint {
            Endpoint::Chat => {
                let token = |token: &'a TokenText| ChatToken {
                    token: &token.text,
                    logprob: logprob(token),
                    bytes: token.text.as_bytes(),
                    top_logprobs: [],
                };
                Logprobs::Chat { content: tokens.iter().map(token).collect(), refusal: None }
            }
            Endpoint::Completions => {
                let mut at = offset;
                let begins = |token: &TokenText| {
                    let begins = at;
                    at += token.text.chars().count();
                    begins
                };
                Logprobs::Completions {
                    text_offset: tokens.iter().map(begins).collect(),
                    tokens: tokens.iter().map(|token| token.text.as_str()).collect(),
                    token_logprobs: tokens.iter().map(logprob).collect(),
                    top_logprobs: None,
                }
            }
        })
    }

    /// The whole answer.
    pub(super) fn whole(&self, choices: &[Choice], usage: Usage) -> String {
        let choices = choices
            .iter()
            .enumerate()
            .map(|(index, own)| ChoiceJson {
                index,
                content: match self.endpoint {
                    Endpoint::Chat => {
                        Content::Message { role: "assistant", content: &own.text, refusal: None }
                    }
                    Endpoint::Completions => Content::Text(&own.text),
                },
                logprobs: self.logprobs(&own.tokens, 0),
                finish_reason: own.reason.map(Reason::name),
            })
            .collect();
        let answer = Answer { usage: Some(Some(usage)), ..self.answer(false, choices) };
        json(&answer)
    }

    /// A chunk of a stream. `tells_usage` is whether the stream ends with the numbers of tokens.
    pub(super) fn chunk(&self, chunk: Chunk<'_>, tells_usage: bool) -> String {
        let content = match self.endpoint {
            Endpoint::Chat => Content::Delta(Delta {
                role: chunk.is_first.then_some("assistant"),
                content: chunk.text,
            }),
            Endpoint::Completions => Content::Text(chunk.text.unwrap_or_default()),
        };
        let has_tokens = !chunk.tokens.is_empty();
        let logprobs = has_tokens.then(|| self.logprobs(chunk.tokens, chunk.offset)).flatten();
        let finish_reason = chunk.reason.map(Reason::name);
        let choice = ChoiceJson { index: chunk.choice, content, logprobs, finish_reason };
        let usage = tells_usage.then_some(None);
        json(&Answer { usage, ..self.answer(true, vec![choice]) })
    }

    /// The last chunk of a stream that tells the numbers of tokens.
    pub(super) fn usage(&self, usage: Usage) -> String {
        json(&Answer { usage: Some(Some(usage)), ..self.answer(true, Vec::new()) })
    }
}

fn json(answer: &Answer<'_>) -> String {
    // no map with other keys than text, so that it cannot fail
    serde_json::to_string(answer).unwrap_or_default()
}

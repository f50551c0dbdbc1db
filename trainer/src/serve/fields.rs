//! The fields of a request body, taken out one by one.
//!
//! In: the body as bytes. Out: typed values, or a [`Refusal`] that names the field, what it holds
//! and what was expected. A field that would change the answer and that this server cannot honour
//! is refused by [`Fields::refuse_unsupported`]; every other unknown field is ignored.

use serde_json::{Map, Value};

use super::refusal::Refusal;

/// The fields that were not taken yet.
pub(super) struct Fields(Map<String, Value>);

/// A field that cannot be honoured, the values at which it changes nothing, and what to do.
type Unsupported = (&'static str, fn(&Value) -> bool, &'static str);

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_false(value: &Value) -> bool {
    value == &Value::Bool(false)
}

fn is_true(value: &Value) -> bool {
    value == &Value::Bool(true)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn never(_: &Value) -> bool {
    false
}

fn is_text_format(value: &Value) -> bool {
    value.get("type").and_then(Value::as_str) == Some("text")
}

fn is_text_alone(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|kind| kind == "text"))
}

const PENALTIES: &str = "penalties of repeated tokens are not computed; leave it out";
const GUIDED: &str = "answers are not constrained to a grammar; say in the messages what form is \
                      wanted, and check the answer";
const TEMPLATE: &str = "the chat template is the model's own; its variables are given in \
                        chat_template_kwargs";
const WHOLE: &str = "text is always given without control tokens and stop strings";

/// Fields of OpenAI's interface and of other servers of it.
const UNSUPPORTED: &[Unsupported] = &[
    ("presence_penalty", is_zero, PENALTIES),
    ("frequency_penalty", is_zero, PENALTIES),
    ("repetition_penalty", is_one, PENALTIES),
    ("repeat_penalty", is_one, PENALTIES),
    ("no_repeat_ngram_size", is_zero, PENALTIES),
    ("length_penalty", is_one, "beams are not searched; leave it out"),
    ("use_beam_search", is_false, "beams are not searched; leave it out"),
    ("num_beams", is_one, "beams are not searched; leave it out"),
    ("best_of", is_one, "completions are not ranked; ask for n and choose"),
    ("logit_bias", is_empty, "logits are not changed; leave it out"),
    ("bad_words", is_empty, "logits are not changed; leave it out"),
    ("allowed_token_ids", is_empty, "logits are not changed; leave it out"),
    ("min_p", is_zero, "use top_p or top_k"),
    ("typical_p", is_one, "use top_p or top_k"),
    ("min_tokens", is_zero, "an answer ends where the model ends it; use ignore_eos"),
    ("response_format", is_text_format, GUIDED),
    ("guided_json", never, GUIDED),
    ("guided_regex", never, GUIDED),
    ("guided_choice", never, GUIDED),
    ("guided_grammar", never, GUIDED),
    ("structured_outputs", never, GUIDED),
    ("json_schema", never, GUIDED),
    ("grammar", is_empty, GUIDED),
    ("functions", is_empty, "use tools"),
    ("function_call", never, "use tools"),
    ("parallel_tool_calls", is_true, "tool calls are not constrained; leave it out"),
    ("modalities", is_text_alone, "the model writes text only"),
    ("audio", never, "the model writes text only"),
    ("web_search_options", never, "this server searches nothing"),
    ("reasoning_effort", never, "give the template's own variable in chat_template_kwargs"),
    ("verbosity", |value| value == "medium", "say in the messages how long the answer may be"),
    ("suffix", is_empty, "text is completed at its end only"),
    ("chat_template", never, TEMPLATE),
    ("documents", is_empty, TEMPLATE),
    ("add_generation_prompt", is_true, TEMPLATE),
    ("continue_final_message", is_false, TEMPLATE),
    ("add_special_tokens", never, "text is encoded as the model's tokenizer does"),
    ("truncate_prompt_tokens", never, "shorten the prompt before it is sent"),
    ("prompt_logprobs", never, "the probabilities of the prompt's tokens are not computed"),
    ("skip_special_tokens", is_true, WHOLE),
    ("include_stop_str_in_output", is_false, WHOLE),
    ("return_token_ids", is_false, "token ids are not returned"),
];

impl Fields {
    /// The fields of an object inside a body.
    pub(super) fn of(fields: Map<String, Value>) -> Self {
        Fields(fields)
    }

    /// Parses a body, which must be a JSON object.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(other) => Err(Refusal::field(
                "body",
                format!("the body is {}; expected a JSON object", shown(&other)),
            )),
            Err(error) => Err(Refusal::field("body", format!("the body is not JSON: {error}"))),
        }
    }

    /// Takes a field out as it is; `null` is as good as absent.
    pub(super) fn take_value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field out; `read` gives `None` for a value that it cannot be.
    pub(super) fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.take_value(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(Refusal::field(
                name,
                format!("{name} is {}; expected {expected}", shown(&value)),
            )),
        }
    }

    /// Takes out a number from `least` to `most`.
    pub(super) fn take_number(
        &mut self,
        name: &str,
        least: f64,
        most: f64,
    ) -> Result<Option<f64>, Refusal> {
        self.take(name, &format!("a number from {least} to {most}"), |value| {
            value.as_f64().filter(|number| (least..=most).contains(number))
        })
    }

    /// Takes out a whole number from `least` to `most`; 3.0 is one.
    pub(super) fn take_count(
        &mut self,
        name: &str,
        least: usize,
        most: usize,
    ) -> Result<Option<usize>, Refusal> {
        let expected = match most {
            usize::MAX => format!("a whole number of at least {least}"),
            most => format!("a whole number from {least} to {most}"),
        };
        self.take(name, &expected, |value| {
            whole(value)
                .and_then(|count| usize::try_from(count).ok())
                .filter(|count| (least..=most).contains(count))
        })
    }

    pub(super) fn take_bool(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        self.take(name, "true or false", Value::as_bool)
    }

    /// Refuses a field that would change the answer and cannot be honoured.
    pub(super) fn refuse_unsupported(&self) -> Result<(), Refusal> {
        for (name, changes_nothing, advice) in UNSUPPORTED {
            if let Some(value) = self.0.get(*name)
                && !value.is_null()
                && !changes_nothing(value)
            {
                return Err(Refusal::unsupported(
                    name,
                    format!("{name} ({}) is not supported: {advice}", shown(value)),
                ));
            }
        }
        Ok(())
    }
}

/// A whole number, also where it is written as 3.0.
pub(super) fn whole(value: &Value) -> Option<i64> {
    let of_float =
        |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(of_float))
}

/// A value for a message: its beginning where it is long.
pub(super) fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    match value {
        Value::Array(list) if list.len() > 8 => format!("a list of {} values", list.len()),
        Value::Object(map) if map.len() > 8 => format!("an object of {} fields", map.len()),
        value => {
            let text = value.to_string();
            match text.char_indices().nth(MOST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

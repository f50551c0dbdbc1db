//! The sample's tasks in plain words, for pretrained chat models.
//!
//! In: a seed and two counts. Out: [`Conversation`]s about the same records as [`super::text`]
//! draws, in the same shares of tasks and with the same rule for what is held out, but asked as
//! one asks a chat model, and answered in spaced JSON, lines of a list, and English sentences.

use super::rng::Rng;
use super::text::{Conversation, Record, Turn, Value, draw, user};

/// Ways to ask for JSON.
const TO_JSON: &[&str] = &[
    "Write this record as JSON.",
    "Turn this record into JSON.",
    "Please give me the JSON of this record.",
];

/// `train` conversations for training and `held_out` for held-out prompts, from one seed.
pub fn conversations(
    seed: u64,
    train: usize,
    held_out: usize,
) -> (Vec<Conversation>, Vec<Conversation>) {
    draw(seed, train, held_out, ask)
}

fn json(record: &Record) -> String {
    let value = |value: &Value| match value {
        Value::Word(word) => format!("\"{word}\""),
        Value::Number(number) => number.to_string(),
    };
    let fields: Vec<String> =
        record.fields.iter().map(|(key, v)| format!("\"{key}\": {}", value(v))).collect();
    format!("{{{}}}", fields.join(", "))
}

/// `key: value` lines.
fn lines(record: &Record) -> String {
    let fields: Vec<String> =
        record.fields.iter().map(|(key, v)| format!("{key}: {}", v.plain())).collect();
    fields.join("\n")
}

/// `a` or `an`, as the word needs it.
fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn sentence(record: &Record) -> String {
    let get = |key| record.get(key);
    match record.kind {
        "person" => format!(
            "{} works as {} {} in {} and is {} years old.",
            get("name"),
            article(&get("job")),
            get("job"),
            get("city"),
            get("age")
        ),
        "order" => format!(
            "The order of {} {} items of type {} at {} dollars each is {}.",
            get("count"),
            get("color"),
            get("item"),
            get("price"),
            get("status")
        ),
        "meeting" => format!(
            "{} hosts the meeting about {} on {} at {} in the {} room.",
            get("host"),
            get("topic"),
            get("day"),
            get("hour"),
            get("room")
        ),
        _ => format!(
            "{} is {} {} {} of {} years and lives with {}.",
            get("pet"),
            article(&get("color")),
            get("color"),
            get("kind"),
            get("age"),
            get("owner")
        ),
    }
}

fn ask(rng: &mut Rng, record: &Record) -> Conversation {
    let to_json = |rng: &mut Rng| user(format!("{}\n\n{}", rng.pick(TO_JSON), lines(record)));
    match rng.below(100) {
        0..70 => Conversation { input: vec![to_json(rng)], output: json(record), task: "to-json" },
        70..78 => Conversation {
            input: vec![user(format!(
                "Write this JSON as a list, one line for each field.\n\n{}",
                json(record)
            ))],
            output: lines(record),
            task: "to-list",
        },
        78..90 => Conversation {
            input: vec![user(format!(
                "Write one sentence about this {}.\n\n{}",
                record.kind,
                lines(record)
            ))],
            output: sentence(record),
            task: "sentence",
        },
        90..97 => Conversation {
            input: vec![
                to_json(rng),
                Turn { role: "assistant", content: json(record) },
                user("Now as a list, one line for each field.".to_string()),
            ],
            output: lines(record),
            task: "two-turns",
        },
        _ => {
            let (key, value) = rng.pick(&record.fields).clone();
            Conversation {
                input: vec![user(format!(
                    "What is the {key} of this {}?\n\n{}",
                    record.kind,
                    lines(record)
                ))],
                output: format!("The {key} is {}.", value.plain()),
                task: "lookup",
            }
        }
    }
}

//! Conversations about small records, from which the sample model learns.
//!
//! In: a [`Rng`]. Out: [`Conversation`]s of 40 to 110 tokens. There are four kinds of record
//! (person, order, meeting, pet) and four tasks: record to JSON (about 70 %), JSON to record, one
//! field, a sentence. Every answer follows from its prompt alone: keys and syntax are predictable,
//! and values must be copied from the prompt, where the fields are in any order.
//!
//! Held out: a hash of a record's two leading values decides whether it belongs to the training
//! rows or to the held-out prompts, so that a held-out record is a combination that training never
//! shows, of words that it does.

use super::rng::{Rng, fnv1a};
use super::words::*;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// `user` or `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
}

/// A conversation that ends with the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The prompt: all turns up to the last user turn.
    pub input: Vec<Turn>,
    /// The answer.
    pub output: String,
    /// The task: `to-json`, `to-record`, `lookup`, `sentence`, `two-turns`.
    pub task: &'static str,
}

/// A field's value; numbers have no quotes in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Word(String),
    Number(usize),
}

impl Value {
    pub(super) fn plain(&self) -> String {
        match self {
            Value::Word(w) => w.clone(),
            Value::Number(n) => n.to_string(),
        }
    }

    fn json(&self) -> String {
        match self {
            Value::Word(w) => format!("\"{w}\""),
            Value::Number(n) => n.to_string(),
        }
    }
}

/// A record: its kind and its fields in the order of the JSON.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) kind: &'static str,
    pub(super) fields: Vec<(&'static str, Value)>,
}

fn word(rng: &mut Rng, list: &[&str]) -> Value {
    Value::Word((*rng.pick(list)).to_string())
}

fn number(rng: &mut Rng, low: usize, high: usize) -> Value {
    Value::Number(low + rng.below(high - low + 1))
}

impl Record {
    fn draw(rng: &mut Rng) -> Self {
        let (kind, fields) = match rng.below(4) {
            0 => {
                let name = format!("{} {}", rng.pick(FIRST), rng.pick(LAST));
                let fields = vec![
                    ("name", Value::Word(name)),
                    ("job", word(rng, JOB)),
                    ("city", word(rng, CITY)),
                    ("age", number(rng, 20, 79)),
                ];
                ("person", fields)
            }
            1 => {
                let fields = vec![
                    ("item", word(rng, ITEM)),
                    ("color", word(rng, COLOR)),
                    ("count", number(rng, 2, 9)),
                    ("price", number(rng, 10, 99)),
                    ("status", word(rng, STATUS)),
                ];
                ("order", fields)
            }
            2 => {
                let fields = vec![
                    ("topic", word(rng, TOPIC)),
                    ("host", word(rng, FIRST)),
                    ("day", word(rng, DAY)),
                    ("hour", number(rng, 10, 18)),
                    ("room", word(rng, ROOM)),
                ];
                ("meeting", fields)
            }
            _ => {
                let fields = vec![
                    ("pet", word(rng, PET)),
                    ("kind", word(rng, KIND)),
                    ("color", word(rng, COLOR)),
                    ("age", number(rng, 2, 9)),
                    ("owner", word(rng, FIRST)),
                ];
                ("pet", fields)
            }
        };
        Self { kind, fields }
    }

    /// Whether the two leading values put this record among the held-out ones (one in ten).
    fn held_out(&self) -> bool {
        let pair =
            format!("{}|{}|{}", self.kind, self.fields[0].1.plain(), self.fields[1].1.plain());
        fnv1a(pair.as_bytes()) >> 32 & 0xFFFF < 0xFFFF / 10
    }

    pub(super) fn get(&self, key: &str) -> String {
        self.fields.iter().find(|(k, _)| *k == key).map(|(_, v)| v.plain()).unwrap_or_default()
    }

    fn json(&self) -> String {
        let fields: Vec<String> =
            self.fields.iter().map(|(k, v)| format!("\"{k}\":{}", v.json())).collect();
        format!("{{{}}}", fields.join(","))
    }

    /// `key=value; key=value`.
    fn line(&self) -> String {
        let fields: Vec<String> =
            self.fields.iter().map(|(k, v)| format!("{k}={}", v.plain())).collect();
        fields.join("; ")
    }

    fn sentence(&self) -> String {
        let get = |key| format!("\"{}\"", self.get(key));
        match self.kind {
            "person" => format!(
                "The person {} works as {} in {} and is {} years old.",
                get("name"),
                get("job"),
                get("city"),
                get("age")
            ),
            "order" => format!(
                "The item {} comes in {}: {} of them at {} each are {}.",
                get("item"),
                get("color"),
                get("count"),
                get("price"),
                get("status")
            ),
            "meeting" => format!(
                "The meeting on {} with {} is on {} at {} in room {}.",
                get("topic"),
                get("host"),
                get("day"),
                get("hour"),
                get("room")
            ),
            _ => format!(
                "The pet {} is a {} with {} hair, {} years old, and lives with {}.",
                get("pet"),
                get("kind"),
                get("color"),
                get("age"),
                get("owner")
            ),
        }
    }
}

pub(super) fn user(content: String) -> Turn {
    Turn { role: "user", content }
}

const TO_JSON: &[&str] = &["Write as JSON:", "Turn this record into JSON:", "Give me the JSON of"];

fn ask(rng: &mut Rng, record: &Record) -> Conversation {
    let to_json = |rng: &mut Rng| user(format!("{}\n{}", rng.pick(TO_JSON), record.line()));
    match rng.below(100) {
        0..70 => Conversation { input: vec![to_json(rng)], output: record.json(), task: "to-json" },
        70..78 => Conversation {
            input: vec![user(format!("Write as a record:\n{}", record.json()))],
            output: record.line(),
            task: "to-record",
        },
        78..90 => Conversation {
            input: vec![user(format!(
                "Write a sentence about this {}:\n{}",
                record.kind,
                record.line()
            ))],
            output: record.sentence(),
            task: "sentence",
        },
        90..97 => Conversation {
            input: vec![
                to_json(rng),
                Turn { role: "assistant", content: record.json() },
                user("Now as a record.".to_string()),
            ],
            output: record.line(),
            task: "two-turns",
        },
        _ => {
            let (key, value) = rng.pick(&record.fields).clone();
            Conversation {
                input: vec![user(format!("{}\nWhat is the {key}?", record.line()))],
                output: format!("{key}={}", value.plain()),
                task: "lookup",
            }
        }
    }
}

/// `train` conversations for training and `held_out` for the held-out prompts, from one seed.
pub fn conversations(
    seed: u64,
    train: usize,
    held_out: usize,
) -> (Vec<Conversation>, Vec<Conversation>) {
    draw(seed, train, held_out, ask)
}

/// As [`conversations`], with the wording that `ask` gives to a record.
pub(super) fn draw(
    seed: u64,
    train: usize,
    held_out: usize,
    ask: fn(&mut Rng, &Record) -> Conversation,
) -> (Vec<Conversation>, Vec<Conversation>) {
    let mut rng = Rng::new(seed);
    let (mut seen, mut kept) = (Vec::with_capacity(train), Vec::with_capacity(held_out));
    while seen.len() < train || kept.len() < held_out {
        let record = Record::draw(&mut rng);
        let conversation = ask(&mut rng, &record);
        let (list, limit) =
            if record.held_out() { (&mut kept, held_out) } else { (&mut seen, train) };
        if list.len() < limit {
            list.push(conversation);
        }
    }
    (seen, kept)
}

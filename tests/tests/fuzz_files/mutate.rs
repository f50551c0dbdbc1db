//! Damage to bytes, JSON and template source.
//!
//! In: a valid file and a random generator. Out: a file of the same kind with one to eight changes:
//! flipped bits, numbers at the edges of their types, parts removed, repeated or swapped, keys and
//! values of JSON replaced by values of other types.

use serde_json::{Map, Value, json};

/// A generator of 64-bit numbers with its whole state in one word (splitmix64), so that a seed
/// repeats a run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next 64 random bits.
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, or 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.word() % n.max(1) as u64) as usize
    }

    /// One of `choices`, which must not be empty.
    pub(crate) fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// True once in `n` calls.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Numbers at the edges of integer types, as they stand in binary headers.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// A place in `length` bytes. Headers and footers say how the rest is read, so one half of the
/// places lies in the first or last kilobyte.
fn place(random: &mut Random, length: usize) -> usize {
    match random.below(4) {
        0 => random.below(length.min(1024)),
        1 => length.saturating_sub(1 + random.below(length.min(1024))),
        _ => random.below(length),
    }
}

fn span(random: &mut Random, length: usize) -> std::ops::Range<usize> {
    let start = place(random, length);
    let longest = *random.of(&[2, 16, 256, 4096]);
    start..(start + 1 + random.below(longest)).min(length)
}

/// Changes one to eight places of `data`.
pub(crate) fn bytes(random: &mut Random, data: &mut Vec<u8>) {
    for _ in 0..=random.below(8) {
        if data.is_empty() {
            return;
        }
        let at = place(random, data.len());
        match random.below(12) {
            0..=2 => data[at] ^= 1 << random.below(8),
            3 => data[at] = random.word() as u8,
            4..=6 => {
                let width = *random.of(&[1usize, 2, 4, 8]);
                // Numbers in headers stand at multiples of their width, most of the time.
                let at = if random.once_in(3) { at } else { at / width * width };
                let value = random.of(&EDGES).to_le_bytes();
                for (byte, new) in data.iter_mut().skip(at).zip(&value[..width]) {
                    *byte = *new;
                }
            }
            7 => drop(data.drain(span(random, data.len()))),
            8 => {
                let copy = data[span(random, data.len())].to_vec();
                data.splice(at..at, copy);
            }
            9 => {
                let copy = data[span(random, data.len())].to_vec();
                for (byte, new) in data.iter_mut().skip(at).zip(copy) {
                    *byte = new;
                }
            }
            10 => data.truncate(at),
            _ => {
                let new: Vec<u8> = (0..random.below(16)).map(|_| random.word() as u8).collect();
                data.splice(at..at, new);
            }
        }
    }
}

/// A value that a reader of JSON may not expect.
fn hostile(random: &mut Random) -> Value {
    match random.below(20) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(""),
        3 => json!([]),
        4 => json!({}),
        5 => json!(-1),
        6 => json!(0),
        7 => json!(i32::MAX),
        8 => json!(i64::from(i32::MAX) + 1),
        9 => json!(u64::MAX),
        10 => json!(i64::MIN),
        11 => json!(1e308),
        12 => json!(1e-320),
        13 => json!(0.5),
        14 => json!("\u{0}\u{202e}../../etc\n\u{1b}[31m"),
        15 => json!("x".repeat(1 + random.below(5000))),
        16 => json!("|<MASK>|"),
        17 => json!([[0, "a"], {"a": null}]),
        18 => {
            let mut value = json!(1);
            for _ in 0..random.below(200) {
                value = if random.once_in(2) { json!([value]) } else { json!({"a": value}) };
            }
            value
        }
        _ => json!(random.word() as i64),
    }
}

/// A random value inside `value`; scalars are reached as often as the objects around them.
fn inside<'a>(random: &mut Random, value: &'a mut Value) -> &'a mut Value {
    let deeper = match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        _ => false,
    };
    if !deeper || random.once_in(4) {
        return value;
    }
    match value {
        Value::Array(items) => {
            let at = random.below(items.len());
            inside(random, &mut items[at])
        }
        Value::Object(entries) => {
            let at = random.below(entries.len());
            let (_, next) = entries.iter_mut().nth(at).expect("an entry below the length");
            inside(random, next)
        }
        _ => unreachable!("only arrays and objects hold values"),
    }
}

/// Changes one to four values of a JSON document; what is no JSON is changed as bytes.
pub(crate) fn json(random: &mut Random, data: &mut Vec<u8>) {
    let Ok(mut document) = serde_json::from_slice::<Value>(data) else {
        return bytes(random, data);
    };
    for _ in 0..=random.below(4) {
        let copy = inside(random, &mut document).clone();
        let replacement = hostile(random);
        let value = inside(random, &mut document);
        match (random.below(8), &mut *value) {
            (0..=2, _) => *value = replacement,
            (3, Value::Object(entries)) => {
                let at = random.below(entries.len());
                *entries = without(entries, at);
            }
            (3, Value::Array(items)) if !items.is_empty() => {
                items.remove(random.below(items.len()));
            }
            (4, Value::Number(number)) => {
                let n = number.as_f64().unwrap_or(0.0);
                *value = match random.below(6) {
                    0 => json!(-n as i64),
                    1 => json!(n as i64 + 1),
                    2 => json!(n as i64 - 1),
                    3 => json!((n * 1e9) as i64),
                    4 => json!(n / 3.0),
                    _ => json!(number.to_string()),
                };
            }
            (4, Value::String(text)) => {
                let mut raw = std::mem::take(text).into_bytes();
                bytes(random, &mut raw);
                *text = String::from_utf8_lossy(&raw).into_owned();
            }
            (5, Value::Array(items)) => {
                for _ in 0..=random.below(50) {
                    items.push(copy.clone());
                }
            }
            (5, Value::Object(entries)) => {
                let at = random.below(entries.len());
                if let Some((key, entry)) = entries.iter().nth(at) {
                    let (key, entry) = (key.clone(), entry.clone());
                    *entries = without(entries, at);
                    entries.insert(format!("{key}_"), entry);
                }
            }
            _ => *value = copy,
        }
    }
    *data = document.to_string().into_bytes();
    if random.once_in(8) {
        bytes(random, data);
    }
}

fn without(entries: &Map<String, Value>, at: usize) -> Map<String, Value> {
    let others = entries.iter().enumerate().filter(|(i, _)| *i != at);
    others.map(|(_, (key, value))| (key.clone(), value.clone())).collect()
}

/// Pieces of Jinja that are put into templates.
const PIECES: [&str; 52] = [
    "{{ ",
    " }}",
    "{% for m in messages %}",
    "{% for i in range(9) %}",
    "{% for i in range(99999) %}",
    "{% endfor %}",
    "{% if m %}",
    "{% if m.role == 'assistant' %}",
    "{% else %}",
    "{% endif %}",
    "{% set x = ",
    "{% set ns = namespace(x=1) %}",
    "{% set ns.x = ns %}",
    " %}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(f) }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% call f(1) %}",
    "{% endcall %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% raw %}",
    "{% endraw %}",
    "{#",
    "#}",
    "{%- ",
    " -%}",
    "messages",
    "m.content",
    "m['tool_calls']",
    "x",
    "(",
    ")",
    "[",
    "]",
    "[::-1]",
    " * 99999999",
    " ~ ",
    " + ",
    " - ",
    " ** 99",
    " // 0",
    " % ",
    "|tojson(indent=99999999)",
    "|batch(0)",
    "|join(messages|string)",
    "|indent(99999999)",
    ".split('')",
    "'%s%999999999d' % (1, 2)",
    ".format(m, x=messages)",
];

/// Puts pieces into a template, repeats and removes parts of it.
pub(crate) fn template(random: &mut Random, data: &mut Vec<u8>) {
    let mut text = String::from_utf8_lossy(data).into_owned();
    for _ in 0..=random.below(5) {
        let edge = |random: &mut Random, text: &str| {
            let mut at = random.below(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (a, b) = (edge(random, &text), edge(random, &text));
        let (a, b) = (a.min(b), a.max(b));
        match random.below(6) {
            0..=2 => text.insert_str(a, random.of::<&str>(&PIECES)),
            3 if b - a < 400 => text.replace_range(a..b, ""),
            4 if b - a < 4000 => {
                let part = text[a..b].to_string();
                text.insert_str(b, &part);
            }
            _ => {
                let piece = *random.of::<&str>(&PIECES);
                let times = *random.of(&[2, 30, 3000]);
                text.insert_str(a, &piece.repeat(times));
            }
        }
    }
    *data = text.into_bytes();
    if random.once_in(20) {
        bytes(random, data);
    }
}

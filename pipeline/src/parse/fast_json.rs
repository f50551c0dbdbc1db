//! The short way from a JSON line to a conversation, for rows as they should be.
//!
//! In: a line. Out: what [`conversation::from_row`](crate::parse::conversation::from_row) makes of
//! it, text borrowed where it holds no escapes; or nothing, and the row goes the long way (see
//! `direct.rs`, which does the same for tables).

use crate::parse::conversation::{Message, Read, plain_role};
use crate::parse::fast_columns::finish;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt::Formatter;

/// A JSON line, in the memory of an empty list; none if it has to go the long way.
pub fn line<'a>(text: &'a str, mut messages: Vec<Message<'a>>) -> Option<Read<'a>> {
    let row: Line = serde_json::from_str(text).ok()?;
    if let Some(Str(s)) =
        [row.system_prompt, row.system].into_iter().flatten().find(|s| !s.0.is_empty())
    {
        messages.push(Message::new("system", s));
    }
    match (row.messages, row.input, row.output) {
        (Some(m), ..) => messages.extend(m),
        (None, Some(input), Some(output)) => {
            match input {
                Input::List(m) => messages.extend(m),
                Input::Text(s) => messages.push(Message::new("user", s)),
            }
            messages.push(Message::new("assistant", output.0));
        }
        _ => return None,
    }
    let licence =
        [row.license, row.licence].into_iter().flatten().map(|s| s.0).find(|s| !s.is_empty());
    Some(finish(row.category.map(|s| s.0), licence, messages))
}

#[derive(Default)]
struct Line<'a> {
    messages: Option<Vec<Message<'a>>>,
    input: Option<Input<'a>>,
    output: Option<NoNull<'a>>,
    system_prompt: Option<Str<'a>>,
    system: Option<Str<'a>>,
    category: Option<Str<'a>>,
    license: Option<Str<'a>>,
    licence: Option<Str<'a>>,
}

/// Text, borrowed where it holds no escapes; null is the empty text. (serde's own `Cow` is always a
/// copy.)
#[derive(Default)]
struct Str<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Str<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Str<'de>;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("text or null")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<Str<'de>, E> {
                Ok(Str(Cow::Owned(s.to_string())))
            }
            fn visit_unit<E>(self) -> Result<Str<'de>, E> {
                Ok(Str::default())
            }
        }
        d.deserialize_any(Visit)
    }
}

/// The same where null is the long way's to judge.
struct NoNull<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for NoNull<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Option::<Str>::deserialize(d)? {
            Some(s) => Ok(NoNull(s.0)),
            None => Err(D::Error::custom(LONG_WAY)),
        }
    }
}

enum Input<'a> {
    List(Vec<Message<'a>>),
    Text(Cow<'a, str>),
}

/// Deserialising stops here, and the row goes the long way.
const LONG_WAY: &str = "not plain";

impl<'de> serde::Deserialize<'de> for Line<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Line<'de>;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("a row")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line<'de>, A::Error> {
                let mut row = Line::default();
                // An answer that the prompt's list may precede or follow; a key twice is the long
                // way's to judge.
                fn set<T, E: serde::de::Error>(slot: &mut Option<T>, value: T) -> Result<(), E> {
                    if slot.replace(value).is_some() { Err(E::custom(LONG_WAY)) } else { Ok(()) }
                }
                while let Some(Str(key)) = map.next_key()? {
                    match &*key {
                        "messages" => match map.next_value()? {
                            Input::List(m) => set(&mut row.messages, m)?,
                            Input::Text(_) => return Err(A::Error::custom(LONG_WAY)),
                        },
                        "input" => set(&mut row.input, map.next_value()?)?,
                        "output" => set(&mut row.output, map.next_value()?)?,
                        "system_prompt" | "system" => {
                            let slot = if key == "system" {
                                &mut row.system
                            } else {
                                &mut row.system_prompt
                            };
                            // null and "" are alike.
                            set(slot, map.next_value()?)?
                        }
                        "category" => set(&mut row.category, map.next_value()?)?,
                        "license" => set(&mut row.license, map.next_value()?)?,
                        "licence" => set(&mut row.licence, map.next_value()?)?,
                        "tools" | "conversations" | "conversation" | "instruction" => {
                            return Err(A::Error::custom(LONG_WAY));
                        }
                        _ => map.next_value_seed(Sound)?,
                    }
                }
                Ok(row)
            }
        }
        d.deserialize_map(Visit)
    }
}

impl<'de> serde::Deserialize<'de> for Input<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Input<'de>;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("text or messages")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Input<'de>, E> {
                Ok(Input::Text(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<Input<'de>, E> {
                Ok(Input::Text(Cow::Owned(s.to_string())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Input<'de>, A::Error> {
                let mut out = Vec::with_capacity(8);
                while let Some(Plain(m)) = seq.next_element()? {
                    out.push(m);
                }
                if out.is_empty() { Err(A::Error::custom(LONG_WAY)) } else { Ok(Input::List(out)) }
            }
        }
        d.deserialize_any(Visit)
    }
}

/// A message of a role and a content.
struct Plain<'a>(Message<'a>);

impl<'de> serde::Deserialize<'de> for Plain<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Plain<'de>;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("a message")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plain<'de>, A::Error> {
                let (mut role, mut content): (Option<Str>, Option<NoNull>) = (None, None);
                while let Some(Str(key)) = map.next_key()? {
                    match &*key {
                        "role" | "from" if role.is_none() => role = Some(map.next_value()?),
                        "content" | "value" if content.is_none() => {
                            content = Some(map.next_value()?)
                        }
                        _ => return Err(A::Error::custom(LONG_WAY)),
                    }
                }
                match (role.as_ref().and_then(|r| plain_role(&r.0)), content) {
                    (Some(role), Some(content)) => Ok(Plain(Message::new(role, content.0))),
                    _ => Err(A::Error::custom(LONG_WAY)),
                }
            }
        }
        d.deserialize_map(Visit)
    }
}

/// Reads a value to see that it is sound (escapes, numbers, nesting) and keeps nothing of it.
struct Sound;

impl<'de> DeserializeSeed<'de> for Sound {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = ();
    fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Sound)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Sound)?.is_some() {
            map.next_value_seed(Sound)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::source::RawRows;
    use crate::run::row_processor::decode;
    use proptest::prelude::*;

    fn some(s: &str) -> String {
        serde_json::to_string(s).unwrap()
    }

    /// A value, mostly as it should be.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            8 => "[a-z\n\"é]{0,6}".prop_map(|s| some(&s)),
            1 => Just("null".to_string()),
            1 => Just("\"\\ud800\"".to_string()),
            1 => Just("1e999".to_string()),
            1 => Just("[{\"role\": \"user\", \"content\": \"x\"}]".to_string()),
            1 => Just("[]".to_string()),
            1 => Just("{\"a\": [1, 2.5, true, \"\\u00e9\"]}".to_string()),
            1 => Just("[{\"type\": \"text\", \"text\": \"t\"}]".to_string()),
        ]
    }
    fn role() -> impl Strategy<Value = String> {
        let known = prop::sample::select(vec![
            "user",
            "assistant",
            "system",
            "human",
            "gpt",
            "tool",
            "observation",
            "function_call",
            "x",
        ]);
        prop_oneof![9 => known.prop_map(some), 1 => value()]
    }
    fn message() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec!["role", "role", "role", "from"]);
        let text = prop::sample::select(vec!["content", "content", "value"]);
        let more = prop::option::weighted(
            0.2,
            (
                prop::sample::select(vec![
                    "name",
                    "role",
                    "value",
                    "tool_calls",
                    "reasoning_content",
                ]),
                value(),
            ),
        );
        (key, role(), text, value(), more).prop_map(|(k, r, t, v, more)| {
            let more = more.map(|(k, v)| format!(", \"{k}\": {v}")).unwrap_or_default();
            format!("{{\"{k}\": {r}, \"{t}\": {v}{more}}}")
        })
    }
    fn row() -> impl Strategy<Value = String> {
        let list =
            prop::collection::vec(message(), 0..4).prop_map(|m| format!("[{}]", m.join(", ")));
        let key = prop::sample::select(vec![
            "messages",
            "input",
            "input",
            "output",
            "output",
            "system_prompt",
            "system",
            "category",
            "license",
            "licence",
            "id",
            "tools",
            "instruction",
            "conversations",
            "prompt",
            "answer",
        ]);
        let pair = (key, prop_oneof![2 => value(), 3 => list]);
        prop::collection::vec(pair, 0..5).prop_map(|p| {
            let p: Vec<String> = p.into_iter().map(|(k, v)| format!("\"{k}\": {v}")).collect();
            format!("{{{}}}", p.join(", "))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn lines_mean_the_same(text in row()) {
            if let Some(short) = line(&text, Vec::new()) {
                let raw = RawRows::Lines { ends: vec![text.len()], bytes: text.clone().into_bytes() };
                prop_assert_eq!(short, decode(&raw, 0, &[]), "{}", text);
            }
        }
    }

    #[test]
    fn plain_rows_take_the_short_way() {
        for text in [
            r#"{"input": [{"role": "user", "content": "q\n"}], "output": "a", "system_prompt": null, "category": "x", "n": [1.5, {"k": "v"}]}"#,
            r#"{"output": "a", "input": "q"}"#,
            r#"{"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
        ] {
            assert!(line(text, Vec::new()).is_some(), "{text}");
        }
        for text in [
            r#"{"messages": [{"role": "user", "content": "q"}], "messages": []}"#,
            r#"{"input": "q", "output": "a", "id": "\ud800"}"#,
            r#"{"input": "q", "output": "a"} x"#,
            r#"{"input": "q", "output": "a", "tools": []}"#,
        ] {
            assert!(line(text, Vec::new()).is_none(), "{text}");
        }
    }
}

//! Fast path from a JSON line to a conversation.
//!
//! In: one line. Out: the [`ParsedRow`] that `shapes.rs` defines, with text borrowed from the line
//! where it contains no escapes. Anything unusual (a null content, an unknown role, a tool call, a
//! duplicate key, invalid JSON) gives `None`, and the caller uses the reference path in `rows.rs`.
//! `fast_columns.rs` does the same for tables.

use crate::parse::conversation::{Message, ParsedRow, canonical_role};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt::Formatter;

/// The row in a JSON line; None if it needs the reference path. `messages` is an empty list whose
/// memory is reused.
pub(crate) fn parse_line<'a>(
    text: &'a str,
    mut messages: Vec<Message<'a>>,
) -> Option<ParsedRow<'a>> {
    let row: RowFields = serde_json::from_str(text).ok()?;
    if let Some(NullableText(s)) =
        [row.system_prompt, row.system].into_iter().flatten().find(|s| !s.0.is_empty())
    {
        messages.push(Message::new("system", s));
    }
    let from_column = messages.len();
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
    // A system prompt in the column and in the messages needs the reference path.
    if from_column > 0 && messages.get(1).is_some_and(|m| m.role == "system") {
        return None;
    }
    let licence =
        [row.license, row.licence].into_iter().flatten().map(|s| s.0).find(|s| !s.is_empty());
    Some(ParsedRow::from_messages(row.category.map(|s| s.0), licence, messages))
}

#[derive(Default)]
struct RowFields<'a> {
    messages: Option<Vec<Message<'a>>>,
    input: Option<Input<'a>>,
    output: Option<RequiredText<'a>>,
    system_prompt: Option<NullableText<'a>>,
    system: Option<NullableText<'a>>,
    category: Option<NullableText<'a>>,
    license: Option<NullableText<'a>>,
    licence: Option<NullableText<'a>>,
}

/// Text, borrowed where it contains no escapes; null becomes the empty text. (Deserializing into
/// `Cow` would always copy.)
#[derive(Default)]
struct NullableText<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for NullableText<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = NullableText<'de>;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("text or null")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<NullableText<'de>, E> {
                Ok(NullableText(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<NullableText<'de>, E> {
                Ok(NullableText(Cow::Owned(s.to_string())))
            }
            fn visit_unit<E>(self) -> Result<NullableText<'de>, E> {
                Ok(NullableText::default())
            }
        }
        d.deserialize_any(TextVisitor)
    }
}

/// Text where null needs the reference path.
struct RequiredText<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for RequiredText<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Option::<NullableText>::deserialize(d)? {
            Some(s) => Ok(RequiredText(s.0)),
            None => Err(D::Error::custom(USE_REFERENCE_PATH)),
        }
    }
}

/// The `input` column, or a list of messages.
enum Input<'a> {
    List(Vec<Message<'a>>),
    Text(Cow<'a, str>),
}

/// Error text that stops deserializing; the row then takes the reference path, which makes the
/// text irrelevant.
const USE_REFERENCE_PATH: &str = "unusual row";

impl<'de> serde::Deserialize<'de> for RowFields<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct RowVisitor;
        impl<'de> Visitor<'de> for RowVisitor {
            type Value = RowFields<'de>;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("a row")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RowFields<'de>, A::Error> {
                let mut row = RowFields::default();
                // Keys may come in any order; a duplicate key needs the reference path.
                fn set<T, E: serde::de::Error>(slot: &mut Option<T>, value: T) -> Result<(), E> {
                    if slot.replace(value).is_some() {
                        Err(E::custom(USE_REFERENCE_PATH))
                    } else {
                        Ok(())
                    }
                }
                while let Some(NullableText(key)) = map.next_key()? {
                    match &*key {
                        "messages" => match map.next_value()? {
                            Input::List(m) => set(&mut row.messages, m)?,
                            Input::Text(_) => return Err(A::Error::custom(USE_REFERENCE_PATH)),
                        },
                        "input" => set(&mut row.input, map.next_value()?)?,
                        "output" => set(&mut row.output, map.next_value()?)?,
                        "system_prompt" | "system" => {
                            let slot = if key == "system" {
                                &mut row.system
                            } else {
                                &mut row.system_prompt
                            };
                            // Null and the empty text both mean that there is no system prompt.
                            set(slot, map.next_value()?)?
                        }
                        "category" => set(&mut row.category, map.next_value()?)?,
                        "license" => set(&mut row.license, map.next_value()?)?,
                        "licence" => set(&mut row.licence, map.next_value()?)?,
                        "tools"
                        | "functions"
                        | "loss_mask"
                        | "conversations"
                        | "conversation"
                        | "instruction"
                        | "chat_template_kwargs" => {
                            return Err(A::Error::custom(USE_REFERENCE_PATH));
                        }
                        _ => map.next_value_seed(CheckedValue)?,
                    }
                }
                Ok(row)
            }
        }
        d.deserialize_map(RowVisitor)
    }
}

impl<'de> serde::Deserialize<'de> for Input<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct InputVisitor;
        impl<'de> Visitor<'de> for InputVisitor {
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
                while let Some(PlainMessage(m)) = seq.next_element()? {
                    out.push(m);
                }
                if out.is_empty() {
                    Err(A::Error::custom(USE_REFERENCE_PATH))
                } else {
                    Ok(Input::List(out))
                }
            }
        }
        d.deserialize_any(InputVisitor)
    }
}

/// A message with a role and a content and no other keys.
struct PlainMessage<'a>(Message<'a>);

impl<'de> serde::Deserialize<'de> for PlainMessage<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct MessageVisitor;
        impl<'de> Visitor<'de> for MessageVisitor {
            type Value = PlainMessage<'de>;
            fn expecting(&self, f: &mut Formatter) -> std::fmt::Result {
                f.write_str("a message")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<PlainMessage<'de>, A::Error> {
                let (mut role, mut content): (Option<NullableText>, Option<RequiredText>) =
                    (None, None);
                while let Some(NullableText(key)) = map.next_key()? {
                    match &*key {
                        "role" | "from" if role.is_none() => role = Some(map.next_value()?),
                        "content" | "value" if content.is_none() => {
                            content = Some(map.next_value()?)
                        }
                        _ => return Err(A::Error::custom(USE_REFERENCE_PATH)),
                    }
                }
                match (role.as_ref().and_then(|r| canonical_role(&r.0)), content) {
                    (Some(role), Some(content)) => Ok(PlainMessage(Message::new(role, content.0))),
                    _ => Err(A::Error::custom(USE_REFERENCE_PATH)),
                }
            }
        }
        d.deserialize_map(MessageVisitor)
    }
}

/// Discards a value after checking that it is valid JSON (escapes, numbers, nesting). serde's
/// `IgnoredAny` would not check it, and the reference path drops rows with invalid JSON.
struct CheckedValue;

impl<'de> DeserializeSeed<'de> for CheckedValue {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CheckedValue {
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
        while seq.next_element_seed(CheckedValue)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(CheckedValue)?.is_some() {
            map.next_value_seed(CheckedValue)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_rows_take_the_fast_path() {
        for text in [
            r#"{"input": [{"role": "user", "content": "q\n"}], "output": "a", "system_prompt": null, "category": "x", "n": [1.5, {"k": "v"}]}"#,
            r#"{"output": "a", "input": "q"}"#,
            r#"{"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
        ] {
            assert!(parse_line(text, Vec::new()).is_some(), "{text}");
        }
        for text in [
            r#"{"messages": [{"role": "user", "content": "q"}], "messages": []}"#,
            r#"{"input": "q", "output": "a", "id": "\ud800"}"#,
            r#"{"input": "q", "output": "a"} x"#,
            r#"{"input": "q", "output": "a", "tools": []}"#,
        ] {
            assert!(parse_line(text, Vec::new()).is_none(), "{text}");
        }
    }
}

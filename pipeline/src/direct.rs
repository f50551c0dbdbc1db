//! The short way from a raw row to a conversation, for rows as they should be.
//!
//! [`conversation::from_row`](crate::conversation::from_row) says what a row means; it takes a JSON value, which costs more than
//! all else done to a row but tokenizing. Here the two commonest shapes (`input` with `output`, and `messages`) are read straight
//! from a table's columns or a JSON line. Whatever is not plainly in order (a null, an unknown role, a call, a doubled key, a
//! broken line) gives `None`, and the row goes the long way. The two are held against each other on random rows.

use crate::conversation::{Conversation, Message, Read, plain_role, validate};
use arrow::array::{Array, AsArray, LargeStringArray, OffsetSizeTrait, RecordBatch, StringArray, StringViewArray, StructArray};
use arrow::datatypes::DataType;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt::Formatter;

fn finish<'a>(category: Option<Cow<'a, str>>, licence: Option<Cow<'a, str>>, messages: Vec<Message<'a>>) -> Read<'a> {
    (category.filter(|s| !s.is_empty()), licence, validate(&messages).map(|()| Conversation { messages, tools: None }))
}

/// A column of strings.
enum Text<'a> {
    Small(&'a StringArray),
    Large(&'a LargeStringArray),
    View(&'a StringViewArray),
}

impl<'a> Text<'a> {
    fn new(a: &'a dyn Array) -> Option<Self> {
        Some(match a.data_type() {
            DataType::Utf8 => Text::Small(a.as_string()),
            DataType::LargeUtf8 => Text::Large(a.as_string()),
            DataType::Utf8View => Text::View(a.as_string_view()),
            _ => return None,
        })
    }
    /// Cell `i`; none if it is null.
    fn get(&self, i: usize) -> Option<&'a str> {
        match self {
            Text::Small(a) => a.is_valid(i).then(|| a.value(i)),
            Text::Large(a) => a.is_valid(i).then(|| a.value(i)),
            Text::View(a) => a.is_valid(i).then(|| a.value(i)),
        }
    }
}

/// A column of lists of role and content.
struct Messages<'a> {
    list: &'a dyn Array,
    items: &'a StructArray,
    role: Text<'a>,
    content: Text<'a>,
}

impl<'a> Messages<'a> {
    fn new(list: &'a dyn Array) -> Option<Self> {
        let items = match list.data_type() {
            DataType::List(_) => list.as_list::<i32>().values(),
            DataType::LargeList(_) => list.as_list::<i64>().values(),
            _ => return None,
        };
        let items = items.as_struct_opt()?;
        // Nothing but these two: other fields may say something that only the long way understands.
        if items.num_columns() != 2 {
            return None;
        }
        let text = |names: [&str; 2]| names.iter().find_map(|n| items.column_by_name(n)).and_then(|c| Text::new(c.as_ref()));
        Some(Messages { list, items, role: text(["role", "from"])?, content: text(["content", "value"])? })
    }

    fn read(&self, i: usize, out: &mut Vec<Message<'a>>) -> Option<()> {
        let range = match self.list.data_type() {
            DataType::List(_) => range(self.list.as_list::<i32>().value_offsets(), i),
            _ => range(self.list.as_list::<i64>().value_offsets(), i),
        };
        if self.list.is_null(i) || range.is_empty() {
            return None;
        }
        for k in range {
            if self.items.is_null(k) {
                return None;
            }
            out.push(Message::new(plain_role(self.role.get(k)?)?, self.content.get(k)?));
        }
        Some(())
    }
}

fn range<O: OffsetSizeTrait>(offsets: &[O], i: usize) -> std::ops::Range<usize> {
    offsets[i].as_usize()..offsets[i + 1].as_usize()
}

enum Body<'a> {
    Messages(Messages<'a>),
    Prompt(Text<'a>, Text<'a>),
    List(Messages<'a>, Text<'a>),
}

/// A table's columns, if they have one of the two shapes.
pub struct Columns<'a> {
    body: Body<'a>,
    system: Vec<Text<'a>>,
    category: Option<Text<'a>>,
    licence: Vec<Text<'a>>,
}

impl<'a> Columns<'a> {
    /// The columns of `batch`; none if its rows have to go the long way.
    pub fn new(batch: &'a RecordBatch) -> Option<Self> {
        let column = |name: &str| batch.column_by_name(name).map(|c| c.as_ref());
        let has = |name: &str| column(name).is_some();
        let fields = batch.schema_ref().fields();
        let doubled = fields.iter().enumerate().any(|(k, f)| fields[..k].iter().any(|g| g.name() == f.name()));
        if doubled || ["tools", "conversations", "conversation", "instruction"].into_iter().any(has) {
            return None;
        }
        let body = match column("messages") {
            Some(m) => Body::Messages(Messages::new(m)?),
            None => {
                let (input, output) = (column("input")?, Text::new(column("output")?)?);
                match Text::new(input) {
                    Some(text) => Body::Prompt(text, output),
                    None => Body::List(Messages::new(input)?, output),
                }
            }
        };
        // A column that is there must be text: what else it could be is the long way's to judge.
        let texts = |names: &[&str]| -> Option<Vec<Text<'a>>> { names.iter().filter_map(|n| column(n)).map(Text::new).collect() };
        let category = texts(&["category"])?.into_iter().next();
        Some(Columns { body, system: texts(&["system_prompt", "system"])?, category, licence: texts(&["license", "licence"])? })
    }

    /// Row `i`, in the memory of an empty list; none if it has to go the long way.
    pub fn read(&self, i: usize, mut messages: Vec<Message<'a>>) -> Option<Read<'a>> {
        let first = |texts: &[Text<'a>]| texts.iter().filter_map(|t| t.get(i)).find(|s| !s.is_empty());
        if let Some(s) = first(&self.system) {
            messages.push(Message::new("system", s));
        }
        match &self.body {
            Body::Messages(m) => m.read(i, &mut messages)?,
            Body::Prompt(input, output) => {
                messages.push(Message::new("user", input.get(i)?));
                messages.push(Message::new("assistant", output.get(i)?));
            }
            Body::List(input, output) => {
                input.read(i, &mut messages)?;
                messages.push(Message::new("assistant", output.get(i)?));
            }
        }
        Some(finish(self.category.as_ref().and_then(|t| t.get(i)).map(Cow::from), first(&self.licence).map(Cow::from), messages))
    }
}

/// A JSON line, in the memory of an empty list; none if it has to go the long way.
pub fn line<'a>(text: &'a str, mut messages: Vec<Message<'a>>) -> Option<Read<'a>> {
    let row: Line = serde_json::from_str(text).ok()?;
    if let Some(Str(s)) = [row.system_prompt, row.system].into_iter().flatten().find(|s| !s.0.is_empty()) {
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
    let licence = [row.license, row.licence].into_iter().flatten().map(|s| s.0).find(|s| !s.is_empty());
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

/// Text, borrowed where it holds no escapes; null is the empty text. (serde's own `Cow` is always a copy.)
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
                // An answer that the prompt's list may precede or follow; a key twice is the long way's to judge.
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
                            let slot = if key == "system" { &mut row.system } else { &mut row.system_prompt };
                            // null and "" are alike.
                            set(slot, map.next_value()?)?
                        }
                        "category" => set(&mut row.category, map.next_value()?)?,
                        "license" => set(&mut row.license, map.next_value()?)?,
                        "licence" => set(&mut row.licence, map.next_value()?)?,
                        "tools" | "conversations" | "conversation" | "instruction" => return Err(A::Error::custom(LONG_WAY)),
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
                        "content" | "value" if content.is_none() => content = Some(map.next_value()?),
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
    use crate::source::RawRows;
    use crate::worker::{Rows, decode};
    use arrow::array::{ArrayRef, ListArray, StringArray};
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::{Field, Fields};
    use proptest::prelude::*;
    use std::sync::Arc;

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
        let known = prop::sample::select(vec!["user", "assistant", "system", "human", "gpt", "tool", "observation", "function_call", "x"]);
        prop_oneof![9 => known.prop_map(some), 1 => value()]
    }
    fn message() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec!["role", "role", "role", "from"]);
        let text = prop::sample::select(vec!["content", "content", "value"]);
        let more =
            prop::option::weighted(0.2, (prop::sample::select(vec!["name", "role", "value", "tool_calls", "reasoning_content"]), value()));
        (key, role(), text, value(), more).prop_map(|(k, r, t, v, more)| {
            let more = more.map(|(k, v)| format!(", \"{k}\": {v}")).unwrap_or_default();
            format!("{{\"{k}\": {r}, \"{t}\": {v}{more}}}")
        })
    }
    fn row() -> impl Strategy<Value = String> {
        let list = prop::collection::vec(message(), 0..4).prop_map(|m| format!("[{}]", m.join(", ")));
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

        #[test]
        fn tables_mean_the_same(rows in prop::collection::vec(
            (
                prop::option::weighted(0.9, prop::collection::vec(
                    prop::option::weighted(0.95, (
                        prop::option::weighted(0.95, prop::sample::select(vec!["user", "assistant", "gpt", "system", "function_call", "x"])),
                        prop::option::weighted(0.95, "[a-z]{0,3}"),
                    )),
                    0..4,
                )),
                prop::option::weighted(0.9, "[a-z]{0,3}"),
                prop::option::of("[a-z]{0,2}"),
                prop::option::of("[a-z]{0,1}"),
            ),
            1..8,
        ), shape in 0..3, cut in 0usize..3) {
            let texts = |f: &dyn Fn(usize) -> Option<String>| -> ArrayRef { Arc::new((0..rows.len()).map(f).collect::<StringArray>()) };
            let items: Vec<_> = rows.iter().flat_map(|r| r.0.clone().unwrap_or_default()).collect();
            let role: StringArray = items.iter().map(|m| m.as_ref().and_then(|m| m.0)).collect();
            let content: StringArray = items.iter().map(|m| m.as_ref().and_then(|m| m.1.clone())).collect();
            let fields = Fields::from(vec![Field::new("role", DataType::Utf8, true), Field::new("content", DataType::Utf8, true)]);
            let nulls: NullBuffer = items.iter().map(Option::is_some).collect();
            let structs = StructArray::new(fields.clone(), vec![Arc::new(role), Arc::new(content)], Some(nulls));
            let lengths = OffsetBuffer::from_lengths(rows.iter().map(|r| r.0.as_ref().map_or(0, Vec::len)));
            let valid: NullBuffer = rows.iter().map(|r| r.0.is_some()).collect();
            let item = Arc::new(Field::new("item", DataType::Struct(fields), true));
            let list: ArrayRef = Arc::new(ListArray::new(item, lengths, Arc::new(structs), Some(valid)));
            let output = texts(&|i| rows[i].1.clone());
            let columns: Vec<(&str, ArrayRef)> = match shape {
                0 => vec![("messages", list), ("system", texts(&|i| rows[i].2.clone()))],
                1 => vec![("input", list), ("output", output), ("system_prompt", texts(&|i| rows[i].2.clone()))],
                _ => vec![("input", texts(&|i| rows[i].2.clone())), ("output", output), ("category", texts(&|i| rows[i].3.clone())), ("license", texts(&|i| rows[i].2.clone()))],
            };
            let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
            // A piece of a table, whose arrays do not begin at their buffers' start.
            let cut = cut.min(batch.num_rows() - 1);
            let raw = RawRows::Table(batch.slice(cut, batch.num_rows() - cut));
            let short = Rows::new(&raw, &[]);
            prop_assert!(short.is_direct());
            for i in 0..raw.len() {
                prop_assert_eq!(short.decode(i, Vec::new()), decode(&raw, i, &[]));
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

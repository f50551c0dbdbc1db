//! The short way from a table's row to a conversation, for rows as they should be.
//!
//! [`conversation::from_row`](crate::parse::conversation::from_row) says what a row means; it takes
//! a JSON value, which costs more than all else done to a row but tokenizing. Here the two
//! commonest shapes (`input` with `output`, and `messages`) are read straight from a table's
//! columns, and in `direct_json.rs` from a JSON line. Whatever is not plainly in order (a null, an
//! unknown role, a call, a doubled key, a broken line) gives `None`, and the row goes the long way.
//! The two are held against each other on random rows.

use crate::parse::conversation::{Conversation, Message, Read, plain_role, validate};
use arrow::array::{
    Array, AsArray, LargeStringArray, OffsetSizeTrait, RecordBatch, StringArray, StringViewArray,
    StructArray,
};
use arrow::datatypes::DataType;
use std::borrow::Cow;

/// What was read, if it is a conversation.
pub(crate) fn finish<'a>(
    category: Option<Cow<'a, str>>,
    licence: Option<Cow<'a, str>>,
    messages: Vec<Message<'a>>,
) -> Read<'a> {
    (
        category.filter(|s| !s.is_empty()),
        licence,
        validate(&messages).map(|()| Conversation { messages, tools: None }),
    )
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
        let text = |names: [&str; 2]| {
            names.iter().find_map(|n| items.column_by_name(n)).and_then(|c| Text::new(c.as_ref()))
        };
        Some(Messages {
            list,
            items,
            role: text(["role", "from"])?,
            content: text(["content", "value"])?,
        })
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
        let doubled = fields
            .iter()
            .enumerate()
            .any(|(k, f)| fields[..k].iter().any(|g| g.name() == f.name()));
        if doubled || ["tools", "conversations", "conversation", "instruction"].into_iter().any(has)
        {
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
        let texts = |names: &[&str]| -> Option<Vec<Text<'a>>> {
            names.iter().filter_map(|n| column(n)).map(Text::new).collect()
        };
        let category = texts(&["category"])?.into_iter().next();
        Some(Columns {
            body,
            system: texts(&["system_prompt", "system"])?,
            category,
            licence: texts(&["license", "licence"])?,
        })
    }

    /// Row `i`, in the memory of an empty list; none if it has to go the long way.
    pub fn read(&self, i: usize, mut messages: Vec<Message<'a>>) -> Option<Read<'a>> {
        let first =
            |texts: &[Text<'a>]| texts.iter().filter_map(|t| t.get(i)).find(|s| !s.is_empty());
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
        Some(finish(
            self.category.as_ref().and_then(|t| t.get(i)).map(Cow::from),
            first(&self.licence).map(Cow::from),
            messages,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::source::RawRows;
    use crate::run::row_processor::{RowDecoder, decode};
    use arrow::array::{ArrayRef, ListArray, StringArray};
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::{Field, Fields};
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
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
            let short = RowDecoder::new(&raw, &[]);
            prop_assert!(short.is_direct());
            for i in 0..raw.len() {
                prop_assert_eq!(short.decode(i, Vec::new()), decode(&raw, i, &[]));
            }
        }
    }
}

//! Fast path from a row of a table to a conversation.
//!
//! `shapes.rs` defines what a row means, but it needs the row as a JSON value, which costs more
//! than every other step except tokenizing. Here the two most common shapes (`input` with `output`,
//! and `messages`) are read straight from the columns of an Arrow table, without copying text.
//! Anything unusual (a null, an unknown role, a tool call, a duplicate column) gives `None`, and
//! the caller uses the reference path in `rows.rs`. `fast_json.rs` does the same for JSON lines.

use crate::parse::conversation::{Message, ParsedRow, canonical_role};
use crate::parse::table::holds_json;
use arrow::array::{
    Array, AsArray, LargeStringArray, OffsetSizeTrait, RecordBatch, StringArray, StringViewArray,
    StructArray,
};
use arrow::datatypes::DataType;
use std::borrow::Cow;

/// Columns that only the reference path understands.
const NEED_REFERENCE: [&str; 7] = [
    "tools",
    "functions",
    "loss_mask",
    "conversations",
    "conversation",
    "instruction",
    "chat_template_kwargs",
];

/// A column of strings in any of Arrow's three layouts.
enum StringColumn<'a> {
    Utf8(&'a StringArray),
    LargeUtf8(&'a LargeStringArray),
    Utf8View(&'a StringViewArray),
}

impl<'a> StringColumn<'a> {
    fn new(a: &'a dyn Array) -> Option<Self> {
        Some(match a.data_type() {
            DataType::Utf8 => StringColumn::Utf8(a.as_string()),
            DataType::LargeUtf8 => StringColumn::LargeUtf8(a.as_string()),
            DataType::Utf8View => StringColumn::Utf8View(a.as_string_view()),
            _ => return None,
        })
    }

    /// The text of cell `i`; None if it is null.
    fn get(&self, i: usize) -> Option<&'a str> {
        match self {
            StringColumn::Utf8(a) => a.is_valid(i).then(|| a.value(i)),
            StringColumn::LargeUtf8(a) => a.is_valid(i).then(|| a.value(i)),
            StringColumn::Utf8View(a) => a.is_valid(i).then(|| a.value(i)),
        }
    }
}

/// A column whose cells are lists of messages with a role and a content.
struct MessageColumn<'a> {
    list: &'a dyn Array,
    items: &'a StructArray,
    role: StringColumn<'a>,
    content: StringColumn<'a>,
}

impl<'a> MessageColumn<'a> {
    fn new(list: &'a dyn Array) -> Option<Self> {
        let items = match list.data_type() {
            DataType::List(_) => list.as_list::<i32>().values(),
            DataType::LargeList(_) => list.as_list::<i64>().values(),
            _ => return None,
        };
        let items = items.as_struct_opt()?;
        // Further fields (tool calls, names) are only understood by the reference path.
        if items.num_columns() != 2 {
            return None;
        }
        let text = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|n| items.column_by_name(n))
                .and_then(|c| StringColumn::new(c.as_ref()))
        };
        Some(MessageColumn {
            list,
            items,
            role: text(["role", "from"])?,
            content: text(["content", "value"])?,
        })
    }

    /// Appends the messages of cell `i`; None if any of them is unusual.
    fn append(&self, i: usize, out: &mut Vec<Message<'a>>) -> Option<()> {
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
            out.push(Message::new(canonical_role(self.role.get(k)?)?, self.content.get(k)?));
        }
        Some(())
    }
}

fn range<O: OffsetSizeTrait>(offsets: &[O], i: usize) -> std::ops::Range<usize> {
    offsets[i].as_usize()..offsets[i + 1].as_usize()
}

/// The columns that hold the messages, by shape.
enum Shape<'a> {
    /// One column `messages`.
    Messages(MessageColumn<'a>),
    /// `input` as text, and `output`.
    TextPrompt(StringColumn<'a>, StringColumn<'a>),
    /// `input` as a list of messages, and `output`.
    ListPrompt(MessageColumn<'a>, StringColumn<'a>),
}

/// The columns of a table that has one of the two common shapes.
pub(crate) struct FastColumns<'a> {
    shape: Shape<'a>,
    system: Vec<StringColumn<'a>>,
    category: Option<StringColumn<'a>>,
    licence: Vec<StringColumn<'a>>,
}

impl<'a> FastColumns<'a> {
    /// The columns of `batch`; None if its rows need the reference path.
    pub(crate) fn new(batch: &'a RecordBatch) -> Option<Self> {
        let column = |name: &str| batch.column_by_name(name).map(|c| c.as_ref());
        let has = |name: &str| column(name).is_some();
        let fields = batch.schema_ref().fields();
        let duplicate = fields
            .iter()
            .enumerate()
            .any(|(k, f)| fields[..k].iter().any(|g| g.name() == f.name()));
        if duplicate || NEED_REFERENCE.into_iter().any(has) || fields.iter().any(|f| holds_json(f))
        {
            return None;
        }
        let shape = match column("messages") {
            Some(m) => Shape::Messages(MessageColumn::new(m)?),
            None => {
                let (input, output) = (column("input")?, StringColumn::new(column("output")?)?);
                match StringColumn::new(input) {
                    Some(text) => Shape::TextPrompt(text, output),
                    None => Shape::ListPrompt(MessageColumn::new(input)?, output),
                }
            }
        };
        // None if such a column exists but is not text: the reference path decides what that means.
        let texts = |names: &[&str]| -> Option<Vec<StringColumn<'a>>> {
            names.iter().filter_map(|n| column(n)).map(StringColumn::new).collect()
        };
        let category = texts(&["category"])?.into_iter().next();
        Some(FastColumns {
            shape,
            system: texts(&["system_prompt", "system"])?,
            category,
            licence: texts(&["license", "licence"])?,
        })
    }

    /// Row `i`; None if it needs the reference path. `messages` is an empty list whose memory is
    /// reused.
    pub(crate) fn parse_row(
        &self,
        i: usize,
        mut messages: Vec<Message<'a>>,
    ) -> Option<ParsedRow<'a>> {
        let first = |texts: &[StringColumn<'a>]| {
            texts.iter().filter_map(|t| t.get(i)).find(|s| !s.is_empty())
        };
        if let Some(s) = first(&self.system) {
            messages.push(Message::new("system", s));
        }
        let from_column = messages.len();
        match &self.shape {
            Shape::Messages(m) => m.append(i, &mut messages)?,
            Shape::TextPrompt(input, output) => {
                messages.push(Message::new("user", input.get(i)?));
                messages.push(Message::new("assistant", output.get(i)?));
            }
            Shape::ListPrompt(input, output) => {
                input.append(i, &mut messages)?;
                messages.push(Message::new("assistant", output.get(i)?));
            }
        }
        // A system prompt in the column and in the messages needs the reference path.
        if from_column > 0 && messages.get(1).is_some_and(|m| m.role == "system") {
            return None;
        }
        Some(ParsedRow::from_messages(
            self.category.as_ref().and_then(|t| t.get(i)).map(Cow::from),
            first(&self.licence).map(Cow::from),
            messages,
        ))
    }
}

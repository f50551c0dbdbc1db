//! Raw rows of an input batch become parsed rows.
//!
//! In: [`RawRows`] (JSON lines or an Arrow table) and, where a recipe renames them, the columns.
//! Out: one [`ParsedRow`] per row. [`parse_row`] is the reference implementation; [`RowParser`]
//! uses the fast paths (`fast_columns.rs`, `fast_json.rs`) where they apply and falls back to the
//! reference otherwise. The tests compare both on random rows.

use crate::input::json_lines::MAX_LINE;
use crate::input::raw_rows::RawRows;
use crate::input::table_size::row_sizes;
use crate::parse::conversation::{Message, ParsedRow};
use crate::parse::drop_reason::DropReason;
use crate::parse::fast_columns::FastColumns;
use crate::parse::fast_json::parse_line;
use crate::parse::json_value::parse_json;
use crate::parse::row_limits::has_too_many_values;
use crate::parse::shapes;
use crate::parse::table::row_to_json;
use serde_json::{Map, Value};

/// Parses the rows of one batch.
pub(crate) struct RowParser<'a> {
    raw: &'a RawRows,
    renames: &'a [(String, String)],
    columns: Option<FastColumns<'a>>,
    /// Whether the batch is a single row that is too long.
    too_long: bool,
}

impl<'a> RowParser<'a> {
    /// `renames` lists pairs of (name used by this program, name in the file); if it is not empty,
    /// only those columns are read, and category, licence, tools, loss mask and system prompt.
    pub(crate) fn new(raw: &'a RawRows, renames: &'a [(String, String)]) -> Self {
        let columns = match raw {
            RawRows::Table(batch) if renames.is_empty() => FastColumns::new(batch),
            _ => None,
        };
        // Larger rows come alone (`decoder_guard.rs`).
        let too_long = match raw {
            RawRows::Table(b) if b.num_rows() == 1 => row_sizes(b)[0] > MAX_LINE as u64,
            _ => false,
        };
        RowParser { raw, renames, columns, too_long }
    }

    /// Row `i`. `messages` is an empty list whose memory is reused.
    pub(crate) fn parse(&self, i: usize, messages: Vec<Message<'a>>) -> ParsedRow<'a> {
        if self.too_long || self.raw.line(i).is_some_and(has_too_many_values) {
            return ParsedRow::dropped(DropReason::LineTooLong);
        }
        let fast = match (self.raw, &self.columns) {
            (RawRows::Table(_), Some(columns)) => columns.parse_row(i, messages),
            (RawRows::Lines { .. }, _) if self.renames.is_empty() => self
                .raw
                .line(i)
                .and_then(|line| std::str::from_utf8(line).ok())
                .and_then(|line| parse_line(line, messages)),
            _ => None,
        };
        fast.unwrap_or_else(|| self.reference(i))
    }

    /// Row `i` by the reference implementation.
    pub(crate) fn reference(&self, i: usize) -> ParsedRow<'static> {
        parse_row(self.raw, i, self.renames)
    }

    /// What was found in row `i`, which was dropped for `reason`, where the reason does not say it.
    pub(crate) fn explain(&self, i: usize, reason: DropReason) -> Option<String> {
        let value =
            || serde_json::from_str::<Value>(std::str::from_utf8(self.raw.line(i)?).ok()?).ok();
        match reason {
            DropReason::BadJson => {
                let line = std::str::from_utf8(self.raw.line(i)?).ok()?;
                Some(match serde_json::from_str::<Value>(line) {
                    Err(e) => e.to_string(),
                    Ok(_) => "the line is not a JSON object".to_string(),
                })
            }
            DropReason::BadUtf8 => Some(std::str::from_utf8(self.raw.line(i)?).err()?.to_string()),
            DropReason::UnknownShape => {
                let columns: Vec<String> = match self.raw {
                    RawRows::Table(batch) => {
                        batch.schema_ref().fields().iter().map(|f| f.name().clone()).collect()
                    }
                    RawRows::Lines { .. } => value()?.as_object()?.keys().cloned().collect(),
                };
                Some(format!(
                    "its columns are {}; name those that hold the conversation, for example --columns messages=NAME or --columns prompt=NAME,completion=NAME",
                    columns.join(", ")
                ))
            }
            _ => None,
        }
    }
}

/// Reference implementation of [`RowParser::parse`].
pub(crate) fn parse_row(
    raw: &RawRows,
    i: usize,
    renames: &[(String, String)],
) -> ParsedRow<'static> {
    let mut row = match raw {
        RawRows::Table(batch) => row_to_json(batch, i),
        RawRows::Lines { .. } => {
            let Some(line) = raw.line(i) else {
                return ParsedRow::dropped(DropReason::LineTooLong);
            };
            let Ok(text) = std::str::from_utf8(line) else {
                return ParsedRow::dropped(DropReason::BadUtf8);
            };
            match parse_json(text) {
                Ok(Value::Object(row)) => row,
                Ok(Value::Array(messages)) if messages.first().is_some_and(Value::is_object) => {
                    Map::from_iter([("messages".to_string(), Value::Array(messages))])
                }
                _ => return ParsedRow::dropped(DropReason::BadJson),
            }
        }
    };
    if !renames.is_empty() {
        let mut renamed = Map::new();
        for (ours, theirs) in renames {
            renamed.insert(ours.clone(), row.remove(theirs).unwrap_or(Value::Null));
        }
        // Other columns are ignored, because their names could be mistaken for those of a shape.
        let kept = [
            "category",
            "license",
            "licence",
            "tools",
            "functions",
            "loss_mask",
            "chat_template_kwargs",
        ];
        let system = ["system_prompt", "system"];
        let named = system.iter().any(|k| renamed.contains_key(*k));
        for k in kept.into_iter().chain(system.into_iter().filter(|_| !named)) {
            if let (Some(v), false) = (row.remove(k), renamed.contains_key(k)) {
                renamed.insert(k.to_string(), v);
            }
        }
        row = renamed;
    }
    shapes::parse_row(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray};
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::{DataType, Field, Fields};
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn fast_columns_equal_the_reference(rows in prop::collection::vec(
            (
                prop::option::weighted(0.9, prop::collection::vec(
                    prop::option::weighted(0.95, (
                        prop::option::weighted(0.95, prop::sample::select(vec!["user", "assistant", "gpt", "system", "system", "function_call", "x"])),
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
            // A slice of a table, whose arrays do not start at the beginning of their buffers.
            let cut = cut.min(batch.num_rows() - 1);
            let raw = RawRows::Table(batch.slice(cut, batch.num_rows() - cut));
            let fast = RowParser::new(&raw, &[]);
            prop_assert!(fast.columns.is_some());
            for i in 0..raw.len() {
                prop_assert_eq!(fast.parse(i, Vec::new()), parse_row(&raw, i, &[]));
            }
        }
    }

    /// `NaN` does no harm where it is not used, and is never taken for something else.
    #[test]
    fn not_a_number() {
        let kept = |line: &str| {
            let raw = RawRows::Lines { ends: vec![line.len()], bytes: line.as_bytes().to_vec() };
            parse_row(&raw, 0, &[]).conversation.map(|c| c.messages[1].content.clone().into_owned())
        };
        for n in ["NaN", "Infinity", "-Infinity"] {
            let line =
                format!(r#"{{"score": {n}, "prompt": "q", "completion": "a NaN \" -Infinity"}}"#);
            assert_eq!(kept(&line).as_deref(), Ok("a NaN \" -Infinity"));
            let line = format!(r#"{{"prompt": "q", "completion": {n}}}"#);
            assert_eq!(kept(&line).as_deref(), Ok("\u{FDD0}"), "dropped as reserved_characters");
        }
        assert_eq!(kept(r#"{"prompt": "q", "completion": NaNs}"#), Err(DropReason::BadJson));
        let list = r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
        assert_eq!(kept(list).as_deref(), Ok("a"));
        assert_eq!(kept("[1, 2]"), Err(DropReason::BadJson));
    }

    /// An integer of 2^64 or more would lose digits, so the row is dropped where it is used.
    #[test]
    fn huge_integers() {
        let parsed = |line: &str| {
            let raw = RawRows::Lines { ends: vec![line.len()], bytes: line.as_bytes().to_vec() };
            parse_row(&raw, 0, &[]).conversation.unwrap().messages.remove(1)
        };
        let line = |n: &str, id: &str| {
            format!(
                r#"{{"id": {id}, "messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "99999999999999999999999", "tool_calls": [{{"name": "f", "arguments": {{"n": {n}}}}}]}}]}}"#
            )
        };
        for (n, want) in [
            ("18446744073709551615", serde_json::json!(18446744073709551615_u64)),
            ("-9223372036854775808", serde_json::json!(-9223372036854775808_i64)),
            ("1e30", serde_json::json!(1e30)),
            ("0.12345678901234567890123", serde_json::json!(0.12345678901234568)),
            ("18446744073709551616", serde_json::json!("\u{FDE3}18446744073709551616")),
            ("-12345678901234567890123", serde_json::json!("\u{FDE3}-12345678901234567890123")),
            // Too many digits, and texts that look like integers in this form.
            (&"7".repeat(39), serde_json::json!("\u{FDD0}")),
            ("\"\u{FDE3}77777777777777777777\"", serde_json::json!("\u{FDD0}77777777777777777777")),
            (
                r#""\ufde3\uFDE377777777777777777777""#,
                serde_json::json!("\u{FDD0}\u{FDD0}77777777777777777777"),
            ),
        ] {
            let m = parsed(&line(n, "12345678901234567890123"));
            assert_eq!(m.tool_calls.unwrap()[0]["arguments"]["n"], want, "{n}");
            assert_eq!(m.content, "99999999999999999999999");
        }
    }

    /// A column map names the columns of a shape; tools, system prompt and loss mask stay.
    #[test]
    fn renamed_columns_keep_tools_and_system() {
        let line = r#"{"chat": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [{"name": "f"}], "system": "s", "messages": 3}"#;
        let raw = RawRows::Lines { ends: vec![line.len()], bytes: line.as_bytes().to_vec() };
        let rename = |pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().map(|p| (p.0.to_string(), p.1.to_string())).collect();
            parse_row(&raw, 0, &pairs).conversation.unwrap()
        };
        let c = rename(&[("messages", "chat")]);
        assert_eq!((c.messages.len(), &*c.messages[0].content), (3, "s"));
        assert_eq!(c.tools, Some(serde_json::json!([{"name": "f"}])));
        let c = rename(&[("messages", "chat"), ("system", "other")]);
        assert_eq!(c.messages.len(), 2);
    }

    /// Fields of no value (in a struct of tool calls, for example) are absent, and text that is
    /// marked as JSON is parsed.
    #[test]
    fn null_fields_and_json_columns() {
        let json = std::collections::HashMap::from([(
            "ARROW:extension:name".to_string(),
            "arrow.json".to_string(),
        )]);
        let texts: ArrayRef = Arc::new(StringArray::from(vec![r#"{"x": 1}"#, "not json"]));
        let nothing: ArrayRef = Arc::new(arrow::array::NullArray::new(2));
        let fields = Fields::from(vec![
            Field::new("a", DataType::Utf8, true).with_metadata(json),
            Field::new("b", DataType::Null, true),
            Field::new("c", DataType::Utf8, true),
        ]);
        let s = StructArray::new(fields, vec![texts.clone(), nothing, texts], None);
        let batch = RecordBatch::try_from_iter([("s", Arc::new(s) as ArrayRef)]).unwrap();
        let row = |i| serde_json::Value::Object(row_to_json(&batch, i));
        assert_eq!(row(0), serde_json::json!({"s": {"a": {"x": 1}, "c": "{\"x\": 1}"}}));
        assert_eq!(row(1), serde_json::json!({"s": {"a": "not json", "c": "not json"}}));
    }

    /// Binary text, maps, dates and list views are read; other bytes are not taken for text.
    #[test]
    fn other_column_types() {
        use arrow::array::{BinaryArray, Date32Array, ListViewArray, MapBuilder, StringBuilder};
        let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        map.keys().append_value("room");
        map.values().append_value("hall");
        map.append(true).unwrap();
        let item = Arc::new(Field::new("item", DataType::Utf8, true));
        let items: ArrayRef = Arc::new(StringArray::from(vec!["x", "y", "z"]));
        let view = ListViewArray::new(item, vec![1].into(), vec![2].into(), items, None);
        let columns: [(&str, ArrayRef); 5] = [
            ("text", Arc::new(BinaryArray::from(vec!["é".as_bytes()]))),
            ("bytes", Arc::new(BinaryArray::from(vec![&[0xFF_u8][..]]))),
            ("map", Arc::new(map.finish())),
            ("day", Arc::new(Date32Array::from(vec![1]))),
            ("view", Arc::new(view)),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(
            serde_json::Value::Object(row_to_json(&batch, 0)),
            serde_json::json!({"text": "é", "bytes": "\u{FDD0}", "map": {"room": "hall"}, "day": "1970-01-02", "view": ["y", "z"]})
        );
    }

    /// A column of runs is read like any other.
    #[test]
    fn run_end_encoded_columns() {
        use arrow::array::{Int32Array, RunArray, StringArray};
        use arrow::datatypes::Int32Type;
        let (ends, values) = (Int32Array::from(vec![2, 3]), StringArray::from(vec!["a", "b"]));
        let runs = RunArray::<Int32Type>::try_new(&ends, &values).unwrap();
        let batch = RecordBatch::try_from_iter([("x", Arc::new(runs) as ArrayRef)]).unwrap();
        for (i, want) in [(0, "a"), (1, "a"), (2, "b")] {
            assert_eq!(row_to_json(&batch, i)["x"], want);
        }
        assert_eq!(row_to_json(&batch.slice(1, 2), 1)["x"], "b");
    }

    /// The last digit of a number stays.
    #[test]
    fn floats_keep_their_last_digit() {
        for text in ["0.1", "123456789.12345679", "5.6433703513825995", "2.2250738585072014e-308"] {
            let v = parse_json(text).unwrap();
            assert_eq!(v.as_f64(), Some(text.parse::<f64>().unwrap()), "{text}");
        }
    }

    fn quoted(s: &str) -> String {
        serde_json::to_string(s).unwrap()
    }

    /// A value that is mostly of the expected type.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            8 => "[a-z\n\"é]{0,6}".prop_map(|s| quoted(&s)),
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
        prop_oneof![9 => known.prop_map(quoted), 1 => value()]
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
                    "function_call",
                    "reasoning_content",
                    "thinking",
                    "weight",
                    "tools",
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
            "functions",
            "loss_mask",
            "history",
            "label",
            "instruction",
            "conversations",
            "prompt",
            "chosen",
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
        fn fast_json_equals_the_reference(text in row()) {
            if let Some(fast) = parse_line(&text, Vec::new()) {
                let raw = RawRows::Lines { ends: vec![text.len()], bytes: text.clone().into_bytes() };
                prop_assert_eq!(fast, parse_row(&raw, 0, &[]), "{}", text);
            }
        }
    }
}

//! A row of a table as a JSON object, so that tables and JSON lines share one parser.
//!
//! In: an Arrow record batch and a row index. Out: a JSON object of the row's columns. A null cell
//! of the table becomes JSON null; a null field inside a struct is omitted.

use crate::parse::json_value::parse_json;
use arrow::array::{Array, AsArray, RecordBatch, RunArray};
use arrow::datatypes::{
    DataType, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::util::display::array_value_to_string;
use serde_json::{Map, Value};

/// Row `i` of `batch`. Null cells are kept, so that the caller can tell a missing value from a
/// missing column.
pub(crate) fn row_to_json(batch: &RecordBatch, i: usize) -> Map<String, Value> {
    let schema = batch.schema_ref();
    let mut out = Map::with_capacity(batch.num_columns());
    for (f, c) in schema.fields().iter().zip(batch.columns()) {
        out.insert(f.name().clone(), cell(f, c.as_ref(), i));
    }
    out
}

/// Whether the text of a column, or of a field inside it, is marked as JSON.
pub(crate) fn holds_json(f: &Field) -> bool {
    f.metadata().get("ARROW:extension:name").is_some_and(|name| name == "arrow.json")
        || match f.data_type() {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                holds_json(item)
            }
            DataType::Struct(fields) => fields.iter().any(|f| holds_json(f)),
            _ => false,
        }
}

fn list(item: &Field, values: &dyn Array, from: usize, to: usize) -> Value {
    Value::Array((from..to).map(|k| cell(item, values, k)).collect())
}

/// The value of one cell; text that its field marks as JSON is parsed.
fn cell(f: &Field, a: &dyn Array, i: usize) -> Value {
    match plain_cell(a, i) {
        Value::String(s) if holds_json(f) => parse_json(&s).unwrap_or(Value::String(s)),
        v => v,
    }
}

fn plain_cell(a: &dyn Array, i: usize) -> Value {
    if a.is_null(i) {
        return Value::Null;
    }
    macro_rules! number {
        ($t:ty) => {
            a.as_primitive::<$t>().value(i).into()
        };
    }
    match a.data_type() {
        DataType::Utf8 => a.as_string::<i32>().value(i).into(),
        DataType::LargeUtf8 => a.as_string::<i64>().value(i).into(),
        DataType::Utf8View => a.as_string_view().value(i).into(),
        DataType::Boolean => a.as_boolean().value(i).into(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => f64::from(a.as_primitive::<Float32Type>().value(i)).into(),
        DataType::Float64 => number!(Float64Type),
        DataType::List(item) => {
            let l = a.as_list::<i32>();
            list(
                item,
                l.values().as_ref(),
                l.value_offsets()[i] as usize,
                l.value_offsets()[i + 1] as usize,
            )
        }
        DataType::LargeList(item) => {
            let l = a.as_list::<i64>();
            list(
                item,
                l.values().as_ref(),
                l.value_offsets()[i] as usize,
                l.value_offsets()[i + 1] as usize,
            )
        }
        DataType::FixedSizeList(item, n) => {
            let l = a.as_fixed_size_list();
            let from = l.value_offset_at(i);
            list(item, l.values().as_ref(), from, from + *n as usize)
        }
        DataType::Struct(fields) => {
            let s = a.as_struct();
            let mut m = Map::with_capacity(fields.len());
            for (f, c) in fields.iter().zip(s.columns()) {
                if c.is_valid(i) && f.data_type() != &DataType::Null {
                    m.insert(f.name().clone(), cell(f, c.as_ref(), i));
                }
            }
            Value::Object(m)
        }
        DataType::Dictionary(_, _) => {
            let d = a.as_any_dictionary();
            dictionary_key(d.keys(), i)
                .filter(|&k| k < d.values().len())
                .map_or(Value::Null, |k| plain_cell(d.values().as_ref(), k))
        }
        DataType::Null => Value::Null,
        DataType::Binary => text_of(a.as_binary::<i32>().value(i)),
        DataType::LargeBinary => text_of(a.as_binary::<i64>().value(i)),
        DataType::BinaryView => text_of(a.as_binary_view().value(i)),
        DataType::FixedSizeBinary(_) => text_of(a.as_fixed_size_binary().value(i)),
        DataType::ListView(item) => {
            let l = a.as_list_view::<i32>();
            let from = l.value_offset(i) as usize;
            list(item, l.values().as_ref(), from, from + l.value_size(i) as usize)
        }
        DataType::LargeListView(item) => {
            let l = a.as_list_view::<i64>();
            let from = l.value_offset(i) as usize;
            list(item, l.values().as_ref(), from, from + l.value_size(i) as usize)
        }
        DataType::RunEndEncoded(_, item) => match run_of(a, i) {
            Some((values, k)) => cell(item, values, k),
            None => undecoded(),
        },
        DataType::Map(_, _) => {
            let entries = a.as_map().value(i);
            let (keys, values) = (entries.column(0), entries.column(1));
            let item = entries.fields().get(1).cloned();
            (0..entries.len())
                .map(|k| {
                    let key = match plain_cell(keys.as_ref(), k) {
                        Value::String(s) => s,
                        other => other.to_string(),
                    };
                    let value = item.as_ref().map(|f| cell(f, values.as_ref(), k));
                    (key, value.unwrap_or_default())
                })
                .collect::<Map<_, _>>()
                .into()
        }
        // Dates, times and decimals as text.
        t if t.is_temporal() || t.is_decimal() => {
            array_value_to_string(a, i).map_or_else(|_| undecoded(), Value::String)
        }
        _ => undecoded(),
    }
}

/// Key `i` of a dictionary-encoded column.
fn dictionary_key(keys: &dyn Array, i: usize) -> Option<usize> {
    macro_rules! key {
        ($($t:ty),*) => {
            $(if let Some(k) = keys.as_primitive_opt::<$t>() {
                return usize::try_from(k.value(i)).ok();
            })*
        };
    }
    key!(Int32Type, Int8Type, Int16Type, Int64Type);
    key!(UInt32Type, UInt8Type, UInt16Type, UInt64Type);
    None
}

/// The values of a run-end-encoded column, and which of them row `i` has.
fn run_of(a: &dyn Array, i: usize) -> Option<(&dyn Array, usize)> {
    macro_rules! run {
        ($($t:ty),*) => {
            $(if let Some(r) = a.as_any().downcast_ref::<RunArray<$t>>() {
                return Some((r.values().as_ref(), r.get_physical_index(i)));
            })*
        };
    }
    run!(Int16Type, Int32Type, Int64Type);
    None
}

/// Bytes as text, as some writers store it.
fn text_of(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| undecoded(), Value::from)
}

/// Stands for a value that is not understood. Where it is used, the row is dropped by name, because
/// no conversation may contain this character.
fn undecoded() -> Value {
    Value::from("\u{FDD0}")
}

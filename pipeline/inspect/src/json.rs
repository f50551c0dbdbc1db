//! Writes a data frame as JSON lines.
//!
//! In: a frame of numbers, text, booleans, lists and structs. Out: one object per row, its keys in
//! the order of the columns.

use anyhow::Result;
use polars::prelude::*;
use serde_json::{Map, Value, json};

/// Every row of the frame, in order.
pub(crate) fn lines(frame: &DataFrame) -> Result<String> {
    let mut out = String::new();
    for row in 0..frame.height() {
        let mut object = Map::new();
        for column in frame.columns() {
            object.insert(column.name().to_string(), value(&column.get(row)?));
        }
        out.push_str(&Value::Object(object).to_string());
        out.push('\n');
    }
    Ok(out)
}

fn value(cell: &AnyValue<'_>) -> Value {
    match cell {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(b) => json!(b),
        AnyValue::String(s) => json!(s),
        AnyValue::StringOwned(s) => json!(s.as_str()),
        AnyValue::List(series) | AnyValue::Array(series, _) => {
            series.iter().map(|v| value(&v)).collect()
        }
        AnyValue::Float32(_) | AnyValue::Float64(_) => json!(cell.extract::<f64>()),
        other => other.extract::<i64>().map_or_else(|| json!(other.to_string()), |n| json!(n)),
    }
}

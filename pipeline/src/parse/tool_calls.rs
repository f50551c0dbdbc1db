//! Tool calls in any usual form.
//!
//! In: the value of `tool_calls` (a list, one call, JSON text of either, or a list of JSON texts)
//! or of the older `function_call`. Out: a list of JSON objects that each name their function, or
//! the reason to drop the row: a call that cannot be read must not vanish.

use crate::parse::drop_reason::DropReason;
use crate::parse::json_value::parse_json;
use serde_json::{Map, Value, json};

/// The calls of a message; None if it has none.
pub(crate) fn parse_tool_calls(v: Value) -> Result<Option<Value>, DropReason> {
    let calls = match from_text(v)? {
        Value::Null => return Ok(None),
        Value::Array(calls) => calls,
        call @ Value::Object(_) => vec![call],
        _ => return Err(DropReason::BadToolCalls),
    };
    let calls: Vec<Value> = calls.into_iter().map(parse_call).collect::<Result<_, _>>()?;
    Ok((!calls.is_empty()).then_some(Value::Array(calls)))
}

/// The call in an older `function_call` field, as a list of one.
pub(crate) fn function_call(v: Value) -> Result<Option<Value>, DropReason> {
    match from_text(v)? {
        Value::Null => Ok(None),
        Value::Object(call) if call.is_empty() => Ok(None),
        call => {
            let mut call = parse_call(call)?;
            if call.get("function").is_none() {
                call = json!({"type": "function", "function": call});
            }
            Ok(Some(Value::Array(vec![call])))
        }
    }
}

/// The results that a message holds itself; None if it has none. Any list is read as it is.
pub(crate) fn parse_tool_responses(v: Value) -> Result<Option<Value>, DropReason> {
    match from_text(v)? {
        Value::Null => Ok(None),
        Value::Array(list) => Ok((!list.is_empty()).then_some(Value::Array(list))),
        result @ Value::Object(_) => Ok(Some(json!([result]))),
        _ => Err(DropReason::BadToolCalls),
    }
}

/// The name and the arguments of a call, whether or not they are below `function`.
pub(crate) fn name_and_arguments(call: &Value) -> (Option<&str>, Option<&Value>) {
    let inner = call.get("function").filter(|f| f.is_object()).unwrap_or(call);
    let arguments = inner.get("arguments").or_else(|| inner.get("parameters"));
    (inner.get("name").and_then(Value::as_str), arguments)
}

/// The value in a JSON text; other values as they are. Blank text is null.
fn from_text(v: Value) -> Result<Value, DropReason> {
    match v {
        Value::String(s) if s.trim().is_empty() => Ok(Value::Null),
        Value::String(s) => parse_json(&s).map_err(|_| DropReason::BadToolCalls),
        v => Ok(v),
    }
}

fn parse_call(v: Value) -> Result<Value, DropReason> {
    let Value::Object(mut call) = from_text(v)? else { return Err(DropReason::BadToolCalls) };
    match call.get_mut("function") {
        Some(Value::String(s)) if s.trim_start().starts_with('{') => {
            let function = parse_json(s).map_err(|_| DropReason::BadToolCalls)?;
            call.insert("function".to_string(), function);
        }
        // {"function": "name", "arguments": …}
        Some(Value::String(s)) => {
            let name = Value::String(std::mem::take(s));
            let mut function = Map::new();
            function.insert("name".to_string(), name);
            if let Some(arguments) = call.shift_remove("arguments") {
                function.insert("arguments".to_string(), arguments);
            }
            call.insert("function".to_string(), Value::Object(function));
        }
        _ => {}
    }
    let call = Value::Object(call);
    match name_and_arguments(&call).0 {
        Some(name) if !name.is_empty() => Ok(call),
        _ => Err(DropReason::BadToolCalls),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_gives_the_same_call() {
        let call =
            json!({"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        let want = Some(json!([call]));
        for v in [
            json!([call]),
            call.clone(),
            json!([call.to_string()]),
            json!(call.to_string()),
            json!(json!([call]).to_string()),
        ] {
            assert_eq!(parse_tool_calls(v.clone()).unwrap(), want, "{v}");
        }
        for v in [json!({"name": "f", "arguments": "{\"a\": 1}"}), call["function"].clone()] {
            assert_eq!(function_call(v.clone()).unwrap(), want, "{v}");
            assert_eq!(function_call(json!(v.to_string())).unwrap(), want, "{v}");
        }
        let named = json!([{"function": "f", "arguments": {"a": 1}}]);
        let calls = parse_tool_calls(named).unwrap().unwrap();
        assert_eq!(calls, json!([{"function": {"name": "f", "arguments": {"a": 1}}}]));
        for v in [json!(null), json!([]), json!(""), json!("[]"), json!("null")] {
            assert_eq!(parse_tool_calls(v.clone()).unwrap(), None, "{v}");
        }
        for v in [json!("[not json"), json!(3), json!([3]), json!([{"x": 1}]), json!([null])] {
            assert_eq!(parse_tool_calls(v.clone()), Err(DropReason::BadToolCalls), "{v}");
        }
    }
}

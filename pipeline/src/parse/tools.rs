//! Tool declarations in any usual form.
//!
//! In: the value of a `tools` or `functions` column: a list, one declaration, JSON text of either,
//! or a list of JSON texts. Out: a list of JSON objects, or the reason to drop the row: a model
//! must not learn calls of tools that it does not see.

use crate::parse::drop_reason::DropReason;
use crate::parse::json_value::parse_json;
use serde_json::{Map, Value, json};

/// Removes the declarations from a row or from a message; None if there are none.
pub(crate) fn take_tools(row: &mut Map<String, Value>) -> Result<Option<Value>, DropReason> {
    let tools = parse_tools(row.remove("tools").unwrap_or_default())?;
    let functions = parse_tools(row.remove("functions").unwrap_or_default())?;
    // Templates expect a function below a key of that name.
    let functions = functions.map(|functions| match functions {
        Value::Array(list) => list.into_iter().map(below_function).collect(),
        other => other,
    });
    Ok(tools.or(functions))
}

fn below_function(v: Value) -> Value {
    match v.get("function").is_some() {
        true => v,
        false => json!({"type": "function", "function": v}),
    }
}

fn parse_tools(v: Value) -> Result<Option<Value>, DropReason> {
    let list = match from_text(v)? {
        Value::Null => return Ok(None),
        Value::Array(list) => list,
        Value::Object(o) if o.is_empty() => return Ok(None),
        one @ Value::Object(_) => vec![one],
        _ => return Err(DropReason::BadTools),
    };
    let list: Vec<Value> = list.into_iter().map(parse_tool).collect::<Result<_, _>>()?;
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

fn parse_tool(v: Value) -> Result<Value, DropReason> {
    let mut tool = from_text(v)?;
    if let Some(function) = tool.get_mut("function")
        && function.is_string()
    {
        *function = from_text(function.take())?;
    }
    let named = tool.get("name").or_else(|| tool.get("function").and_then(|f| f.get("name")));
    // Declarations of built-in tools may have a type only.
    match tool.is_object() && (named.is_some_and(Value::is_string) || tool.get("type").is_some()) {
        true => Ok(tool),
        false => Err(DropReason::BadTools),
    }
}

fn from_text(v: Value) -> Result<Value, DropReason> {
    match v {
        Value::String(s) if s.trim().is_empty() => Ok(Value::Null),
        Value::String(s) => parse_json(&s).map_err(|_| DropReason::BadTools),
        v => Ok(v),
    }
}

/// The variables that a row gives to its template: an object, or the JSON text of one.
pub(crate) fn take_template_kwargs(
    row: &mut Map<String, Value>,
) -> Result<Option<Map<String, Value>>, DropReason> {
    let value = match row.remove("chat_template_kwargs") {
        Some(Value::String(s)) if s.trim().is_empty() => None,
        Some(Value::String(s)) => parse_json(&s).map_or(Some(Value::from(0)), Some),
        value => value,
    };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(kwargs)) if kwargs.keys().any(|k| RESERVED.contains(&k.as_str())) => {
            Err(DropReason::BadTemplateKwargs)
        }
        Some(Value::Object(kwargs)) => Ok(Some(kwargs).filter(|k| !k.is_empty())),
        Some(_) => Err(DropReason::BadTemplateKwargs),
    }
}

/// Variables that a template gets from elsewhere.
pub(crate) const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(row: Value) -> Result<Option<Value>, DropReason> {
        let Value::Object(mut row) = row else { panic!("not a row") };
        take_tools(&mut row)
    }

    #[test]
    fn every_form_gives_the_same_list() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let as_text = json!({"type": "function", "function": tool["function"].to_string()});
        let want = Ok(Some(json!([tool])));
        for v in [
            json!([tool]),
            tool.clone(),
            json!(tool.to_string()),
            json!(json!([tool]).to_string()),
            json!([tool.to_string()]),
            json!([as_text]),
        ] {
            assert_eq!(tools(json!({"tools": v})), want, "{v}");
        }
        for v in [json!([tool["function"]]), json!(tool["function"].to_string()), json!([tool])] {
            assert_eq!(tools(json!({"functions": v})), want, "{v}");
        }
        let bare = json!([{"name": "f"}]);
        assert_eq!(tools(json!({"tools": bare})), Ok(Some(bare)));
        for v in [json!(null), json!([]), json!(""), json!("[]"), json!("null"), json!({})] {
            assert_eq!(tools(json!({"tools": v})), Ok(None), "{v}");
        }
        for v in [json!("[not json"), json!(3), json!([3]), json!([{"x": 1}]), json!("text")] {
            assert_eq!(tools(json!({"tools": v})), Err(DropReason::BadTools), "{v}");
        }
    }
}

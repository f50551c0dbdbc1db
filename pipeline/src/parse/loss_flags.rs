//! What the data itself says about the loss of its messages.
//!
//! In: a message's `weight`, `train`, `trainable`, `training`, `loss`, `loss_mask` or `masked`, or
//! a row's `loss_mask` list. Out: which assistant messages carry no loss. Values other than yes and
//! no are not understood, and such rows are dropped.

use crate::parse::conversation::Message;
use crate::parse::drop_reason::DropReason;
use serde_json::{Map, Value};

/// The fields of a message, each with the value that switches its loss off.
const FLAGS: [(&str, bool); 7] = [
    ("weight", false),
    ("train", false),
    ("trainable", false),
    ("training", false),
    ("loss", false),
    ("loss_mask", false),
    ("masked", true),
];

/// Removes the fields and says whether one of them switches the loss off. Messages of other roles
/// than the assistant carry loss only on demand; what is not understood keeps them from it.
pub(crate) fn take_no_loss(
    m: &mut Map<String, Value>,
    is_assistant: bool,
) -> Result<bool, DropReason> {
    let given: Vec<(Value, bool)> = FLAGS
        .iter()
        .filter_map(|(key, off)| Some((m.remove(*key).filter(|v| !v.is_null())?, *off)))
        .collect();
    let mut found: Option<bool> = None;
    for (value, off) in &given {
        let no_loss = yes_or_no(value).map(|yes| yes == *off);
        match no_loss {
            Ok(no_loss) if found.is_none_or(|other| other == no_loss) => found = Some(no_loss),
            _ if is_assistant => return Err(DropReason::BadLossMask),
            _ => return Ok(true),
        }
    }
    Ok(found.unwrap_or(false))
}

fn yes_or_no(v: &Value) -> Result<bool, DropReason> {
    match (v, v.as_f64()) {
        (Value::Bool(b), _) => Ok(*b),
        (_, Some(1.0)) => Ok(true),
        (_, Some(0.0)) => Ok(false),
        _ => Err(DropReason::BadLossMask),
    }
}

/// Applies a row's `loss_mask`, a list with one entry per message or per assistant message.
/// `given` is the number of messages in the row's own list; those before them come from a column.
pub(crate) fn apply_loss_mask(
    mask: Value,
    messages: &mut [Message],
    given: usize,
) -> Result<(), DropReason> {
    let mask = match mask {
        Value::Null => return Ok(()),
        Value::Array(mask) => mask,
        Value::String(s) => serde_json::from_str(&s).map_err(|_| DropReason::BadLossMask)?,
        _ => return Err(DropReason::BadLossMask),
    };
    let own = messages.len().checked_sub(given).ok_or(DropReason::BadLossMask)?;
    let messages = &mut messages[own..];
    let assistants = messages.iter().filter(|m| m.is_assistant()).count();
    let all = mask.len() == messages.len();
    if !all && mask.len() != assistants {
        return Err(DropReason::BadLossMask);
    }
    let places = messages.iter_mut().filter(|m| all || m.is_assistant());
    for (m, value) in places.zip(&mask) {
        m.no_loss |= !yes_or_no(value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::shapes::parse_row;
    use serde_json::json;

    fn no_loss(row: Value) -> Result<Vec<bool>, DropReason> {
        let Value::Object(row) = row else { panic!("not a row") };
        let c = parse_row(row).conversation?;
        Ok(c.messages.iter().filter(|m| m.is_assistant()).map(|m| m.no_loss).collect())
    }

    #[test]
    fn flags_of_messages() {
        let row = |key: &str, value: Value| {
            json!({"messages": [
                {"role": "user", "content": "q", key: 0.5}, {"role": "assistant", "content": "bad", key: value},
                {"role": "user", "content": "q", key: null}, {"role": "assistant", "content": "good"}]})
        };
        for (key, off) in FLAGS {
            for (value, on) in [
                (json!(0), false),
                (json!(0.0), false),
                (json!(false), false),
                (json!(1), true),
                (json!(true), true),
                (json!(null), !off),
            ] {
                assert_eq!(
                    no_loss(row(key, value.clone())),
                    Ok(vec![on == off, false]),
                    "{key} {value}"
                );
            }
            for value in [json!(0.5), json!("no"), json!([0])] {
                assert_eq!(
                    no_loss(row(key, value.clone())),
                    Err(DropReason::BadLossMask),
                    "{key} {value}"
                );
            }
        }
    }

    #[test]
    fn masks_of_rows() {
        let row = |mask: Value, system: &str| {
            json!({"system": system, "loss_mask": mask, "messages": [
                {"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"},
                {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}]})
        };
        for system in ["", "s"] {
            for mask in
                [json!([0, 0, 0, 1]), json!([1, 0, 1, 1]), json!([0, 1]), json!("[false, true]")]
            {
                assert_eq!(no_loss(row(mask.clone(), system)), Ok(vec![true, false]), "{mask}");
            }
            for mask in [json!([0]), json!(1), json!([0, 0.5]), json!("x")] {
                assert_eq!(
                    no_loss(row(mask.clone(), system)),
                    Err(DropReason::BadLossMask),
                    "{mask}"
                );
            }
            assert_eq!(no_loss(row(json!(null), system)), Ok(vec![false, false]));
        }
    }
}

//! Bounds of the values that a template builds.
//!
//! In: minijinja values. Out: the same values, or an error. minijinja's fuel pays for what the
//! engine and its filters do, but not for walking lists in lists: comparing, printing, hashing and
//! freeing nested values recurses. So every list or map that a template puts into another one is
//! walked once, here, and paid for ([`nested`]); what it keeps in a variable is a plain list, not a
//! chain of views ([`own`]). `jinja_expression.rs` and `jinja_source.rs` put these guards where
//! lists, maps and variables are made.

use crate::template::budget;
use crate::template::limits::{TEXT_BYTES, VALUE_DEPTH, VALUE_ITEMS};
use crate::template::python_objects::{is_view, unread};
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Whether a value holds other values.
pub(crate) fn is_container(v: &Value) -> bool {
    matches!(v.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain)
}

/// The bytes of text that may be made at once: what the fuel left pays for, and at most
/// [`TEXT_BYTES`].
pub(crate) fn room(state: &State) -> usize {
    let paid = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(64));
    usize::try_from(paid).unwrap_or(usize::MAX).min(TEXT_BYTES)
}

/// Pays for `n` values.
pub(crate) fn pay(state: &State, n: usize) -> Result<(), Error> {
    budget::note(state);
    state.consume_fuel(n as u64 / 2)
}

/// Refuses a text of `bytes`, before it is made, if there is no room for it.
pub(crate) fn fits(state: &State, bytes: usize) -> Result<(), Error> {
    if bytes > room(state) { Err(too_long()) } else { Ok(()) }
}

/// The error for a text that is too long.
pub(crate) fn too_long() -> Error {
    type_error(format!(
        "a text or list is longer than the template's limits allow (at most {} MiB)",
        TEXT_BYTES >> 20
    ))
}

/// What a walk through a value has found.
#[derive(Default)]
pub(crate) struct Found {
    /// Values, the value itself included.
    pub items: u64,
    /// Bytes of their texts, and some for each value.
    pub bytes: u64,
    /// Whether a list is a view of another one.
    views: bool,
}

/// Walks through a value and pays for it.
///
/// # Errors
/// If it is nested too deeply, has too many values, or holds something that is neither text,
/// number, list nor map.
pub(crate) fn walk(state: &State, v: &Value) -> Result<Found, Error> {
    let mut found = Found::default();
    visit(state, v, 0, &mut found)?;
    state.consume_fuel(found.items % 32 / 2)?;
    Ok(found)
}

/// Whether a value is a `namespace()`, which Python does not take for a dict.
pub(crate) fn is_namespace(v: &Value) -> bool {
    v.as_object().is_some_and(|o| o.type_name().contains("Namespace"))
}

/// Whether a value is a group of `groupby`, a tuple with the names `grouper` and `list`.
pub(crate) fn is_group(v: &Value) -> bool {
    v.as_object().is_some_and(|o| o.type_name().contains("GroupTuple"))
}

/// The error for what Python refuses with a `TypeError` or the like.
pub(crate) fn type_error(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn visit(state: &State, v: &Value, depth: usize, found: &mut Found) -> Result<(), Error> {
    found.items += 1;
    found.bytes += 8;
    if found.items % 32 == 0 {
        state.consume_fuel(16)?;
        if found.items > VALUE_ITEMS {
            return Err(type_error(format!("a list or map has more than {VALUE_ITEMS} values")));
        }
    }
    let kind = v.kind();
    if let ValueKind::String = kind {
        found.bytes += v.as_str().map_or(0, str::len) as u64;
        return Ok(());
    }
    if !is_container(v) {
        found.bytes += 40;
        return Ok(());
    }
    if depth >= VALUE_DEPTH {
        let reason = format!("lists and maps are nested deeper than {VALUE_DEPTH} levels");
        return Err(type_error(reason));
    }
    if depth > 0 && (kind == ValueKind::Plain || is_namespace(v)) {
        return Err(type_error(
            "a list or map holds something that is neither text, number, list nor map".into(),
        ));
    }
    match kind {
        _ if let Some(values) = unread(v) => {
            for x in values {
                visit(state, x, depth + 1, found)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            found.views |= depth > 0 && kind == ValueKind::Iterable;
            for x in v.try_iter()? {
                visit(state, &x, depth + 1, found)?;
            }
        }
        ValueKind::Map => {
            for k in v.try_iter()? {
                visit(state, &k, depth + 1, found)?;
                visit(state, &v.get_item(&k)?, depth + 1, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A list or map that was just made and may become part of others.
pub(crate) fn nested(state: &State, v: Value) -> Result<Value, Error> {
    budget::note(state);
    let found = walk(state, &v)?;
    if !found.views {
        return Ok(v);
    }
    match v.kind() {
        ValueKind::Map => {
            let pair = |k: Value| {
                let item = v.get_item(&k)?;
                Ok::<_, Error>((k, flat(state, item)?))
            };
            Ok(Value::from_pairs(v.try_iter()?.map(pair).collect::<Result<Vec<_>, _>>()?))
        }
        _ => flat(state, v),
    }
}

/// A list without views of other lists in it.
fn flat(state: &State, v: Value) -> Result<Value, Error> {
    // a group owns its list, although it gives it out as a view
    if !matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable) || is_group(&v) || is_view(&v) {
        return Ok(v);
    }
    let items = v.try_iter()?.map(|x| flat(state, x)).collect::<Result<Vec<_>, _>>()?;
    pay(state, items.len())?;
    Ok(if v.is_tuple() { Value::from_object(Tuple::from(items)) } else { Value::from(items) })
}

/// A list in the place of a view of other lists (a slice, a sum, a repetition).
pub(crate) fn own(state: &State, v: Value) -> Result<Value, Error> {
    if v.kind() != ValueKind::Iterable || is_view(&v) {
        return Ok(v);
    }
    if v.len().is_some_and(|n| n as u64 > VALUE_ITEMS) {
        return Err(type_error(format!("a list has more than {VALUE_ITEMS} values")));
    }
    let mut items = Vec::new();
    for x in v.try_iter()? {
        if items.len() % 64 == 0 {
            // A copy of a value costs much less than a step of the template.
            state.consume_fuel(4)?;
            if items.len() as u64 > VALUE_ITEMS {
                return Err(type_error(format!("a list has more than {VALUE_ITEMS} values")));
            }
        }
        items.push(x);
    }
    Ok(Value::from(items))
}

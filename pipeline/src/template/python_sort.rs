//! Filters that order values: `sort`, `min`, `max`.
//!
//! In: a list. Out: what jinja2 gives, or an error where Python has no order for two of the values.

use crate::template::python_arguments::Arguments;
use crate::template::python_guards::{is_container, own, type_error, walk};
use crate::template::python_operators::{defined, order};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};
use std::cmp::Ordering;

/// Adds the filters.
pub(crate) fn add_order(env: &mut Environment) {
    env.add_filter("sort", sort);
    env.add_filter("min", |state: &State, v: Value, given: Rest<Value>, kwargs: Kwargs| {
        extreme(state, v, Arguments::new(given, kwargs), Ordering::Less)
    });
    env.add_filter("max", |state: &State, v: Value, given: Rest<Value>, kwargs: Kwargs| {
        extreme(state, v, Arguments::new(given, kwargs), Ordering::Greater)
    });
}

/// The values of a list; walking and comparing them is paid for.
fn values(state: &State, v: &Value) -> Result<Vec<Value>, Error> {
    let v = own(state, defined(v)?.clone())?;
    if is_container(&v) {
        let found = walk(state, &v)?;
        let rounds = u64::from(u64::BITS - found.items.leading_zeros());
        state.consume_fuel((found.items + found.bytes / 64).saturating_mul(rounds))?;
    }
    match v.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
            Err(type_error(format!("a value of kind {} is not iterable", v.kind())))
        }
        _ => Ok(v.try_iter()?.collect()),
    }
}

/// What one of the attributes `a.b.0` of a value is.
fn attribute(v: &Value, path: &str) -> Result<Value, Error> {
    path.split('.').try_fold(v.clone(), |v, part| {
        let found = match part.parse::<usize>() {
            Ok(n) => v.get_item(&Value::from(n)),
            Err(_) => v.get_attr(part),
        };
        found.map_err(|_| type_error(format!("no attribute {part}")))
    })
}

/// What values are ordered by.
fn keys(v: &Value, by: &[String], case_sensitive: bool) -> Result<Vec<Value>, Error> {
    let cased = |v: Value| match v.as_str() {
        Some(s) if !case_sensitive => Value::from(s.to_lowercase()),
        _ => v,
    };
    match by {
        [] => Ok(vec![cased(v.clone())]),
        paths => paths.iter().map(|path| attribute(v, path).map(cased)).collect(),
    }
}

/// The attributes that an argument names; several are separated by commas in `sort`.
fn paths(given: Option<Value>, several: bool) -> Result<Vec<String>, Error> {
    match given.filter(|v| !v.is_none()) {
        None => Ok(Vec::new()),
        Some(v) => match (v.as_str(), several) {
            (Some(s), true) => Ok(s.split(',').map(String::from).collect()),
            (Some(s), false) => Ok(vec![s.to_string()]),
            _ if v.is_integer() => Ok(vec![v.to_string()]),
            _ => Err(type_error("an attribute is text or a number".into())),
        },
    }
}

/// The order of keys. Those of `sort` are lists, which Python compares for equality first.
fn compare(state: &State, lists: bool, a: &[Value], b: &[Value]) -> Result<Ordering, Error> {
    for (x, y) in a.iter().zip(b) {
        match lists && x == y {
            true => {}
            false => match order(state, "<", x, y)? {
                Ordering::Equal => {}
                other => return Ok(other),
            },
        }
    }
    Ok(Ordering::Equal)
}

fn sort(state: &State, v: Value, given: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let a = Arguments::new(given, kwargs);
    let (reverse, case_sensitive) =
        (a.flag(0, "reverse", false)?, a.flag(1, "case_sensitive", false)?);
    let by = paths(a.get(2, "attribute")?, true)?;
    a.no_others()?;
    if v.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    let mut keyed = Vec::new();
    for item in values(state, &v)? {
        keyed.push((keys(&item, &by, case_sensitive)?, item));
    }
    let mut failed = None;
    keyed.sort_by(|a, b| {
        let found = match reverse {
            true => compare(state, true, &b.0, &a.0),
            false => compare(state, true, &a.0, &b.0),
        };
        found.unwrap_or_else(|e| {
            failed.get_or_insert(e);
            Ordering::Equal
        })
    });
    match failed {
        Some(e) => Err(e),
        None => Ok(keyed.into_iter().map(|k| k.1).collect()),
    }
}

/// The first of the smallest or of the largest values.
fn extreme(state: &State, v: Value, a: Arguments, wanted: Ordering) -> Result<Value, Error> {
    let case_sensitive = a.flag(0, "case_sensitive", false)?;
    let by = paths(a.get(1, "attribute")?, false)?;
    a.no_others()?;
    let mut best: Option<(Vec<Value>, Value)> = None;
    if v.is_undefined() {
        return Ok(v);
    }
    for item in values(state, &v)? {
        let key = keys(&item, &by, case_sensitive)?;
        let better = match &best {
            None => true,
            Some((of_best, _)) => compare(state, false, &key, of_best)? == wanted,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |b| b.1))
}

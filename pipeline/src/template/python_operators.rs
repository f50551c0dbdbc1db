//! Python's operators where minijinja's differ: `%` on text, comparisons of values that have no
//! order, `in` on values that contain nothing.
//!
//! In: minijinja values. Out: what Python gives, or an error where Python raises one.

use crate::template::python_text::{has_float, python_repr, python_str};
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use std::cmp::Ordering;

/// Defines the functions that `jinja_expression.rs` puts in the place of operators.
pub(crate) fn add_operators(env: &mut Environment) {
    env.add_function("__mod", remainder);
    env.add_function("__in", contains);
    env.add_function("__lt", |a: &Value, b: &Value| Ok(order("<", a, b)? == Ordering::Less));
    env.add_function("__le", |a: &Value, b: &Value| Ok(order("<=", a, b)? != Ordering::Greater));
    env.add_function("__gt", |a: &Value, b: &Value| Ok(order(">", a, b)? == Ordering::Greater));
    env.add_function("__ge", |a: &Value, b: &Value| Ok(order(">=", a, b)? != Ordering::Less));
    for (names, wanted) in [
        (["lt", "lessthan", "<"], [true, false, false]),
        (["le", "le", "<="], [true, true, false]),
        (["gt", "greaterthan", ">"], [false, false, true]),
        (["ge", "ge", ">="], [false, true, true]),
    ] {
        for name in names {
            env.add_test(name, move |a: &Value, b: &Value| -> Result<bool, Error> {
                Ok(wanted[(order(name, a, b)? as i8 + 1) as usize])
            });
        }
    }
}

/// An error as Python words it.
pub(crate) fn type_error(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Refuses an undefined value, as every use of one in jinja2.
pub(crate) fn defined(v: &Value) -> Result<&Value, Error> {
    match v.is_undefined() {
        true => Err(Error::new(ErrorKind::UndefinedError, "a value is undefined")),
        false => Ok(v),
    }
}

/// Python's name of a value's type.
pub(crate) fn type_name(v: &Value) -> &'static str {
    match v.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if v.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Seq if v.is_tuple() => "tuple",
        ValueKind::Seq => "list",
        ValueKind::Map => "dict",
        _ => "object",
    }
}

fn is_number(v: &Value) -> bool {
    matches!(v.kind(), ValueKind::Number | ValueKind::Bool)
}

fn order(operator: &str, a: &Value, b: &Value) -> Result<Ordering, Error> {
    let (a, b) = (defined(a)?, defined(b)?);
    let refused = || {
        type_error(format!(
            "'{operator}' not supported between instances of '{}' and '{}'",
            type_name(a),
            type_name(b)
        ))
    };
    match (a.kind(), b.kind()) {
        (ValueKind::String, ValueKind::String) => Ok(a.as_str().cmp(&b.as_str())),
        (ValueKind::Seq, ValueKind::Seq) if a.is_tuple() == b.is_tuple() => {
            let (mut left, mut right) = (a.try_iter()?, b.try_iter()?);
            loop {
                match (left.next(), right.next()) {
                    (Some(x), Some(y)) if x == y => {}
                    (Some(x), Some(y)) => return order(operator, &x, &y),
                    (x, y) => return Ok(x.is_some().cmp(&y.is_some())),
                }
            }
        }
        _ if is_number(a) && is_number(b) => Ok(a.cmp(b)),
        _ => Err(refused()),
    }
}

/// `a % b`: the remainder of numbers, or text with `b` in the place of `%s` and the like.
fn remainder(a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(text) = a.as_str() {
        let values: Vec<Value> = match b.is_tuple() {
            true => b.try_iter()?.collect(),
            false => vec![b.clone()],
        };
        return printf(text, values).map(Value::from);
    }
    if !is_number(defined(a)?) || !is_number(defined(b)?) {
        return Err(type_error(format!(
            "unsupported operand type(s) for %: '{}' and '{}'",
            type_name(a),
            type_name(b)
        )));
    }
    match (i128::try_from(a.clone()), i128::try_from(b.clone())) {
        (Ok(_), Ok(0)) => Err(type_error("integer modulo by zero".to_string())),
        (Ok(x), Ok(y)) if a.is_integer() && b.is_integer() => {
            let r = x.wrapping_rem(y);
            Ok(Value::from(if r != 0 && (r < 0) != (y < 0) { r + y } else { r }))
        }
        _ => {
            let (x, y) = (f64::try_from(a.clone())?, f64::try_from(b.clone())?);
            if y == 0.0 {
                return Err(type_error("float modulo".to_string()));
            }
            let r = x % y;
            Ok(Value::from(if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }))
        }
    }
}

/// Python's `text % values`; values that minijinja writes differently are written as Python does.
pub(crate) fn printf(text: &str, mut values: Vec<Value>) -> Result<String, Error> {
    let named = text.contains("%(");
    let kinds = conversions(text);
    if !named && kinds.len() != values.len() {
        let what = if kinds.len() < values.len() {
            "not all arguments converted"
        } else {
            "not enough arguments"
        };
        return Err(type_error(format!("{what} for the format {text:?}")));
    }
    let mut text = text.to_string();
    for (v, &(at, kind)) in values.iter_mut().zip(&kinds).filter(|_| !named) {
        let container = matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map);
        if matches!(kind, 'r' | 'a') {
            *v = Value::from(python_repr(v));
            text.replace_range(at..at + 1, "s");
        } else if kind == 's' && (container || has_float(v, 0)) {
            *v = Value::from(python_str(v));
        }
    }
    format(FormatStyle::Printf, &text, &values)
}

/// The conversion characters of a format and where they stand, in order.
fn conversions(text: &str) -> Vec<(usize, char)> {
    let (mut out, mut chars) = (Vec::new(), text.char_indices());
    while let Some((_, c)) = chars.next() {
        if c == '%' {
            let kind = chars.find(|(_, c)| !matches!(c, '0'..='9' | '-' | '+' | ' ' | '#' | '.'));
            out.extend(kind.filter(|k| k.1 != '%'));
        }
    }
    out
}

/// `a in b`.
fn contains(a: &Value, b: &Value) -> Result<bool, Error> {
    match b.kind() {
        ValueKind::String => match (a.as_str(), b.as_str()) {
            (Some(part), Some(text)) => Ok(text.contains(part)),
            _ if a.is_undefined() => defined(a).map(|_| false),
            _ => Err(type_error(format!(
                "'in <string>' requires string as left operand, not {}",
                type_name(a)
            ))),
        },
        ValueKind::Undefined => Ok(false),
        ValueKind::Map => Ok(b.try_iter()?.any(|k| k == *a)),
        ValueKind::Seq | ValueKind::Iterable => Ok(b.try_iter()?.any(|x| x == *a)),
        _ => Err(type_error(format!("argument of type '{}' is not iterable", type_name(b)))),
    }
}

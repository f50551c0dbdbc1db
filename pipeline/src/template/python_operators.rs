//! Python's operators where minijinja's differ: `%` on text, comparisons of values that have no
//! order, `in` on values that contain nothing.
//!
//! In: minijinja values. Out: what Python gives, or an error where Python raises one.

use crate::template::budget;
use crate::template::python_guards::{fits, is_container, pay, type_error, walk};
use crate::template::python_objects::is_generator;
use crate::template::python_text::{has_float, python_repr, python_str, text};
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::cmp::Ordering;

/// Defines the functions that `jinja_expression.rs` puts in the place of operators.
pub(crate) fn add_operators(env: &mut Environment) {
    env.add_function("__mod", remainder);
    env.add_function("__in", contains);
    env.add_function("__lt", |s: &State, a: &Value, b: &Value| Ok(order(s, "<", a, b)?.is_lt()));
    env.add_function("__le", |s: &State, a: &Value, b: &Value| Ok(order(s, "<=", a, b)?.is_le()));
    env.add_function("__gt", |s: &State, a: &Value, b: &Value| Ok(order(s, ">", a, b)?.is_gt()));
    env.add_function("__ge", |s: &State, a: &Value, b: &Value| Ok(order(s, ">=", a, b)?.is_ge()));
    env.add_test("in", contains);
    for (name, left) in [("even", 0.0), ("odd", 1.0)] {
        env.add_test(name, move |state: &State, v: &Value| -> Result<bool, Error> {
            let rest = remainder(state, v, &Value::from(2))?;
            Ok(f64::try_from(rest)? == left)
        });
    }
    env.add_test("divisibleby", |state: &State, v: &Value, by: &Value| -> Result<bool, Error> {
        Ok(f64::try_from(remainder(state, v, by)?)? == 0.0)
    });
    env.add_filter("__pos", |v: Value| -> Result<Value, Error> {
        match v.kind() {
            ValueKind::Bool => Ok(Value::from(i64::from(v.is_true()))),
            ValueKind::Number => Ok(v),
            _ => Err(type_error(format!("bad operand type for unary +: '{}'", type_name(&v)))),
        }
    });
    for (names, wanted) in [
        (["lt", "lessthan", "<"], [true, false, false]),
        (["le", "le", "<="], [true, true, false]),
        (["gt", "greaterthan", ">"], [false, false, true]),
        (["ge", "ge", ">="], [false, true, true]),
    ] {
        for name in names {
            env.add_test(name, move |state: &State, a: &Value, b: &Value| -> Result<bool, Error> {
                Ok(wanted[(order(state, name, a, b)? as i8 + 1) as usize])
            });
        }
    }
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

/// The order of two values, if Python has one for them.
pub(crate) fn order(
    state: &State,
    operator: &str,
    a: &Value,
    b: &Value,
) -> Result<Ordering, Error> {
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
            walk(state, a)?;
            walk(state, b)?;
            let (mut left, mut right) = (a.try_iter()?, b.try_iter()?);
            loop {
                match (left.next(), right.next()) {
                    (Some(x), Some(y)) if x == y => {}
                    (Some(x), Some(y)) => return order(state, operator, &x, &y),
                    (x, y) => return Ok(x.is_some().cmp(&y.is_some())),
                }
            }
        }
        _ if is_number(a) && is_number(b) => Ok(a.cmp(b)),
        _ => Err(refused()),
    }
}

/// `a ~ b ~ c`.
pub(crate) fn concatenate(state: &State, first: &Value, more: Rest<Value>) -> Result<Value, Error> {
    let mut parts = Vec::with_capacity(more.len() + 1);
    let mut bytes = 0usize;
    for v in std::iter::once(first).chain(more.iter()) {
        let part = match v.as_str() {
            Some(s) => std::borrow::Cow::Borrowed(s),
            None if is_container(v) => std::borrow::Cow::Owned(text(state, v)?),
            None => std::borrow::Cow::Owned(v.to_string()),
        };
        bytes = bytes.saturating_add(part.len());
        parts.push(part);
    }
    fits(state, bytes)?;
    Ok(Value::from(parts.concat()))
}

/// Whether two values are equal; walking through lists and maps is paid for.
pub(crate) fn equal(state: &State, a: &Value, b: &Value) -> Result<bool, Error> {
    if is_generator(a) || is_generator(b) {
        return Err(type_error("a generator is compared".into()));
    }
    if is_container(a) && is_container(b) && !is_same(a, b) {
        budget::note(state);
        walk(state, a)?;
        walk(state, b)?;
    }
    Ok(a == b)
}

/// Whether two values are the same macro, `loop` and the like, which are compared by name.
fn is_same(a: &Value, b: &Value) -> bool {
    a.kind() == ValueKind::Plain && b.kind() == ValueKind::Plain
}

/// `a < b <= c`: operators and their right operands follow the first operand.
pub(crate) fn chain(state: &State, first: &Value, more: Rest<Value>) -> Result<bool, Error> {
    let mut left = first;
    for pair in more.chunks(2) {
        let [operator, right] = pair else { return Err(Error::from(ErrorKind::MissingArgument)) };
        let holds = match operator.as_str() {
            Some("==") => equal(state, left, right)?,
            Some("!=") => !equal(state, left, right)?,
            Some("<") => order(state, "<", left, right)?.is_lt(),
            Some("<=") => order(state, "<=", left, right)?.is_le(),
            Some(">") => order(state, ">", left, right)?.is_gt(),
            Some(">=") => order(state, ">=", left, right)?.is_ge(),
            _ => return Err(Error::from(ErrorKind::InvalidOperation)),
        };
        if !holds {
            return Ok(false);
        }
        left = right;
    }
    Ok(true)
}

/// `a % b`: the remainder of numbers, or text with `b` in the place of `%s` and the like.
fn remainder(state: &State, a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(text) = a.as_str() {
        let values: Vec<Value> = match b.is_tuple() {
            true => b.try_iter()?.collect(),
            false => vec![b.clone()],
        };
        return printf(state, text, values).map(Value::from);
    }
    if !is_number(defined(a)?) || !is_number(defined(b)?) {
        return Err(type_error(format!(
            "unsupported operand type(s) for %: '{}' and '{}'",
            type_name(a),
            type_name(b)
        )));
    }
    let number = |v: &Value| match v.kind() {
        ValueKind::Bool => Value::from(i64::from(v.is_true())),
        _ => v.clone(),
    };
    let (a, b) = (&number(a), &number(b));
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
pub(crate) fn printf(state: &State, text: &str, mut values: Vec<Value>) -> Result<String, Error> {
    for v in values.iter().filter(|v| is_container(v)) {
        fits(state, walk(state, v)?.bytes as usize)?;
    }
    formatted_fits(state, text, text.matches('%').count(), &values)?;
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
        let float = has_float(v).then(|| f64::try_from(v.clone())).transpose()?;
        if matches!(kind, 'i' | 'u') {
            text.replace_range(at..at + 1, "d");
        }
        if let ('d' | 'i' | 'u', Some(f)) = (kind, float.filter(|f| f.abs() < 1e18)) {
            *v = Value::from(f.trunc() as i64);
        }
        if matches!(kind, 'r' | 'a') {
            *v = Value::from(python_repr(v));
            text.replace_range(at..at + 1, "s");
        } else if kind == 's' && (container || has_float(v)) {
            *v = Value::from(python_str(v));
        }
    }
    format(FormatStyle::Printf, &text, &values)
}

/// Refuses a format with `fields` fields whose result would be too long.
pub(crate) fn formatted_fits(
    state: &State,
    format: &str,
    fields: usize,
    values: &[Value],
) -> Result<(), Error> {
    let widths = widths(format);
    // A field can take its width from a value.
    let length = |v: &Value| {
        let text = v.as_str().map_or(400, str::len);
        let width = v.as_i64().map_or(0, |n| usize::try_from(n).unwrap_or(0));
        let nested = format.contains("{:") || format.contains('*');
        text.saturating_add(if nested && format.matches('{').count() != 1 { width } else { 0 })
    };
    let longest = values.iter().map(length).max().unwrap_or(0);
    let bytes = format.len().saturating_add(widths).saturating_add(fields.saturating_mul(longest));
    fits(state, bytes)
}

/// The sum of all widths and precisions that stand in a format's fields.
fn widths(format: &str) -> usize {
    let (mut sum, mut rest) = (0usize, format);
    while let Some(at) = rest.find(['%', '{']) {
        let field = &rest[at + 1..];
        let end = match rest[at..].starts_with('{') {
            true => field.find('}'),
            false => {
                let named = field.starts_with('(').then(|| field.find(')')).flatten();
                let from = named.map_or(0, |n| n + 1);
                let sign = |c: char| !c.is_ascii_digit() && !"-+ #.*".contains(c);
                field[from..].find(sign).map(|n| from + n)
            }
        };
        let field = &field[..end.unwrap_or(field.len())];
        for n in field.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()) {
            sum = sum.saturating_add(n.parse().unwrap_or(usize::MAX));
        }
        rest = &rest[at + 1 + field.len()..];
    }
    sum
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
fn contains(state: &State, a: &Value, b: &Value) -> Result<bool, Error> {
    match b.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if is_container(a) => {
            walk(state, a)?;
            walk(state, b)?;
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => pay(state, b.len().unwrap_or(0))?,
        ValueKind::String => pay(state, b.as_str().map_or(0, str::len) / 32)?,
        _ => {}
    }
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
        ValueKind::Map if matches!(a.kind(), ValueKind::Seq | ValueKind::Map) && !a.is_tuple() => {
            Err(type_error(format!("unhashable type: '{}'", type_name(a))))
        }
        ValueKind::Map => Ok(b.try_iter()?.any(|k| k == *a)),
        ValueKind::Seq | ValueKind::Iterable => Ok(b.try_iter()?.any(|x| x == *a)),
        _ => Err(type_error(format!("argument of type '{}' is not iterable", type_name(b)))),
    }
}

//! Filters and functions whose results are generators or ranges in jinja2.
//!
//! In: lists that minijinja's filters have made. Out: the objects of `python_objects.rs`.

use crate::template::python_guards::{fits, is_container, is_group, nested, own, type_error, walk};
use crate::template::python_objects::{Range, generator, is_generator, is_view};
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

/// Refuses a value without a length.
fn with_length(v: &Value) -> Result<usize, Error> {
    match v.len() {
        Some(n) if !is_generator(v) => Ok(n),
        _ if v.is_undefined() => Ok(0),
        _ => Err(type_error(format!("a value of kind {} has no length", v.kind()))),
    }
}

fn range(state: &State, given: Rest<Value>) -> Result<Value, Error> {
    let numbers = given.iter().map(|v| match v.kind() {
        ValueKind::Bool => Ok(i64::from(v.is_true())),
        ValueKind::Number if v.is_integer() => i64::try_from(v.clone()),
        kind => Err(type_error(format!("a value of kind {kind} is no whole number"))),
    });
    let (start, stop, step) = match numbers.collect::<Result<Vec<_>, _>>()?.as_slice() {
        [stop] => (0, *stop, 1),
        [start, stop] => (*start, *stop, 1),
        [start, stop, step] => (*start, *stop, *step),
        _ => return Err(Error::from(ErrorKind::MissingArgument)),
    };
    let (distance, stride) = match step {
        0 => return Err(type_error("range() arg 3 must not be zero".into())),
        1.. => (i128::from(stop) - i128::from(start), i128::from(step)),
        _ => (i128::from(start) - i128::from(stop), -i128::from(step)),
    };
    let length = (distance.max(0) + stride - 1) / stride;
    // As the sandbox of jinja2.
    if length > 100_000 {
        return Err(type_error(
            "Range too big. The sandbox blocks ranges larger than 100000".into(),
        ));
    }
    state.consume_fuel(length as u64 / 8)?;
    Ok(Value::from_object(Range { start, stop, step, length: length as usize }))
}

/// Filters of minijinja whose result is a generator in jinja2, with the name of that.
const GENERATORS: [(&str, &str, fn() -> Value); 5] = [
    ("map", "sync_do_map", || Value::from_function(filters::map)),
    ("select", "select_or_reject", || Value::from_function(filters::select)),
    ("reject", "select_or_reject", || Value::from_function(filters::reject)),
    ("selectattr", "select_or_reject", || Value::from_function(filters::selectattr)),
    ("rejectattr", "select_or_reject", || Value::from_function(filters::rejectattr)),
];

/// Adds the filters and functions that make such values, and those that refuse them.
pub(crate) fn add_views(env: &mut Environment) {
    for (name, generator_name, filter) in GENERATORS {
        let filter = filter();
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let made = filter.call(state, &args.into_values())?;
            generator(generator_name, &made)
        });
    }
    for name in ["length", "count"] {
        env.add_filter(name, with_length);
    }
    env.add_function("range", range);
    env.add_function("lipsum", || -> Result<Value, Error> {
        Err(type_error("lipsum() gives other text at every call".into()))
    });
    let reverse = Value::from_function(filters::reverse);
    env.add_filter("reverse", move |state: &mut State, v: Value| -> Result<Value, Error> {
        if is_container(&v) {
            let found = walk(state, &v)?;
            fits(state, found.items as usize)?;
        }
        let made = reverse.call(state, &[v])?;
        match made.kind() {
            ValueKind::String => Ok(made),
            _ => generator("list_reverseiterator", &made),
        }
    });
    // What a slice is taken of.
    env.add_filter("__of", |v: Value| match is_view(&v) {
        true => Err(type_error("a generator or a view of a dict has no slices".into())),
        false => Ok(v),
    });
    let last = Value::from_function(filters::last);
    env.add_filter("last", move |state: &mut State, v: Value| match is_generator(&v) {
        true => Err(type_error("'generator' object is not reversible".into())),
        false => last.call(state, &[v]),
    });
}

/// The result of a filter whose parts are lists, as a generator or as a list.
pub(crate) fn parts(
    state: &State,
    made: Value,
    generator_name: Option<&'static str>,
) -> Result<Value, Error> {
    let list = nested(state, own(state, made)?)?;
    match generator_name {
        Some(name) if !is_group(&list) => generator(name, &list),
        _ => Ok(list),
    }
}

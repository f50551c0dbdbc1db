//! Filters, tests and functions of minijinja behind checks of what they would make.
//!
//! In: an environment. Out: the same names, which refuse or pay before they work. The filters with
//! `__` in their names are those that `jinja_expression.rs` and `jinja_source.rs` write.

use crate::template::more_filters;
use crate::template::python_guards::{
    fits, is_container, is_namespace, nested, own, type_error, walk,
};
use crate::template::python_methods::python_method;
use crate::template::python_operators::{chain, concatenate, equal};
use crate::template::python_text::text;
use crate::template::python_views::parts;
use minijinja::filters;
use minijinja::value::{Rest, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

/// Filters that take text and write any other value as text.
const TEXT_FILTERS: [(&str, fn() -> Value); 7] = [
    ("lower", || Value::from_function(filters::lower)),
    ("upper", || Value::from_function(filters::upper)),
    ("title", || Value::from_function(filters::title)),
    ("capitalize", || Value::from_function(filters::capitalize)),
    ("escape", || Value::from_function(more_filters::escape_once)),
    ("e", || Value::from_function(more_filters::escape_once)),
    ("forceescape", || Value::from_function(more_filters::force_escape)),
];
/// Filters that compare the values of a list with each other.
const COMPARING_FILTERS: [(&str, fn() -> Value); 2] = [
    ("unique", || Value::from_function(more_filters::unique)),
    ("sum", || Value::from_function(filters::sum)),
];
/// Filters whose result holds lists.
const NESTING_FILTERS: [(&str, Option<&str>, fn() -> Value); 3] = [
    ("batch", Some("do_batch"), || Value::from_function(filters::batch)),
    ("slice", Some("sync_do_slice"), || Value::from_function(filters::slice)),
    ("groupby", None, || Value::from_function(filters::groupby)),
];

/// Adds the guards, and filters and tests of minijinja behind them.
pub(crate) fn add_guards(env: &mut Environment) {
    env.add_filter("__box", nested);
    env.add_filter("__own", own);
    env.add_filter("__set", own);
    env.add_filter("__attr", |state: &State, v: Value| -> Result<Value, Error> {
        match is_namespace(&v) {
            true => Err(type_error("a namespace cannot hold a namespace".into())),
            false => own(state, v),
        }
    });
    env.add_filter("__key", |state: &State, v: Value| -> Result<Value, Error> {
        walk(state, &v).map(|_| v)
    });
    env.add_filter("__cat", concatenate);
    env.add_filter("__eq", equal);
    env.add_filter("__ne", |state: &State, a: &Value, b: &Value| Ok(!equal(state, a, b)?));
    env.add_filter("__chain", chain);
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, equal);
    }
    for name in ["ne", "!="] {
        env.add_test(name, |state: &State, a: &Value, b: &Value| Ok(!equal(state, a, b)?));
    }
    for (name, filter) in TEXT_FILTERS {
        guard(env, name, filter(), |state, args| {
            for v in args.iter_mut().filter(|v| is_container(v) && !v.is_kwargs()) {
                *v = Value::from(text(state, v)?);
            }
            Ok(())
        });
    }
    for (name, filter) in COMPARING_FILTERS {
        guard(env, name, filter(), |state, args| {
            let Some(list) = args.first().filter(|v| is_container(v)) else { return Ok(()) };
            let found = walk(state, list)?;
            let rounds = u64::from(u64::BITS - found.items.leading_zeros());
            state.consume_fuel((found.items + found.bytes / 64).saturating_mul(rounds))
        });
    }
    for (name, generator_name, filter) in NESTING_FILTERS {
        let filter = filter();
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            if let Some(list) = args.first().filter(|v| is_container(v)) {
                let found = walk(state, list)?;
                let rounds = u64::from(u64::BITS - found.items.leading_zeros());
                state.consume_fuel((found.items / 4 + found.bytes / 64).saturating_mul(rounds))?;
            }
            let made = filter.call(state, &args)?;
            parts(state, made, generator_name)
        });
    }
    env.add_filter("replace", |state: &mut State, v: &Value, args: Rest<ValueOrKwargs>| {
        let of = Value::from(text(state, v)?);
        let mut args = args.into_values();
        for v in args.iter_mut().take(2).filter(|v| v.as_str().is_none() && !v.is_kwargs()) {
            *v = Value::from(text(state, v)?);
        }
        python_method(state, &of, "replace", &args)
    });
    guard(env, "join", Value::from_function(filters::join), |state, args| {
        let mut bytes = 0u64;
        for (i, v) in args.iter().enumerate() {
            let found = walk(state, v)?;
            // The second argument stands between all values of the first.
            let times =
                if i == 1 { args[0].len().unwrap_or(found.items as usize) as u64 } else { 1 };
            bytes = bytes.saturating_add(found.bytes.saturating_mul(times));
        }
        fits(state, usize::try_from(bytes).unwrap_or(usize::MAX))
    });
    for (name, filter) in [
        ("xmlattr", Value::from_function(more_filters::xmlattr)),
        ("pprint", Value::from_function(more_filters::pprint)),
    ] {
        guard(env, name, filter, |state, args| {
            let Some(v) = args.first() else { return Ok(()) };
            // A character becomes six at most.
            let bytes = walk(state, v)?.bytes.saturating_mul(6);
            fits(state, usize::try_from(bytes).unwrap_or(usize::MAX))
        });
    }
    let dict = Value::from_function(more_filters::dict);
    env.add_function("dict", move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let made = dict.call(state, &args.into_values())?;
        nested(state, made)
    });
    let namespace = Value::from_function(minijinja::functions::namespace);
    env.add_function("namespace", move |state: &mut State, args: Rest<ValueOrKwargs>| {
        let args = args.into_values().into_iter().map(|v| nested(state, v));
        let args = args.collect::<Result<Vec<_>, _>>()?;
        namespace.call(state, &args)
    });
}

/// Puts a check of the arguments before a filter of minijinja.
fn guard(
    env: &mut Environment,
    name: &'static str,
    filter: Value,
    check: impl Fn(&State, &mut Vec<Value>) -> Result<(), Error> + Send + Sync + 'static,
) {
    env.add_filter(
        name,
        move |state: &mut State, args: Rest<ValueOrKwargs>| -> Result<Value, Error> {
            let mut args = args.into_values();
            check(state, &mut args)?;
            filter.call(state, &args)
        },
    );
}

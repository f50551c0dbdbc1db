//! Attributes of template values as jinja2 looks them up.
//!
//! In jinja2 `d.items` without a call is the method of the dict, even if the dict has a key of that
//! name. In: a value and a name. Out: a [`Method`], or the attribute. A method that is printed
//! gives the text that Python gives, which ends in an address in memory. Here the address is always
//! the same, and renders of conversations with such a text are refused.

use crate::template::placeholder::METHOD_MARK;
use crate::template::python_guards::{is_container, is_namespace, walk};
use crate::template::python_methods::python_method;
use crate::template::python_objects::ADDRESS;
use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Environment, Error, State, Value};
use std::fmt;
use std::sync::Arc;

const DICT: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];
const LIST: [&str; 11] = [
    "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse",
    "sort",
];
const STR: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Methods that change the value; the sandbox of transformers has none of them.
const CHANGING: [&str; 11] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

/// Whether values of some kind have a method of that name.
pub(crate) fn is_method_name(name: &str) -> bool {
    [&DICT[..], &LIST, &STR].iter().any(|names| names.contains(&name))
}

/// Adds the function and the filter that look up attributes.
pub(crate) fn add_attributes(env: &mut Environment) {
    env.add_function("__attribute", |of: &Value, name: &str| -> Result<Value, Error> {
        let known = method(of, name).or_else(|| number_attribute(of, name));
        known.map_or_else(|| of.get_attr(name), Ok)
    });
    env.add_function("__item", item);
    env.add_filter("attr", |of: &Value, name: &str| -> Result<Value, Error> {
        match method(of, name) {
            Some(method) => Ok(method),
            // Keys are no attributes.
            None if of.kind() == ValueKind::Map && !is_namespace(of) => Ok(Value::UNDEFINED),
            None => of.get_attr(name),
        }
    });
}

/// Whether a source, rewritten for minijinja, may use methods without calling them.
pub(crate) fn may_print_methods(source: &str) -> bool {
    let printing =
        ["__attribute(", "__item(", "attr", "map", "select", "reject", "unique", "batch"];
    let others = ["slice", "items", "reverse", "range", "joiner", "cycler", "dict", "lipsum"];
    let functions = ["raise_exception", "strftime_now", "namespace"];
    [&printing[..], &others, &functions].concat().iter().any(|name| source.contains(name))
}

/// Attributes of numbers.
const NUMBER: [&str; 4] = ["real", "imag", "numerator", "denominator"];

/// Whether numbers have an attribute of that name, which is no method.
pub(crate) fn is_number_attribute(name: &str) -> bool {
    NUMBER.contains(&name)
}

/// An attribute of a number.
fn number_attribute(of: &Value, name: &str) -> Option<Value> {
    let value = match of.kind() {
        ValueKind::Bool => Value::from(i64::from(of.is_true())),
        ValueKind::Number => of.clone(),
        _ => return None,
    };
    match (name, value.is_integer()) {
        ("real", _) | ("numerator", true) => Some(value),
        ("imag", true) => Some(Value::from(0)),
        ("imag", false) => Some(Value::from(0.0)),
        ("denominator", true) => Some(Value::from(1)),
        _ => None,
    }
}

/// `of[key]`: an item, or else a method of that name.
fn item(state: &State, of: &Value, key: &Value) -> Result<Value, Error> {
    if is_container(key) {
        walk(state, key)?;
    }
    let found = of.get_item(key)?;
    match key.as_str().filter(|_| found.is_undefined()) {
        Some(name) => Ok(method(of, name).unwrap_or(found)),
        None => Ok(found),
    }
}

fn method(of: &Value, name: &str) -> Option<Value> {
    let (kind, names) = match of.kind() {
        ValueKind::Map if !is_namespace(of) => ("dict", &DICT[..]),
        ValueKind::Seq => ("list", &LIST[..]),
        ValueKind::String => ("str", &STR[..]),
        _ => return None,
    };
    let name = names.iter().find(|n| **n == name)?;
    if CHANGING.contains(name) {
        return Some(Value::UNDEFINED);
    }
    Some(Value::from_object(Method { of: of.clone(), kind, name }))
}

/// A method that is not called.
#[derive(Debug)]
struct Method {
    of: Value,
    kind: &'static str,
    name: &'static str,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State, args: &[Value]) -> Result<Value, Error> {
        python_method(state, &self.of, self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Method { kind, name, .. } = &**self;
        match *name {
            "format" | "format_map" => write!(f, "<function str.{name} at {ADDRESS}{METHOD_MARK}>"),
            _ => write!(f, "<built-in method {name} of {kind} object at {ADDRESS}{METHOD_MARK}>"),
        }
    }
}

//! Attributes of template values as jinja2 looks them up.
//!
//! In jinja2 `d.items` without a call is the method of the dict, even if the dict has a key of that
//! name. In: a value and a name. Out: a [`Method`], or the attribute. A method that is printed
//! gives the text that Python gives, which ends in an address in memory. Here the address is always
//! the same, and renders of conversations with such a text are refused.

use crate::template::placeholder::METHOD_MARK;
use crate::template::python_guards::is_namespace;
use crate::template::python_methods::python_method;
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
        method(of, name).map_or_else(|| of.get_attr(name), Ok)
    });
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
    source.contains("__attribute(") || source.contains("attr")
}

/// The address of printed methods without its last digit, for which a mark stands.
const ADDRESS: &str = "0x7f000000000";

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

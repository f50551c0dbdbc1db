//! Filters and functions of jinja2 that few templates use.
//!
//! In: values. Out: what jinja2 gives for `default` by the names of its parameters,
//! `unique(case_sensitive)`, `escape`, `forceescape`, `xmlattr`, `pprint` of values that take one
//! line, and `dict`.

use crate::template::python_objects::generator;
use crate::template::python_text::python_str;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use std::collections::BTreeMap;

/// Columns of a line of `pprint`.
const COLUMNS: usize = 80;

/// Adds the filters whose cost does not depend on what they are given; `guarded_filters.rs` adds
/// the others, behind checks.
pub(crate) fn add_more_filters(env: &mut Environment) {
    env.add_filter("default", default);
    env.add_filter("d", default);
}

/// The filter `forceescape`.
pub(crate) fn force_escape(v: &Value) -> Value {
    Value::from_safe_string(escape(&python_str(v)))
}

/// The filter `escape`, which leaves text that is escaped already.
pub(crate) fn escape_once(v: &Value) -> Value {
    if v.is_safe() { v.clone() } else { force_escape(v) }
}

/// A parameter given by position or by name.
fn parameter(given: &[Value], at: usize, kwargs: &Kwargs, name: &str) -> Result<Value, Error> {
    match given.get(at) {
        Some(v) => Ok(v.clone()),
        None => Ok(kwargs.get::<Option<Value>>(name)?.unwrap_or(Value::UNDEFINED)),
    }
}

fn at_most(given: &[Value], count: usize) -> Result<(), Error> {
    match given.len() > count {
        true => Err(Error::from(ErrorKind::TooManyArguments)),
        false => Ok(()),
    }
}

fn default(v: Value, given: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    at_most(&given, 2)?;
    let boolean = parameter(&given, 1, &kwargs, "boolean")?.is_true();
    let other = parameter(&given, 0, &kwargs, "default_value")?;
    kwargs.assert_all_used()?;
    match v.is_undefined() || boolean && !v.is_true() {
        true if other.is_undefined() => Ok(Value::from("")),
        true => Ok(other),
        false => Ok(v),
    }
}

/// The first of all values that are equal, which for texts means but for their case.
pub(crate) fn unique(v: &Value, given: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    at_most(&given, 2)?;
    let case_sensitive = parameter(&given, 0, &kwargs, "case_sensitive")?.is_true();
    let attribute = parameter(&given, 1, &kwargs, "attribute")?;
    kwargs.assert_all_used()?;
    let mut seen = std::collections::BTreeSet::new();
    let mut out = Vec::new();
    for item in v.try_iter()? {
        let mut key = match attribute.as_str() {
            Some(path) => path.split('.').try_fold(item.clone(), |v, part| v.get_attr(part))?,
            None => item.clone(),
        };
        if let (false, Some(text)) = (case_sensitive, key.as_str()) {
            key = Value::from(text.to_lowercase());
        }
        if seen.insert(key) {
            out.push(item);
        }
    }
    generator("sync_do_unique", &Value::from(out))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Attributes of an XML element; those without a value are left out.
pub(crate) fn xmlattr(v: &Value, autospace: Option<bool>) -> Result<String, Error> {
    let mut out = Vec::new();
    for key in v.try_iter()? {
        let value = v.get_item(&key)?;
        let name = python_str(&key);
        if value.is_none() || value.is_undefined() {
            continue;
        }
        if name.contains([' ', '\t', '\n', '\r', '\x0c', '/', '>', '=']) {
            let reason = format!("invalid character in attribute name: {name:?}");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        out.push(format!("{}=\"{}\"", escape(&name), escape(&python_str(&value))));
    }
    let spaced = autospace.unwrap_or(true) && !out.is_empty();
    Ok(if spaced { format!(" {}", out.join(" ")) } else { out.join(" ") })
}

/// A value with the keys of all its maps in order.
fn with_sorted_keys(v: &Value, depth: usize) -> Result<Value, Error> {
    if depth > 64 {
        return Err(Error::new(ErrorKind::InvalidOperation, "pprint of a value nested too deep"));
    }
    match v.kind() {
        ValueKind::Map => {
            let mut keys: Vec<Value> = v.try_iter()?.collect();
            keys.sort();
            let pairs = keys.into_iter().map(|k| {
                let value = with_sorted_keys(&v.get_item(&k)?, depth + 1)?;
                Ok((k, value))
            });
            Ok(Value::from_pairs(pairs.collect::<Result<Vec<_>, Error>>()?))
        }
        ValueKind::Seq if !v.is_tuple() => {
            v.try_iter()?.map(|x| with_sorted_keys(&x, depth + 1)).collect()
        }
        _ => Ok(v.clone()),
    }
}

/// Python's `pprint.pformat`, for values that take one line.
pub(crate) fn pprint(v: &Value) -> Result<String, Error> {
    let listed = python_str(&Value::from(vec![with_sorted_keys(v, 0)?]));
    let text = &listed[1..listed.len() - 1];
    match text.chars().count() <= COLUMNS {
        true => Ok(text.to_string()),
        false => {
            let reason = "pprint of a value that takes more than one line";
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        }
    }
}

/// A map of the pairs of a list or a map, and of named values.
pub(crate) fn dict(given: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    at_most(&given, 1)?;
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    let mut places: BTreeMap<Value, usize> = BTreeMap::new();
    let mut set = |k: Value, v: Value| match places.get(&k) {
        Some(place) => pairs[*place].1 = v,
        None => {
            places.insert(k.clone(), pairs.len());
            pairs.push((k, v));
        }
    };
    if let Some(of) = given.first() {
        for item in of.try_iter()? {
            match of.kind() {
                ValueKind::Map => set(item.clone(), of.get_item(&item)?),
                _ => {
                    let mut pair = item.try_iter()?;
                    match (pair.next(), pair.next(), pair.next()) {
                        (Some(k), Some(v), None) => set(k, v),
                        _ => {
                            let reason = "dict() takes a list of pairs";
                            return Err(Error::new(ErrorKind::InvalidOperation, reason));
                        }
                    }
                }
            }
        }
    }
    for name in kwargs.args() {
        set(Value::from(name), kwargs.get(name)?);
    }
    Ok(Value::from_pairs(pairs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::guarded_filters::add_guards;

    #[test]
    fn as_in_jinja() {
        let mut env = Environment::new();
        add_more_filters(&mut env);
        add_guards(&mut env);
        for (source, want) in [
            ("x|default ~ u|default ~ u|default(default_value='q')", "q"),
            ("false|default('x', boolean=true) ~ false|default('x')", "xFalse"),
            ("u|default(none)", "None"),
            ("['a', 'A', 'b']|unique|join ~ ['a', 'A']|unique(true)|join", "abaA"),
            ("'<a>&'|forceescape|forceescape", "&amp;lt;a&amp;gt;&amp;amp;"),
            ("'<a b=\"/\\'\">'|e|escape", "&lt;a b=&#34;/&#39;&#34;&gt;"),
            (
                "{'class': 'x', 'id': none, 'n': 1}|xmlattr ~ '|' ~ {}|xmlattr",
                " class=\"x\" n=\"1\"|",
            ),
            (
                "{'b': 1, 'a': [true, {'d': none, 'c': 'é'}]}|pprint",
                "{'a': [True, {'c': 'é', 'd': None}], 'b': 1}",
            ),
            ("'ab'|pprint ~ 1.0|pprint", "'ab'1.0"),
            ("dict([('a', 1)], b=2).b ~ dict({'a': 3}, a=4)|pprint ~ dict()|pprint", "2{'a': 4}{}"),
        ] {
            let got = env.render_str(&format!("{{{{ {source} }}}}"), ());
            assert_eq!(got.unwrap(), want, "{source}");
        }
        for refused in [
            "('x' * 90)|pprint",
            "1|default(2, true, 3)",
            "dict([1])",
            "dict([[1]])",
            "{'a b': 1}|xmlattr",
        ] {
            assert!(env.render_str(&format!("{{{{ {refused} }}}}"), ()).is_err(), "{refused}");
        }
    }
}

//! YAML values that remember where they were written.
//!
//! In: YAML text of a file or of an override's right-hand side. Out: a [`Node`] tree that can be
//! merged key by key, have its `${a.b}` references replaced, be checked against a [`ValueKind`] and
//! become JSON for serde.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use super::error::{ConfigError, nearest};
use super::kind::ValueKind;
use super::schema::{RENAMED_KEYS, RENAMED_VALUES};

/// A value and the file or override it was written in.
#[derive(Debug, Clone)]
pub struct Node {
    /// What was written.
    pub body: Body,
    /// Where, for errors.
    pub origin: Rc<str>,
}

/// A mapping or anything else.
#[derive(Debug, Clone)]
pub enum Body {
    /// A mapping with text keys.
    Map(BTreeMap<String, Node>),
    /// A scalar or a list.
    Leaf(Value),
}

/// Parses YAML 1.2: `yes` and `on` are text, `1e-5` is a number, a key given twice is an error.
pub fn parse_yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

impl Node {
    /// An empty mapping.
    pub fn empty(origin: &str) -> Self {
        Self { body: Body::Map(BTreeMap::new()), origin: origin.into() }
    }

    /// A parsed value with its place.
    pub fn new(value: Value, origin: &Rc<str>) -> Self {
        let body = match value {
            Value::Object(entries) => Body::Map(
                entries.into_iter().map(|(key, value)| (key, Node::new(value, origin))).collect(),
            ),
            other => Body::Leaf(other),
        };
        Self { body, origin: origin.clone() }
    }

    /// `value` below the dotted `path`.
    pub fn below(path: &[&str], value: Node) -> Self {
        path.iter().rev().fold(value, |inner, name| {
            let origin = inner.origin.clone();
            Self { body: Body::Map(BTreeMap::from([(name.to_string(), inner)])), origin }
        })
    }

    /// Lays `over` on top: mappings key by key, anything else replaced.
    pub fn merge(&mut self, over: Node) {
        match (&mut self.body, over.body) {
            (Body::Map(mine), Body::Map(theirs)) => {
                for (key, value) in theirs {
                    match mine.get_mut(&key) {
                        Some(place) => place.merge(value),
                        None => {
                            mine.insert(key, value);
                        }
                    }
                }
            }
            (mine, theirs) => {
                *mine = theirs;
                self.origin = over.origin;
            }
        }
    }

    /// The node at a dotted path.
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, name| match &node.body {
            Body::Map(entries) => entries.get(name),
            Body::Leaf(_) => None,
        })
    }

    /// The value without its places.
    pub fn to_value(&self) -> Value {
        match &self.body {
            Body::Map(entries) => {
                entries.iter().map(|(key, node)| (key.clone(), node.to_value())).collect()
            }
            Body::Leaf(value) => value.clone(),
        }
    }

    /// The tree with every `${a.b}` in a text replaced by the value of that key.
    pub fn interpolated(&self, keys: &[String]) -> Result<Node, ConfigError> {
        self.resolve(self, "", keys)
    }

    fn resolve(&self, root: &Node, key: &str, keys: &[String]) -> Result<Node, ConfigError> {
        let body = match &self.body {
            Body::Map(entries) => {
                let resolve = |(name, node): (&String, &Node)| {
                    Ok((name.clone(), node.resolve(root, &join(key, name), keys)?))
                };
                Body::Map(entries.iter().map(resolve).collect::<Result<_, ConfigError>>()?)
            }
            Body::Leaf(Value::String(text)) => Body::Leaf(self.replaced(root, text, key, keys)?),
            Body::Leaf(other) => Body::Leaf(other.clone()),
        };
        Ok(Node { body, origin: self.origin.clone() })
    }

    /// A text that is nothing but a reference takes the other value with its type.
    fn replaced(
        &self,
        root: &Node,
        text: &str,
        key: &str,
        keys: &[String],
    ) -> Result<Value, ConfigError> {
        let whole = text
            .strip_prefix("${")
            .and_then(|rest| rest.strip_suffix('}'))
            .and_then(|path| root.at(path));
        match whole.map(|node| &node.body) {
            Some(Body::Leaf(value @ (Value::Number(_) | Value::Bool(_) | Value::Null))) => {
                Ok(value.clone())
            }
            _ => Ok(Value::String(self.replace(root, text, key, keys, 0)?)),
        }
    }

    fn replace(
        &self,
        root: &Node,
        text: &str,
        key: &str,
        keys: &[String],
        depth: usize,
    ) -> Result<String, ConfigError> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once("${") {
            let (reference, tail) = after.split_once('}').unwrap_or((after, ""));
            let fail = |problem: &str, nearest| ConfigError::Interpolation {
                key: key.into(),
                origin: self.origin.to_string(),
                reference: reference.into(),
                nearest,
                problem: problem.into(),
            };
            if depth > 8 {
                return Err(fail("it leads back to itself", None));
            }
            let value = match root.at(reference).map(|node| &node.body) {
                Some(Body::Leaf(Value::String(inner))) => {
                    self.replace(root, inner, key, keys, depth + 1)?
                }
                Some(Body::Leaf(value @ (Value::Number(_) | Value::Bool(_)))) => value.to_string(),
                Some(_) => return Err(fail("that key holds no single value", None)),
                None => {
                    return Err(fail(
                        "there is no such key",
                        nearest(reference, keys.iter().map(String::as_str)),
                    ));
                }
            };
            out.push_str(before);
            out.push_str(&value);
            rest = tail;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Holds the tree against `kind`: unknown keys, types and missing values are errors; numbers
    /// take the wanted form. `config` names the main file.
    pub fn check(&mut self, kind: &ValueKind, config: &str) -> Result<(), ConfigError> {
        let all: Vec<String> = kind.keys().into_iter().map(|(key, _)| key).collect();
        self.check_at(kind, "", &all, config)
    }

    fn check_at(
        &mut self,
        kind: &ValueKind,
        key: &str,
        all: &[String],
        config: &str,
    ) -> Result<(), ConfigError> {
        let origin = self.origin.to_string();
        match (kind, &mut self.body) {
            (ValueKind::Optional(_), Body::Leaf(Value::Null)) => Ok(()),
            (ValueKind::Optional(inner), _) => self.check_at(inner, key, all, config),
            (ValueKind::Section(fields), Body::Map(entries)) => {
                for (name, node) in entries.iter() {
                    if !fields.iter().any(|field| field.name == name) {
                        return Err(unknown_key(&join(key, name), &node.origin, fields, key, all));
                    }
                }
                for field in fields {
                    let inner = join(key, field.name);
                    match entries.get_mut(field.name) {
                        Some(node) => node.check_at(&field.kind, &inner, all, config)?,
                        None if matches!(field.kind, ValueKind::Optional(_)) => {}
                        None => {
                            let expected = field.kind.describe();
                            return Err(ConfigError::Missing {
                                key: inner,
                                expected,
                                config: config.into(),
                            });
                        }
                    }
                }
                Ok(())
            }
            (kind, body) => {
                let fitted = match (kind, &*body) {
                    (ValueKind::Bool, Body::Leaf(Value::Bool(flag))) => Some(Value::Bool(*flag)),
                    (ValueKind::Int, Body::Leaf(Value::Number(number))) => {
                        whole(number).map(Value::from)
                    }
                    (ValueKind::Float, Body::Leaf(Value::Number(number))) => {
                        number.as_f64().filter(|float| float.is_finite()).map(Value::from)
                    }
                    (ValueKind::Text, Body::Leaf(Value::String(text))) => {
                        Some(Value::String(text.clone()))
                    }
                    (ValueKind::Choice(names), Body::Leaf(Value::String(text)))
                        if names.contains(&text.as_str()) =>
                    {
                        Some(Value::String(text.clone()))
                    }
                    _ => None,
                };
                match fitted {
                    Some(value) => *body = Body::Leaf(value),
                    None => {
                        if let Some(error) = renamed_value(key, body, &origin) {
                            return Err(error);
                        }
                        let found = describe(body);
                        return Err(ConfigError::Type {
                            key: key.into(),
                            origin,
                            found,
                            expected: kind.describe(),
                        });
                    }
                }
                Ok(())
            }
        }
    }
}

fn unknown_key(
    key: &str,
    origin: &str,
    fields: &[super::kind::Field],
    section: &str,
    all: &[String],
) -> ConfigError {
    if let Some((old, new)) = RENAMED_KEYS.iter().find(|(old, _)| *old == key) {
        return ConfigError::Renamed {
            origin: origin.into(),
            old: old.to_string(),
            new: new.to_string(),
        };
    }
    let names: Vec<_> = fields.iter().map(|field| field.name).collect();
    let whose =
        if section.is_empty() { "the sections are".into() } else { format!("`{section}` has") };
    let candidates =
        all.iter().map(String::as_str).chain(names.iter().copied().filter(|_| section.is_empty()));
    ConfigError::UnknownKey {
        key: key.into(),
        origin: origin.into(),
        nearest: nearest(key, candidates),
        known: format!("{whose} {}", names.join(", ")),
    }
}

/// The error for a value that was renamed, if this is one.
fn renamed_value(key: &str, body: &Body, origin: &str) -> Option<ConfigError> {
    let Body::Leaf(Value::String(text)) = body else { return None };
    let (_, old, new) =
        RENAMED_VALUES.iter().find(|(of, old, _)| *of == key && *old == text.as_str())?;
    Some(ConfigError::Renamed {
        origin: origin.into(),
        old: format!("{key}={old}"),
        new: format!("{key}={new}"),
    })
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.into() } else { format!("{section}.{name}") }
}

/// A whole number of 0 or more, also from `1e9`; floats stop at 2^53, above which they are not
/// exact.
fn whole(number: &serde_json::Number) -> Option<u64> {
    let exact =
        |float: f64| float.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&float);
    number.as_u64().or_else(|| {
        number.as_f64().filter(|float| !number.is_i64() && exact(*float)).map(|float| float as u64)
    })
}

/// A value in words, for "`key` is {this}".
fn describe(body: &Body) -> String {
    match body {
        Body::Map(_) => "a mapping".into(),
        Body::Leaf(Value::Null) => "empty".into(),
        Body::Leaf(Value::Bool(flag)) => format!("{flag}"),
        Body::Leaf(Value::Number(number)) => format!("the number {number}"),
        Body::Leaf(Value::String(text)) => format!("the text \"{text}\""),
        Body::Leaf(Value::Array(items)) => format!("a list of {}", items.len()),
        Body::Leaf(Value::Object(_)) => "a mapping".into(),
    }
}

//! YAML values that remember where they were written.
//!
//! In: YAML text of a file, or the right-hand side of an override. Out: a [`Node`] tree, which is
//! merged key by key, has its `${a.b}` references replaced, is checked against a [`ValueKind`], and
//! becomes JSON for serde.

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use super::error::{ConfigError, nearest};
use super::kind::ValueKind;
use super::schema::{RENAMED_KEYS, RENAMED_VALUES};

/// A value and the file or override it was written in.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub value: NodeValue,
    /// The file or override, for errors.
    pub origin: Rc<str>,
}

/// A mapping or anything else.
#[derive(Debug, Clone)]
pub(super) enum NodeValue {
    Mapping(BTreeMap<String, Node>),
    /// A scalar or a list.
    Leaf(Value),
}

/// Parses YAML 1.2: `yes` and `on` are text, `1e-5` is a number, a key given twice is an error.
pub(crate) fn parse_yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

impl Node {
    /// An empty mapping.
    pub(super) fn empty(origin: &str) -> Self {
        Self { value: NodeValue::Mapping(BTreeMap::new()), origin: origin.into() }
    }

    /// A parsed value, written in `origin`.
    pub(super) fn new(value: Value, origin: &Rc<str>) -> Self {
        let value = match value {
            Value::Object(entries) => NodeValue::Mapping(
                entries.into_iter().map(|(key, value)| (key, Node::new(value, origin))).collect(),
            ),
            other => NodeValue::Leaf(other),
        };
        Self { value, origin: origin.clone() }
    }

    /// `value` below the dotted `path`.
    pub(super) fn below(path: &[&str], value: Node) -> Self {
        path.iter().rev().fold(value, |inner, name| {
            let origin = inner.origin.clone();
            Self { value: NodeValue::Mapping(BTreeMap::from([(name.to_string(), inner)])), origin }
        })
    }

    /// Overrides this tree by `over`: mappings key by key, anything else as a whole.
    pub(super) fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (NodeValue::Mapping(below), NodeValue::Mapping(above)) => {
                for (key, value) in above {
                    match below.get_mut(&key) {
                        Some(place) => place.merge(value),
                        None => {
                            below.insert(key, value);
                        }
                    }
                }
            }
            (below, above) => {
                *below = above;
                self.origin = over.origin;
            }
        }
    }

    /// The node at a dotted path.
    pub(super) fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, name| match &node.value {
            NodeValue::Mapping(entries) => entries.get(name),
            NodeValue::Leaf(_) => None,
        })
    }

    /// The value without the places where it was written.
    pub(super) fn to_value(&self) -> Value {
        match &self.value {
            NodeValue::Mapping(entries) => {
                entries.iter().map(|(key, node)| (key.clone(), node.to_value())).collect()
            }
            NodeValue::Leaf(value) => value.clone(),
        }
    }

    /// The tree with every `${a.b}` in a text replaced by the value of that key.
    pub(super) fn interpolated(&self, keys: &[String]) -> Result<Node, ConfigError> {
        self.resolve(self, "", keys)
    }

    fn resolve(&self, root: &Node, key: &str, keys: &[String]) -> Result<Node, ConfigError> {
        let value = match &self.value {
            NodeValue::Mapping(entries) => {
                let resolve = |(name, node): (&String, &Node)| {
                    Ok((name.clone(), node.resolve(root, &join(key, name), keys)?))
                };
                NodeValue::Mapping(entries.iter().map(resolve).collect::<Result<_, ConfigError>>()?)
            }
            NodeValue::Leaf(Value::String(text)) => {
                NodeValue::Leaf(self.replaced(root, text, key, keys)?)
            }
            NodeValue::Leaf(other) => NodeValue::Leaf(other.clone()),
        };
        Ok(Node { value, origin: self.origin.clone() })
    }

    /// The text with its references replaced. A text that is one single reference becomes the value
    /// of that key with its type.
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
        match whole.map(|node| &node.value) {
            Some(NodeValue::Leaf(value @ (Value::Number(_) | Value::Bool(_) | Value::Null))) => {
                Ok(value.clone())
            }
            _ => Ok(Value::String(self.replace_all(root, text, key, keys, 0)?)),
        }
    }

    fn replace_all(
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
            let value = match root.at(reference).map(|node| &node.value) {
                Some(NodeValue::Leaf(Value::String(inner))) => {
                    self.replace_all(root, inner, key, keys, depth + 1)?
                }
                Some(NodeValue::Leaf(value @ (Value::Number(_) | Value::Bool(_)))) => {
                    value.to_string()
                }
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

    /// Checks the tree against `kind`: unknown keys, wrong types and missing values are errors.
    /// Numbers are converted to the kind's type. `main_origin` is the path of the main file.
    pub(super) fn check(&mut self, kind: &ValueKind, main_origin: &str) -> Result<(), ConfigError> {
        let all: Vec<String> = kind.keys().into_iter().map(|(key, _)| key).collect();
        self.check_at(kind, "", &all, main_origin)
    }

    fn check_at(
        &mut self,
        kind: &ValueKind,
        key: &str,
        all: &[String],
        main_origin: &str,
    ) -> Result<(), ConfigError> {
        let origin = self.origin.to_string();
        match (kind, &mut self.value) {
            (ValueKind::Optional(_), NodeValue::Leaf(Value::Null)) => Ok(()),
            (ValueKind::Optional(inner), _) => self.check_at(inner, key, all, main_origin),
            (ValueKind::Section(fields), NodeValue::Mapping(entries)) => {
                for (name, node) in entries.iter() {
                    if !fields.iter().any(|field| field.name == name) {
                        return Err(unknown_key(&join(key, name), &node.origin, fields, key, all));
                    }
                }
                for field in fields {
                    let inner = join(key, field.name);
                    match entries.get_mut(field.name) {
                        Some(node) => node.check_at(&field.kind, &inner, all, main_origin)?,
                        None if matches!(field.kind, ValueKind::Optional(_)) => {}
                        None => {
                            let expected = field.kind.describe();
                            return Err(ConfigError::Missing {
                                key: inner,
                                expected,
                                config: main_origin.into(),
                            });
                        }
                    }
                }
                Ok(())
            }
            (kind, written) => {
                let fitted = match (kind, &*written) {
                    (ValueKind::Bool, NodeValue::Leaf(Value::Bool(flag))) => {
                        Some(Value::Bool(*flag))
                    }
                    (ValueKind::Int, NodeValue::Leaf(Value::Number(number))) => {
                        whole(number).map(Value::from)
                    }
                    (ValueKind::Float, NodeValue::Leaf(Value::Number(number))) => {
                        number.as_f64().filter(|float| float.is_finite()).map(Value::from)
                    }
                    (ValueKind::Text, NodeValue::Leaf(Value::String(text))) => {
                        Some(Value::String(text.clone()))
                    }
                    (ValueKind::Names(names), NodeValue::Leaf(value)) => names_of(value, names),
                    (ValueKind::Choice(names), NodeValue::Leaf(Value::String(text)))
                        if names.contains(&text.as_str()) =>
                    {
                        Some(Value::String(text.clone()))
                    }
                    _ => None,
                };
                match fitted {
                    Some(value) => *written = NodeValue::Leaf(value),
                    None => {
                        if let Some(error) = renamed_value(key, written, &origin) {
                            return Err(error);
                        }
                        let value = describe(written);
                        return Err(ConfigError::Type {
                            key: key.into(),
                            origin,
                            value,
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
    let owner =
        if section.is_empty() { "the sections are".into() } else { format!("`{section}` has") };
    let candidates =
        all.iter().map(String::as_str).chain(names.iter().copied().filter(|_| section.is_empty()));
    ConfigError::UnknownKey {
        key: key.into(),
        origin: origin.into(),
        nearest: nearest(key, candidates),
        known: format!("{owner} {}", names.join(", ")),
    }
}

/// The error for a value that was renamed, if this is one.
fn renamed_value(key: &str, value: &NodeValue, origin: &str) -> Option<ConfigError> {
    let NodeValue::Leaf(Value::String(text)) = value else { return None };
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

/// A whole number of 0 or more, also when written as `1e9`. Floats are accepted up to 2^53; above
/// that they are not exact.
fn whole(number: &serde_json::Number) -> Option<u64> {
    let exact =
        |float: f64| float.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&float);
    number.as_u64().or_else(|| {
        number.as_f64().filter(|float| !number.is_i64() && exact(*float)).map(|float| float as u64)
    })
}

/// A list of some of `names`, none of them twice, written as a list or as `a,b`.
fn names_of(value: &Value, names: &[&str]) -> Option<Value> {
    let found: Vec<&str> = match value {
        Value::Array(items) => items.iter().map(Value::as_str).collect::<Option<_>>()?,
        Value::String(text) => text.split(',').map(str::trim).collect(),
        _ => return None,
    };
    let once = |(i, name): (usize, &&str)| names.contains(name) && !found[..i].contains(name);
    let fits = !found.is_empty() && found.iter().enumerate().all(once);
    fits.then(|| found.into())
}

/// A value in words, for "`key` is {this}".
fn describe(value: &NodeValue) -> String {
    match value {
        NodeValue::Mapping(_) => "a mapping".into(),
        NodeValue::Leaf(Value::Null) => "empty".into(),
        NodeValue::Leaf(Value::Bool(flag)) => format!("{flag}"),
        NodeValue::Leaf(Value::Number(number)) => format!("the number {number}"),
        NodeValue::Leaf(Value::String(text)) => format!("the text \"{text}\""),
        NodeValue::Leaf(list @ Value::Array(items)) if items.len() < 16 => {
            format!("the list {list}")
        }
        NodeValue::Leaf(Value::Array(items)) => format!("a list of {}", items.len()),
        NodeValue::Leaf(Value::Object(_)) => "a mapping".into(),
    }
}

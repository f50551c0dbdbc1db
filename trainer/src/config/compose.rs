//! Hydra-like composition: a main file with a `defaults:` list, groups of alternatives, overrides
//! from the command line.
//!
//! In: the files of `files.rs` and overrides `group=choice` or `a.b=value`. Out: one [`Node`] tree.
//!
//! * `config.yaml` lists `- group: choice` and `- _self_` (the file's own keys); later entries win.
//! * The keys of a group file go below the group's name, or to the top level with the comment
//!   `# @package _global_`.
//! * A group file may start with `defaults: [other]`: choices of the same group that it overrides.
//! * `group=choice` replaces an entry of the list; `a.b=value` wins over every file. Its value is
//!   parsed as YAML, or taken as plain text where the key holds text.

use std::rc::Rc;

use serde_json::Value;

use super::error::{ConfigError, nearest};
use super::files::{File, Files};
use super::kind::ValueKind;
use super::node::{Node, parse_yaml};

const MAIN: &str = "config.yaml";

/// One entry of the main file's defaults list.
#[derive(Debug, Clone, PartialEq)]
enum DefaultsEntry {
    /// `_self_`: the keys of the main file.
    OwnKeys,
    /// `group: choice`, and where it was written.
    Choice { group: String, choice: String, origin: String },
}

/// The composed tree.
pub(super) struct Composed {
    /// All keys; `${...}` references are not replaced yet.
    pub tree: Node,
    /// Path of config.yaml, for errors.
    pub main_origin: String,
}

/// Composes the configuration of `files` and `overrides`; `kind` says which values are plain text.
pub(super) fn compose(
    files: &Files,
    overrides: &[String],
    kind: &ValueKind,
) -> Result<Composed, ConfigError> {
    let main = files
        .read(MAIN)?
        .ok_or_else(|| ConfigError::Yaml { origin: MAIN.into(), problem: "not found".into() })?;
    let (mut defaults, own) = split_main(&main)?;
    let mut override_nodes = Vec::new();
    for text in overrides {
        match parse_override(text, &mut defaults, files, kind)? {
            Some(node) => override_nodes.push(node),
            None => continue,
        }
    }
    let mut tree = Node::empty(&main.origin);
    for entry in &defaults {
        match entry {
            DefaultsEntry::OwnKeys => tree.merge(own.clone()),
            DefaultsEntry::Choice { group, choice, origin } => {
                tree.merge(load_choice(files, group, choice, origin, &mut Vec::new())?);
            }
        }
    }
    for node in override_nodes {
        tree.merge(node);
    }
    Ok(Composed { tree, main_origin: main.origin })
}

/// The `defaults` of a file, and its other keys.
fn read_mapping(file: &File) -> Result<(Vec<Value>, Node), ConfigError> {
    let wrong = |problem: String| ConfigError::Yaml { origin: file.origin.clone(), problem };
    let origin: Rc<str> = file.origin.as_str().into();
    let mut entries = match parse_yaml(&file.text).map_err(wrong)? {
        Value::Object(entries) => entries,
        Value::Null => serde_json::Map::new(),
        _ => return Err(wrong("expected a mapping of keys to values".into())),
    };
    let defaults = match entries.shift_remove("defaults") {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(wrong("`defaults` is not a list".into())),
    };
    Ok((defaults, Node::new(Value::Object(entries), &origin)))
}

/// The defaults list of the main file, and its own keys.
fn split_main(file: &File) -> Result<(Vec<DefaultsEntry>, Node), ConfigError> {
    let (list, own) = read_mapping(file)?;
    let mut defaults = Vec::new();
    for entry in list {
        let parsed = match &entry {
            Value::String(text) if text == "_self_" => Some(DefaultsEntry::OwnKeys),
            Value::Object(map) => match map.iter().next() {
                Some((group, Value::String(choice))) if map.len() == 1 => {
                    Some(DefaultsEntry::Choice {
                        group: group.clone(),
                        choice: choice.clone(),
                        origin: format!("{} (defaults)", file.origin),
                    })
                }
                _ => None,
            },
            _ => None,
        };
        defaults.push(parsed.ok_or_else(|| ConfigError::Yaml {
            origin: file.origin.clone(),
            problem: format!("entry {entry} of `defaults`; expected `group: choice` or `_self_`"),
        })?);
    }
    if !defaults.contains(&DefaultsEntry::OwnKeys) {
        defaults.insert(0, DefaultsEntry::OwnKeys);
    }
    Ok((defaults, own))
}

/// The keys of `group: choice` and of the choices it builds on. `chain` holds the names of the
/// files that are being read, to notice a circle.
fn load_choice(
    files: &Files,
    group: &str,
    choice: &str,
    origin: &str,
    chain: &mut Vec<String>,
) -> Result<Node, ConfigError> {
    let file = files.choice(group, choice, origin)?;
    let wrong = |problem: String| ConfigError::Yaml { origin: file.origin.clone(), problem };
    if chain.iter().any(|name| name == choice) {
        return Err(wrong(format!(
            "its `defaults` lead back to itself: {} > {choice}",
            chain.join(" > ")
        )));
    }
    let (bases, own) = read_mapping(&file)?;
    let mut header =
        file.text.lines().take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let global = header.any(|line| line.trim_start_matches('#').trim() == "@package _global_");
    let mut node = Node::empty(&file.origin);
    chain.push(choice.into());
    for base in bases {
        let Value::String(base) = &base else {
            return Err(wrong(format!(
                "entry {base} of `defaults`; expected the name of a choice of `{group}`"
            )));
        };
        node.merge(load_choice(files, group, base, &format!("{} (defaults)", file.origin), chain)?);
    }
    chain.pop();
    node.merge(if global { own } else { Node::below(&[group], own) });
    Ok(node)
}

/// Parses an override: `group=choice` changes `defaults`, anything else is returned as a tree of
/// one key.
fn parse_override(
    text: &str,
    defaults: &mut [DefaultsEntry],
    files: &Files,
    kind: &ValueKind,
) -> Result<Option<Node>, ConfigError> {
    let wrong =
        |problem: &str| ConfigError::Override { text: text.into(), problem: problem.into() };
    let (key, raw) = text.split_once('=').ok_or_else(|| wrong("no `=` in it"))?;
    let (key, raw) = (key.trim(), raw.trim());
    if key.starts_with(['+', '~']) {
        return Err(wrong("keys are neither added nor removed here"));
    }
    let path: Vec<&str> = key.split('.').collect();
    if path.iter().any(|part| part.is_empty() || part.contains(char::is_whitespace)) {
        return Err(wrong("the key is empty or has an empty part or a space"));
    }
    let origin: Rc<str> = format!("command line, `{text}`").into();
    if let [group] = path[..] {
        let of_group = |entry: &&mut DefaultsEntry| matches!(entry, DefaultsEntry::Choice { group: name, .. } if name == group);
        if let Some(entry) = defaults.iter_mut().find(of_group) {
            files.choice(group, raw, &origin)?;
            *entry = DefaultsEntry::Choice {
                group: group.into(),
                choice: raw.into(),
                origin: origin.to_string(),
            };
            return Ok(None);
        }
        if kind.at(&path).is_none() {
            return Err(unknown_group(group, &origin, defaults, files, kind));
        }
    }
    let is_text = matches!(
        kind.at(&path).map(ValueKind::required),
        Some(ValueKind::Text | ValueKind::Choice(_))
    );
    let optional = matches!(kind.at(&path), Some(ValueKind::Optional(_)));
    let value = if optional && matches!(raw, "" | "null" | "~") {
        Value::Null
    } else if is_text && !raw.starts_with(['"', '\'']) {
        Value::String(raw.into())
    } else {
        parse_yaml(raw).map_err(|problem| wrong(&problem))?
    };
    Ok(Some(Node::below(&path, Node::new(value, &origin))))
}

fn unknown_group(
    group: &str,
    origin: &str,
    defaults: &[DefaultsEntry],
    files: &Files,
    kind: &ValueKind,
) -> ConfigError {
    let mut groups = Vec::new();
    for entry in defaults {
        if let DefaultsEntry::Choice { group, .. } = entry {
            groups.push(group.as_str());
        }
    }
    let keys = kind.keys();
    let names = groups.iter().copied().chain(keys.iter().map(|(key, _)| key.as_str()));
    // a folder of configs/ that is no group of the trainer: launch/
    let other_folder = !files.choices(group).is_empty();
    let note = if other_folder { "that folder is read by `wf`, not by the trainer; " } else { "" };
    ConfigError::UnknownKey {
        key: group.into(),
        origin: origin.into(),
        nearest: nearest(group, names).filter(|_| !other_folder),
        known: format!(
            "{note}the groups are {}, and keys are written section.key",
            groups.join(", ")
        ),
    }
}

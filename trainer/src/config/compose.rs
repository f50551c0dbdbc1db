//! Hydra-like composition: a main file with a `defaults:` list, groups of alternatives, overrides
//! from the command line.
//!
//! In: the files of `files.rs` and overrides `group=choice` or `a.b=value`. Out: one [`Node`] tree.
//!
//! * `config.yaml` lists `- group: choice` and `- _self_` (the file's own keys); later entries win.
//! * A group file's keys belong below the group's name, or at the top with the comment `# @package
//!   _global_`.
//! * A group file may open with `defaults: [other]`: choices of the same group laid below it.
//! * `group=choice` replaces an entry of the list; `a.b=value` is laid on top of everything, value
//!   as YAML (as plain text where the key holds text).

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
    Itself,
    Choice { group: String, choice: String, origin: String },
}

/// The composed tree and the name of its main file.
pub struct Composed {
    /// All keys, references not yet replaced.
    pub tree: Node,
    /// Origin of config.yaml.
    pub main: String,
}

/// Composes the configuration of `files` with `overrides` on top; `kind` decides which values are
/// plain text.
pub fn compose(
    files: &Files,
    overrides: &[String],
    kind: &ValueKind,
) -> Result<Composed, ConfigError> {
    let main = files
        .read(MAIN)?
        .ok_or_else(|| ConfigError::Yaml { origin: MAIN.into(), problem: "not found".into() })?;
    let (mut defaults, own) = split_main(&main)?;
    let mut on_top = Vec::new();
    for text in overrides {
        match parse_override(text, &mut defaults, files, kind)? {
            Some(node) => on_top.push(node),
            None => continue,
        }
    }
    let mut tree = Node::empty(&main.origin);
    for entry in &defaults {
        match entry {
            DefaultsEntry::Itself => tree.merge(own.clone()),
            DefaultsEntry::Choice { group, choice, origin } => {
                tree.merge(load_choice(files, group, choice, origin, &mut Vec::new())?);
            }
        }
    }
    for node in on_top {
        tree.merge(node);
    }
    Ok(Composed { tree, main: main.origin })
}

/// The YAML mapping of a file, with its `defaults` taken out.
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

fn split_main(file: &File) -> Result<(Vec<DefaultsEntry>, Node), ConfigError> {
    let (list, own) = read_mapping(file)?;
    let mut defaults = Vec::new();
    for entry in list {
        let one = match &entry {
            Value::String(text) if text == "_self_" => Some(DefaultsEntry::Itself),
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
        defaults.push(one.ok_or_else(|| ConfigError::Yaml {
            origin: file.origin.clone(),
            problem: format!("entry {entry} of `defaults`; expected `group: choice` or `_self_`"),
        })?);
    }
    if !defaults.contains(&DefaultsEntry::Itself) {
        defaults.insert(0, DefaultsEntry::Itself);
    }
    Ok((defaults, own))
}

fn load_choice(
    files: &Files,
    group: &str,
    choice: &str,
    origin: &str,
    above: &mut Vec<String>,
) -> Result<Node, ConfigError> {
    let file = files.choice(group, choice, origin)?;
    let wrong = |problem: String| ConfigError::Yaml { origin: file.origin.clone(), problem };
    if above.iter().any(|name| name == choice) {
        return Err(wrong(format!(
            "its `defaults` lead back to itself: {} > {choice}",
            above.join(" > ")
        )));
    }
    let (bases, own) = read_mapping(&file)?;
    let global =
        file.text.lines().take_while(|line| line.starts_with('#') || line.trim().is_empty());
    let global =
        global.into_iter().any(|line| line.trim_start_matches('#').trim() == "@package _global_");
    let mut node = Node::empty(&file.origin);
    above.push(choice.into());
    for base in bases {
        let Value::String(base) = &base else {
            return Err(wrong(format!(
                "entry {base} of `defaults`; expected the name of a choice of `{group}`"
            )));
        };
        node.merge(load_choice(files, group, base, &format!("{} (defaults)", file.origin), above)?);
    }
    above.pop();
    node.merge(if global { own } else { Node::below(&[group], own) });
    Ok(node)
}

/// A `group=choice` changes `defaults`; anything else comes back as a tree of one key.
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
        let mine = |entry: &&mut DefaultsEntry| matches!(entry, DefaultsEntry::Choice { group: name, .. } if name == group);
        if let Some(entry) = defaults.iter_mut().find(mine) {
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
    let plain = matches!(
        kind.at(&path).map(ValueKind::required),
        Some(ValueKind::Text | ValueKind::Choice(_))
    );
    let optional = matches!(kind.at(&path), Some(ValueKind::Optional(_)));
    let value = if optional && matches!(raw, "" | "null" | "~") {
        Value::Null
    } else if plain && !raw.starts_with(['"', '\'']) {
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
    let launch = !files.choices(group).is_empty();
    let note = if launch { "that folder is read by `wf`, not by the trainer; " } else { "" };
    ConfigError::UnknownKey {
        key: group.into(),
        origin: origin.into(),
        nearest: nearest(group, names).filter(|_| !launch),
        known: format!(
            "{note}the groups are {}, and keys are written section.key",
            groups.join(", ")
        ),
    }
}

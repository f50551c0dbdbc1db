//! Which files of an exported folder go to a hub, and the push.

use std::path::Path;

use dlm_prep::ConsoleProgress;
use dlm_prep::Progress;
use dlm_prep::hub::{NAMED_TEMPLATES, Push, Pushed};

use super::card;
use super::facts::Facts;
use crate::error::{Error, Result};
use crate::report::console::message;

/// Writes the card of `folder`; says so.
pub(crate) fn write_card(folder: &Path, facts: &Facts, id: Option<&str>) -> Result<()> {
    let path = folder.join("README.md");
    match card::write(folder, facts, id)? {
        true => message(format_args!("wrote {}", path.display())),
        false => message(format_args!("kept {}, which is not this program's", path.display())),
    }
    Ok(())
}

/// Pushes the export in `folder` to `id`, with a card.
pub(crate) fn push(folder: &Path, facts: &Facts, id: &str, public: bool) -> Result<Pushed> {
    write_card(folder, facts, Some(id))?;
    let (mut push, left) = Push::of_folder(folder, &is_of_the_model, is_weights)?;
    if !push.files.keys().any(|path| path.ends_with(".safetensors")) {
        return Err(Error::Usage(format!("{}: has no weights to push", folder.display())));
    }
    push.id = id.to_string();
    push.public = public;
    let steps = &facts.record["steps"];
    push.message =
        format!("Weights after {steps} steps, by dlm-train {}", env!("CARGO_PKG_VERSION"));
    let progress = ConsoleProgress::default();
    if let Some(first) = left.first() {
        let n = left.len();
        progress.notice(&format!("not pushed {n} files that are no part of the model, as {first}"));
    }
    let pushed = dlm_prep::hub::push(&push, &progress)?;
    let Pushed { url, commit, sent, bytes_sent, unchanged, .. } = &pushed;
    message(format_args!(
        "pushed to {url} at {commit}: {} files ({bytes_sent} bytes), {unchanged} were there already; every file checked",
        sent.len()
    ));
    Ok(pushed)
}

/// Whether a path is part of a model folder. A run's configuration (which has paths of this
/// machine), metrics, checkpoints and reports are not.
fn is_of_the_model(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let is_licence = ["LICENSE", "LICENCE", "NOTICE"].iter().any(|l| name.starts_with(l));
    match folder {
        "" => match ending {
            "safetensors" | "jinja" | "py" | "model" => true,
            "json" => stem != "results",
            "txt" => ["merges", "vocab"].contains(&stem) || is_licence,
            _ => name == "README.md" || is_licence,
        },
        folder => folder == NAMED_TEMPLATES && ending == "jinja",
    }
}

/// Whether a path is that of weights as an export names them, which another push replaces: a folder
/// with both one file and shards would be loaded wrongly.
fn is_weights(path: &str) -> bool {
    let part = path.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let numbers = part.and_then(|part| part.split_once("-of-"));
    let is_number = |n: &str| n.len() == 5 && n.bytes().all(|b| b.is_ascii_digit());
    let is_shard = numbers.is_some_and(|(k, n)| is_number(k) && is_number(n));
    is_shard || ["model.safetensors", "model.safetensors.index.json"].contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_model() {
        for name in [
            "config.json",
            "dlm_config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "tokenizer.json",
            "merges.txt",
            "chat_template.jinja",
            "modeling.py",
            "README.md",
            "LICENSE",
            "LICENSE.txt",
            "additional_chat_templates/tool_use.jinja",
            "adapter_config.json",
        ] {
            assert!(is_of_the_model(name), "{name}");
        }
        for name in [
            "config.yaml",
            "metrics.jsonl",
            "checkpoints/latest",
            "results.json",
            "report.html",
            "checkpoints/step-000000001/model.safetensors",
            "notes.txt",
            "plot.svg",
            "a.lock",
        ] {
            assert!(!is_of_the_model(name), "{name}");
        }
        for (name, is) in [
            ("model.safetensors", true),
            ("model-00001-of-00003.safetensors", true),
            ("model.safetensors.index.json", true),
            ("model-q4.safetensors", false),
            ("adapter_model.safetensors", false),
            ("config.json", false),
        ] {
            assert_eq!(is_weights(name), is, "{name}");
        }
    }
}

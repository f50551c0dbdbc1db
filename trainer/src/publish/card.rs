//! The model card: README.md of an exported folder, with the YAML header that hubs read.
//!
//! In: [`Facts`]. Out: source, recipe, tokens, losses, data, answers to tasks, and how to run the
//! folder in each engine. What is not known is left out, never guessed. Paths of this machine are
//! shown by their last part only.

use std::path::Path;

use dlm_prep::hub::{Card, licence_names, plain};
use serde_json::Value;

use super::engines::{Shape, engines, shape};
use super::facts::Facts;
use crate::config::Config;
use crate::error::Result;

/// Writes the card into `folder`, unless somebody else's is there: then false.
pub(crate) fn write(folder: &Path, facts: &Facts, id: Option<&str>) -> Result<bool> {
    Ok(card(facts, id).write(folder)?)
}

/// The last part of a path, or a repository's name as it is.
fn without_folders(text: &str) -> &str {
    if text.starts_with("hf://") {
        return text;
    }
    text.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default()
}

/// `org/name` of `hf://org/name@commit`.
fn repository(source: &str) -> Option<&str> {
    source.strip_prefix("hf://").map(|rest| rest.split('@').next().unwrap_or(rest))
}

fn card(facts: &Facts, id: Option<&str>) -> Card {
    let Facts { config, record, files, .. } = facts;
    let shape = shape(config, files);
    let source = record["source_checkpoint"].as_str().unwrap_or_default();
    let name = id.unwrap_or("ORG/NAME");
    let title = id.and_then(|id| id.rsplit('/').next()).unwrap_or("A converted model");
    let is_block = record["objective"].as_str() != Some("sft");
    let mut card = Card::new();
    card.key("base_model", repository(source).unwrap_or_default());
    let relation = if shape == Shape::Adapter { "adapter" } else { "finetune" };
    card.key("base_model_relation", repository(source).map_or("", |_| relation));
    card.key("datasets", datasets(facts));
    if let Some(licence) = &facts.source_licence {
        card.key("license", licence_names(std::slice::from_ref(licence)));
    }
    card.key("library_name", if shape == Shape::Adapter { "peft" } else { "transformers" });
    card.key("pipeline_tag", "text-generation");
    let mut tags = vec!["dlm"];
    if is_block {
        tags.extend(["block-diffusion", "diffusion-language-model", "fast-dllm-v2"]);
    }
    if files.iter().any(|f| f.ends_with(".py")) {
        tags.push("custom_code");
    }
    card.key("tags", tags);

    card.text(&format!("# {}", plain(title)));
    let from = match without_folders(source) {
        "" => "random weights".to_string(),
        source => plain(source),
    };
    let bd_size = &record["bd_size"];
    card.text(&match is_block {
        true => format!(
            "An autoregressive model, {from}, converted to block diffusion (Fast-dLLM v2) with dlm-train: it decodes blocks of {bd_size} tokens in a few forward passes each."
        ),
        false => format!("A model trained from {from} with dlm-train, causal, on responses only."),
    });
    card.text("## Training");
    card.table(&["", ""], &training(facts));
    data(&mut card, facts);
    if let Some(results) = &facts.results {
        answers(&mut card, results);
    }
    card.text("## How to run it");
    let engines = engines(config, files, name);
    let line = |e: &super::engines::Engine| vec![e.name.to_string(), e.does.clone()];
    card.table(&["engine", "this folder"], &engines.iter().map(line).collect::<Vec<_>>());
    for engine in engines.iter().filter(|e| !e.run.is_empty()) {
        card.text(&format!("{}:\n\n```\n{}\n```", engine.name, engine.run));
    }
    card.text(match facts.source_licence {
        Some(_) => "The licence is that of the source model; the data may add conditions.",
        None => "The source's licence is not known to the program that wrote this card: look at the source's page, and add `license:` above.",
    });
    card
}

/// Hub datasets that the data was made of.
fn datasets(facts: &Facts) -> Vec<String> {
    let sources = facts.manifest.iter().flat_map(|m| &m.sources);
    let mut ids: Vec<String> = sources.filter_map(|s| s.dataset.clone()).collect();
    ids.sort();
    ids.dedup();
    ids
}

fn training(facts: &Facts) -> Vec<Vec<String>> {
    let record = &facts.record;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |key: &str, value: &Value| match value {
        Value::Null => {}
        Value::String(text) => rows.push(vec![key.to_string(), without_folders(text).to_string()]),
        value => rows.push(vec![key.to_string(), value.to_string()]),
    };
    for (label, key) in [
        ("source", "source_checkpoint"),
        ("objective", "objective"),
        ("tokens per block (bd_size)", "bd_size"),
        ("mask token", "mask_token"),
        ("mask token id", "mask_token_id"),
        ("tokens trained on", "total_tokens_trained"),
        ("of which carried loss", "loss_tokens_trained"),
        ("steps", "steps"),
        ("loss of the last step", "training_loss"),
        ("mean training loss", "training_loss_mean"),
        ("evaluation loss", "eval_loss"),
        ("tokens per row", "max_seq_length"),
        ("seed", "seed"),
        ("code version", "code_version"),
    ] {
        row(label, &record[key]);
    }
    if let Some(run) = &facts.run {
        recipe(run).into_iter().for_each(|(key, value)| row(key, &value));
    }
    rows
}

/// The keys of the configuration that somebody who trains again will ask for.
fn recipe(run: &Config) -> Vec<(&'static str, Value)> {
    let all = serde_json::to_value(run).unwrap_or_default();
    let keys = [
        ("token budget", "conversion", "total_tokens"),
        ("optimizer", "optim", "name"),
        ("peak learning rate", "optim", "lr"),
        ("schedule", "optim", "schedule"),
        ("warm-up", "optim", "warmup_ratio"),
        ("weight decay", "optim", "weight_decay"),
        ("clipping norm", "optim", "clip_norm"),
        ("rows per step", "train", "batch_rows"),
        ("smallest share hidden (noise_eps)", "conversion", "noise_eps"),
        ("complementary masks", "conversion", "complementary"),
        ("token shift", "conversion", "token_shift"),
        ("LoRA", "conversion", "lora"),
    ];
    keys.into_iter().map(|(label, section, key)| (label, all[section][key].clone())).collect()
}

fn data(card: &mut Card, facts: &Facts) {
    card.text("## Data");
    let fingerprint = facts.record["data_fingerprint"].as_str().unwrap_or("unknown");
    card.text(&format!("Packed by dlm-prep; fingerprint of the dataset `{}`.", plain(fingerprint)));
    let Some(m) = &facts.manifest else { return };
    let all = m.counts.tokens.max(1) as f64;
    let line = |s: &dlm_datasets::manifest::Source| {
        let file = without_folders(&s.name);
        let name = match (&s.dataset, &s.category) {
            (Some(id), _) => format!("{id}: {file}"),
            (None, Some(category)) => format!("{file} ({category})"),
            (None, None) => file.to_string(),
        };
        vec![
            name,
            s.counts.rows_kept.to_string(),
            s.counts.tokens.to_string(),
            format!("{:.1} %", s.counts.tokens as f64 / all * 100.0),
            s.licences.join(", "),
        ]
    };
    let rows: Vec<_> = m.sources.iter().map(line).collect();
    card.table(&["source", "conversations", "tokens", "share", "licences"], &rows);
}

/// The table of `dlm-train eval --tasks`.
fn answers(card: &mut Card, results: &Value) {
    let tasks = results["tasks_file"].as_str().map(without_folders).unwrap_or_default();
    card.text("## Answers to tasks with known answers");
    card.text(&format!(
        "{} tasks of {}, scored by {}; {} {}, batches of {}.",
        results["tasks"],
        plain(tasks),
        plain(results["scored_by"].as_str().unwrap_or_default()),
        plain(results["device"].as_str().unwrap_or_default()),
        plain(results["dtype"].as_str().unwrap_or_default()),
        results["batch_size"],
    ));
    let number =
        |v: &Value, digits: usize| v.as_f64().map_or(String::new(), |v| format!("{v:.digits$}"));
    let percent = |v: &Value| v.as_f64().map_or(String::new(), |v| format!("{:.1} %", v * 100.0));
    let line = |run: &Value| {
        vec![
            run["name"].as_str().unwrap_or_default().to_string(),
            run["right"].to_string(),
            percent(&run["exact_match"]),
            format!("{} to {}", percent(&run["interval"][0]), percent(&run["interval"][1])),
            number(&run["tokens_per_forward"], 2),
            number(&run["tokens_per_second"], 1),
        ]
    };
    let rows: Vec<_> = results["runs"].as_array().into_iter().flatten().map(line).collect();
    let head = ["run", "right", "exact match", "95 % interval", "tokens/forward", "tokens/s"];
    card.table(&head, &rows);
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlm_datasets::Manifest;
    use serde_json::json;

    fn facts() -> Facts {
        let mut manifest = Manifest::new(512, 32, 1000, 5, 6, 7);
        manifest.counts.tokens = 400;
        manifest.sources[0].dataset = Some("org/chat".to_string());
        manifest.sources[0].name = "/data/a.jsonl".to_string();
        manifest.sources[0].counts.tokens = 400;
        Facts {
            config: json!({"architectures": ["LlamaForCausalLM"], "bd_size": 32}),
            record: json!({
                "objective": "block_diffusion", "bd_size": 32, "mask_token_id": 5,
                "source_checkpoint": "hf://org/base@0123", "total_tokens_trained": 1234,
                "training_loss": 1.5, "eval_loss": null, "data_fingerprint": "abc",
            }),
            files: vec!["model.safetensors".to_string()],
            run: None,
            manifest: Some(manifest),
            results: Some(json!({
                "tasks": 12, "tasks_file": "/home/me/tasks.jsonl", "scored_by": "exact match",
                "device": "cpu", "dtype": "fp32", "batch_size": 1,
                "runs": [{"name": "block 0.9", "right": 9, "exact_match": 0.75,
                          "interval": [0.4, 0.9], "tokens_per_forward": 2.345, "tokens_per_second": 10.0}],
            })),
            source_licence: Some("Apache 2.0".to_string()),
        }
    }

    #[test]
    fn what_the_card_says() {
        let text = card(&facts(), Some("me/model")).render();
        for part in [
            "base_model: \"org/base\"",
            "datasets: [\"org/chat\"]",
            "license: [\"apache-2.0\"]",
            "# model\n",
            "| tokens trained on | 1234 |",
            "| loss of the last step | 1.5 |",
            "| org/chat: a.jsonl | 0 | 400 | 100.0 % |  |",
            "| block 0.9 | 9 | 75.0 % | 40.0 % to 90.0 % | 2.35 | 10.0 |",
            "hf://me/model",
            "| vLLM 0.33 | does not decode this folder in blocks |",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("/home") && !text.contains("/data/"), "{text}");
        assert!(!text.contains("evaluation loss"), "what is not known is left out: {text}");
    }

    #[test]
    fn a_local_source_keeps_its_folder_to_itself() {
        let mut facts = facts();
        facts.record["source_checkpoint"] = json!("/home/me/models/base/");
        facts.record["objective"] = json!("sft");
        (facts.source_licence, facts.results, facts.manifest) = (None, None, None);
        let text = card(&facts, None).render();
        assert!(!text.contains("base_model") && !text.contains("/home"), "{text}");
        assert!(text.contains("causal") && text.contains("licence is not known"), "{text}");
        assert!(!text.contains("license: [") && !text.contains("block-diffusion"), "{text}");
    }
}

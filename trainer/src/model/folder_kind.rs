//! Folders that are taken for model folders and are none: what they are and the way out, in words.

use std::path::Path;

use super::json_text;

/// Why a folder has no `config.json`, or no weights, and what to do: the answer for the kinds of
/// folders that are taken for model folders.
pub(super) fn explain(dir: &Path, missing: &str) -> String {
    let has = |name: &str| dir.join(name).exists();
    let path = dir.display();
    if has("adapter_config.json") || has("adapter_model.safetensors") {
        let base = text_of(dir, "adapter_config.json", "base_model_name_or_path")
            .map_or("its base model".into(), |name| format!("its base model {name}"));
        return format!(
            "no {missing}, but a LoRA adapter (adapter_config.json): `dlm-train generate` takes {base} as --model and this folder as --adapter; for anything else merge the two first, with peft's merge_and_unload and save_pretrained, and give the merged folder"
        );
    }
    if has("checkpoints") {
        return format!(
            "no {missing}, but checkpoints of a training run that was not exported: run `dlm-train export {path}` first"
        );
    }
    if has("state.json") && has("optimizer.safetensors") {
        return format!(
            "no {missing}: this is one checkpoint of a training run; export it with `dlm-train export RUN --checkpoint {}`",
            dir.file_name().unwrap_or_default().display()
        );
    }
    if has("manifest.json") {
        return format!(
            "no {missing}, but a manifest.json: this is a packed dataset, expected a Hugging Face model folder"
        );
    }
    let ends = |ending: &str| {
        let files = std::fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok());
        let mut names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.find(|name| name.ends_with(ending))
    };
    let found = [".gguf", ".bin", ".pth", ".pt", ".h5", ".msgpack", ".onnx"];
    if let Some(name) = found.iter().find_map(|ending| ends(ending)) {
        return format!(
            "no {missing}, but {name}; expected config.json and safetensors: convert the model with transformers' from_pretrained and save_pretrained first"
        );
    }
    if let Some(name) = ends(".safetensors").filter(|_| missing != "config.json") {
        return format!(
            "no {missing}, but {name}; expected model.safetensors, or shards with model.safetensors.index.json: is the download complete?"
        );
    }
    format!("no {missing}; expected a Hugging Face model folder with config.json and safetensors")
}

/// A text in a JSON file of the folder.
pub(super) fn text_of(dir: &Path, file: &str, key: &str) -> Option<String> {
    let json = json_text::parse(&json_text::read(&dir.join(file)).ok()?).ok()?;
    Some(json.get(key)?.as_str()?.to_string())
}

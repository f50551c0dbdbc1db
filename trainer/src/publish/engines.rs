//! Which programs load an exported folder, by its files: a line each for the model card.
//!
//! In: config.json and the names of the files beside it. Out: engine, what it loads, how to run it.
//! State of November 2026, by the sources of the engines that are named (docs/loading.md).

use serde_json::Value;

/// What an engine does with a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Engine {
    /// Name and version.
    pub name: &'static str,
    /// Whether it decodes in blocks, token by token or not at all, in a sentence.
    pub does: String,
    /// A command or a few lines of Python; empty where there are none.
    pub run: String,
}

/// How the weights of a folder are laid out for other programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The source's architecture, with keys added to config.json.
    Plain,
    /// Fast_dLLM_Qwen.
    FastDllm,
    /// SDAR.
    Sdar,
    /// An adapter of the Python library peft, without the model.
    Adapter,
}

/// The shape that the files of a folder say; `config` is config.json, null where there is none.
pub(crate) fn shape(config: &Value, files: &[String]) -> Shape {
    let architecture = config["architectures"][0].as_str().unwrap_or_default();
    match architecture {
        _ if files.iter().any(|f| f == "adapter_config.json") => Shape::Adapter,
        "Fast_dLLM_QwenForCausalLM" => Shape::FastDllm,
        "SDARForCausalLM" | "SDARMoeForCausalLM" => Shape::Sdar,
        _ => Shape::Plain,
    }
}

/// The engines for a folder that people know as `name`.
pub(crate) fn engines(config: &Value, files: &[String], name: &str) -> Vec<Engine> {
    let shape = shape(config, files);
    let own_code = files.iter().any(|f| f.starts_with("modeling") && f.ends_with(".py"));
    let bd_size = config["bd_size"].as_u64().unwrap_or(32);
    let engine = |name, does: &str, run: String| Engine { name, does: does.to_string(), run };
    if shape == Shape::Adapter {
        let run = format!(
            "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), \"{name}\")"
        );
        return vec![
            engine("peft", "loads the adapter on its base model", run),
            engine(
                "all others",
                "need the merged model: `dlm-train export` without the adapter format",
                String::new(),
            ),
        ];
    }
    let python = |more: &str| {
        format!("AutoModelForCausalLM.from_pretrained(\"{name}\", torch_dtype=\"auto\"{more})")
    };
    let transformers = match (shape, own_code) {
        (Shape::Plain, _) => engine(
            "transformers",
            "loads the weights as the source's architecture and decodes one token at a time; it has no block decoding",
            python(""),
        ),
        (_, true) => engine(
            "transformers 4.5x and 5.x",
            "decodes in blocks, with the modeling file of this folder",
            python(", trust_remote_code=True"),
        ),
        (_, false) => engine(
            "transformers 4.5x",
            "decodes in blocks with the published modeling file, which fails in transformers 5",
            python(", trust_remote_code=True"),
        ),
    };
    let no_sdar = "does not decode this folder in blocks: of this kind it loads SDAR's shape only";
    let sglang = match shape {
        Shape::Sdar => engine(
            "SGLang 0.5.23",
            "decodes in blocks; its YAML file sets the block size, which is 4 without one",
            format!(
                "python3 -m sglang.launch_server --model-path {name} --trust-remote-code --dllm-algorithm LowConfidence --dllm-algorithm-config block.yaml"
            ),
        ),
        _ => engine("SGLang 0.5.23", no_sdar, String::new()),
    };
    let lmdeploy = match shape {
        Shape::Sdar => engine(
            "LMDeploy 0.18",
            "decodes in blocks",
            format!("lmdeploy serve api_server {name} --dllm-block-length {bd_size}"),
        ),
        _ => engine("LMDeploy 0.18", no_sdar, String::new()),
    };
    let diffulex = match shape {
        Shape::FastDllm => engine(
            "Diffulex",
            "decodes in blocks, from a local folder: `model_name: fast_dllm_v2`, `decoding_strategy: fast_dllm_v2`",
            String::new(),
        ),
        _ => engine(
            "Diffulex",
            "not as Fast-dLLM v2, whose shape this folder does not have",
            String::new(),
        ),
    };
    let vllm = engine("vLLM 0.33", "does not decode this folder in blocks", String::new());
    let ours = engine(
        "dlm-train",
        "decodes in blocks, and one token at a time with `--mode ar`",
        format!(
            "dlm-train generate --model hf://{name} --prompt \"…\"\ndlm-train serve --model hf://{name}"
        ),
    );
    vec![ours, transformers, sglang, lmdeploy, vllm, diffulex]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_loads_what() {
        let does = |architecture: &str, files: &[&str], engine: &str| {
            let config = json!({"architectures": [architecture], "bd_size": 8});
            let files: Vec<String> = files.iter().map(|f| f.to_string()).collect();
            let all = engines(&config, &files, "me/model");
            let found = all.iter().find(|e| e.name.starts_with(engine)).unwrap();
            (found.does.starts_with("decodes in blocks"), found.run.clone())
        };
        for (architecture, files, blocks) in [
            ("Qwen3ForCausalLM", &[][..], ["dlm-train"].as_slice()),
            ("Fast_dLLM_QwenForCausalLM", &[], &["dlm-train", "transformers", "Diffulex"]),
            (
                "Fast_dLLM_QwenForCausalLM",
                &["modeling.py"],
                &["dlm-train", "transformers", "Diffulex"],
            ),
            (
                "SDARForCausalLM",
                &["modeling_sdar.py"],
                &["dlm-train", "transformers", "SGLang", "LMDeploy"],
            ),
        ] {
            for engine in ["dlm-train", "transformers", "SGLang", "LMDeploy", "vLLM", "Diffulex"] {
                let (decodes, run) = does(architecture, files, engine);
                assert_eq!(decodes, blocks.contains(&engine), "{architecture} {engine}");
                assert!(!decodes || engine == "Diffulex" || run.contains("me/model"), "{run}");
            }
        }
        let (_, run) = does("SDARForCausalLM", &[], "LMDeploy");
        assert!(run.ends_with("--dllm-block-length 8"));
        let adapter = engines(&Value::Null, &["adapter_config.json".to_string()], "me/a");
        assert!(adapter[0].name == "peft" && adapter.len() == 2);
    }
}

//! Export formats of inference engines: `fast-dllm` (Fast-dLLM v2's Qwen2, read by Diffulex and
//! transformers) and `sdar` (SDAR's Qwen3, read by SGLang, LMDeploy, Diffulex and transformers).
//!
//! In: the model that is exported. Out: whether it can be written in a format, the keys of its
//! `config.json`, tensors that it lacks, and the modeling file. Who reads what: docs/loading.md.

use std::path::Path;

use dlm_datasets::fs;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::config::ExportFormat;
use crate::error::{Error, Result};
use crate::io::safetensors_file::{TensorContent, TensorEntry};
use crate::kernels::Activation;
use crate::model::config::Family;
use crate::model::{Decoder, ModelConfig, SDAR, SDAR_MASK_ID, ternary};

/// The model in Python, for transformers: our own implementation of the forward pass and of
/// decoding in blocks, the same file in every folder.
const MODELING: &str = include_str!("python/modeling_block_diffusion.py");

/// Its name in a folder: where the published folders have theirs.
const FAST_DLLM_MODULE: &str = "modeling";
const SDAR_MODULE: &str = "modeling_sdar";

/// Files that only some formats have.
const MODELING_FILES: [&str; 2] = ["modeling.py", "modeling_sdar.py"];

/// What decides whether a model can be written in a format, beside the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trained {
    pub mask_token_id: i32,
    /// Whether it was trained to denoise blocks.
    pub block_diffusion: bool,
}

/// Refuse a format that this model cannot be written in. Also called before training, so that a
/// long run does not end with this error.
pub(crate) fn check(decoder: &Decoder, format: ExportFormat, trained: Trained) -> Result<()> {
    let (cfg, family) = (&decoder.cfg, decoder.cfg.family);
    let refuse = |why: String| Err(Error::Usage(format!("export.format={format}: {why}")));
    match format {
        ExportFormat::Hf => return Ok(()),
        ExportFormat::PackedTernary if cfg.quantization.is_none() => {
            return Err(Error::Usage(format!(
                "export.format=packed-ternary stores BitLinear's ternary weights; this {family:?} model has no BitLinear (no quantization_config in its config.json): use export.format=hf, or train with conversion.bitlinear=on"
            )));
        }
        ExportFormat::PackedTernary => {
            let mut matrices = decoder.params.specs.iter().filter(|s| s.may_quantize);
            return matrices.try_for_each(|s| ternary::check(&s.name, s.shape[0]));
        }
        ExportFormat::FastDllm | ExportFormat::Sdar => {}
    }
    if !trained.block_diffusion {
        return refuse("its readers decode in blocks, and conversion.objective=sft trains a causal model; use export.format=hf".into());
    }
    if cfg.quantization.is_some() {
        return refuse("its layers are not BitLinear's, and those of this model are; use export.format=hf or packed-ternary".into());
    }
    if cfg.rope_scaling.is_some() {
        return refuse("its readers have no scaled rotary embeddings (rope_scaling), and this model has; use export.format=hf".into());
    }
    let plain = |has_bias: bool| !has_bias && !cfg.o_bias && !cfg.mlp_bias && is_silu(cfg);
    match format {
        ExportFormat::FastDllm if !cfg.has_token_shift() => refuse(
            "the models of Fast-dLLM v2 predict each token from the position before it, and this one was trained without the token shift (conversion.token_shift=false); use export.format=sdar (Qwen3) or hf".into(),
        ),
        ExportFormat::FastDllm => match family {
            Family::Qwen2 if is_silu(cfg) => Ok(()),
            // the same layers without biases, which are written as zeros
            Family::Llama if plain(cfg.qkv_bias) => Ok(()),
            _ => refuse(format!(
                "the layers of the Fast_dLLM_Qwen architecture are Qwen2's (and, with biases of zero, Llama's); this model is {family:?}{}; use export.format=hf",
                odd_layers(cfg)
            )),
        },
        _ if family != Family::Qwen3 => refuse(format!(
            "the layers of the SDAR architecture are Qwen3's, and this model is {family:?}; use export.format=hf, or fast-dllm for Qwen2 and Llama"
        )),
        _ if !plain(cfg.qkv_bias) => refuse(format!(
            "the layers of the SDAR architecture are Qwen3's{}; use export.format=hf",
            odd_layers(cfg)
        )),
        _ if cfg.has_token_shift() => refuse(
            "SDAR's models predict each token at its own position, and this one was trained with the token shift; train with conversion=sdar (conversion.token_shift=false), or use export.format=hf".into(),
        ),
        _ if i64::from(trained.mask_token_id) != SDAR_MASK_ID => refuse(format!(
            "SDAR's readers take {SDAR_MASK_ID} for the mask token, and this model's mask token has id {}; prepare the data with Qwen3's tokenizer, in which the mask token gets that id, or use export.format=hf",
            trained.mask_token_id
        )),
        _ => Ok(()),
    }
}

fn is_silu(cfg: &ModelConfig) -> bool {
    cfg.activation == Activation::Silu
}

/// What a refused model has besides its family, to follow its name.
fn odd_layers(cfg: &ModelConfig) -> String {
    let odd = [
        (cfg.qkv_bias && cfg.family != Family::Qwen2, "biases in attention"),
        (cfg.o_bias, "a bias behind attention"),
        (cfg.mlp_bias, "biases in the MLP"),
        (!is_silu(cfg), "another activation than silu"),
    ];
    let odd: Vec<&str> = odd.iter().filter(|(has, _)| *has).map(|(_, what)| *what).collect();
    if odd.is_empty() { String::new() } else { format!(" with {}", odd.join(" and ")) }
}

/// Bring the keys of a `config.json` into the form that a format's readers know. Keys that they
/// would fill in otherwise than our loader does are written out.
pub(crate) fn config_keys(
    config: &mut Map<String, Value>,
    decoder: &Decoder,
    format: ExportFormat,
) {
    let cfg = &decoder.cfg;
    let (architecture, model_type, module) = match format {
        ExportFormat::FastDllm => ("Fast_dLLM_Qwen", "Fast_dLLM_Qwen", FAST_DLLM_MODULE),
        ExportFormat::Sdar => ("SDAR", SDAR, SDAR_MODULE),
        ExportFormat::Hf | ExportFormat::PackedTernary => return own_keys(config, cfg),
    };
    config.insert("architectures".into(), json!([format!("{architecture}ForCausalLM")]));
    config.insert("model_type".into(), json!(model_type));
    config.insert(
        "auto_map".into(),
        json!({
            "AutoConfig": format!("{module}.{architecture}Config"),
            "AutoModel": format!("{module}.{architecture}Model"),
            "AutoModelForCausalLM": format!("{module}.{architecture}ForCausalLM"),
        }),
    );
    config.insert("num_key_value_heads".into(), json!(cfg.num_key_value_heads));
    config.insert("head_dim".into(), json!(cfg.head_dim));
    config.insert("hidden_act".into(), json!("silu"));
    config.insert("rms_norm_eps".into(), json!(cfg.rms_norm_eps));
    config.insert("max_position_embeddings".into(), json!(cfg.max_position_embeddings));
    config.insert("tie_word_embeddings".into(), json!(cfg.tie_word_embeddings));
    // in the form that transformers 4 writes and both read
    config.insert("rope_theta".into(), json!(cfg.rope_theta));
    config.insert("rope_scaling".into(), Value::Null);
    config.remove("rope_parameters");
    let layers = vec!["full_attention"; cfg.num_hidden_layers];
    config.insert("layer_types".into(), json!(layers));
    config.insert("use_sliding_window".into(), json!(false));
    for of_llama in ["mlp_bias", "pretraining_tp"] {
        config.remove(of_llama);
    }
    // LMDeploy reads both without a default
    config.insert("attention_bias".into(), json!(false));
    config.insert("sliding_window".into(), Value::Null);
    if format == ExportFormat::FastDllm {
        // Qwen2's biases are no choice
        config.remove("attention_bias");
        // spelt as in the published code
        config.insert("conplemenrary_mask".into(), json!(true));
    }
}

/// A source that has the form of an engine is written as the architecture of transformers that its
/// layers are.
fn own_keys(config: &mut Map<String, Value>, cfg: &ModelConfig) {
    let model_type = match config.get("model_type").and_then(Value::as_str) {
        Some("Fast_dLLM_Qwen") => "qwen2",
        Some(SDAR) => "qwen3",
        _ => return,
    };
    config.insert("architectures".into(), json!([format!("{:?}ForCausalLM", cfg.family)]));
    config.insert("model_type".into(), json!(model_type));
    config.remove("auto_map");
    config.remove("conplemenrary_mask");
}

/// Tensors of a format that the model does not have: the biases of Qwen2's q, k and v, which are
/// zero.
pub(crate) fn added_tensors(
    decoder: &Decoder,
    dtype: Dtype,
    format: ExportFormat,
) -> Vec<TensorEntry> {
    if format != ExportFormat::FastDllm || decoder.cfg.qkv_bias {
        return Vec::new();
    }
    let projections = ["q_proj.weight", "k_proj.weight", "v_proj.weight"];
    let bytes = if dtype == Dtype::F32 { 4 } else { 2 };
    let specs = decoder.params.specs.iter();
    let biased = specs.filter(|spec| projections.iter().any(|end| spec.name.ends_with(end)));
    let zeros = |name: &str, rows: usize| TensorEntry {
        name: format!("{}.bias", name.trim_end_matches(".weight")),
        dtype,
        shape: vec![rows],
        content: TensorContent::Bytes(vec![0; rows * bytes]),
    };
    biased.map(|spec| zeros(&spec.name, spec.shape[0])).collect()
}

/// Write the modeling file of a format, and remove that of another one.
pub(crate) fn write_modeling_file(dir: &Path, format: ExportFormat) -> Result<()> {
    let own = match format {
        ExportFormat::FastDllm => Some(FAST_DLLM_MODULE),
        ExportFormat::Sdar => Some(SDAR_MODULE),
        ExportFormat::Hf | ExportFormat::PackedTernary => None,
    };
    let own_line = MODELING.lines().next();
    for name in MODELING_FILES {
        let path = dir.join(name);
        if own.is_some_and(|module| name == format!("{module}.py")) {
            fs::write_atomic(&path, MODELING.as_bytes())?;
        } else if std::fs::read_to_string(&path).is_ok_and(|found| found.lines().next() == own_line)
        {
            // of this version or an earlier one; a file of somebody else stays
            std::fs::remove_file(&path).map_err(|e| Error::io(&path, "removing", e))?;
        }
    }
    Ok(())
}

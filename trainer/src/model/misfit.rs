//! Tensors that do not fit an architecture: what was found and the way out, in words.

use super::checkpoint_file::Checkpoint;
use super::config::ModelConfig;
use super::folder_kind::text_of;
use crate::error::Error;

/// Endings of the tensor names that quantised checkpoints hold.
const QUANTISED: [&str; 13] = [
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".scales",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_shape",
    ".input_scale",
    ".SCB",
    ".absmax",
    ".quant_map",
    ".weight_format",
];

/// Tensors that a checkpoint lacks, that have a wrong shape, and that are not used.
#[derive(Default)]
pub(super) struct Misfit {
    pub missing: Vec<String>,
    pub wrong: Vec<String>,
    pub unused: Vec<String>,
}

impl Misfit {
    pub(super) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.wrong.is_empty() && self.unused.is_empty()
    }

    /// The error that lists the tensors, or says that they are quantised.
    pub(super) fn error(self, ck: &Checkpoint, cfg: &ModelConfig) -> Error {
        const SHOWN: usize = 12;
        if let Some(text) = quantised(ck, &self.unused) {
            return Error::Tensors(text);
        }
        let mut text = format!(
            "{}: the tensors do not fit the {:?} architecture of its config.json:",
            ck.dir().display(),
            cfg.family
        );
        let only_the_head = self.missing == ["lm_head.weight"];
        for (title, items) in [
            ("missing", self.missing),
            ("wrong shape", self.wrong),
            ("not used by this architecture", self.unused),
        ] {
            if items.is_empty() {
                continue;
            }
            let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
            text += &format!("\n  {title} ({}): {shown}", items.len());
            if items.len() > SHOWN {
                text += &format!("; and {} more", items.len() - SHOWN);
            }
        }
        if only_the_head {
            text += "\n  transformers would draw a random output head; if the head shares the embedding table, set tie_word_embeddings to true in config.json";
        }
        Error::Tensors(text)
    }
}

/// The sentence about a checkpoint whose tensors are quantised in a way that is not read.
fn quantised(ck: &Checkpoint, unused: &[String]) -> Option<String> {
    let example = unused.iter().find(|name| QUANTISED.iter().any(|end| name.ends_with(end)))?;
    let dtype = ck.view(example).ok().map(|(_, dtype, ..)| format!(" ({dtype:?})"));
    let method = text_of(ck.dir(), "quantize_config.json", "quant_method")
        .or_else(|| text_of(ck.dir(), "quant_config.json", "quant_method"))
        .map(|method| format!(", quantised by {method:?}"));
    Some(format!(
        "{}: the weights are quantised: it holds tensors such as {example}{}{}, and config.json has no quantization_config for them. Weights in F32, F16 or BF16 are read, and BitNet's packed ones: take the unquantised checkpoint, or write one with transformers' dequantize and save_pretrained",
        ck.dir().display(),
        dtype.unwrap_or_default(),
        method.unwrap_or_default()
    ))
}

/// The place of the first value that is not finite, in words; `None` where all are finite.
pub(super) fn not_finite(name: &str, shape: &[usize], values: &[f32]) -> Option<String> {
    let first = values.iter().position(|v| !v.is_finite())?;
    let count = values.iter().filter(|v| !v.is_finite()).count();
    let place = match shape {
        [_, columns] if *columns > 0 => {
            format!("row {}, column {}", first / columns, first % columns)
        }
        _ => format!("position {first}"),
    };
    Some(format!(
        "{name} holds {} at {place}, and {count} of its {} values are not finite: the file is damaged, or the model was trained into NaN; take another checkpoint",
        values[first],
        values.len()
    ))
}

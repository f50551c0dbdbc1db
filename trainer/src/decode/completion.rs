//! The completion of a prompt, as it is handed to the caller.

use super::{Decided, Passes};

/// The completion of one prompt.
///
/// ```no_run
/// # use dlm_train::{GenerateOptions, Model, ModelOptions, Prompt};
/// # let mut model = Model::load("output/sample", &ModelOptions::default())?;
/// let prompt = Prompt::Ids(vec![3, 1, 4]);
/// let completion = model.generate(&[prompt], &GenerateOptions::default())?.remove(0);
/// assert_eq!(completion.prompt_ids, [3, 1, 4]);
/// println!("{} tokens in {} passes", completion.ids.len(), completion.passes.total());
/// # Ok::<(), dlm_train::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// Token ids of the prompt.
    pub prompt_ids: Vec<i64>,
    /// Generated token ids; cut after the first stop token.
    pub ids: Vec<i64>,
    /// For each of `ids`, the forward pass that decided it and its probability there.
    pub decided: Vec<Decided>,
    /// Text of `ids` without control tokens; `None` where the model folder has no usable tokenizer.
    pub text: Option<String>,
    /// Whether a stop token ended the completion.
    pub stopped: bool,
    /// Forward passes that this prompt took part in.
    pub passes: Passes,
    /// Seconds from the first pass of this prompt to its last; prompts that were decoded together
    /// share them.
    pub seconds: f64,
}

impl Completion {
    /// Generated tokens per forward pass; passes over the prompt count, its tokens do not.
    pub fn tokens_per_forward(&self) -> f64 {
        self.ids.len() as f64 / self.passes.total().max(1) as f64
    }
}

//! The completion of a prompt, as it is handed to the caller.

use super::{Decided, DecodedSequence, FinishReason, Passes, Proposals};

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
    /// Generated token ids; cut after the first stop token, and after the token that completes a
    /// stop string.
    pub ids: Vec<i64>,
    /// For each of `ids`, the forward pass that decided it and its probability there.
    pub decided: Vec<Decided>,
    /// Text of `ids` without control tokens, up to a stop string; `None` where the model folder has
    /// no usable tokenizer.
    pub text: Option<String>,
    /// Whether a stop token or a stop string ended the completion.
    pub stopped: bool,
    /// What ended the completion.
    pub finish_reason: FinishReason,
    /// Seed of its random numbers; `None` at temperature 0. With it the prompt gets the same tokens
    /// alone.
    pub seed: Option<u64>,
    /// Forward passes that this prompt took part in.
    pub passes: Passes,
    /// Proposals that passes verified; `None` in a mode without proposals.
    pub proposals: Option<Proposals>,
    /// Seconds from the first pass of this prompt to its last; prompts that were decoded together
    /// share them.
    pub seconds: f64,
}

impl Completion {
    /// The completion of a decoded sequence with the text of its tokens.
    pub(crate) fn new(
        sequence: DecodedSequence,
        text: Option<String>,
        seed: Option<u64>,
        seconds: f64,
    ) -> Self {
        let DecodedSequence { ids: mut prompt_ids, prompt, decided, passes, proposals, .. } =
            sequence;
        let (finish_reason, text_end) = (sequence.finish_reason, sequence.text_end);
        let ids = prompt_ids.split_off(prompt);
        let cut = |text: String| match text_end.and_then(|end| text.get(..end)) {
            Some(before) => before.to_string(),
            None => text,
        };
        let stopped = finish_reason != FinishReason::Length;
        Completion {
            prompt_ids,
            ids,
            decided,
            text: text.map(cut),
            stopped,
            finish_reason,
            seed,
            passes,
            proposals,
            seconds,
        }
    }

    /// Generated tokens per forward pass; passes over the prompt count, its tokens do not.
    pub fn tokens_per_forward(&self) -> f64 {
        self.ids.len() as f64 / self.passes.total().max(1) as f64
    }
}

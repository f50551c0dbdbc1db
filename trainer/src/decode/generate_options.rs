//! How prompts are completed: the options of a call.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// How tokens are decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DecodeMode {
    /// Diffusion blocks, many tokens per forward pass.
    #[default]
    Block,
    /// Autoregressive: causal, one token per forward pass.
    Ar,
    /// The tokens of autoregressive mode, several per forward pass: adapters propose them at mask
    /// tokens and the model itself verifies them.
    Verify,
}

/// How prompts are completed.
///
/// ```
/// use dlm_train::{DecodeMode, GenerateOptions};
///
/// let usual = GenerateOptions::default();
/// assert_eq!((usual.mode, usual.threshold, usual.max_new_tokens), (DecodeMode::Block, 0.95, 256));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Default: [`DecodeMode::Block`].
    pub mode: DecodeMode,
    /// Encode text prompts as they are, control tokens included, without the chat template.
    /// Default: false.
    pub raw: bool,
    /// Variables of the chat template, such as `enable_thinking`. One with `think` in its name says
    /// how the answer opens; without one it opens as in the training data. Default: none.
    pub template_kwargs: Map<String, Value>,
    /// Block mode: a pass fixes every token whose probability is above this, 0 to 1. Default: 0.95.
    pub threshold: f64,
    /// Block mode: tokens per block. Default: what the model was trained with, else 32.
    pub block_size: Option<usize>,
    /// Block mode: tokens per sub-block; must divide the block. Default: 8, or the whole block
    /// where 8 does not divide it.
    pub sub_block_size: Option<usize>,
    /// Block mode: run single sub-blocks where keys and values of the rest of the block are known.
    /// Faster in large batches, approximate. Default: false.
    pub sub_block_cache: bool,
    /// Block mode: run the first pass over a block that the prompt begins together with the
    /// prompt's last whole blocks, one pass fewer for the same tokens. Default: true.
    pub fuse_prefill: bool,
    /// Block mode: run the first pass over a block together with the commit of the block before
    /// it, where its first token was foreseen; fewer passes, of twice the width, for the same
    /// tokens. Default: false.
    pub fuse_commit: bool,
    /// Block mode: most blocks that are decoded at a time. More than one takes fewer passes, and
    /// is approximate. Default: 1.
    pub blocks_in_flight: usize,
    /// Verify mode: tokens of a pass beside the last decided one, at most: proposals that are
    /// verified and masks that make new ones. Default: 7.
    pub propose: Option<usize>,
    /// Length limit of a completion in tokens. Default: 256.
    pub max_new_tokens: usize,
    /// Prompts decoded together; each gets the tokens it would get alone. Default: 1.
    pub batch_size: usize,
    /// Id of the mask token, which is never produced. Default: the model folder's.
    pub mask_token_id: Option<i64>,
    /// Ids that end a completion; an empty list lets it run to its limit. Default: the model
    /// folder's, and the end of text of its tokenizer.
    pub stop_token_ids: Option<Vec<i64>>,
    /// Strings that end a completion; its text ends before the first of them. One that spells a
    /// control token is a stop token. Default: none.
    pub stop: Vec<String>,
    /// Tokens are drawn from the distribution of the logits divided by this; 0 takes the most
    /// likely ones. Default: 0.
    pub temperature: f64,
    /// Above temperature 0: draw from the most likely tokens that have this probability together, 0
    /// to 1. Default: 1, from all.
    pub top_p: f64,
    /// Above temperature 0: draw from this many most likely tokens. Default: 0, from all.
    pub top_k: usize,
    /// Above temperature 0: seed of the first prompt's random numbers; that of the next prompt is
    /// one higher, and so on. A prompt's tokens do not depend on others. Default: 0.
    pub seed: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            mode: DecodeMode::Block,
            raw: false,
            template_kwargs: Map::new(),
            threshold: 0.95,
            block_size: None,
            sub_block_size: None,
            sub_block_cache: false,
            fuse_prefill: true,
            fuse_commit: false,
            blocks_in_flight: 1,
            propose: None,
            max_new_tokens: 256,
            batch_size: 1,
            mask_token_id: None,
            stop_token_ids: None,
            stop: Vec::new(),
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            seed: 0,
        }
    }
}

impl DecodeMode {
    /// Its name in options, requests and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DecodeMode::Block => "block",
            DecodeMode::Ar => "ar",
            DecodeMode::Verify => "verify",
        }
    }
}

impl GenerateOptions {
    /// Whether the variables of the template say how the assistant's turn opens.
    pub(crate) fn opens_the_turn(&self) -> bool {
        self.template_kwargs.keys().any(|name| name.contains("think"))
    }
}

/// Options as they are typed that one mode alone reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModeOptions(Vec<(&'static str, DecodeMode)>);

impl ModeOptions {
    /// Adds those of `options` that were given, all of them of `mode`.
    pub(crate) fn of(mut self, mode: DecodeMode, options: &[(&'static str, bool)]) -> Self {
        let given = options.iter().filter(|(_, is_given)| *is_given);
        self.0.extend(given.map(|(flag, _)| (*flag, mode)));
        self
    }

    /// Refuses an option that no mode of `modes` reads.
    ///
    /// # Errors
    /// [`Error::Usage`] with its name.
    pub(crate) fn check(&self, modes: &[DecodeMode]) -> Result<()> {
        match self.0.iter().find(|(_, mode)| !modes.contains(mode)) {
            None => Ok(()),
            Some((flag, _)) => {
                let names: Vec<&str> = modes.iter().map(|mode| mode.name()).collect();
                let names = names.join(",");
                Err(Error::Usage(format!("{flag} has no meaning with --mode {names}")))
            }
        }
    }
}

//! Completing prompts with a model, as a library call: [`Model::load`], then [`Model::generate`].
//!
//! In: a model (folder or hub name), prompts as text, conversations or token ids. Out:
//! [`Completion`]s with the forward passes they took. `dlm-train generate` is a thin user of this
//! file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::compute::{ComputeDtype, ComputePlan, EngineChoice, WeightFormat, device};
use crate::decode::folder::ModelFolder;
use crate::decode::prompt::PromptCodec;
use crate::decode::{Engine, Event, Request, Sampling, StopStrings, Told, decode_list};
use crate::error::{Error, Result};
use crate::io::load_model;

pub use crate::decode::completion::Completion;
pub use crate::decode::generate_options::{DecodeMode, GenerateOptions};
pub use crate::decode::prompt::Prompt;
pub use crate::decode::{FinishReason, Proposals};

/// Where a model is loaded to.
///
/// ```
/// use dlm_train::ModelOptions;
///
/// let on_the_cpu = ModelOptions { device: "cpu".into(), ..ModelOptions::default() };
/// assert_eq!(on_the_cpu.dtype, None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelOptions {
    /// Device: `auto`, `cpu`, `cuda[:N]` or `wgpu`. Default: `auto`.
    pub device: String,
    /// Dtype of activations and matrix products. Default: bf16 on CUDA, fp32 elsewhere.
    pub dtype: Option<ComputeDtype>,
    /// What computes. Default: the native engine where it can be used.
    pub engine: EngineChoice,
    /// Format of the weights on the CPU, where activations are fp32. Default: the smallest that
    /// holds them exactly.
    pub weights: WeightFormat,
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions {
            device: "auto".into(),
            dtype: None,
            engine: EngineChoice::Auto,
            weights: WeightFormat::Auto,
        }
    }
}

/// A model on a device, ready to complete prompts.
///
/// ```no_run
/// use dlm_train::{GenerateOptions, Model, ModelOptions, Prompt};
///
/// let options = ModelOptions { device: "cpu".into(), ..ModelOptions::default() };
/// let mut model = Model::load("output/sample_diffusion", &options)?;
/// let prompts = [Prompt::Text("Which colours does the flag have?".into())];
/// for completion in model.generate(&prompts, &GenerateOptions::default())? {
///     println!("{:?}, {:.2} tokens per forward", completion.text, completion.tokens_per_forward());
/// }
/// # Ok::<(), dlm_train::Error>(())
/// ```
pub struct Model {
    files: ModelFiles,
    engine: Engine,
    device: String,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.files.name)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a Hugging Face folder, `hf://ORG/NAME[@REVISION]` or `ORG/NAME`, converted or not,
    /// onto a device.
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Model`] and [`Error::Tensors`] where a file of the folder cannot
    /// be used, [`Error::Device`] where the device is missing, [`Error::Usage`] for a model that
    /// does not exist.
    pub fn load(model: impl AsRef<Path>, options: &ModelOptions) -> Result<Self> {
        ModelFiles::open(model.as_ref())?.load(options)
    }

    /// The device that the model is on: `cpu`, `cuda:N` or `wgpu`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Completes prompts; the completions are in the order of the prompts. Up to
    /// `options.batch_size` of them are decoded together; when one ends, the next one begins.
    ///
    /// # Errors
    /// [`Error::Usage`] for options and prompts that cannot be used: text without a tokenizer or
    /// chat template, no tokens at all, ids outside the vocabulary, the mask token inside a prompt,
    /// block mode for a model without a mask token, stop strings without a tokenizer.
    /// [`Error::Numeric`] for non-finite logits, [`Error::Device`] where keys and values do not fit
    /// into memory.
    pub fn generate(
        &mut self,
        prompts: &[Prompt],
        options: &GenerateOptions,
    ) -> Result<Vec<Completion>> {
        let prompts = self.files.encode(prompts, options)?;
        let mut completions: Vec<Option<Completion>> = prompts.iter().map(|_| None).collect();
        self.generate_each(prompts, options, |at, progress| {
            if let Progress::Done(completion) = progress {
                completions[at] = Some(*completion);
            }
            Ok(true)
        })?;
        Ok(completions.into_iter().flatten().collect())
    }

    /// Completes prompts given as ids, and hands over tokens and completions as soon as they are
    /// there, with the place of the prompt. Stops early where `take` returns false.
    pub(crate) fn generate_each(
        &mut self,
        prompts: Vec<Vec<i64>>,
        options: &GenerateOptions,
        mut take: impl FnMut(usize, Progress) -> Result<bool>,
    ) -> Result<()> {
        let request = self.files.request(options)?;
        let sampling = |at: usize| {
            request.sampling.map(|how| Sampling { seed: how.seed.wrapping_add(at as u64), ..how })
        };
        let of_prompt = |(at, prompt): (usize, Vec<i64>)| Request {
            prompt,
            sampling: sampling(at),
            ..request.clone()
        };
        let requests = prompts.into_iter().enumerate().map(of_prompt).collect();
        let files = &self.files;
        decode_list(&mut self.engine, options.batch_size, requests, |told| {
            let Told { at, seconds, event } = told;
            match event {
                Event::Tokens { ids, .. } => take(at, Progress::Tokens(ids)),
                Event::Finished { sequence, .. } => {
                    let text = files.text_of(sequence.generated())?;
                    let seed = sampling(at).map(|how| how.seed);
                    let completion = Completion::new(sequence, text, seed, seconds);
                    take(at, Progress::Done(Box::new(completion)))
                }
            }
        })
    }

    /// Reasons to expect poor completions, as sentences: another block size than the model was
    /// trained with, or more tokens than it has positions for.
    ///
    /// # Errors
    /// As [`Model::generate`] for prompts that cannot be encoded.
    pub fn warnings(&self, prompts: &[Prompt], options: &GenerateOptions) -> Result<Vec<String>> {
        Ok(self.files.warnings(&self.files.encode(prompts, options)?, options))
    }
}

/// What becomes of a prompt.
pub(crate) enum Progress {
    /// The next tokens of its completion; they do not change any more.
    Tokens(Vec<i64>),
    /// The whole completion.
    Done(Box<Completion>),
}

/// The small files of a model folder: enough to check a call before the weights are read.
pub(crate) struct ModelFiles {
    name: String,
    dir: PathBuf,
    folder: ModelFolder,
    /// `None` where the tokenizer is missing or cannot be read; then only ids can be given.
    codec: Option<Arc<PromptCodec>>,
}

impl ModelFiles {
    /// Finds the folder, downloading a hub's model, and reads its JSON files.
    pub(crate) fn open(model: &Path) -> Result<Self> {
        Self::open_adapted(model, None)
    }

    /// [`ModelFiles::open`] with the folder of an adapter, whose tokenizer counts where it has one.
    pub(crate) fn open_adapted(model: &Path, adapter: Option<&Path>) -> Result<Self> {
        let source = load_model::resolve(model)?;
        let folder = ModelFolder::read_files(&source, adapter)?;
        let with_tokenizer = adapter.filter(|dir| dir.join("tokenizer.json").is_file());
        let dir = with_tokenizer.map_or(source, PathBuf::from);
        let codec = PromptCodec::load(&dir).ok().map(Arc::new);
        Ok(ModelFiles { name: model.display().to_string(), dir, folder, codec })
    }

    /// Reads the weights.
    pub(crate) fn load(self, options: &ModelOptions) -> Result<Model> {
        let (engine, device) = self.engine(options)?;
        Ok(Model { files: self, engine, device })
    }

    /// The weights on a device, and its name.
    pub(crate) fn engine(&self, options: &ModelOptions) -> Result<(Engine, String)> {
        let compute = ComputePlan::new(device::choose(&options.device)?, options.dtype);
        let device = compute.device.name.clone();
        Ok((self.folder.load(compute, options.engine, options.weights)?, device))
    }

    /// How prompts are completed where nothing else is asked for.
    pub(crate) fn usual_mode(&self) -> DecodeMode {
        self.folder.usual_mode()
    }

    /// What to say where an adapter was trained beside other weights; reads them all.
    pub(crate) fn other_source(&self) -> Option<String> {
        self.folder.other_source()
    }

    /// The modes that the model has.
    pub(crate) fn modes(&self, options: &GenerateOptions) -> Vec<DecodeMode> {
        match self.is_converted(options) {
            _ if self.usual_mode() == DecodeMode::Verify => {
                vec![DecodeMode::Ar, DecodeMode::Verify]
            }
            true if !self.has_token_shift() => vec![DecodeMode::Block],
            true => vec![DecodeMode::Ar, DecodeMode::Block],
            false => vec![DecodeMode::Ar],
        }
    }

    /// The same prompts, decoded by the model without its adapter.
    pub(crate) fn without_adapter(&self) -> Self {
        let (name, dir, codec) = (self.name.clone(), self.dir.clone(), self.codec.clone());
        ModelFiles { name, dir, folder: self.folder.without_adapter(), codec }
    }

    /// Positions that the model has.
    pub(crate) fn positions(&self) -> usize {
        self.folder.config.max_position_embeddings
    }

    /// Token ids of prompts.
    pub(crate) fn encode(
        &self,
        prompts: &[Prompt],
        options: &GenerateOptions,
    ) -> Result<Vec<Vec<i64>>> {
        let encode = |prompt: &Prompt| match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            text if options.raw => self.codec()?.encode_raw(text),
            text => {
                let ids = self.codec()?.encode(text, &options.template_kwargs)?;
                Ok(if options.opens_the_turn() { ids } else { self.folder.opened(ids) })
            }
        };
        prompts.iter().map(encode).collect()
    }

    /// Hash of the weights that answer, an adapter's among them; `None` where a file is missing.
    pub(crate) fn identity(&self) -> Result<Option<String>> {
        self.folder.identity()
    }

    /// The local folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether there is a mask token, without which nothing can be decoded in blocks.
    pub(crate) fn is_converted(&self, options: &GenerateOptions) -> bool {
        options.mask_token_id.or(self.folder.mask_id).is_some()
    }

    /// Whether the model predicts the next token, without which there is no autoregressive mode.
    pub(crate) fn has_token_shift(&self) -> bool {
        self.folder.token_shift
    }

    /// The tokenizer, or why it cannot be used.
    pub(crate) fn codec(&self) -> Result<&Arc<PromptCodec>> {
        if let Some(codec) = &self.codec {
            return Ok(codec);
        }
        // reading it again gives the reason
        let reason = PromptCodec::load(&self.dir).err();
        Err(reason.unwrap_or_else(|| Error::format(&self.dir, "the tokenizer has just changed")))
    }

    fn text_of(&self, ids: &[i64]) -> Result<Option<String>> {
        self.codec.as_ref().map(|codec| codec.decode(ids)).transpose()
    }

    /// A request without its prompt: the options of the requested mode, with what the folder says
    /// where nothing was requested.
    pub(crate) fn request(&self, options: &GenerateOptions) -> Result<Request> {
        if options.batch_size == 0 {
            return Err(Error::Usage(
                "a batch of 0 prompts (--batch-size): expected 1 or more".into(),
            ));
        }
        let mut request = self.folder.request(&self.name, options)?;
        if options.stop.iter().any(String::is_empty) {
            return Err(Error::Usage("an empty stop string (--stop): expected text".into()));
        }
        if !options.stop.is_empty() {
            let codec = self.codec()?;
            let mut strings = Vec::new();
            for text in &options.stop {
                match codec.control_token(text) {
                    Some(id) => request.stop_ids.push(id),
                    None => strings.push(text.clone()),
                }
            }
            request.stop = Some(StopStrings { codec: codec.clone(), strings });
        }
        Ok(request)
    }

    pub(crate) fn block_size(&self, options: &GenerateOptions) -> usize {
        self.folder.block_size_of(options)
    }

    /// Tokens per sub-block in block mode.
    pub(crate) fn sub_block_size(&self, options: &GenerateOptions) -> usize {
        self.folder.sub_block_size_of(options)
    }

    /// See [`Model::warnings`]; the prompts are encoded.
    pub(crate) fn warnings(&self, prompts: &[Vec<i64>], options: &GenerateOptions) -> Vec<String> {
        let mut warnings = Vec::new();
        let block_size = self.block_size(options);
        let trained = self.folder.block_size.filter(|trained| *trained != block_size);
        if let (DecodeMode::Block, Some(trained)) = (options.mode, trained) {
            warnings.push(format!(
                "block size {block_size}, but the model was trained with blocks of {trained}; expect worse text"
            ));
        }
        if options.mode == DecodeMode::Block && self.folder.is_causal {
            warnings.push(format!(
                "{} was trained with objective=sft last, which does not teach to fill blocks; expect wrong text in block mode: use autoregressive mode (--mode ar), or convert it",
                self.name
            ));
        }
        if options.stop_token_ids.is_none() && self.folder.stop_ids.is_empty() {
            warnings.push(format!(
                "{} names no end of text (eos_token_id in generation_config.json or config.json, eos_token of the tokenizer): every completion runs to its limit of {} tokens; give the id with --stop-token-id, or say none",
                self.name, options.max_new_tokens
            ));
        }
        for name in options.template_kwargs.keys() {
            if self.codec.as_ref().is_some_and(|codec| !codec.reads(name)) {
                warnings
                    .push(format!("the chat template does not read {name} of --template-kwargs"));
            }
        }
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let longest = longest.saturating_add(options.max_new_tokens);
        let limit = self.folder.config.max_position_embeddings;
        if longest > limit {
            warnings.push(format!(
                "up to {longest} tokens with the prompt, but config.json has positions up to {limit} only"
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests;

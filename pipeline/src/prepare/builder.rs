//! [`Prepare`]: the library's way to prepare a dataset.

use crate::buckets::address::BucketAddress;
use crate::config::overrides::SettingsOverrides;
use crate::config::policies::{LostText, OverLong, SpecialText};
use crate::config::recipe::Recipe;
use crate::config::run_options::{EngineChoice, RenderChoice, worker_count};
use crate::config::trained_roles::TrainedRoles;
use crate::error::{Error, Result};
use crate::input::discover::InputSelection;
use crate::pack::apart::{check_apart, check_not_written};
use crate::prepare::bucket_out::BucketOut;
use crate::prepare::estimate::{Estimate, estimate};
use crate::prepare::pipeline::{Prepared, RunControl, run_plan};
use crate::prepare::plan::{PlanRequest, PreparePlan, plan};
use crate::progress::{Progress, Silent};
use dlm_datasets::manifest::{Alignment, LossOn, Padding};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Prepares a dataset: conversations are rendered with a chat template, encoded, labelled, padded
/// to blocks and packed into Arrow rows.
///
/// Name a tokenizer, then what is read: local files ([`input`](Prepare::input)), a dataset of a hub
/// ([`dataset`](Prepare::dataset)) or a recipe ([`recipe`](Prepare::recipe)). Everything else has a
/// default; see [`Settings`](crate::Settings) for the values. The output's bytes depend on the
/// inputs and the settings alone, not on the number of workers.
///
/// ```
/// # fn main() -> dlm_prep::Result<()> {
/// let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/sample");
/// let out = std::env::temp_dir().join(format!("dlm-prep-doctest-{}", std::process::id()));
/// let prepared = dlm_prep::Prepare::new(format!("{sample}/tokenizer"))
///     .input(format!("{sample}/train.parquet"))
///     .seq_len(256)
///     .max_rows(100)
///     .overwrite(true)
///     .run(&out)?;
/// assert_eq!(prepared.counts().rows_read, 100);
/// assert_eq!(dlm_prep::verify(&out)?.tokens, prepared.counts().tokens);
/// # let _ = std::fs::remove_dir_all(&out);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "nothing happens before `run` or `estimate` is called"]
pub struct Prepare {
    tokenizer: PathBuf,
    inputs: InputSelection,
    recipe: Option<PathBuf>,
    settings: SettingsOverrides,
    template: Option<String>,
    template_kwargs: Option<String>,
    engine: EngineChoice,
    render: RenderChoice,
    workers: Option<usize>,
    overwrite: bool,
    progress: Arc<dyn Progress>,
    stop: Arc<AtomicBool>,
}

/// Methods that set one field of [`SettingsOverrides`].
macro_rules! setters {
    ($($(#[$doc:meta])* $field:ident: $type:ty,)+) => {
        impl Prepare {
            $($(#[$doc])* pub fn $field(mut self, $field: $type) -> Self {
                self.settings.$field = Some($field);
                self
            })+
        }
    };
}

setters! {
    /// Tokens per packed row, a multiple of the block size (default 512).
    seq_len: usize,
    /// Block size in tokens (default 32).
    bd_size: usize,
    /// What fills a document up to its next block boundary (default: the mask token).
    padding: Padding,
    /// From where blocks are counted (default: from the document's start, as in decoding).
    alignment: Alignment,
    /// Which assistant turns carry loss (default: all).
    loss_on: LossOn,
    /// The roles whose turns carry loss (default: the assistant alone).
    train_on_roles: TrainedRoles,
    /// Whether thoughts carry no loss (default: they do).
    mask_thinking: bool,
    /// What happens to conversations longer than a row (default: they are truncated).
    over_long: OverLong,
    /// Tokens of context that a continued document opens with, for [`OverLong::Split`] (default
    /// 128).
    split_context: usize,
    /// What happens to strings in message content that spell a control token (default: they are
    /// encoded as text).
    special_text: SpecialText,
    /// What happens to assistant text that the template deletes or rewrites (default: the
    /// conversation is dropped).
    lost_text: LostText,
    /// Largest share of conversations without any token to learn from, from 0 to 1 (default 0.05);
    /// above it, the run fails with [`Error::Unfit`].
    max_unsupervised: f64,
    /// Share of conversations that is held out as the eval split, from 0 to below 1 (default 0).
    eval_fraction: f64,
    /// Seed of the choice of held-out conversations (default 42).
    seed: u64,
    /// Whether conversations that were seen before are dropped (default: no). Costs 16 bytes of
    /// memory per conversation, and as much on the disk until the run has finished.
    dedup: bool,
    /// Ends the run after this many document tokens (default: no limit).
    max_tokens: u64,
    /// Ends the run after this many tokens that carry loss (default: no limit).
    max_response_tokens: u64,
    /// Ends the run after this many rows (default: no limit).
    max_rows: u64,
    /// Reads only this part of the rows: (index from 0, number of parts). [`merge`](crate::merge)
    /// joins the datasets.
    shard: (u64, u64),
    /// Number of documents that the packer chooses from (default 1024).
    pack_window: usize,
    /// Packed rows per data file (default 16384). A run can be resumed after every data file.
    shard_rows: usize,
}

impl Prepare {
    /// Prepares with a tokenizer: a folder (with `tokenizer.json` and `tokenizer_config.json`),
    /// `hf://ORG/NAME[@REVISION]` or `ORG/NAME`.
    pub fn new(tokenizer: impl Into<PathBuf>) -> Prepare {
        Prepare {
            tokenizer: tokenizer.into(),
            inputs: InputSelection::default(),
            recipe: None,
            settings: SettingsOverrides::default(),
            template: None,
            template_kwargs: None,
            engine: EngineChoice::default(),
            render: RenderChoice::default(),
            workers: None,
            overwrite: false,
            progress: Arc::new(Silent),
            stop: Arc::default(),
        }
    }

    /// Adds a local file or folder: parquet, JSON lines (plain, `.gz`, `.zst`) or Arrow.
    pub fn input(self, path: impl Into<PathBuf>) -> Self {
        self.inputs([path])
    }

    /// Adds local files or folders.
    pub fn inputs(mut self, paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        self.inputs.paths.extend(paths.into_iter().map(Into::into));
        self
    }

    /// Reads a dataset of a hub, `ORG/NAME`. The environment variables of the Python client hold:
    /// `HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`. With a recipe: the dataset of
    /// sources that name none.
    pub fn dataset(mut self, id: impl Into<String>) -> Self {
        self.inputs.dataset = Some(id.into());
        self
    }

    /// Branch, tag or commit of the dataset (default: `main`, or the hub's conversion to parquet).
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.inputs.revision = Some(revision.into());
        self
    }

    /// Reads this config of a dataset or a folder: one that the card (README.md) names (default:
    /// the card's default).
    pub fn config(mut self, name: impl Into<String>) -> Self {
        self.inputs.files.config = Some(name.into());
        self
    }

    /// Reads only these splits of the dataset or of folders, as the card or the names of files give
    /// them (default: `train`); `all` is every split. Without a card also categories, by folder or
    /// file name.
    pub fn splits(mut self, splits: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.inputs.files.splits.extend(splits.into_iter().map(Into::into));
        self
    }

    /// Reads the files of the dataset or of folders whose path matches one of these globs, without
    /// regard to configs and splits.
    pub fn files(mut self, globs: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.inputs.files.globs.extend(globs.into_iter().map(Into::into));
        self
    }

    /// Names columns that have other names in the files: pairs of (name used by this program, name
    /// in the files), for example `("messages", "chat")`. Not with a recipe, whose sources say it.
    pub fn columns(
        mut self,
        pairs: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.inputs.columns.extend(pairs.into_iter().map(|(a, b)| (a.into(), b.into())));
        self
    }

    /// Reads the sources of a recipe: a YAML file, or `nemotron`. Settings of the recipe hold where
    /// no method of this builder was called for them.
    pub fn recipe(mut self, file: impl Into<PathBuf>) -> Self {
        self.recipe = Some(file.into());
        self
    }

    /// Chat template: `chatml`, `llama3` or a Jinja file (default: the tokenizer's own).
    pub fn template(mut self, template: impl Into<String>) -> Self {
        self.template = Some(template.into());
        self
    }

    /// Variables for the chat template of every conversation, as a JSON object, for example
    /// `{"enable_thinking": false}`. A row's column `chat_template_kwargs` comes first.
    pub fn template_kwargs(mut self, json: impl Into<String>) -> Self {
        self.template_kwargs = Some(json.into());
        self
    }

    /// The mask token (default `|<MASK>|`); appended to the tokenizer if it has no such token.
    pub fn mask_token(mut self, token: impl Into<String>) -> Self {
        self.settings.mask_token = Some(token.into());
        self
    }

    /// The time that `strftime_now` returns in templates, as `2025-07-10T12:00:00`. The default is
    /// fixed, so that the output does not depend on the day on which it is made.
    pub fn now(mut self, time: impl Into<String>) -> Self {
        self.settings.now = Some(time.into());
        self
    }

    /// Which tokenizer engine is used (default: the fast one if it agrees with the stable one).
    pub fn engine(mut self, engine: EngineChoice) -> Self {
        self.engine = engine;
        self
    }

    /// Which rows the template renders (default: only those that need it).
    pub fn render(mut self, render: RenderChoice) -> Self {
        self.render = render;
        self
    }

    /// Number of worker threads (default: the number of available cores).
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Whether files of earlier runs in the output folder are replaced (default: no).
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Gets reports while the run lasts (default: none).
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// A flag that ends the run with [`Error::Interrupted`] when it is set. The same call resumes
    /// the run afterwards.
    pub fn stop_flag(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = stop;
        self
    }

    /// All settings that were named, at once; replaces earlier calls.
    pub(crate) fn overrides(mut self, settings: SettingsOverrides) -> Self {
        self.settings = settings;
        self
    }

    /// Prepares the dataset in the folder `out`, which may be one in a bucket (`gs://`, `s3://`,
    /// `az://`).
    ///
    /// Resumes an interrupted run of the same inputs and settings. If the folder already holds this
    /// very dataset, nothing is done ([`Prepared::already_prepared`]).
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if inputs or settings are wrong, [`Error::Tokenizer`] and
    /// [`Error::Template`] if they cannot be used, [`Error::Output`] if the folder holds something
    /// else, [`Error::Unfit`] if the data would not be worth training on, [`Error::Interrupted`] if
    /// the stop flag was set; further variants for failures of the disk or the network.
    pub fn run(&self, out: impl AsRef<Path>) -> Result<Prepared> {
        let (out, begin) = (out.as_ref(), Instant::now());
        let address = out.to_str().map(|text| BucketAddress::parse("--out", text)).transpose()?;
        let plan = self.plan()?;
        let control = |workers| RunControl {
            workers,
            overwrite: self.overwrite,
            progress: self.progress.as_ref(),
            stop: self.stop.clone(),
            begin,
        };
        let workers = worker_count(self.workers);
        self.describe(&plan, &format!("{workers} workers; to {}", out.display()));
        let prepared = match address.flatten() {
            Some(address) => self.run_to_bucket(&plan, &address, control(workers)),
            None => {
                check_apart(plan.input_paths(), out)?;
                check_not_written(&plan.tokenizer_dir, &out.join("tokenizer"))?;
                run_plan(&plan, out, control(workers))
            }
        };
        // Freeing hundreds of thousands of vocabulary entries takes a while; nobody has to wait.
        std::thread::spawn(move || drop(plan));
        prepared
    }

    /// Prepares the dataset in a folder of the cache and sends it to the bucket.
    fn run_to_bucket(
        &self,
        plan: &PreparePlan,
        address: &BucketAddress,
        control: RunControl,
    ) -> Result<Prepared> {
        plan.check_apart_from(address)?;
        let out = BucketOut::open(address, self.overwrite, self.progress.as_ref())?;
        match &out.finished {
            Some(m) if m.recipe_fingerprint == plan.manifest.recipe_fingerprint => {
                self.progress.notice(&format!(
                    "{address} is already prepared from these inputs with these settings"
                ));
                return Ok(Prepared::already(m.clone(), &control));
            }
            Some(_) => return Err(out.holds_another()),
            None => {}
        }
        let prepared = out.while_sending(|| run_plan(plan, &out.staging, control))?;
        out.publish(&prepared.manifest)?;
        Ok(prepared)
    }

    /// Estimates from a sample of the inputs what [`run`](Prepare::run) would give. Writes nothing.
    ///
    /// # Errors
    ///
    /// As for [`run`](Prepare::run), where they concern inputs, settings, tokenizer and template.
    pub fn estimate(&self) -> Result<Estimate> {
        let plan = self.plan()?;
        let workers = worker_count(self.workers);
        self.describe(&plan, &format!("{workers} workers"));
        estimate(&plan, workers)
    }

    /// Loads everything that a run needs.
    pub(crate) fn plan(&self) -> Result<PreparePlan> {
        if !self.inputs.paths.is_empty() && (self.inputs.dataset.is_some() || self.recipe.is_some())
        {
            return Err(Error::Usage(
                "give either input files, or a dataset or a recipe".to_string(),
            ));
        }
        let files = &self.inputs.files;
        if self.recipe.is_some()
            && (files.config.is_some() || !files.splits.is_empty() || !files.globs.is_empty())
        {
            return Err(Error::Usage(
                "config, split and files are named in the recipe, for each of its sources"
                    .to_string(),
            ));
        }
        let recipe = self.recipe.as_deref().map(Recipe::load).transpose()?;
        let request = PlanRequest {
            settings: self.settings.resolve(recipe.as_ref())?,
            tokenizer: &self.tokenizer,
            inputs: &self.inputs,
            recipe: recipe.as_ref(),
            template: self.template.as_deref(),
            template_kwargs: self.template_kwargs.as_deref(),
            engine: self.engine,
            render: self.render,
        };
        plan(request, self.progress.as_ref())
    }

    fn describe(&self, plan: &PreparePlan, how: &str) {
        let m = &plan.manifest;
        let rows = format!("rows       {} tokens in blocks of {}; {how}", m.seq_len, m.bd_size);
        plan.describe().into_iter().chain([rows]).for_each(|line| self.progress.notice(&line));
    }
}

//! Loads everything a run needs: inputs are resolved, tokenizer and template loaded, token ids
//! looked up, the tokenizer engine chosen.
//!
//! In: a [`PlanRequest`]. Out: [`PreparePlan`], with the manifest filled in except for files and
//! counts.

use crate::buckets::address::BucketAddress;
use crate::config::recipe::Recipe;
use crate::config::run_options::{EngineChoice, RenderChoice};
use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::input::discover::{InputSelection, Inputs, find_inputs};
use crate::input::hub::model::resolve_tokenizer;
use crate::input::selection::Taken;
use crate::input::source::Input;
use crate::pack::mixture::Mixture;
use crate::pack::sink::PackJob;
use crate::parse::tools::RESERVED;
use crate::prepare::engine_sample::engine_sample;
use crate::prepare::mask_id::check_mask_id;
use crate::prepare::tokenizer_folder::{tokenizer_config, write_tokenizer};
use crate::progress::Progress;
use crate::run::row_processor::Stages;
use crate::template::budget::{Account, on_known_stack};
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::limits::{RENDER_STACK, RENDERS_PER_PROBE};
use crate::template::spans::SpanFinder;
use crate::template::verbatim::{self, Verbatim};
use crate::tokenize::special_tokens::{special_tokens, tokens_of_config};
use crate::tokenize::tokenizer::{Tokenizer, TokenizerSource};
use dlm_datasets::hash::sha256;
use dlm_datasets::manifest::Manifest;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a plan is made from, resolved.
pub(crate) struct PlanRequest<'a> {
    /// Settings, the recipe's included.
    pub settings: Settings,
    /// Tokenizer folder or hub name.
    pub tokenizer: &'a Path,
    /// What is read, unless the recipe's sources say it.
    pub inputs: &'a InputSelection,
    /// Sources and their shares.
    pub recipe: Option<&'a Recipe>,
    /// Name or file of a chat template; none: the tokenizer's own.
    pub template: Option<&'a str>,
    /// Variables for the template, as a JSON object.
    pub template_kwargs: Option<&'a str>,
    /// Which tokenizer engine is used.
    pub engine: EngineChoice,
    /// Which rows are rendered.
    pub render: RenderChoice,
}

/// Everything a run needs.
pub(crate) struct PreparePlan {
    /// Settings of the run.
    pub settings: Settings,
    pub inputs: Vec<Input>,
    pub template: ChatTemplate,
    /// The tokenizer, on the engine that was chosen.
    pub tokenizer: Tokenizer,
    /// The tokenizer's control tokens.
    pub control: ControlTokens,
    /// Which content the template copies verbatim; none if every row is rendered.
    pub verbatim: Option<Verbatim>,
    /// The local files and folders that were named.
    pub roots: Vec<PathBuf>,
    /// Folder that the tokenizer was read from.
    pub tokenizer_dir: PathBuf,
    /// The range of `inputs` of each stream: one per source of the recipe, else one.
    pub streams: Vec<std::ops::Range<usize>>,
    /// Which stream the next row is taken from.
    pub mixture: Mixture,
    /// The manifest without files and counts.
    pub manifest: Manifest,
    /// The dataset's `tokenizer_config.json`.
    pub tokenizer_config: Value,
}

/// Loads everything. Notices: commits that hub names were resolved to.
pub(crate) fn plan(request: PlanRequest, progress: &dyn Progress) -> Result<PreparePlan> {
    let PlanRequest { settings, recipe, .. } = request;
    let mixture = match recipe {
        Some(r) => Mixture::new(r, settings.max_tokens)?,
        None => Mixture::single(),
    };
    let dir = resolve_tokenizer(request.tokenizer, progress)?;
    let dir = dir.as_path();
    let Inputs { files: inputs, streams, roots, taken } =
        find_inputs(request.inputs, recipe, progress)?;
    let now = settings.template_time()?;
    let mut tok = TokenizerSource::read(dir)?;
    let mut specials = special_tokens(dir)?;
    let template = match request.template {
        Some(name) => ChatTemplate::named(name, specials.clone(), now)?,
        None => ChatTemplate::load_at(dir, now)?,
    };
    let kwargs = template_kwargs(request.template_kwargs)?;
    let template = template.with_kwargs(kwargs.clone());
    template.check_cost()?;
    tok.ensure_named(&tokens_of_config(dir)?)?;
    let mask_id = tok.ensure_token(&settings.mask_token)?;
    check_mask_id(dir, &tok, &settings.mask_token, mask_id)?;
    let bad = |reason: String| Error::Tokenizer { path: dir.to_path_buf(), reason };
    let eos = eos_token(&tok, &specials, &template).ok_or_else(|| {
        bad("names no eos_token; add one to its tokenizer_config.json".to_string())
    })?;
    let pad = pad_token(&tok, &specials, &settings.mask_token).unwrap_or_else(|| eos.clone());
    specials.insert("eos_token".to_string(), eos.clone());
    specials.insert("pad_token".to_string(), pad.clone());
    // Runs while the engines load: the control tokens, whether content is copied verbatim, and, if
    // the engines will be compared, the texts for that.
    let analyse = |sampled: bool| -> Result<_> {
        let mut control = ControlTokens::new(tok.added_tokens(), Some(&eos))?;
        let mut verbatim = None;
        if request.render == RenderChoice::Auto && !template.has_generation() {
            let probe = || {
                let _account = Account::open(RENDERS_PER_PROBE);
                let mut spans =
                    SpanFinder::new(&template, &control, settings.special_text, settings.lost_text);
                verbatim::probe(&template, &mut |m| spans.fill(m))
            };
            verbatim = on_known_stack(RENDER_STACK, probe).flatten();
        }
        if let Some(v) = &verbatim {
            control = ControlTokens::with_triggers(tok.added_tokens(), Some(&eos), &v.triggers)?;
        }
        let texts = if sampled {
            engine_sample(&inputs, &template, &control, &settings)
        } else {
            Vec::new()
        };
        Ok((texts, (control, verbatim)))
    };
    let (tokenizer, (control, verbatim)) = match request.engine {
        EngineChoice::Auto => tok.choose(|| analyse(true))?,
        EngineChoice::Fast => (
            tok.fast()
                .map_err(|e| bad(format!("the fast engine refuses it: {e}; use --engine auto")))?,
            analyse(false)?.1,
        ),
        EngineChoice::Stable => {
            (tok.stable("stable (tokenizers 0.23.2), as asked".to_string())?, analyse(false)?.1)
        }
    };
    let id = |role: &str, token: &str| {
        tokenizer
            .id_of(token)
            .map(|i| i as i32)
            .ok_or_else(|| bad(format!("has no token {token:?}, which it names as {role}")))
    };
    let mut m = Manifest::new(
        settings.seq_len,
        settings.bd_size,
        tokenizer.vocab_size(),
        mask_id as i32,
        id("pad_token", &pad)?,
        id("eos_token", &eos)?,
    );
    m.mask_token = settings.mask_token.clone();
    m.pad_token = pad;
    m.eos_token = eos;
    m.end_of_turn_ids =
        SpanFinder::new(&template, &control, settings.special_text, settings.lost_text)
            .end_of_turn_ids();
    if !m.end_of_turn_ids.contains(&m.eos_token_id) {
        m.end_of_turn_ids.push(m.eos_token_id);
    }
    m.code_version = env!("CARGO_PKG_VERSION").to_string();
    m.padding = settings.padding;
    m.alignment = settings.alignment;
    m.loss_on = settings.loss_on;
    m.over_long = settings.over_long.name().to_string();
    m.special_text = serde_json::to_value(settings.special_text)
        .ok()
        .and_then(|v| v.as_str().map(String::from))
        .unwrap_or_default();
    m.tokenizer_sha256 = sha256(tokenizer.json().as_bytes());
    m.template_sha256 = sha256(template.source().as_bytes());
    m.template_source = template.origin().to_string();
    m.recipe = settings.to_json();
    if !request.inputs.columns.is_empty() {
        m.recipe["columns"] = request.inputs.columns.iter().cloned().collect();
    }
    if !kwargs.is_empty() {
        m.recipe["template_kwargs"] = Value::Object(kwargs);
    }
    if let Some(r) = recipe {
        m.recipe["mixture"] = r.to_manifest_json();
    }
    m.seed = settings.seed;
    m.sources.clear();
    let files: Vec<Value> = inputs.iter().map(|i| json!([i.name, i.bytes])).collect();
    let identity = json!([
        m.recipe,
        m.tokenizer_sha256,
        m.template_sha256,
        m.code_version,
        dlm_datasets::manifest::FORMAT_VERSION,
        files
    ]);
    m.recipe_fingerprint = sha256(identity.to_string().as_bytes());
    // Not part of the identity: a file that is not read does not make another dataset.
    if !taken.is_empty() {
        m.recipe["inputs"] = taken.iter().map(Taken::to_json).collect();
    }
    let tokenizer_config =
        tokenizer_config(dir, &specials, template.source(), &settings.mask_token, mask_id)?;
    Ok(PreparePlan {
        settings,
        inputs,
        template,
        tokenizer,
        control,
        verbatim,
        roots,
        tokenizer_dir: dir.to_path_buf(),
        streams,
        mixture,
        manifest: m,
        tokenizer_config,
    })
}

/// The variables in the text of a JSON object.
fn template_kwargs(json: Option<&str>) -> Result<Map<String, Value>> {
    let Some(json) = json else { return Ok(Map::new()) };
    let wrong = |reason: String| {
        let example = r#"--template-kwargs '{"enable_thinking": false}'"#;
        Error::Usage(format!("--template-kwargs {json}: {reason}; for example {example}"))
    };
    let kwargs: Map<String, Value> =
        serde_json::from_str(json).map_err(|e| wrong(format!("not a JSON object: {e}")))?;
    match kwargs.keys().find(|k| RESERVED.contains(&k.as_str())) {
        Some(k) => Err(wrong(format!("{k:?} is what the row itself gives"))),
        None => Ok(kwargs),
    }
}

/// The end-of-sequence token that tokenizer or template name, else a usual one that the tokenizer
/// has.
fn eos_token(
    tokenizer: &TokenizerSource,
    specials: &BTreeMap<String, String>,
    template: &ChatTemplate,
) -> Option<String> {
    let named = specials.get("eos_token").map(String::as_str);
    let usual = ["<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>"];
    named
        .or_else(|| template.special("eos_token"))
        .or_else(|| first_added(tokenizer, &usual))
        .map(String::from)
}

/// The padding token that the tokenizer names, else a usual one that it has; never the mask token.
fn pad_token(
    tokenizer: &TokenizerSource,
    specials: &BTreeMap<String, String>,
    mask_token: &str,
) -> Option<String> {
    let named = specials.get("pad_token").map(String::as_str);
    let usual = ["<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>"];
    named
        .or_else(|| first_added(tokenizer, &usual))
        .filter(|token| *token != mask_token)
        .map(String::from)
}

/// The first of `tokens` that is an added token of the tokenizer.
fn first_added<'a>(tokenizer: &TokenizerSource, tokens: &[&'a str]) -> Option<&'a str> {
    let is_added = |t: &str| tokenizer.added_tokens().iter().any(|a| a.content == t);
    tokens.iter().copied().find(|t| is_added(t))
}

impl PreparePlan {
    /// What the row processors share.
    pub(crate) fn stages(&self) -> Stages<'_> {
        Stages {
            settings: &self.settings,
            tokenizer: &self.tokenizer,
            control: &self.control,
            template: &self.template,
            verbatim: self.verbatim.as_ref(),
            manifest: &self.manifest,
            inputs: &self.inputs,
        }
    }

    /// What the sink packs.
    pub(crate) fn pack_job(&self) -> PackJob<'_> {
        PackJob {
            settings: &self.settings,
            inputs: &self.inputs,
            streams: &self.streams,
            mixture: &self.mixture,
            manifest: &self.manifest,
        }
    }

    /// All local files and folders that are read for rows.
    pub(crate) fn input_paths(&self) -> impl Iterator<Item = &Path> {
        let files = self.inputs.iter().filter(|i| i.remote.is_none()).map(|i| i.path.as_path());
        self.roots.iter().map(PathBuf::as_path).chain(files)
    }

    /// Refuses an output folder of a bucket that inputs lie in.
    pub(crate) fn check_apart_from(&self, out: &BucketAddress) -> Result<()> {
        let folder = format!("{out}/");
        let lies_in = |i: &&Input| i.path.to_string_lossy().starts_with(&folder);
        match self.inputs.iter().find(lies_in) {
            Some(input) => Err(Error::Usage(format!(
                "input {} lies in the output folder {out}; nothing was changed, give another --out",
                input.path.display()
            ))),
            None => Ok(()),
        }
    }

    /// Writes the dataset's `tokenizer/` folder into `out`.
    pub(crate) fn write_tokenizer(&self, out: &Path) -> Result<()> {
        write_tokenizer(out, &self.tokenizer, &self.tokenizer_config, &self.template)
    }

    /// Lines that describe the plan: inputs, template, tokenizer, engine.
    pub(crate) fn describe(&self) -> Vec<String> {
        let m = &self.manifest;
        let bytes: u64 = self.inputs.iter().map(|i| i.bytes).sum();
        let exceptions = |v: &Verbatim| match (v.triggers.len(), v.changes_edge_whitespace) {
            (0, false) => String::new(),
            (0, true) => ", except with white space at its edges".to_string(),
            (n, false) => format!(", except with any of {n} strings"),
            (n, true) => format!(", except with any of {n} strings or white space at its edges"),
        };
        let rendering = match &self.verbatim {
            None => "every row is rendered".to_string(),
            Some(v) => format!("copies content verbatim{}", exceptions(v)),
        };
        vec![
            format!("inputs     {} files, {:.1} MB", self.inputs.len(), bytes as f64 / 1e6),
            format!("template   {}; {rendering}", m.template_source),
            format!(
                "tokenizer  {} ids; mask {} = {}, pad {} = {}, eos {} = {}",
                m.vocab_size,
                m.mask_token,
                m.mask_token_id,
                m.pad_token,
                m.pad_token_id,
                m.eos_token,
                m.eos_token_id
            ),
            format!("engine     {}", self.tokenizer.engine()),
        ]
    }
}

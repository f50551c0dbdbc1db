//! From what was typed to what will be done: inputs found, tokenizer and template loaded, ids
//! settled, engine chosen.
//!
//! In: [`args::PrepareArgs`](crate::cli::args::PrepareArgs). Out: [`PreparePlan`], all a run needs,
//! with the manifest's head filled in.

use crate::cli::args::{EngineArg, PrepareArgs, RenderArg};
use crate::config::policies::default_now;
use crate::config::recipe::Recipe;
use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::input::discover;
use crate::input::source::{self, Input};
use crate::pack::mixture::Mixture;
use crate::parse::rows::RowParser;
use crate::run::row_processor::Stages;
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::spans::SpanFinder;
use crate::template::verbatim::{self, Verbatim};
use crate::tokenize::special_tokens::{read_json, special_tokens};
use crate::tokenize::tokenizer::{Tokenizer, TokenizerSource};
use dlm_datasets::fs::write_atomic;
use dlm_datasets::hash::sha256;
use dlm_datasets::manifest::Manifest;
use serde_json::{Value, json};
use std::path::Path;

/// Texts on which the engines are compared, and their bytes in all.
const SAMPLE_TEXTS: usize = 128;
const SAMPLE_BYTES: usize = 96 << 10;
/// Texts that have told engines apart before.
const TRAPS: [&str; 8] = [
    "  leading,\ttabs\r\nand\u{a0}spaces   \n\n\n  x",
    "naïve café e\u{301} Å ﬁ 你好 नमस्ते مرحبا 👩🏽\u{200d}🚀 \u{202e}rtl",
    "it's we'll I'M 'Tis don''t",
    "1234567890 3.14 1,000,000 ⅷ ²",
    "\u{0}\u{4}\u{6}\u{13}\u{14}\u{16}\u{1d}\u{7f}\u{85}\u{feff}",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}\n\n\n# ====",
    "<|im_start|>user\n<|im_end|><|endoftext|><|eot_id|></s>|<MASK>|<think>\n</think>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                        =========",
];

/// All a run needs.
pub struct PreparePlan {
    /// Choices.
    pub settings: Settings,
    /// Files.
    pub inputs: Vec<Input>,
    /// Template.
    pub template: ChatTemplate,
    /// Tokenizer, on the engine chosen.
    pub tokenizer: Tokenizer,
    /// Control tokens.
    pub control: ControlTokens,
    /// When rows need no render.
    pub linear: Option<Verbatim>,
    /// One range of inputs per source of the recipe.
    pub streams: Vec<std::ops::Range<usize>>,
    /// Which source comes next.
    pub mixture: Mixture,
    /// Head of the manifest.
    pub manifest: Manifest,
    /// `tokenizer_config.json` for the dataset.
    pub tokenizer_config: Value,
}

/// The choices typed.
pub fn settings(b: &PrepareArgs) -> Result<Settings> {
    let shard =
        match b.shard.as_deref().map(|s| s.split_once('/').map(|(i, n)| (i.parse(), n.parse()))) {
            None => None,
            Some(Some((Ok(i), Ok(n)))) => Some((i, n)),
            Some(_) => {
                return Err(Error::Usage(format!(
                    "--shard {:?}: expected I/N, for example 0/4",
                    b.shard.as_deref().unwrap_or("")
                )));
            }
        };
    let s = Settings {
        seq_len: b.seq_len,
        bd_size: b.bd_size,
        padding: b.padding.into(),
        alignment: b.alignment.into(),
        loss_on: b.loss_on.into(),
        over_long: b.over_long,
        split_context: b.split_context,
        special_text: b.special_text.into(),
        lost_text: b.lost_text.into(),
        mask_token: b.mask_token.clone(),
        now: time(b.now.as_deref())?.to_string(),
        pack_window: b.pack_window,
        shard_rows: b.shard_rows,
        eval_fraction: b.eval_fraction,
        dedup: b.dedup,
        max_tokens: b.max_tokens,
        max_response_tokens: b.max_response_tokens,
        max_rows: b.max_rows,
        shard,
        max_unsupervised: b.max_unsupervised,
        seed: b.seed,
    };
    s.check()?;
    Ok(s)
}

/// A time as typed, or the fixed one.
pub fn time(text: Option<&str>) -> Result<jiff::civil::DateTime> {
    match text {
        None => Ok(default_now()),
        Some(t) => t.parse().map_err(|e| {
            Error::Usage(format!("--now {t:?}: expected a time like 2025-07-10T12:00:00 ({e})"))
        }),
    }
}

/// Finds, loads and settles.
pub fn plan(b: &PrepareArgs) -> Result<PreparePlan> {
    let recipe = b.recipe.as_deref().map(Recipe::load).transpose()?;
    let typed = settings(b)?;
    let settings = match &recipe {
        Some(r) => r.settings(typed)?,
        None => typed,
    };
    let mixture = match &recipe {
        Some(r) => Mixture::new(r, settings.max_tokens)?,
        None => Mixture::single(),
    };
    let dir = b.tokenizer.as_deref().ok_or_else(|| Error::Usage("no --tokenizer".to_string()))?;
    let dir = crate::input::hub::model::tokenizer(dir)?;
    let dir = dir.as_path();
    let found = discover::find(b, recipe.as_ref())?;
    let (inputs, streams) = (found.files, found.streams);
    let now = time(Some(&settings.now))?;
    let mut tok = TokenizerSource::read(dir)?;
    let mut specials = special_tokens(dir)?;
    let template = match &b.template {
        Some(name) => ChatTemplate::named(name, specials.clone(), now)?,
        None => ChatTemplate::load_at(dir, now)?,
    };
    let mask_id = tok.ensure_token(&settings.mask_token)?;
    let bad = |reason: String| Error::Tokenizer { path: dir.to_path_buf(), reason };
    let known = |t: &str| tok.added_tokens().iter().any(|a| a.content == t);
    let eos = specials
        .get("eos_token")
        .cloned()
        .or_else(|| template.special("eos_token").map(String::from));
    let eos = eos.or_else(|| {
        ["<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>"]
            .iter()
            .find(|t| known(t))
            .map(|t| t.to_string())
    });
    let eos = eos.ok_or_else(|| {
        bad("names no eos_token; add one to its tokenizer_config.json".to_string())
    })?;
    let pad = specials.get("pad_token").cloned();
    let pad = pad.or_else(|| {
        ["<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>"]
            .iter()
            .find(|t| known(t))
            .map(|t| t.to_string())
    });
    let pad = pad.filter(|p| *p != settings.mask_token).unwrap_or_else(|| eos.clone());
    specials.insert("eos_token".to_string(), eos.clone());
    specials.insert("pad_token".to_string(), pad.clone());
    // Everything that needs no tokenizer is done while the engines load.
    let look = |sampled: bool| -> Result<_> {
        let mut control = ControlTokens::new(tok.added_tokens(), Some(&eos))?;
        let mut linear = None;
        if b.render == RenderArg::Auto && !template.has_generation() {
            let mut spans =
                SpanFinder::new(&template, &control, settings.special_text, settings.lost_text);
            linear = verbatim::probe(&template, &mut |m| spans.fill(m));
        }
        if let Some(l) = &linear {
            control = ControlTokens::with_triggers(tok.added_tokens(), Some(&eos), &l.triggers)?;
        }
        let texts =
            if sampled { sample(&inputs, &template, &control, &settings) } else { Vec::new() };
        Ok((texts, (control, linear)))
    };
    let (tokenizer, (control, linear)) = match b.engine {
        EngineArg::Auto => tok.choose(|| look(true))?,
        EngineArg::Fast => (
            tok.fast()
                .map_err(|e| bad(format!("the fast engine refuses it: {e}; use --engine auto")))?,
            look(false)?.1,
        ),
        EngineArg::Stable => {
            (tok.stable("stable (tokenizers 0.23.2), as asked".to_string())?, look(false)?.1)
        }
    };
    let id = |what: &str, token: &str| {
        tokenizer
            .id_of(token)
            .map(|i| i as i32)
            .ok_or_else(|| bad(format!("has no token {token:?}, which it names as {what}")))
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
    if let Some(r) = &recipe {
        m.recipe["mixture"] = r.described();
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
    let tokenizer_config =
        config(dir, &specials, template.source(), &settings.mask_token, mask_id)?;
    Ok(PreparePlan {
        settings,
        inputs,
        template,
        tokenizer,
        control,
        linear,
        streams,
        mixture,
        manifest: m,
        tokenizer_config,
    })
}

/// Rendered texts of the first rows of the inputs, for comparing engines.
fn sample(
    inputs: &[Input],
    template: &ChatTemplate,
    control: &ControlTokens,
    settings: &Settings,
) -> Vec<String> {
    let mut out: Vec<String> = TRAPS.iter().map(|t| t.to_string()).collect();
    let mut spans = SpanFinder::new(template, control, settings.special_text, settings.lost_text);
    let step = inputs.len().div_ceil(8).max(1);
    let each = SAMPLE_TEXTS / inputs.len().clamp(1, 8);
    let mut bytes = 0;
    // Of remote files only the first is waited for.
    let here =
        inputs.iter().enumerate().filter(|(k, i)| *k == 0 || i.remote.is_none()).map(|(_, i)| i);
    for input in here.step_by(step) {
        // Whatever cannot be read here is reported by the run itself.
        let Some(Ok(batch)) = source::open(input, 0).ok().and_then(|mut b| b.next()) else {
            continue;
        };
        let rows = RowParser::new(&batch, &input.columns);
        for i in 0..batch.len().min(each) {
            let Ok(c) = rows.parse(i, Vec::new()).conversation else {
                continue;
            };
            let Ok(r) = spans.render(&c) else { continue };
            if bytes + r.text.len() <= SAMPLE_BYTES {
                bytes += r.text.len();
                out.push(r.text);
            }
        }
    }
    out
}

/// The source's tokenizer_config.json with the template used and the mask token in it.
fn config(
    dir: &Path,
    specials: &std::collections::BTreeMap<String, String>,
    template: &str,
    mask: &str,
    mask_id: u32,
) -> Result<Value> {
    let mut v = read_json(&dir.join("tokenizer_config.json"))?
        .unwrap_or_else(|| json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false}));
    if !v.is_object() {
        return Err(Error::Tokenizer {
            path: dir.to_path_buf(),
            reason: "its tokenizer_config.json is no JSON object".to_string(),
        });
    }
    for (name, token) in specials {
        if v.get(name).is_none_or(Value::is_null) {
            v[name] = json!(token);
        }
    }
    v["chat_template"] = json!(template);
    let token = json!({"content": mask, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    if let Some(Value::Object(added)) = v.get_mut("added_tokens_decoder") {
        added.insert(mask_id.to_string(), token);
    }
    Ok(v)
}

impl PreparePlan {
    /// What the stages of a run share.
    pub fn stages(&self) -> Stages<'_> {
        Stages {
            settings: &self.settings,
            tokenizer: &self.tokenizer,
            control: &self.control,
            template: &self.template,
            linear: self.linear.as_ref(),
            manifest: &self.manifest,
            inputs: &self.inputs,
        }
    }

    /// Writes the dataset's `tokenizer/` folder.
    pub fn write_tokenizer(&self, out: &Path) -> Result<()> {
        let dir = out.join("tokenizer");
        std::fs::create_dir_all(&dir).map_err(Error::io("making", &dir))?;
        write_atomic(&dir.join("tokenizer.json"), self.tokenizer.json().as_bytes())?;
        let config = serde_json::to_string_pretty(&self.tokenizer_config)
            .map_err(|e| Error::Internal(e.to_string()))?;
        write_atomic(&dir.join("tokenizer_config.json"), (config + "\n").as_bytes())?;
        Ok(write_atomic(&dir.join("chat_template.jinja"), self.template.source().as_bytes())?)
    }
}

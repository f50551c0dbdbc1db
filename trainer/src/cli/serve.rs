//! `dlm-train serve`: an OpenAI-compatible server (docs/serve.md).
//!
//! In: a model and limits. Out: HTTP; on stdout the address, on stderr lines for people. The key of
//! the clients comes from the environment variable DLM_API_KEY only, so that it stands in no
//! process list.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::generate::{stop_token_ids, template_kwargs};
use super::place::PlaceArgs;
use crate::decode::generate_options::ModeOptions;
use crate::error::{Error, Result};
use crate::generate::{DecodeMode, GenerateOptions, ModelFiles};
use crate::report::console;
use crate::serve::options::{ApiKey, Limits};
use crate::serve::{Settings, serve};

/// Environment variable with the clients' key.
const KEY: &str = "DLM_API_KEY";

/// Arguments of `dlm-train serve` as typed.
#[derive(Args, Debug)]
pub(super) struct ServeArgs {
    /// Model: a Hugging Face folder, hf://ORG/NAME[@REV], or ORG/NAME.
    #[arg(long)]
    pub model: PathBuf,
    /// Folder of an adapter (LoRA) of the model, as export.lora=adapter or peft writes it.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Name of the model for clients [default: the folder's name, or ORG/NAME].
    #[arg(long, value_name = "NAME")]
    pub served_name: Option<String>,
    /// Address or name to listen at; another one than the default can be reached from other
    /// machines.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port; 0 takes a free one, which is printed.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Rows decoded together; each gets the tokens it would get alone.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub slots: usize,
    /// Rows that may wait for a slot; one more is answered with 429.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_queue: usize,
    /// Positions of a row, prompt and answer together [default: what config.json has].
    #[arg(long, value_name = "N")]
    pub positions: Option<usize>,
    /// Tokens of an answer whose request names no limit.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Most tokens that a request may ask for.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_tokens: usize,
    /// Most bytes of a request body.
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 20)]
    pub max_body: usize,
    /// Most connections at once.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_connections: usize,
    /// Seconds that a request may take from its body to the end of its answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    pub request_seconds: f64,
    /// Seconds for the header of a request, and for the next request of a connection.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub header_seconds: f64,
    /// Seconds for the body of a request.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub body_seconds: f64,
    /// Seconds that a client may refuse to take bytes of its answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub write_seconds: f64,
    /// Seconds that live requests have after SIGTERM or SIGINT; a second signal ends them.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub grace: f64,
    /// Temperature of a request that names neither temperature nor top_p nor top_k; 0 takes the
    /// most probable token.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// How to decode where the request does not say [default: block; verify with an adapter that
    /// proposes at mask tokens].
    #[arg(long, value_enum)]
    pub mode: Option<DecodeMode>,
    /// Fix every token whose probability is above this [default: 0.95].
    #[arg(long)]
    pub threshold: Option<f64>,
    /// Tokens per block [default: the model folder's bd_size, else 32].
    #[arg(long, value_name = "N")]
    pub block_size: Option<usize>,
    /// Tokens per sub-block [default: 8, or the block where 8 does not divide it].
    #[arg(long, value_name = "N")]
    pub sub_block_size: Option<usize>,
    /// Run single sub-blocks where keys and values of the rest of the block are known: faster in
    /// large batches, approximate.
    #[arg(long)]
    pub sub_block_cache: bool,
    /// Verify mode: tokens of a pass beside the last decided one, at most [default: 7].
    #[arg(long, value_name = "N")]
    pub propose: Option<usize>,
    /// Variables of the chat template as a JSON object; a request's own ones come first.
    #[arg(long, value_name = "JSON")]
    pub template_kwargs: Option<String>,
    /// Id of the mask token [default: the model folder's].
    #[arg(long, value_name = "ID")]
    pub mask_token_id: Option<i64>,
    /// Id that ends an answer, may be given more than once, or `none` [default: the model
    /// folder's].
    #[arg(long, value_name = "ID|none")]
    pub stop_token_id: Vec<String>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Serves until a signal. The call is checked before the weights are read.
pub(super) fn run(args: &ServeArgs) -> Result<bool> {
    let address = address(&args.host, args.port)?;
    let key = key()?;
    let is_loopback = address.ip().is_loopback();
    if key.is_none() && !is_loopback {
        console::message(format_args!(
            "warning: everybody who reaches {} may use this server; set {KEY} to a secret",
            address.ip()
        ));
    }
    let mut decoding = decoding(args)?;
    let limits = limits(args)?;
    for (name, count) in [
        ("--slots", args.slots),
        ("--max-new-tokens", args.max_new_tokens),
        ("--max-tokens", args.max_tokens),
        ("--max-connections", args.max_connections),
    ] {
        if count == 0 {
            return Err(Error::Usage(format!("{name} 0: expected 1 or more")));
        }
    }
    if !(0.0..=2.0).contains(&args.temperature) {
        return Err(Error::Usage(format!(
            "--temperature {}: expected a number from 0 to 2",
            args.temperature
        )));
    }
    let files = ModelFiles::open_adapted(&args.model, args.adapter.as_deref())?;
    decoding.mode = args.mode.unwrap_or(files.usual_mode());
    mode_options(args).check(&files.modes(&decoding))?;
    let positions = positions(args.positions, files.positions())?;
    for warning in files.warnings(&[], &decoding).into_iter().chain(files.other_source()) {
        console::message(format_args!("warning: {warning}"));
    }
    let settings = Settings {
        name: args.served_name.clone().unwrap_or_else(|| name_of(args)),
        slots: args.slots,
        positions,
        decoding,
        limits,
        key,
        is_loopback,
    };
    serve(files, &args.place.options(), address, settings)?;
    Ok(true)
}

/// The first address of a host.
fn address(host: &str, port: u16) -> Result<SocketAddr> {
    let wrong = |why: String| {
        Error::Usage(format!("--host {host}: {why}; expected an address of this machine"))
    };
    let name = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    let mut found = (name, port).to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("no such host".into()))
}

/// The clients' key of the environment.
fn key() -> Result<Option<ApiKey>> {
    match std::env::var_os(KEY) {
        None => Ok(None),
        Some(key) => ApiKey::new(key.to_str().unwrap_or_default()).map(Some),
    }
}

/// The last part of a folder's path; the name of a hub's model as it is.
fn name_of(args: &ServeArgs) -> String {
    let whole = args.model.display().to_string();
    if !args.model.exists() {
        let name = whole.trim_start_matches("hf://");
        return name.split('@').next().unwrap_or(name).to_string();
    }
    let path = std::fs::canonicalize(&args.model).unwrap_or_else(|_| args.model.clone());
    path.file_name().map_or(whole, |name| name.to_string_lossy().into_owned())
}

fn decoding(args: &ServeArgs) -> Result<GenerateOptions> {
    let usual = GenerateOptions::default();
    let mode = args.mode.unwrap_or(usual.mode);
    Ok(GenerateOptions {
        mode,
        template_kwargs: template_kwargs(args.template_kwargs.as_deref())?,
        threshold: args.threshold.unwrap_or(usual.threshold),
        block_size: args.block_size,
        sub_block_size: args.sub_block_size,
        sub_block_cache: args.sub_block_cache,
        propose: args.propose,
        max_new_tokens: args.max_new_tokens,
        mask_token_id: args.mask_token_id,
        stop_token_ids: stop_token_ids(&args.stop_token_id)?,
        temperature: args.temperature,
        ..usual
    })
}

/// The options that one mode alone reads.
fn mode_options(args: &ServeArgs) -> ModeOptions {
    let of_blocks = [
        ("--threshold", args.threshold.is_some()),
        ("--block-size", args.block_size.is_some()),
        ("--sub-block-size", args.sub_block_size.is_some()),
        ("--sub-block-cache", args.sub_block_cache),
    ];
    ModeOptions::default()
        .of(DecodeMode::Block, &of_blocks)
        .of(DecodeMode::Verify, &[("--propose", args.propose.is_some())])
}

fn limits(args: &ServeArgs) -> Result<Limits> {
    let seconds = |name: &str, seconds: f64| {
        let time = Duration::try_from_secs_f64(seconds).ok();
        // longer than a year is a slip, and a clock may overflow
        time.filter(|time| *time <= Duration::from_secs(365 * 86_400)).ok_or_else(|| {
            Error::Usage(format!("{name} {seconds}: expected a number of seconds, at most a year"))
        })
    };
    Ok(Limits {
        body_bytes: args.max_body,
        max_tokens: args.max_tokens,
        queue: args.max_queue,
        request: seconds("--request-seconds", args.request_seconds)?,
        connections: args.max_connections,
        header: seconds("--header-seconds", args.header_seconds)?,
        body: seconds("--body-seconds", args.body_seconds)?,
        write: seconds("--write-seconds", args.write_seconds)?,
        grace: seconds("--grace", args.grace)?,
    })
}

/// Positions of a row: no more than the model has.
fn positions(typed: Option<usize>, has: usize) -> Result<usize> {
    match typed {
        Some(typed) if typed == 0 || typed > has => {
            Err(Error::Usage(format!("--positions {typed}: the model has positions 1 to {has}")))
        }
        typed => Ok(typed.unwrap_or(has)),
    }
}

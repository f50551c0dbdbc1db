//! `dlm-train serve`: an OpenAI-compatible server in front of one model (docs/serve.md).
//!
//! In: HTTP requests. Out: completions. The requests are read, checked and encoded here (`call.rs`,
//! `prepare.rs`), one thread owns the model and decodes the rows of all requests as one continuous
//! batch (`schedule.rs`), and what it decides reaches a request through its outbox (`outbox.rs`).
//! `connections.rs` bounds what a client may take, `http.rs` has the addresses.

mod answer;
mod call;
mod connections;
mod fields;
mod http;
mod metrics;
pub(crate) mod options;
mod outbox;
mod prepare;
mod refusal;
mod schedule;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod text;
mod ticket;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::generate::{ModelFiles, ModelOptions};
use crate::report::console;
use crate::train::stop_signal::is_ignored;
use refusal::Refusal;
use schedule::{Command, ModelRows, Rows};
use server::Server;
pub(crate) use server::Settings;

/// How long after the grace the step under way and the refusals that follow it may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Loads the model, listens at `address` and serves until a signal. The address is printed on
/// stdout when the server is ready.
///
/// # Errors
/// Those of loading a model; [`Error::Usage`] for a model without a tokenizer and an address that
/// cannot be listened at; [`Error::Interrupted`] where requests were cut off at the end.
pub(crate) fn serve(
    files: ModelFiles,
    place: &ModelOptions,
    address: SocketAddr,
    settings: Settings,
) -> Result<()> {
    files.codec()?;
    // what a request gets that says nothing must be possible
    files.request(&settings.decoding)?;
    let listener = TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| {
            Error::Usage(format!(
                "listening at {address} failed: {error}; choose another one with --host and --port"
            ))
        })?;
    // a row is decoded in whole blocks, and one block more than its answer may need
    let longest = settings.positions.saturating_add(2 * files.block_size(&settings.decoding));
    let (slots, place) = (settings.slots, place.clone());
    let load = move |server: &Server| {
        let (engine, device) = server.files.engine(&place)?;
        console::message(format_args!("{} is on {device}", server.settings.name));
        Ok(ModelRows::new(engine, slots, longest))
    };
    let is_ready =
        |address| console::result(format_args!("listening on http://{address}")).map(drop);
    run(files, listener, settings, load, signals, is_ready)
}

/// Serves with what `load` loads, on the thread that then decodes. Each message of `signals` is a
/// wish that the server stops.
fn run<R: Rows>(
    files: ModelFiles,
    listener: TcpListener,
    settings: Settings,
    load: impl FnOnce(&Server) -> Result<R> + Send + 'static,
    signals: impl FnOnce() -> Result<mpsc::Receiver<()>>,
    is_ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let (server, commands) = Server::new(files, settings);
    let model = model_thread(server.clone(), commands, load)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(failed)?;
    let commands = server.commands.clone();
    let ended = runtime.block_on(async {
        let signals = signals()?;
        until_stopped(server, listener, signals, is_ready).await
    });
    // a task that still encodes is not waited for
    runtime.shutdown_background();
    drop(commands.send(Command::EndAll(Refusal::stopping())));
    if let Ok(true) = ended {
        drop(model.join());
    }
    match ended? {
        true => Ok(()),
        false => Err(Error::Interrupted("requests were cut off by the end of the server".into())),
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::Device(format!("serving failed: {error}"))
}

/// A message for each SIGTERM, SIGINT and SIGHUP. A signal that this process was started to ignore,
/// as SIGHUP under nohup, stays ignored.
fn signals() -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(8);
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        if is_ignored(kind.as_raw_value()) {
            continue;
        }
        let (mut signals, sender) = (signal(kind).map_err(failed)?, sender.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                // one that finds no room says nothing new
                let _ = sender.try_send(());
            }
        });
    }
    // held, so that a receiver without senders does not look like a signal
    tokio::spawn(async move { sender.closed().await });
    Ok(receiver)
}

/// Starts the thread that owns the model, and waits until it has loaded it: what runs on a GPU does
/// not move from one thread to another.
fn model_thread<R: Rows>(
    server: Arc<Server>,
    commands: Receiver<Command>,
    load: impl FnOnce(&Server) -> Result<R> + Send + 'static,
) -> Result<std::thread::JoinHandle<()>> {
    let codec = server.files.codec()?.clone();
    let (is_loaded, loaded) = crossbeam_channel::bounded(1);
    let run = move || {
        let rows = match load(&server) {
            Ok(rows) => rows,
            Err(error) => return drop(is_loaded.send(Err(error))),
        };
        drop(is_loaded.send(Ok(())));
        let metrics = server.metrics.clone();
        // the server holds the sender of the commands, whose end ends this thread
        drop(server);
        let run = || schedule::run(rows, &commands, codec, &metrics);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            metrics.fails("the model's thread has ended; the server must be started again".into());
        }
    };
    let thread = std::thread::Builder::new()
        .name("model".into())
        .spawn(run)
        .map_err(|error| Error::Device(format!("starting a thread failed: {error}")))?;
    match loaded.recv() {
        Ok(loaded) => loaded.map(|()| thread),
        Err(_) => Err(Error::Device("loading the model failed; see above".into())),
    }
}

/// Serves until a signal and then for as long as the live requests take, at most the grace. A
/// second signal ends the grace. Returns whether every request was answered.
async fn until_stopped(
    server: Arc<Server>,
    listener: TcpListener,
    mut signals: mpsc::Receiver<()>,
    is_ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<bool> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let router = http::router(server.clone());
    let served = connections::serve(listener, router, server.clone(), server.stop.subscribe());
    let mut served = std::pin::pin!(served);
    is_ready(address)?;
    tokio::select! {
        () = &mut served => return Ok(true),
        _ = signals.recv() => {}
    }
    let grace = server.settings.limits.grace;
    console::message(format_args!(
        "stopping: live requests have {} s; a second signal ends them",
        grace.as_secs_f64()
    ));
    server.stop.send_replace(true);
    let whole = tokio::select! {
        () = &mut served => true,
        () = tokio::time::sleep(grace) => false,
        _ = signals.recv() => false,
    };
    if !whole {
        drop(server.commands.send(Command::EndAll(Refusal::stopping())));
        tokio::select! {
            () = &mut served => {}
            () = tokio::time::sleep(LAST_WORDS) => {}
            _ = signals.recv() => {}
        }
    }
    Ok(whole)
}

//! Connections: how many there may be, and how long they may take.
//!
//! In: a listening socket. Out: HTTP/1.1 on every connection, with a limit on the time for a header
//! and on the time that a client refuses to take bytes. After a stop signal nobody is let in any
//! more, idle connections are closed and the others end with their answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use super::refusal::Refusal;
use super::server::Server;

/// Bytes of a header, and of an answer that was not sent yet, that a connection holds.
const BUFFER: usize = 64 << 10;

/// Accepts connections until `stop` turns true, then waits for those that are open.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    server: Arc<Server>,
    mut stop: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    let open = Arc::new(AtomicUsize::new(0));
    while !*stop.borrow() {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => continue,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(_) => {
                // as when this process has too many files open: some of them will be closed
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if open.load(Ordering::Acquire) >= server.settings.limits.connections {
            turn_away(&stream);
            continue;
        }
        let entered = Open::enter(&open, &server);
        tasks.spawn(connection(stream, router.clone(), server.clone(), stop.clone(), entered));
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// Counts a connection for as long as it lives.
struct Open(Arc<AtomicUsize>, Arc<Server>);

impl Open {
    fn enter(open: &Arc<AtomicUsize>, server: &Arc<Server>) -> Self {
        server.metrics.set_connections(open.fetch_add(1, Ordering::AcqRel) + 1);
        Open(open.clone(), server.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.1.metrics.set_connections(self.0.fetch_sub(1, Ordering::AcqRel) - 1);
    }
}

/// Answers 503 without reading anything. A new socket takes so few bytes at once.
fn turn_away(stream: &TcpStream) {
    let refusal = Refusal::new(
        axum::http::StatusCode::SERVICE_UNAVAILABLE,
        "too_many_connections",
        "too many connections; ask again later",
    );
    let body = refusal.body().to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    drop(stream.try_write(answer.as_bytes()));
}

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    router: Router,
    server: Arc<Server>,
    mut stop: watch::Receiver<bool>,
    _open: Open,
) {
    drop(stream.set_nodelay(true));
    let limits = &server.settings.limits;
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Patient::new(stream, limits.write)), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // whatever went wrong, the client is gone or spoke no HTTP
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(connection.await);
}

/// A socket that gives up when the other side takes no byte for too long.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Patient { stream, patience, waiting: None }
    }

    /// Starts the clock where `polled` waits, and stops it where it does not.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

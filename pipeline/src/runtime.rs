//! The one thread of this process that waits for sockets and timers: the hub's client and the
//! buckets' client both work on it.
//!
//! In: a future. Out: its result, on the thread that asked for it. That thread polls the future;
//! connections, name lookups and timers live on a runtime with one worker, started by the first
//! call. A caller may itself be a thread of another tokio runtime: tokio's own `block_on` panics
//! there, this one waits.

use crate::error::{Error, Result};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use tokio::runtime::{Builder, Handle};

/// The handle of the runtime, which is started by the first call.
///
/// # Errors
/// [`Error::Remote`] if the system gives no thread or no socket poller; a later call does not try
/// again.
pub(crate) fn runtime() -> Result<&'static Handle> {
    static RUNTIME: OnceLock<std::result::Result<Handle, String>> = OnceLock::new();
    let handle = RUNTIME.get_or_init(|| {
        let (started, handle) = mpsc::channel();
        let work = move || match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = started.send(Ok(runtime.handle().clone()));
                runtime.block_on(std::future::pending::<()>());
            }
            Err(e) => {
                let _ = started.send(Err(e));
            }
        };
        thread::Builder::new()
            .name("network".to_string())
            .spawn(work)
            .and_then(|_| handle.recv().map_err(std::io::Error::other)?)
            .map_err(|e| format!("starting the thread for network connections: {e}"))
    });
    handle.as_ref().map_err(|why| Error::Remote(why.clone()))
}

/// Waits for `future`, polled by the calling thread. What the future needs of the runtime (timers,
/// sockets, tasks) is made inside it: an `async` block, not its arguments.
///
/// # Errors
/// As [`runtime`].
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let _entered = runtime()?.enter();
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return Ok(output),
            Poll::Pending => thread::park(),
        }
    }
}

/// Wakes a thread that waits in [`block_on`].
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::Duration;
    use tokio::net::TcpListener;

    async fn first_byte(listener: TcpListener) -> std::io::Result<u8> {
        let (stream, _) = listener.accept().await?;
        let mut byte = [0];
        loop {
            stream.readable().await?;
            match stream.try_read(&mut byte) {
                Ok(_) => return Ok(byte[0]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Many threads wait at once, for timers, tasks and sockets, and all are served by one thread.
    #[test]
    fn threads_wait_side_by_side() {
        let names = thread::scope(|s| {
            let ask = |k: u64| {
                block_on(async move {
                    tokio::time::sleep(Duration::from_millis(k % 3)).await;
                    tokio::spawn(async { thread::current().id() }).await.unwrap()
                })
                .unwrap()
            };
            let threads: Vec<_> = (0..16).map(|k| s.spawn(move || ask(k))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(names.iter().all(|n| *n == names[0] && *n != thread::current().id()), "{names:?}");
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(&[7]).unwrap();
            stream.read(&mut [0]).unwrap()
        });
        assert_eq!(block_on(first_byte(listener)).unwrap().unwrap(), 7);
        assert_eq!(client.join().unwrap(), 0);
    }

    /// A program with a runtime of its own may call this library from it.
    #[test]
    fn inside_another_runtime() {
        let other = Builder::new_current_thread().build().unwrap();
        let sleep = async { tokio::time::sleep(Duration::from_millis(1)).await };
        assert!(other.block_on(async { block_on(sleep) }).is_ok());
    }
}

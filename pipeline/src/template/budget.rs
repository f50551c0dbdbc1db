//! The fuel of renders, over all renders of a row, and threads with a known stack.
//!
//! One render of a template has a limit of its own (minijinja's fuel). Locating the turns of a row
//! takes several renders, so a row has an [`Account`] too, from which each render on its thread is
//! paid.

use crate::panics::caught;
use crate::template::limits::{FAILED_RENDER, FUEL, RENDER_STACK};
use minijinja::{Error, ErrorKind, State};
use std::cell::Cell;
use std::thread::{Builder, Scope, ScopedJoinHandle};

thread_local! {
    /// Fuel left for the renders of this thread; none where no account is open.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    /// Fuel that the current render has used, as far as it was noted.
    static NOTED: Cell<u64> = const { Cell::new(0) };
    /// Whether this thread was started with the stack that a render needs.
    static KNOWN_STACK: Cell<bool> = const { Cell::new(false) };
}

/// Fuel for several renders of this thread; the account before it is valid again when it is
/// dropped.
pub(crate) struct Account {
    before: Option<u64>,
}

impl Account {
    /// An account with the fuel of `renders` full renders.
    pub(crate) fn open(renders: u64) -> Self {
        Account { before: LEFT.replace(Some(renders * FUEL)) }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        LEFT.set(self.before);
    }
}

/// Notes how much fuel a render has used so far, in case that it fails.
pub(crate) fn note(state: &State) {
    if let Some((used, _)) = state.fuel_levels() {
        NOTED.set(used);
    }
}

/// Runs a render with `fuel`, which is paid from this thread's account. `render` returns what it
/// made and the fuel that it used.
pub(crate) fn paid<T: Send>(
    fuel: u64,
    render: impl FnOnce() -> Result<(T, u64), Error> + Send,
) -> Result<T, Error> {
    // Large conversations have more fuel; one account is meant for conversations of any size.
    let scale = fuel.div_ceil(FUEL).max(1);
    let left = LEFT.get();
    if left == Some(0) {
        return Err(Error::from(ErrorKind::OutOfFuel));
    }
    let (result, noted) = on_known_stack(RENDER_STACK, move || {
        NOTED.set(0);
        let result = caught(render).unwrap_or_else(|text| {
            let reason = format!("the template asks for what cannot be written ({text})");
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        (result, NOTED.get())
    })
    .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "no memory for another thread"))?;
    let used = match &result {
        Ok((_, used)) => *used,
        Err(e) if e.kind() == ErrorKind::OutOfFuel => fuel,
        Err(_) => noted.max(FUEL / FAILED_RENDER),
    };
    if let Some(left) = left {
        LEFT.set(Some(left.saturating_sub(used / scale)));
    }
    result.map(|r| r.0)
}

/// Starts a thread of `scope` on which templates can be rendered without further threads.
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    f: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().stack_size(RENDER_STACK).spawn_scoped(scope, || {
        KNOWN_STACK.set(true);
        f()
    })
}

/// Calls `f` on a thread whose stack has at least `bytes`; none if there is no memory for one. A
/// panic goes on in the caller.
pub(crate) fn on_known_stack<T: Send>(bytes: usize, f: impl FnOnce() -> T + Send) -> Option<T> {
    if bytes <= RENDER_STACK && KNOWN_STACK.get() {
        return Some(f());
    }
    std::thread::scope(|scope| {
        let thread = Builder::new().stack_size(bytes).spawn_scoped(scope, || {
            KNOWN_STACK.set(true);
            f()
        });
        let result = thread.ok()?.join();
        Some(result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

//! Calls into the tokenizer engines, whose panics become errors.
//!
//! The engines are other people's code and a `tokenizer.json` is foreign data: some damaged files
//! make them panic. Such a panic prints nothing and ends only the call.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside [`guarded`].
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// The result of `call`, or what it panicked with.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> std::result::Result<T, String> {
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !INSIDE.get() {
                before(panic);
            }
        }));
    });
    let outer = INSIDE.replace(true);
    // What the call could leave half changed is a cache of an engine, and the error that it becomes
    // ends the use of the text or of the engine.
    let result = catch_unwind(AssertUnwindSafe(call));
    INSIDE.set(outer);
    result.map_err(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        format!("it panicked: {}", message.unwrap_or("without a message"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(guarded(|| 3), Ok(3));
        let index = 7;
        let error = guarded(|| [1, 2, 3][index]).unwrap_err();
        assert!(error.contains("index out of bounds"), "{error}");
        assert!(!INSIDE.get());
    }
}

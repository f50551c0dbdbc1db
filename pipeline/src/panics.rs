//! Panics of other people's code, which become messages.
//!
//! Decoders, tokenizer engines and the template engine are given foreign data, and some damaged
//! files make them panic. In: a call. Out: its result, or what it panicked with; nothing is printed
//! and only the call ends. What it could leave half changed is a cache of the callee, so callers
//! must not use for other input what has panicked.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is about to become a message.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The result of `call`, or what it panicked with.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                others(panic);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(outer);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason").to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message_and_others_are_printed_as_before() {
        assert_eq!(caught(|| 3), Ok(3));
        let index = 7;
        let message = caught(|| [1, 2, 3][index]).unwrap_err();
        assert!(message.contains("index out of bounds"), "{message}");
        assert_eq!(caught(|| caught(|| panic!("inner"))), Ok(Err::<(), _>("inner".to_string())));
        assert!(!QUIET.get());
    }
}

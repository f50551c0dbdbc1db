//! Checking a finished dataset.

use crate::Result;
use dlm_datasets::{Dataset, verify};
use serde_json::json;
use std::path::Path;

/// Checks `dir` and says what was found.
pub fn run(dir: &Path, as_json: bool) -> Result<()> {
    let ds = Dataset::open(dir)?;
    let r = verify::check_dataset(&ds)?;
    let t = r.totals;
    if as_json {
        println!(
            "{}",
            json!({"ok": true, "train_rows": r.train_rows, "eval_rows": r.eval_rows, "documents": t.documents, "tokens": t.tokens,
                "response_tokens": t.response_tokens, "block_padding": t.block_padding, "row_padding": t.row_padding, "bytes": r.bytes,
                "zero_copy": ds.is_zero_copy(), "fingerprint": ds.fingerprint()})
        );
    } else {
        println!(
            "ok: {} train and {} eval rows, {} documents, {} tokens ({} with loss), {} bytes hashed; every invariant and every total holds",
            r.train_rows, r.eval_rows, t.documents, t.tokens, t.response_tokens, r.bytes
        );
    }
    Ok(())
}

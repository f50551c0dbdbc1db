//! The packed dataset format shared by dlm-prep and dlm-train.
//!
//! A dataset is a folder: `manifest.json`, `train-00000.arrow …`, optional `eval-00000.arrow …`,
//! `tokenizer/`. dlm-prep writes it through [`writer`]; dlm-train maps it with [`reader`] and walks
//! it in [`order`].
//!
//! ```text
//! schema ── what a row is          writer ── rows → Arrow files → manifest (last)
//! manifest ─ what the folder says  reader ── folder → rows, mapped, nothing copied
//! order ──── (seed, epoch) → row   verify ── the invariants, row by row and for the whole folder
//! ```

pub mod chart;
pub mod error;
pub mod fs;
pub mod hash;
pub mod html;
pub mod manifest;
pub mod mask;
pub mod order;
pub mod reader;
pub mod rng;
pub mod schema;
pub mod verify;
pub mod writer;

pub use error::Error;
pub use manifest::{Manifest, Split};
pub use order::RowOrder;
pub use reader::{Dataset, Document, Row, SplitView};

/// The label of a position that carries no loss.
pub const IGNORE: i32 = -100;

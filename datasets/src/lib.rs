//! The packed dataset format shared by dlm-prep and dlm-train, and the small tools both programs
//! need.
//!
//! A dataset is a folder with `manifest.json`, `train-00000.arrow …`, optional `eval-00000.arrow …`
//! and `tokenizer/`; docs/format.md specifies it. dlm-prep writes it through [`writer`]; dlm-train
//! maps it with [`reader`] and visits its rows in the order that [`order`] gives.
//!
//! | module | content |
//! |---|---|
//! | [`schema`] | the Arrow columns of a packed row |
//! | [`manifest`] | what the folder is: shape, ids, policies, sources, counts |
//! | [`writer`], [`reader`] | rows to files, files to memory-mapped rows |
//! | [`order`] | the row order of an epoch, a function of (seed, epoch) |
//! | [`mask`], [`rng`] | the positions hidden in training, a function of (seed, epoch, row) |
//! | [`verify`] | checks of all invariants |
//! | [`fs`], [`hash`] | files that are whole or absent, sha256 |
//! | [`chart`], [`html`] | charts of the HTML reports |

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

//! Processed rows become packed rows in data files.
//!
//! ```text
//! sink ── mixture: which source is next · packer: which documents share a row
//!   ├──── output_folder: what may be overwritten · unfit: inputs that are not worth training on
//!   └──── resume, seen: state of an unfinished run
//! ```

pub mod mixture;
pub mod output_folder;
pub mod packer;
pub mod resume;
pub mod seen;
pub mod sink;
pub mod unfit;

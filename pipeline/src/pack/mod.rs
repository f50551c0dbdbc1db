//! Processed rows become packed rows in data files.
//!
//! ```text
//! sink ── mixture: which source is next · packer: which documents share a row
//!   ├──── output_folder, ownership: what may be overwritten · apart: inputs and output
//!   ├──── unfit: inputs that are not worth training on
//!   └──── resume, seen: state of an unfinished run
//! ```

pub(crate) mod apart;
pub(crate) mod mixture;
pub(crate) mod output_folder;
pub(crate) mod ownership;
pub(crate) mod packer;
pub(crate) mod resume;
pub(crate) mod seen;
pub(crate) mod sink;
pub(crate) mod source_index;
pub(crate) mod unfit;

//! Text to token ids and back.

pub(crate) mod canonical;
pub(crate) mod charsmap;
pub(crate) mod header;
pub(crate) mod in_context;
pub(crate) mod json_text;
pub(crate) mod limits;
pub(crate) mod special_tokens;
pub(crate) mod splitting;
pub(crate) mod stable;
pub(crate) mod tokenizer;
pub(crate) mod tokenizer_file;

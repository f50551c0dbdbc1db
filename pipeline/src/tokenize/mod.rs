//! Text to token ids.

pub mod canonical;
pub mod json_text;
pub mod tokenizer;
pub mod tokenizer_file;

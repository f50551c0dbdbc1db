//! Text to token ids and back.

pub mod canonical;
pub mod json_text;
pub mod special_tokens;
pub mod tokenizer;
pub mod tokenizer_file;

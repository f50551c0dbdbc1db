//! A byte-level BPE tokenizer trained on the sample.
//!
//! In: the sample's conversations. Out: `tokenizer.json` and `tokenizer_config.json` as text. The
//! layout is that of SmolLM2: digits one by one, then the GPT-2 split, all 256 byte symbols in the
//! alphabet; ChatML control tokens as ids 0, 1, 2. It has no mask token, because dlm-prep appends
//! one.

use anyhow::{Result, anyhow};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::{
    PreTokenizerWrapper, byte_level::ByteLevel, digits::Digits, sequence::Sequence,
};
use tokenizers::{AddedToken, Tokenizer, models::TrainerWrapper};

use super::text::Conversation;

/// The control tokens, in the order of their ids.
pub const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// ChatML as in Qwen2.5, without a default system prompt.
pub const CHAT_TEMPLATE: &str = "{%- for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";

/// Trains on the conversations, up to `max_ids` ids; fewer when nothing is left to merge.
pub fn train(conversations: &[Conversation], max_ids: usize) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Digits(Digits::new(true)),
        PreTokenizerWrapper::ByteLevel(byte_level),
    ])));
    tokenizer.with_decoder(Some(byte_level));
    let trainer = BpeTrainer::builder()
        .vocab_size(max_ids)
        .show_progress(false)
        .special_tokens(SPECIAL.iter().map(|s| AddedToken::from(*s, true)).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let texts = conversations.iter().map(|c| {
        let turns: Vec<String> =
            c.input.iter().map(|t| format!("{}\n{}", t.role, t.content)).collect();
        format!("{}\nassistant\n{}", turns.join("\n"), c.output)
    });
    let texts: Vec<String> = texts.collect();
    let mut trainer = TrainerWrapper::from(trainer);
    tokenizer
        .train(&mut trainer, texts.into_iter())
        .map_err(|e| anyhow!("training the tokenizer: {e}"))?;
    Ok(tokenizer)
}

/// `tokenizer_config.json`.
pub fn config() -> serde_json::Value {
    let token = |content: &str| json!({"content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true});
    json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "added_tokens_decoder": {"0": token(SPECIAL[0]), "1": token(SPECIAL[1]), "2": token(SPECIAL[2])},
        "additional_special_tokens": [SPECIAL[1], SPECIAL[2]],
        "bos_token": null,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": SPECIAL[2],
        "model_max_length": 512,
        "pad_token": SPECIAL[0],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": null
    })
}

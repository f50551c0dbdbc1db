//! Loading the stable engine.
//!
//! In: the JSON of a `tokenizer.json`. Out: the engine. Most files have a BPE model. The engine's
//! own reader, which does not know the model beforehand, copies vocabulary and merges three times;
//! as a BPE model they are read at once, by the same code that reads the last of these copies.

use tokenizers::models::bpe::BPE;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Result,
    Tokenizer, TokenizerImpl,
};

type WithBpe = TokenizerImpl<
    BPE,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Loads the engine.
pub(crate) fn load_stable(json: &str) -> Result<Tokenizer> {
    match serde_json::from_str::<WithBpe>(json) {
        Ok(t) => Ok(t.into()),
        // Another model, or an error, in the words of the engine's own reader.
        Err(_) => Tokenizer::from_bytes(json.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The engine as the quick reader and as the engine's own reader load it, or whether each
    /// refuses.
    fn both(file: &Value) -> [Option<String>; 2] {
        let text = file.to_string();
        let quick = serde_json::from_str::<WithBpe>(&text).ok().map(Tokenizer::from);
        let own = Tokenizer::from_bytes(text.as_bytes()).ok();
        [quick, own].map(|t| t.map(|t| t.to_string(false).unwrap()))
    }

    #[test]
    fn a_bpe_model_is_read_as_the_engine_reads_it() {
        let vocab = json!({"a": 0, "b": 1, " ": 2, "ab": 3, "é": 4, "b##b": 5, "<x>": 6});
        let token = |id: u32, content: &str, special: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": true, "rstrip": false, "normalized": !special, "special": special});
        let base = json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [token(6, "<x>", true), token(7, "<y>", false), token(9, "<z>", true)],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false},
            "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": ["a b"]}
        });
        let changed = |at: &str, value: Value| {
            let mut file = base.clone();
            *file.pointer_mut(at).unwrap() = value;
            both(&file)
        };
        for (at, value) in [
            ("/model/merges", json!([["a", "b"]])),
            ("/model/merges", json!([])),
            ("/model/merges", json!(["#version: 0.2", "a b"])),
            ("/model/unk_token", json!("<x>")),
            ("/model/dropout", json!(0.5)),
            ("/model/fuse_unk", json!(true)),
            ("/model/byte_fallback", json!(true)),
            ("/model/ignore_merges", json!(true)),
            ("/model/end_of_word_suffix", json!("</w>")),
            ("/normalizer", json!({"type": "Prepend", "prepend": "▁"})),
            ("/pre_tokenizer", json!(null)),
            ("/added_tokens", json!([])),
        ] {
            let [quick, own] = changed(at, value.clone());
            assert!(quick.is_some(), "{at} {value}");
            assert_eq!(quick, own, "{at} {value}");
        }
        // What one refuses, the other refuses.
        for (at, value) in [
            ("/version", json!("2.0")),
            ("/model/merges", json!(["a q"])),
            ("/model/merges", json!(["a b", ["a", "b"]])),
            ("/model/merges", json!(null)),
            ("/model/vocab", json!({"a": -1})),
            ("/model/vocab/a", json!(1u64 << 32)),
            ("/model/dropout", json!(1.5)),
            ("/pre_tokenizer", json!({"type": "Nothing"})),
            ("/added_tokens", json!([{}])),
        ] {
            assert_eq!(changed(at, value.clone()), [None, None], "{at} {value}");
        }
        // Other models are left to the engine's own reader.
        let unigram = json!({"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0});
        let [quick, own] = changed("/model", unigram.clone());
        assert!(quick.is_none() && own.is_some());
        let mut file = base.clone();
        file["model"] = unigram;
        assert_eq!(load_stable(&file.to_string()).unwrap().to_string(false).ok(), own);
    }
}

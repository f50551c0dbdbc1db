//! Valid files that the fuzzer damages.
//!
//! In: an empty folder. Out: a packed dataset, a run with a checkpoint and an exported model, all
//! tiny, and small input files of every format as bytes.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int8Type, Schema};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use dlm_test_support::families;
use dlm_train::{Conversion, convert};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use serde_json::{Value, json};

/// Rows of the input files.
const ROWS: usize = 12;

/// Makes `data` (a packed dataset), `config.json` and `run` (its export and checkpoints) in `base`.
pub(crate) fn make(base: &Path) {
    families::dataset(&base.join("data"), families::MASK, 8);
    let mut config = families::own_config("Qwen3");
    config["hidden_size"] = json!(16);
    config["intermediate_size"] = json!(16);
    config["num_hidden_layers"] = json!(1);
    config["head_dim"] = json!(4);
    std::fs::write(base.join("config.json"), config.to_string()).unwrap();
    convert(&conversion(base), base.join("data"), base.join("run")).unwrap();
}

/// A run of two steps on the tiny dataset.
pub(crate) fn conversion(base: &Path) -> Conversion {
    Conversion::new()
        .random_init(base.join("config.json").to_str().unwrap())
        .set("model.name", "fuzzed")
        .set("train.batch_rows", "4")
        .set("train.eval_every", "0")
        .set("train.max_steps", "2")
        .set("export.dtype", "fp32")
        .token_budget(100_000)
        .device("cpu")
}

/// Conversations as a list of structs, beside columns of other types.
fn table() -> RecordBatch {
    let turns = ROWS * 2;
    let role = |i: usize| if i % 2 == 0 { "user" } else { "assistant" };
    let role: StringArray = (0..turns).map(|i| Some(role(i))).collect();
    let content: StringArray = (0..turns)
        .map(|i| (i % 7 != 6).then(|| format!("turn {i} says {}", "word ".repeat(i % 5))))
        .collect();
    let fields = [
        (Arc::new(Field::new("role", DataType::Utf8, false)), Arc::new(role) as ArrayRef),
        (Arc::new(Field::new("content", DataType::Utf8, true)), Arc::new(content) as ArrayRef),
    ];
    let turns = StructArray::from(fields.to_vec());
    let item = Arc::new(Field::new("item", turns.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(2, ROWS));
    let messages = ListArray::new(item, offsets, Arc::new(turns), None);
    let category: DictionaryArray<Int8Type> =
        (0..ROWS).map(|i| Some(["chat", "code"][i % 2])).collect();
    let id = Int64Array::from_iter_values(0..ROWS as i64);
    let score: Float64Array = (0..ROWS).map(|i| (i % 3 > 0).then_some(i as f64 / 3.0)).collect();
    let field = |name: &str, array: &ArrayRef| Field::new(name, array.data_type().clone(), true);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("messages", Arc::new(messages)),
        ("category", Arc::new(category)),
        ("id", Arc::new(id)),
        ("score", Arc::new(score)),
    ];
    let schema = Schema::new(columns.iter().map(|(n, a)| field(n, a)).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, a)| a).collect()).unwrap()
}

/// Arrow files: plain, compressed, and a stream.
pub(crate) fn arrow() -> Vec<Vec<u8>> {
    let table = table();
    let mut files = Vec::new();
    for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let mut file = Vec::new();
        let mut writer =
            FileWriter::try_new_with_options(&mut file, &table.schema(), options).unwrap();
        writer.write(&table.slice(0, 5)).unwrap();
        writer.write(&table.slice(5, ROWS - 5)).unwrap();
        writer.finish().unwrap();
        drop(writer);
        files.push(file);
    }
    let mut stream = Vec::new();
    let mut writer = StreamWriter::try_new(&mut stream, &table.schema()).unwrap();
    writer.write(&table).unwrap();
    writer.finish().unwrap();
    drop(writer);
    files.push(stream);
    files
}

/// Parquet files of every compression, with and without dictionaries, both page versions.
pub(crate) fn parquet() -> Vec<Vec<u8>> {
    let table = table();
    let gzip = GzipLevel::try_new(1).unwrap();
    let zstd = ZstdLevel::try_new(1).unwrap();
    let kinds = [
        (Compression::UNCOMPRESSED, true, WriterVersion::PARQUET_1_0),
        (Compression::UNCOMPRESSED, false, WriterVersion::PARQUET_2_0),
        (Compression::SNAPPY, true, WriterVersion::PARQUET_1_0),
        (Compression::SNAPPY, false, WriterVersion::PARQUET_2_0),
        (Compression::GZIP(gzip), true, WriterVersion::PARQUET_1_0),
        (Compression::ZSTD(zstd), true, WriterVersion::PARQUET_2_0),
        (Compression::LZ4_RAW, false, WriterVersion::PARQUET_1_0),
    ];
    let file = |(compression, dictionary, version)| {
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_dictionary_enabled(dictionary)
            .set_writer_version(version)
            .build();
        let mut file = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut file, table.schema(), Some(properties)).unwrap();
        writer.write(&table).unwrap();
        writer.close().unwrap();
        file
    };
    kinds.into_iter().map(file).collect()
}

/// tokenizer.json files: the sample's, and one of every model type with most kinds of parts.
pub(crate) fn tokenizers() -> Vec<Vec<u8>> {
    let sample = std::fs::read(dlm_test_support::sample("tokenizer/tokenizer.json")).unwrap();
    let special = |id: usize, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let whole = |model: Value, normalizer: Value, pre: Value, decoder: Value| {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer, "pre_tokenizer": pre,
            "added_tokens": [special(0, "<unk>"), special(1, "<|im_start|>"), special(2, "<|im_end|>")],
            "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {}},
            "decoder": decoder, "model": model
        })
        .to_string()
        .into_bytes()
    };
    let words = ["<unk>", "<|im_start|>", "<|im_end|>", "turn", "▁turn", "says", "##s", "word"];
    let letters = "abcdefghijklmnopqrstuvwxyz▁ \n0123456789".chars().map(String::from);
    let all: Vec<String> = words.iter().map(|w| (*w).to_string()).chain(letters).collect();
    let vocab: serde_json::Map<String, Value> =
        all.iter().enumerate().map(|(id, w)| (w.clone(), json!(id))).collect();
    let scores: Vec<Value> =
        all.iter().enumerate().map(|(i, w)| json!([w, -(i as f64) / 3.0])).collect();
    let merges = json!([["t", "u"], ["w", "o"], ["wo", "r"]]);
    let mut bpe = vocab.clone();
    for merged in ["tu", "wo", "wor"] {
        bpe.insert(merged.to_string(), json!(bpe.len()));
    }
    let clean = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    vec![
        sample,
        whole(
            json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}),
            json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Strip", "strip_left": true, "strip_right": false}]}),
            json!({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Digits", "individual_digits": true}]}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        ),
        whole(
            json!({"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}),
            clean,
            json!({"type": "BertPreTokenizer"}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        ),
        whole(
            json!({"type": "Unigram", "vocab": scores, "unk_id": 0, "byte_fallback": false}),
            json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
            metaspace.clone(),
            metaspace,
        ),
        whole(
            json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": bpe, "merges": merges}),
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}),
            json!({"type": "Split", "pattern": {"Regex": "[a-z]+|\\s"}, "behavior": "Isolated", "invert": false}),
            json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
        ),
    ]
}

/// Chat templates that use most of what published ones use.
pub(crate) fn templates() -> Vec<Vec<u8>> {
    let sources = [
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{%- macro show(m, depth=0) -%}{{ m.content if m.content is string else m.content | tojson }}{%- endmacro -%}{%- set ns = namespace(last=-1, n=0) -%}{%- for m in messages -%}{%- set ns.last = loop.index0 -%}{%- endfor -%}{%- for m in messages -%}{%- if m.role == 'assistant' -%}<|im_start|>assistant\n{% generation %}{{ show(m) }}<|im_end|>{% endgeneration %}{%- else -%}<|im_start|>{{ m['role'] }}\n{{ show(m) }}<|im_end|>{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}",
        "{{ bos_token }}{% for message in messages[::1] %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if message.role == 'user' %}{{ '[INST] ' + message.content.strip() + ' [/INST]' }}{% else %}{{ ' ' ~ message.content.split('</think>')[-1].lstrip('\\n') ~ '<|im_end|>' }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ '%s: %s' % (m.role, m.content) }}{{ {'a': [1, 2.5, none]} | tojson(indent=2) | indent(2) }}{{ range(3) | map('string') | join(',') }}{{ m.items() | list | length }}<|im_end|>{% endfor %}{{ strftime_now('%Y') }}",
    ];
    sources.iter().map(|s| s.as_bytes().to_vec()).collect()
}

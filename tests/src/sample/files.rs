//! Writes the sample's files.
//!
//! In: a folder. Out: `train.parquet` (Nemotron schema), `heldout.jsonl`, `tokenizer/`,
//! `README.md`, each written to a temporary file and renamed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, ListBuilder, RecordBatch, StringArray, StringBuilder, StructBuilder};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::json;

use super::text::{Conversation, conversations};
use super::{HELD_OUT_ROWS, MODEL_VOCAB, SEED, TRAIN_ROWS, tokenizer};

/// Counts of what was written.
pub struct Written {
    /// Training conversations.
    pub train: usize,
    /// Held-out prompts.
    pub held_out: usize,
    /// Tokens of the training conversations, control tokens included.
    pub tokens: usize,
    /// Of these, tokens of answers, their end-of-turn tokens included.
    pub answer_tokens: usize,
    /// The longest conversation, in tokens.
    pub longest: usize,
    /// Size of the tokenizer's vocabulary.
    pub ids: usize,
}

/// Writes every file of the sample under `dir`.
pub fn write(dir: &Path) -> Result<Written> {
    let (train, held_out) = conversations(SEED, TRAIN_ROWS, HELD_OUT_ROWS);
    let tok = tokenizer::train(&train, MODEL_VOCAB - 1)?;
    let ids = tok.get_vocab_size(true);
    ensure!(
        ids < MODEL_VOCAB,
        "the tokenizer has {ids} ids, which leaves no room for the mask token in {MODEL_VOCAB}"
    );
    let (mut tokens, mut answer_tokens, mut longest) = (0, 0, 0);
    for conversation in &train {
        let (prompt, answer) = rendered(conversation);
        let length =
            |text: &str| tok.encode_fast(text, false).map(|e| e.len()).map_err(anyhow::Error::msg);
        let (prompt, answer) = (length(&prompt)?, length(&answer)?);
        tokens += prompt + answer;
        answer_tokens += answer;
        longest = longest.max(prompt + answer);
    }
    let written = Written {
        train: train.len(),
        held_out: held_out.len(),
        tokens,
        answer_tokens,
        longest,
        ids,
    };

    fs::create_dir_all(dir.join("tokenizer"))
        .with_context(|| format!("creating {}", dir.display()))?;
    put(&dir.join("train.parquet"), &parquet_bytes(&train)?)?;
    put(&dir.join("heldout.jsonl"), held_out_lines(&held_out).as_bytes())?;
    let json = tok.to_string(false).map_err(anyhow::Error::msg)?;
    put(&dir.join("tokenizer/tokenizer.json"), (json + "\n").as_bytes())?;
    put(&dir.join("tokenizer/tokenizer_config.json"), pretty(&tokenizer::config())?.as_bytes())?;
    put(&dir.join("README.md"), readme(&written).as_bytes())?;
    Ok(written)
}

/// Prompt (with the generation prompt) and answer (with its end-of-turn token), as the chat
/// template renders them.
pub fn rendered(conversation: &Conversation) -> (String, String) {
    let turns: String = conversation
        .input
        .iter()
        .map(|t| format!("<|im_start|>{}\n{}<|im_end|>\n", t.role, t.content))
        .collect();
    (format!("{turns}<|im_start|>assistant\n"), format!("{}<|im_end|>", conversation.output))
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("part");
    fs::write(&temporary, bytes).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("renaming to {}", path.display()))
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// The rows in the schema of the Nemotron post-training sets.
fn parquet_bytes(rows: &[Conversation]) -> Result<Vec<u8>> {
    let turn = Fields::from(vec![
        Field::new("role", DataType::Utf8, true),
        Field::new("content", DataType::Utf8, true),
    ]);
    let builder = StructBuilder::new(
        turn.clone(),
        vec![Box::new(StringBuilder::new()), Box::new(StringBuilder::new())],
    );
    let element = Field::new("element", DataType::Struct(turn), true);
    let mut input = ListBuilder::new(builder).with_field(element);
    for row in rows {
        for turn in &row.input {
            let fields = input.values();
            for (index, text) in [turn.role, turn.content.as_str()].into_iter().enumerate() {
                fields
                    .field_builder::<StringBuilder>(index)
                    .context("a string column")?
                    .append_value(text);
            }
            fields.append(true);
        }
        input.append(true);
    }
    let column = |f: &dyn Fn(&Conversation) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(f)))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("input", Arc::new(input.finish())),
        ("output", column(&|r| r.output.clone())),
        ("category", column(&|r| r.task.to_string())),
        ("license", column(&|_| "Apache-2.0 OR MIT".to_string())),
        ("reasoning", column(&|_| "off".to_string())),
        ("generator", column(&|_| "make-sample".to_string())),
        ("used_in_training", column(&|_| "yes".to_string())),
        ("version", column(&|_| "v1".to_string())),
        ("system_prompt", column(&|_| String::new())),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let batch = RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns.into_iter().map(|(_, array)| array).collect(),
    )?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(9)?))
        .set_created_by("make-sample".to_string())
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

fn held_out_lines(rows: &[Conversation]) -> String {
    let mut out = String::new();
    for row in rows {
        let messages: Vec<_> =
            row.input.iter().map(|t| json!({"role": t.role, "content": t.content})).collect();
        out.push_str(
            &json!({"messages": messages, "expected": row.output, "task": row.task}).to_string(),
        );
        out.push('\n');
    }
    out
}

fn readme(w: &Written) -> String {
    format!(
        "# Sample data

Small records and what one asks about them, written by `cargo run --release -p dlm-tests --bin make-sample`
(seed {SEED}; the same bytes every time, held by a test). No outside data went into it; licence as the repository
(Apache-2.0 OR MIT). It exists so that everything here runs with nothing downloaded.

| file | what |
|---|---|
| `train.parquet` | {} conversations in the Nemotron schema, {} tokens, of which {} in answers; the longest has {} |
| `heldout.jsonl` | {} prompts with the expected answer: records whose two leading values never occur together in training |
| `tokenizer/` | byte-level BPE with {} ids trained on the conversations, ChatML template; dlm-prep appends the mask token |

Tasks (`category`): `to-json` (about 70 %), `to-record`, `sentence`, `two-turns`, `lookup`. Every answer follows from its prompt alone.
The model that learns it is `configs/model/sample.yaml`.
",
        w.train, w.tokens, w.answer_tokens, w.longest, w.held_out, w.ids
    )
}

//! The columns of a packed file (S = `seq_len`).
//!
//! | column | type | meaning |
//! |---|---|---|
//! | `input_ids` | FixedSizeList<Int32, S> | token ids; mask id in a document's padding, pad id after the last document |
//! | `labels` | FixedSizeList<Int32, S> | the id where loss is taken, -100 elsewhere |
//! | `documents` | List<Struct<start, length, source: Int32>> | the conversations in this row, in order |
//!
//! Everything is non-null and uncompressed, bodies aligned to 64 bytes, so that a reader can map
//! it.

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use std::collections::HashMap;
use std::sync::Arc;

/// Key of the format version in the metadata of every file's schema.
pub const FORMAT_KEY: &str = "dlm.format_version";

/// Fields of a document: `start`, `length` and `source`, all `Int32`.
pub fn document_fields() -> Fields {
    Fields::from(vec![
        Field::new("start", DataType::Int32, false),
        Field::new("length", DataType::Int32, false),
        Field::new("source", DataType::Int32, false),
    ])
}

/// Item field of the `input_ids` and `labels` lists.
pub fn id_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Int32, false))
}

/// Item field of the `documents` list.
pub fn document_item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(document_fields()), false))
}

/// The Arrow schema of rows of `seq_len` tokens.
pub fn schema(seq_len: usize) -> SchemaRef {
    let ids = DataType::FixedSizeList(id_item(), seq_len as i32);
    let fields = vec![
        Field::new("input_ids", ids.clone(), false),
        Field::new("labels", ids, false),
        Field::new("documents", DataType::List(document_item()), false),
    ];
    let meta =
        HashMap::from([(FORMAT_KEY.to_string(), crate::manifest::FORMAT_VERSION.to_string())]);
    Arc::new(Schema::new_with_metadata(fields, meta))
}

/// A run of tokens with loss, as positions from the start of their document: `(first, end)`, `end`
/// exclusive.
pub type LossRun = (u32, u32);

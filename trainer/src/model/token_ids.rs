//! Token ids in the JSON files of a model folder: whole numbers that have a row in the embedding
//! table, or refused with the key, the value and the table.

use serde_json::Value;

use crate::error::{Error, Result};

/// Where ids stand: a parsed file and the rows of the embedding table.
#[derive(Clone, Copy)]
pub(crate) struct TokenIds<'a> {
    pub file: &'a Value,
    /// Rows of the embedding table (`vocab_size`).
    pub rows: usize,
}

impl TokenIds<'_> {
    /// The id under a key; `None` where it is absent or null.
    pub(crate) fn one(&self, key: &str) -> Result<Option<i64>> {
        match self.file.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self.id(key, value).map(Some),
        }
    }

    /// The ids under a key: none, one number or a list.
    pub(crate) fn all(&self, key: &str) -> Result<Vec<i64>> {
        match self.file.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(|value| self.id(key, value)).collect(),
            Some(value) => Ok(vec![self.id(key, value)?]),
        }
    }

    fn id(&self, key: &str, value: &Value) -> Result<i64> {
        let id = value.as_i64();
        id.filter(|id| usize::try_from(*id).is_ok_and(|id| id < self.rows)).ok_or_else(|| {
            let shown: String = value.to_string().chars().take(80).collect();
            Error::Model(format!(
                "{key} holds {shown}; expected a token id, a whole number from 0 to {}: the embedding table has {} rows (vocab_size of config.json)",
                self.rows.saturating_sub(1),
                self.rows
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_values_than_ids_of_the_table_are_refused_by_name() {
        let read = |value: Value| {
            let file = json!({ "key": value });
            let ids = TokenIds { file: &file, rows: 10 };
            (ids.one("key").ok(), ids.all("key").ok(), ids.one("key").err())
        };
        assert!(matches!(read(json!(null)), (Some(None), Some(ids), None) if ids.is_empty()));
        assert!(matches!(read(json!(9)), (Some(Some(9)), Some(ids), None) if ids == [9]));
        assert!(matches!(read(json!([0, 9])), (None, Some(ids), Some(_)) if ids == [0, 9]));
        for bad in [json!("9"), json!(9.0), json!(-1), json!(10), json!(true), json!({"id": 1})] {
            let (one, all, error) = read(bad.clone());
            assert!(one.is_none() && all.is_none(), "{bad}");
            let error = error.unwrap().to_string();
            assert!(error.contains(&bad.to_string()) && error.contains("10 rows"), "{error}");
        }
        assert!(read(json!([4294967296u64])).1.is_none());
        assert!(read(json!(1e300)).0.is_none());
    }
}

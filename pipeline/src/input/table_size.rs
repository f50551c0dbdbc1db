//! How many bytes the rows of a table have once they are written out: a dictionary's value counts
//! for every row that has it.

use arrow::array::{Array, AsArray, OffsetSizeTrait, RecordBatch};
use arrow::datatypes::DataType;

/// Bytes of each row of a table.
pub(crate) fn row_sizes(table: &RecordBatch) -> Vec<u64> {
    let mut out = vec![0; table.num_rows()];
    for column in table.columns() {
        add(column.as_ref(), &mut out);
    }
    out
}

/// Adds the bytes of each value of `a`.
fn add(a: &dyn Array, out: &mut [u64]) {
    match a.data_type() {
        DataType::Utf8 => lengths(a.as_string::<i32>().value_offsets(), out),
        DataType::LargeUtf8 => lengths(a.as_string::<i64>().value_offsets(), out),
        DataType::Binary => lengths(a.as_binary::<i32>().value_offsets(), out),
        DataType::LargeBinary => lengths(a.as_binary::<i64>().value_offsets(), out),
        // The low half of a view is the length of its text.
        DataType::Utf8View => views(a.as_string_view().views(), out),
        DataType::BinaryView => views(a.as_binary_view().views(), out),
        DataType::List(_) => {
            let l = a.as_list::<i32>();
            lists(l.value_offsets(), l.values().as_ref(), out);
        }
        DataType::LargeList(_) => {
            let l = a.as_list::<i64>();
            lists(l.value_offsets(), l.values().as_ref(), out);
        }
        DataType::Map(_, _) => {
            let m = a.as_map();
            lists(m.value_offsets(), m.entries(), out);
        }
        DataType::Struct(_) => a.as_struct().columns().iter().for_each(|c| add(c.as_ref(), out)),
        DataType::Dictionary(_, _) => {
            let d = a.as_any_dictionary();
            if d.values().is_empty() {
                return;
            }
            if d.values().len() > 4 * out.len() {
                // Of a large dictionary only what these rows use.
                let keys = d.normalized_keys().into_iter().filter(|k| *k < d.values().len());
                for (size, k) in out.iter_mut().zip(keys) {
                    add(d.values().slice(k, 1).as_ref(), std::slice::from_mut(size));
                }
                return;
            }
            let mut sizes = vec![0; d.values().len()];
            add(d.values().as_ref(), &mut sizes);
            for (size, key) in out.iter_mut().zip(d.normalized_keys()) {
                *size += sizes.get(key).copied().unwrap_or(0);
            }
        }
        _ => out.iter_mut().for_each(|size| *size += 8),
    }
}

fn lengths<O: OffsetSizeTrait>(offsets: &[O], out: &mut [u64]) {
    for (size, ends) in out.iter_mut().zip(offsets.windows(2)) {
        *size += ends[1].as_usize().saturating_sub(ends[0].as_usize()) as u64;
    }
}

fn views(views: &[u128], out: &mut [u64]) {
    for (size, view) in out.iter_mut().zip(views) {
        *size += u64::from(*view as u32);
    }
}

/// Adds to each list the bytes of its values, and some for each value.
fn lists<O: OffsetSizeTrait>(offsets: &[O], values: &dyn Array, out: &mut [u64]) {
    let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else { return };
    let (first, last) = (first.as_usize(), last.as_usize().min(values.len()));
    if first >= last {
        return;
    }
    let used = values.slice(first, last - first);
    let mut sizes = vec![8; used.len()];
    add(used.as_ref(), &mut sizes);
    for (size, ends) in out.iter_mut().zip(offsets.windows(2)) {
        let (from, to) = (ends[0].as_usize() - first, ends[1].as_usize().saturating_sub(first));
        *size += sizes.get(from..to).map_or(0, |s| s.iter().sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, DictionaryArray, StringArray, StringViewArray};
    use arrow::datatypes::Int32Type;
    use std::sync::Arc;

    #[test]
    fn a_dictionary_counts_where_it_is_used() {
        let long = "x".repeat(1000);
        let words = vec!["a", long.as_str(), long.as_str()];
        let dictionary: ArrayRef =
            Arc::new(words.iter().copied().collect::<DictionaryArray<Int32Type>>());
        let view: ArrayRef = Arc::new(StringViewArray::from(words.clone()));
        let plain: ArrayRef = Arc::new(StringArray::from(words));
        let columns = [("a", dictionary), ("b", view), ("c", plain)];
        let table = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(row_sizes(&table), [3, 3000, 3000]);
        assert_eq!(row_sizes(&table.slice(1, 1)), [3000]);
    }
}

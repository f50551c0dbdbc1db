//! Adding rows to rows of a table: the gradient of an embedding lookup and of a row selection.

mod cpu;
#[cfg(feature = "gpu")]
mod gpu;

use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::prelude::*;

/// Rows that are summed in one go; a token that occurs often (the mask) has several pieces.
const PIECE: usize = 64;

/// Which source rows go to which row of a table, sorted so that every sum is computed by one task
/// in one order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowGroups {
    /// Source rows by destination.
    order: Vec<i32>,
    /// Where the pieces of `order` start: at most [`PIECE`] rows of one destination. One more entry
    /// than there are pieces.
    pieces: Vec<i32>,
    /// The first piece of each destination. One more entry than there are destinations.
    firsts: Vec<i32>,
    /// Destinations, ascending.
    rows: Vec<i32>,
}

impl RowGroups {
    /// Source row `i` goes to row `destinations[i]`.
    fn new(destinations: &[i32]) -> Self {
        let mut order: Vec<i32> = (0..destinations.len() as i32).collect();
        order.sort_by_key(|&i| destinations[i as usize]);
        let mut groups = RowGroups { order, ..Default::default() };
        for at in 0..groups.order.len() {
            let row = destinations[groups.order[at] as usize];
            if groups.rows.last() != Some(&row) {
                groups.rows.push(row);
                groups.firsts.push(groups.pieces.len() as i32);
                groups.pieces.push(at as i32);
            } else if groups.pieces.last().is_some_and(|first| at - *first as usize >= PIECE) {
                groups.pieces.push(at as i32);
            }
        }
        groups.firsts.push(groups.pieces.len() as i32);
        groups.pieces.push(groups.order.len() as i32);
        groups
    }

    /// `order | pieces | firsts | rows`.
    fn flat(&self) -> Vec<i32> {
        [&self.order[..], &self.pieces, &self.firsts, &self.rows].concat()
    }
}

/// A [`RowGroups`] on the host and on a device.
#[derive(Clone, Debug)]
pub(crate) struct RowIndex {
    groups: Arc<RowGroups>,
    index: Tensor<1, Int>,
}

impl RowIndex {
    /// Source row `i` goes to row `destinations[i]`.
    pub(crate) fn new(destinations: &[i32], device: &Device) -> Self {
        let groups = RowGroups::new(destinations);
        let flat = groups.flat();
        let n = flat.len();
        RowIndex {
            groups: Arc::new(groups),
            index: Tensor::from_data(TensorData::new(flat, [n]), device),
        }
    }
}

/// The operation, per backend.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Fusion: cfg(feature = "gpu"))]
pub(crate) trait AddRowsOp: Backend {
    /// See [`add_rows`].
    #[fusion(dtype = table, shape = table)]
    fn add_rows(
        table: FloatTensor<Self>,
        source: FloatTensor<Self>,
        index: IntTensor<Self>,
        groups: Arc<RowGroups>,
    ) -> FloatTensor<Self>;
}

/// `table[destination of i] += source[i]` for every row i of `source` `[N, D]` (any float dtype);
/// `table` `[R, D]` is fp32. Sums are computed in one fixed order.
pub(crate) fn add_rows(table: Tensor<2>, source: Tensor<2>, rows: &RowIndex) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as AddRowsOp>::add_rows(
        table.into_dispatch(),
        source.into_dispatch(),
        rows.index.clone().into_dispatch(),
        rows.groups.clone(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::test_support::{devices, distance, ids, random};
    use burn::tensor::IndexingUpdateOp;

    #[test]
    fn rows_are_added_to_their_destinations() {
        for device in devices() {
            for (n, r, d) in [(1, 1, 1), (40, 7, 12), (500, 31, 33), (1000, 3, 64)] {
                let to: Vec<i32> =
                    (0..n).map(|i| if i % 3 == 0 { 0 } else { ((i * i + 5) % r) as i32 }).collect();
                let (table, source) = (random([r, d], &device), random([n, d], &device));
                let slow = table.clone().select_assign(
                    0,
                    ids(&to, &device),
                    source.clone(),
                    IndexingUpdateOp::Add,
                );
                let fast = add_rows(table.clone(), source.clone(), &RowIndex::new(&to, &device));
                assert!(distance(fast, slow) < 2e-4, "{n} rows to {r}");
                let again = add_rows(table.clone(), source.clone(), &RowIndex::new(&to, &device));
                assert_eq!(
                    distance(again, add_rows(table, source, &RowIndex::new(&to, &device))),
                    0.0,
                    "one fixed order"
                );
            }
        }
    }

    #[test]
    fn every_row_is_summed_by_one_task() {
        let groups = RowGroups::new(&[5; 130]);
        assert_eq!(
            (groups.rows.as_slice(), groups.firsts.as_slice(), groups.pieces.as_slice()),
            (&[5][..], &[0, 3][..], &[0, 64, 128, 130][..])
        );
        let groups = RowGroups::new(&[2, 0, 2]);
        assert_eq!(
            (groups.order.as_slice(), groups.rows.as_slice(), groups.firsts.as_slice()),
            (&[1, 0, 2][..], &[0, 2][..], &[0, 1, 2][..])
        );
        let groups = RowGroups::new(&[]);
        assert_eq!(groups.flat(), [0, 0]);
    }
}

//! Adding rows to rows of a table on the CPU: one task per destination.

use std::sync::Arc;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::{AddRowsOp, RowGroups};
use crate::kernels::flex::{as_f32, plain};

impl AddRowsOp for Flex {
    fn add_rows(
        table: FlexTensor,
        source: FlexTensor,
        _index: FlexTensor,
        groups: Arc<RowGroups>,
    ) -> FlexTensor {
        let source = as_f32(source);
        let mut table = plain::<f32>(table);
        let width = table.layout().shape()[1].max(1);
        let values: &[f32] = source.storage();
        // The rows of the table that receive source rows, in order; each is one task.
        let mut destinations = groups.rows.iter().enumerate().peekable();
        let mut tasks: Vec<(usize, &mut [f32])> = Vec::with_capacity(groups.rows.len());
        for (r, row) in table.storage_mut::<f32>().chunks_exact_mut(width).enumerate() {
            match destinations.peek() {
                Some(&(u, &to)) if to as usize == r => {
                    tasks.push((u, row));
                    destinations.next();
                }
                Some(_) => {}
                None => break,
            }
        }
        tasks.into_par_iter().with_min_len(16).for_each(|(u, row)| {
            let (from, to) = (
                groups.pieces[groups.firsts[u] as usize] as usize,
                groups.pieces[groups.firsts[u + 1] as usize] as usize,
            );
            for &i in &groups.order[from..to] {
                let i = i as usize;
                row.iter_mut().zip(&values[i * width..(i + 1) * width]).for_each(|(a, b)| *a += b);
            }
        });
        table
    }
}

//! Passes with groups of mask tokens on Burn's tensors: positions, keys and the gate of the
//! adapters for a [`Pass`].

use std::sync::Arc;

use burn::prelude::*;

use super::cached::{KvCache, Order, Pass, Span};
use super::placed::{Branches, Placed, of_branches};
use crate::attention::{KeyRange, Tile, TilePlan};
use crate::compute::{Attention, ComputePlan};
use crate::error::Result;
use crate::model::{AttentionPlan, Context, Decoder};

impl Pass {
    /// A pass over rows with groups of masks, all with as many new tokens.
    pub(super) fn of_branches(
        decoder: &Decoder,
        rows: &[Branches],
        cache: &KvCache,
        compute: &ComputePlan,
    ) -> Result<Self> {
        let (dtype, device) = (compute.dtype.burn(), &compute.device.device);
        let len = rows.first().map_or(0, Branches::len);
        let tokens: Vec<Placed> = of_branches(rows).collect();
        let positions: Vec<i32> = tokens.iter().map(|token| token.position as i32).collect();
        let (cos, sin) = decoder.rope_tables(&positions, rows.len(), len, dtype, device);
        let size = (cache.rows(), cache.positions());
        let mask = match compute.attention {
            Attention::Tiles => {
                let tiles = rows.iter().enumerate();
                let tiles = tiles.flat_map(|(i, row)| tiles_of(i * len, row, size.1));
                let plan = TilePlan::new(&tiles.collect::<Vec<_>>(), tokens.len(), size.0 * size.1);
                AttentionPlan::Tiles(Arc::new(plan?))
            }
            _ => {
                let widest = tokens.iter().map(Placed::end).max().unwrap_or(0);
                let hidden = |token: &Placed| {
                    let token = *token;
                    (0..widest).map(move |slot| !token.sees(slot))
                };
                let hidden: Vec<bool> = tokens.iter().flat_map(hidden).collect();
                let hidden = TensorData::new(hidden, [rows.len(), 1, len, widest]);
                AttentionPlan::Dense(Tensor::from_data(hidden, device))
            }
        };
        let gate: Vec<f32> = tokens.iter().map(|token| f32::from(token.own.is_some())).collect();
        let gate = Tensor::from_data(TensorData::new(gate, [tokens.len(), 1]), (device, dtype));
        let span = |row: &Branches| Span {
            row: row.row,
            start: row.start,
            visible: row.start + row.len(),
        };
        let spans = rows.iter().map(span).collect();
        let context = Context { batch: rows.len(), len, cos, sin, mask, dtype, gate: Some(gate) };
        Ok(Pass { spans, order: Order::Blocks(1), context, cache: size })
    }
}

/// Positions, slots of the cache, tiles, and which tokens are masks, for the native engine.
pub(super) fn placed_branches(
    rows: &[Branches],
    positions: usize,
) -> ((Vec<i32>, Vec<i32>, Vec<Tile>), Vec<bool>) {
    let tokens: Vec<Placed> = of_branches(rows).collect();
    let slot = |token: &Placed| (token.row * positions + token.slot) as i32;
    let mut query = 0;
    let tiles = rows.iter().flat_map(|row| {
        let tiles = tiles_of(query, row, positions);
        query += row.len();
        tiles
    });
    let tiles = tiles.collect();
    let at = tokens.iter().map(|token| token.position as i32).collect();
    let masks = tokens.iter().map(|token| token.own.is_some()).collect();
    ((at, tokens.iter().map(slot).collect(), tiles), masks)
}

/// The tiles of one row, whose queries begin at `query`.
fn tiles_of(query: usize, row: &Branches, positions: usize) -> Vec<Tile> {
    let base = row.row * positions;
    let prefix = |end: usize| KeyRange::new(base, end);
    let mut tiles = vec![Tile::causal(query, row.clean, prefix(row.start), base + row.start)];
    let mut done = row.clean;
    for group in &row.groups {
        let own = base + row.start + done;
        tiles.push(Tile::causal(query + done, group.len, prefix(group.position), own));
        done += group.len;
    }
    tiles
}

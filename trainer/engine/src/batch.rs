//! A batch as the kernels read it: index arrays, packed into one upload.
//!
//! In: [`Batch`]: the tokens of the streams end to end, who sees whom, what is predicted where.
//! Out: [`Packed`]: all arrays in one vector with the place of each.

use crate::error::{Error, Result};
use crate::grids::{ITEM_QUERIES, TILE_KEYS};
use crate::row_lists::{Groups, picks};
use crate::shape::Adapters;
use crate::streams::{Batch, CachedPass, Tile};

/// Where an array of 32-bit integers starts in the upload, and its length.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub at: usize,
    pub len: usize,
}

/// All index arrays of a batch.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    pub values: Vec<i32>,
    /// T.
    pub tokens: usize,
    /// N.
    pub targets_len: usize,
    /// Largest position + 1.
    pub positions_end: usize,
    pub ids: Span,
    pub positions: Span,
    /// Eight numbers per item: first query, queries, prefix start and length, own start and length,
    /// causal, 0.
    pub items: Span,
    pub item_count: usize,
    /// Four numbers per tile of keys: first key, keys, first entry and entries of `item_list`.
    pub key_tiles: Span,
    pub key_tile_count: usize,
    pub item_list: Span,
    /// The items that the backward pass goes through: those of the adapted tokens.
    pub back_items: Span,
    pub back_item_count: usize,
    /// The tokens that adapters act on, and that the backward pass goes through: the first so many.
    pub adapted: usize,
    /// As many zeros as gated adapters have tokens.
    pub first_row: Span,
    pub predicted_at: Span,
    /// One for each target, or none.
    pub teachers: Span,
    /// Share of the divergence from them in the loss.
    pub distill: f32,
    pub targets: Span,
    /// Where the picks of each token start, `[T + 1]`.
    pub pick_start: Span,
    pub picks: Span,
    /// Source rows by token id; where their pieces start; the first piece of each id; the ids.
    pub order: Span,
    pub pieces: Span,
    pub firsts: Span,
    pub rows: Span,
    /// Rows of the cache for keys and values, in decoding.
    pub slots: Span,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    query: usize,
    len: usize,
    prefix: (usize, usize),
    own: (usize, usize),
    causal: bool,
}

impl Item {
    fn keys(&self) -> usize {
        self.prefix.1 + self.own.1
    }
}

impl Packed {
    pub(crate) fn new(
        batch: &Batch,
        vocab_size: usize,
        adapters: Option<&Adapters>,
    ) -> Result<Self> {
        let tokens = batch.input_ids.len();
        let inside = |id: &i32| *id >= 0 && (*id as usize) < vocab_size;
        let is_outside = |at: &i32| *at < 0 || *at as usize >= tokens;
        let wrong = |what: &str| Err(Error::Unsupported(format!("a batch with {what}")));
        if batch.positions.len() != tokens || batch.predicted_at.len() != batch.targets.len() {
            return wrong("arrays of different lengths");
        }
        if !batch.teachers.is_empty() && batch.teachers.len() != batch.targets.len() {
            return wrong("teachers for some of its targets");
        }
        if !(0.0..=1.0).contains(&batch.distill) {
            return wrong("a share of its teachers that is not between 0 and 1");
        }
        if !batch.input_ids.iter().chain(&batch.targets).all(inside) {
            return wrong("token ids outside the vocabulary");
        }
        if batch.positions.iter().any(|p| *p < 0)
            || batch.predicted_at.iter().chain(&batch.teachers).any(is_outside)
        {
            return wrong("positions outside its streams");
        }
        let gated = adapters.is_some_and(|adapters| adapters.gated);
        let adapted = if gated { batch.adapted } else { tokens };
        let is_cut = |tile: &Tile| match tile.query < adapted {
            true => tile.query + tile.len > adapted,
            false => [tile.prefix, tile.own].iter().any(|(start, n)| *n > 0 && *start < adapted),
        };
        if adapted > tokens || batch.tiles.iter().any(is_cut) {
            return wrong("other tokens among those that adapters act on");
        }
        let items = items(&batch.tiles, tokens, tokens)?;
        let back_items: Vec<Item> =
            items.iter().filter(|item| item.query < adapted).copied().collect();
        let (key_tiles, item_list) = key_tiles(&back_items, adapted);
        let mut p = Packed {
            tokens,
            targets_len: batch.targets.len(),
            positions_end: batch.positions.iter().max().map_or(1, |last| *last as usize + 1),
            item_count: items.len(),
            back_item_count: back_items.len(),
            key_tile_count: key_tiles.len() / 4,
            adapted,
            distill: batch.distill,
            ..Packed::default()
        };
        p.ids = p.add(&batch.input_ids);
        p.positions = p.add(&batch.positions);
        p.items = p.add(&flat(&items));
        p.back_items = if adapted == tokens { p.items } else { p.add(&flat(&back_items)) };
        p.key_tiles = p.add(&key_tiles);
        p.item_list = p.add(&item_list);
        p.predicted_at = p.add(&batch.predicted_at);
        p.teachers = p.add(&batch.teachers);
        p.targets = p.add(&batch.targets);
        let (start, picks) = picks(&batch.predicted_at, tokens);
        p.pick_start = p.add(&start);
        p.picks = p.add(&picks);
        let ids = batch.input_ids.iter().copied().enumerate();
        let groups = match adapters {
            None => Groups::new(ids),
            // one row is trained, that of the mask token
            Some(_) if gated => Groups::new((0..adapted).map(|row| (row, 0))),
            Some(adapters) => {
                let mask = ids.filter(|(_, id)| *id as usize == adapters.mask_token_id);
                Groups::new(mask.map(|(row, _)| (row, 0)))
            }
        };
        if gated {
            p.first_row = p.add(&vec![0; adapted]);
        }
        p.order = p.add(&groups.order);
        p.pieces = p.add(&groups.pieces);
        p.firsts = p.add(&groups.firsts);
        p.rows = p.add(&groups.rows);
        Ok(p)
    }

    /// Whether targets are compared with teachers.
    pub(crate) fn is_taught(&self) -> bool {
        self.teachers.len > 0
    }

    /// Numbers that the loss writes for each target: its cross-entropy, with teachers also the
    /// divergence from the teacher and whether both have the same best token.
    pub(crate) fn numbers(&self) -> usize {
        if self.is_taught() { 3 } else { 1 }
    }

    /// The arrays of a pass behind a cache of `slots` keys.
    pub(crate) fn for_cache(
        pass: &CachedPass,
        vocab_size: usize,
        slots: usize,
        gated: bool,
    ) -> Result<Self> {
        let tokens = pass.input_ids.len();
        let adapted = if gated { pass.adapted } else { tokens };
        let inside = |id: &i32| *id >= 0 && (*id as usize) < vocab_size;
        if pass.positions.len() != tokens
            || !pass.input_ids.iter().all(inside)
            || pass.positions.iter().any(|p| *p < 0)
            || adapted > tokens
        {
            return Err(Error::Unsupported(
                "a pass with token ids outside the vocabulary or without positions".into(),
            ));
        }
        let items = items(&pass.tiles, tokens, slots)?;
        let mut p = Packed {
            tokens,
            positions_end: pass.positions.iter().max().map_or(1, |last| *last as usize + 1),
            item_count: items.len(),
            adapted,
            ..Packed::default()
        };
        p.ids = p.add(&pass.input_ids);
        p.positions = p.add(&pass.positions);
        p.items = p.add(&flat(&items));
        p.slots = p.add(&pass.slots);
        p.first_row = p.add(&vec![0; if gated { adapted } else { 0 }]);
        Ok(p)
    }

    /// Appends an array at a multiple of 64 bytes.
    fn add(&mut self, values: &[i32]) -> Span {
        let at = self.values.len().next_multiple_of(16);
        self.values.resize(at, 0);
        self.values.extend_from_slice(values);
        Span { at, len: values.len() }
    }
}

/// Items as the kernels read them.
fn flat(items: &[Item]) -> Vec<i32> {
    let numbers = items.iter().flat_map(|i| {
        let causal = usize::from(i.causal);
        [i.query, i.len, i.prefix.0, i.prefix.1, i.own.0, i.own.1, causal, 0]
    });
    numbers.map(|n| n as i32).collect()
}

/// Tiles cut into pieces of at most [`ITEM_QUERIES`] queries, those with most keys first, so that
/// the last blocks to finish are short ones.
fn items(tiles: &[Tile], tokens: usize, keys: usize) -> Result<Vec<Item>> {
    let mut items = Vec::with_capacity(tiles.len());
    let mut seen = vec![false; tokens];
    for tile in tiles {
        let inside = |(start, len): (usize, usize)| start + len <= keys;
        let covered = tile.query..tile.query + tile.len;
        if covered.end > tokens || !inside(tile.prefix) || !inside(tile.own) || tile.own.1 == 0 {
            return Err(Error::Unsupported(format!(
                "a batch whose tile {tile:?} is outside its {tokens} tokens and {keys} keys"
            )));
        }
        if seen[covered.clone()].iter().any(|seen| *seen) {
            return Err(Error::Unsupported("a batch whose tiles overlap".into()));
        }
        seen[covered].fill(true);
        for first in (0..tile.len).step_by(ITEM_QUERIES) {
            let len = ITEM_QUERIES.min(tile.len - first);
            // a causal piece sees its own block up to its last query
            let own = if tile.causal { (tile.own.0, first + len) } else { tile.own };
            items.push(Item {
                query: tile.query + first,
                len,
                prefix: tile.prefix,
                own,
                causal: tile.causal,
            });
        }
    }
    if seen.iter().any(|seen| !seen) {
        return Err(Error::Unsupported("a batch whose tiles leave out a token".into()));
    }
    items.sort_by_key(|item| (std::cmp::Reverse(item.keys()), item.query));
    Ok(items)
}

/// Tiles of at most [`TILE_KEYS`] neighbouring keys among the first `tokens`, which are the queries
/// of `items`, and the items that see any key of each.
fn key_tiles(items: &[Item], tokens: usize) -> (Vec<i32>, Vec<i32>) {
    // A tile does not reach over the start of a document's clean copy or from there into noised
    // blocks, since other items see those keys.
    let mut by_query: Vec<&Item> = items.iter().collect();
    by_query.sort_by_key(|item| item.query);
    let mut starts: Vec<usize> = Vec::new();
    let mut previous: Option<(&Item, bool)> = None;
    for item in by_query {
        // a clean block's own keys follow its prefix
        let clean = item.prefix.0 + item.prefix.1 == item.own.0 || item.causal;
        let fits = previous.is_some_and(|(before, was_clean)| {
            before.prefix.0 == item.prefix.0
                && was_clean == clean
                && starts.last().is_some_and(|start| item.query + item.len - start <= TILE_KEYS)
        });
        if !fits {
            starts.push(item.query);
        }
        previous = Some((item, clean));
    }
    let mut seen_by: Vec<Vec<i32>> = vec![Vec::new(); starts.len()];
    for (index, item) in items.iter().enumerate() {
        for (start, len) in [item.prefix, item.own] {
            if len == 0 || start >= tokens {
                continue;
            }
            let first = starts.partition_point(|s| *s <= start) - 1;
            let end = starts.partition_point(|s| *s < start + len);
            for list in &mut seen_by[first..end] {
                if list.last() != Some(&(index as i32)) {
                    list.push(index as i32);
                }
            }
        }
    }
    // tiles that most items see first, as in `items`
    let mut order: Vec<usize> = (0..starts.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(seen_by[*i].len()), *i));
    let (mut tiles, mut list) = (Vec::with_capacity(4 * starts.len()), Vec::new());
    for i in order {
        let end = starts.get(i + 1).copied().unwrap_or(tokens);
        let numbers = [starts[i], end - starts[i], list.len(), seen_by[i].len()];
        tiles.extend(numbers.map(|n| n as i32));
        list.extend_from_slice(&seen_by[i]);
    }
    (tiles, list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(query: usize, len: usize, prefix: (usize, usize), own: (usize, usize)) -> Tile {
        Tile { query, len, prefix, own, causal: false }
    }

    /// Two documents: clean blocks, then noised blocks, and a causal run.
    fn tiles() -> (Vec<Tile>, usize) {
        let mut tiles = Vec::new();
        for (at, blocks, bd) in [(0, 5, 32), (320, 3, 8)] {
            for b in 0..blocks {
                let query = at + b * bd;
                tiles.push(tile(query, bd, (at, b * bd), (query, bd)));
            }
            for b in 0..blocks {
                let query = at + (blocks + b) * bd;
                tiles.push(tile(query, bd, (at, b * bd), (query, bd)));
            }
        }
        tiles.push(Tile { query: 368, len: 75, prefix: (368, 0), own: (368, 75), causal: true });
        (tiles, 443)
    }

    fn sees(item: &Item, query: usize, key: usize) -> bool {
        let in_prefix = (item.prefix.0..item.prefix.0 + item.prefix.1).contains(&key);
        let own =
            if item.causal { query - item.query + 1 + item.own.1 - item.len } else { item.own.1 };
        in_prefix || (item.own.0..item.own.0 + own).contains(&key)
    }

    #[test]
    fn items_see_what_the_tiles_see() {
        let (tiles, tokens) = tiles();
        let items = items(&tiles, tokens, tokens).unwrap();
        assert!(items.iter().all(|item| item.len <= ITEM_QUERIES));
        for query in 0..tokens {
            let item = items.iter().find(|i| (i.query..i.query + i.len).contains(&query)).unwrap();
            let tile = tiles.iter().find(|t| (t.query..t.query + t.len).contains(&query)).unwrap();
            for key in 0..tokens {
                let own = if tile.causal { query - tile.query + 1 } else { tile.own.1 };
                let seen = (tile.prefix.0..tile.prefix.0 + tile.prefix.1).contains(&key)
                    || (tile.own.0..tile.own.0 + own).contains(&key);
                assert_eq!(sees(item, query, key), seen, "query {query}, key {key}");
            }
        }
    }

    #[test]
    fn key_tiles_hold_every_key_and_list_all_who_see_it() {
        let (tiles, tokens) = tiles();
        let items = items(&tiles, tokens, tokens).unwrap();
        let (key_tiles, list) = key_tiles(&items, tokens);
        let mut held = vec![0; tokens];
        for tile in key_tiles.chunks(4) {
            let [start, len, first, count] = [0, 1, 2, 3].map(|i| tile[i] as usize);
            assert!(len <= TILE_KEYS && len > 0);
            let listed = &list[first..first + count];
            held[start..start + len].iter_mut().for_each(|n| *n += 1);
            for key in start..start + len {
                for (i, item) in items.iter().enumerate() {
                    let seen = (item.query..item.query + item.len).any(|q| sees(item, q, key));
                    assert!(!seen || listed.contains(&(i as i32)));
                }
            }
        }
        assert!(held.iter().all(|n| *n == 1));
    }

    #[test]
    fn wrong_batches_are_refused() {
        let (tiles, tokens) = tiles();
        let good = Batch {
            input_ids: vec![3; tokens],
            positions: vec![0; tokens],
            tiles,
            predicted_at: vec![1, 5, 1],
            targets: vec![7, 8, 9],
            ..Batch::default()
        };
        assert!(Packed::new(&good, 10, None).is_ok());
        assert!(Packed::new(&good, 9, None).is_err());
        assert!(Packed::new(&Batch { targets: vec![1], ..good.clone() }, 10, None).is_err());
        assert!(
            Packed::new(&Batch { predicted_at: vec![1, 5, 443], ..good.clone() }, 10, None)
                .is_err()
        );
        let taught = |teachers: &[i32], distill| {
            let batch = Batch { teachers: teachers.to_vec(), distill, ..good.clone() };
            Packed::new(&batch, 10, None).map(|packed| packed.numbers())
        };
        assert_eq!((taught(&[], 0.0).unwrap(), taught(&[442, 0, 3], 1.0).unwrap()), (1, 3));
        for wrong in [&[4][..], &[1, 2, 443], &[1, 2, -1]] {
            assert!(taught(wrong, 1.0).is_err(), "{wrong:?}");
        }
        assert!(taught(&[1, 2, 3], 1.5).is_err() && taught(&[1, 2, 3], f32::NAN).is_err());
        let mut twice = good.clone();
        twice.tiles.push(twice.tiles[0]);
        assert!(Packed::new(&twice, 10, None).is_err());
        let mut fewer = good;
        fewer.tiles.pop();
        assert!(Packed::new(&fewer, 10, None).is_err());
    }

    #[test]
    fn gated_adapters_have_the_first_tokens() {
        // two runs of 40 and 8 tokens, then the clean tokens that they see
        let causal =
            |query, len, prefix| Tile { causal: true, ..tile(query, len, prefix, (query, len)) };
        let tiles = vec![causal(0, 40, (48, 30)), causal(40, 8, (48, 9)), causal(48, 70, (48, 0))];
        let batch = Batch {
            input_ids: vec![3; 118],
            positions: vec![0; 118],
            tiles,
            predicted_at: vec![5, 5, 47],
            targets: vec![7, 8, 9],
            adapted: 48,
            ..Batch::default()
        };
        let targets = vec![crate::LayerRole::Query];
        let adapters = Adapters { rank: 2, scale: 1.0, targets, mask_token_id: 3, gated: true };
        let packed = |batch: &Batch| Packed::new(batch, 10, Some(&adapters));
        let p = packed(&batch).unwrap();
        assert_eq!((p.adapted, p.back_item_count, p.item_count), (48, 3, 6));
        let keys: i32 = (0..p.key_tile_count).map(|i| p.values[p.key_tiles.at + 4 * i + 1]).sum();
        assert_eq!((keys, p.order.len, p.rows.len), (48, 48, 1));
        for wrong in [47, 49, 119] {
            assert!(packed(&Batch { adapted: wrong, ..batch.clone() }).is_err(), "{wrong}");
        }
        let mut seen = batch;
        seen.tiles[2].prefix = (40, 8);
        assert!(packed(&seen).is_err());
    }
}

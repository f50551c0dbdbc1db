//! Who sees whom, as tiles: runs of queries that see the same one or two contiguous ranges of keys.
//!
//! In: [`Tile`]s. Out: a [`TilePlan`], in which every query is covered once, every range lies
//! inside the stream, and groups of tiles share no keys. [`super::tiles`] relies on these
//! properties for memory safety, so a plan cannot be built without them.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// A contiguous range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyRange {
    pub start: usize,
    pub len: usize,
}

impl KeyRange {
    pub(crate) fn new(start: usize, len: usize) -> Self {
        KeyRange { start, len }
    }

    fn moved(self, by: usize) -> Self {
        KeyRange { start: self.start + by, ..self }
    }
}

/// A run of queries that see the same keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    query: usize,
    len: usize,
    prefix: KeyRange,
    own: KeyRange,
    causal: bool,
}

impl Tile {
    /// `len` queries from `query` on that all see `prefix` (the clean tokens before them; may be
    /// empty) and `own` (the tokens of their own block).
    pub(crate) fn new(query: usize, len: usize, prefix: KeyRange, own: KeyRange) -> Self {
        Tile { query, len, prefix, own, causal: false }
    }

    /// `len` queries from `query` on that see `prefix`, and of the `len` keys from `own` on query j
    /// sees the first j + 1.
    pub(crate) fn causal(query: usize, len: usize, prefix: KeyRange, own: usize) -> Self {
        Tile { query, len, prefix, own: KeyRange::new(own, len), causal: true }
    }

    /// First query.
    pub(crate) fn query(&self) -> usize {
        self.query
    }

    /// Number of queries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether query j sees only the first j + 1 keys of [`Tile::own`].
    #[cfg_attr(not(feature = "native"), allow(dead_code, reason = "read by the native engine"))]
    pub(crate) fn is_causal(&self) -> bool {
        self.causal
    }

    /// First range of keys: the clean tokens before the queries; may be empty.
    pub(crate) fn prefix(&self) -> KeyRange {
        self.prefix
    }

    /// Second range of keys: the tokens of the queries' own block.
    pub(crate) fn own(&self) -> KeyRange {
        self.own
    }

    /// Keys of [`Tile::own`] that query `i` of the tile sees, counted from its start.
    pub(crate) fn own_seen_by(&self, i: usize) -> usize {
        if self.causal { i + 1 } else { self.own.len }
    }

    /// Keys of both ranges.
    pub(crate) fn keys(&self) -> usize {
        self.prefix.len + self.own.len
    }

    /// Visible (query, key) pairs.
    pub(crate) fn pairs(&self) -> usize {
        let own = if self.causal { self.len * (self.len + 1) / 2 } else { self.len * self.own.len };
        own + self.len * self.prefix.len
    }

    /// The same tile in a stream that begins `by` positions later.
    pub(crate) fn moved(self, by: usize) -> Self {
        Tile {
            query: self.query + by,
            prefix: self.prefix.moved(by),
            own: self.own.moved(by),
            ..self
        }
    }
}

/// Long causal tiles are cut into pieces of this many queries.
const CAUSAL_PIECE: usize = 64;

/// Tiles in groups; two tiles of different groups have no key in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct TilePlan {
    groups: Vec<Vec<Tile>>,
    queries: usize,
    keys: usize,
}

impl TilePlan {
    /// Groups tiles by the start of their prefix: tiles with the same start belong to one document
    /// (in training) or to one row of the cache (in decoding). `queries` and `keys` are the numbers
    /// of positions that attention is computed for and over.
    ///
    /// # Errors
    /// When a tile reaches outside the stream, when the tiles do not cover every query exactly
    /// once, or when two groups share keys.
    pub(crate) fn new(tiles: &[Tile], queries: usize, keys: usize) -> Result<Self> {
        let mut by_prefix: BTreeMap<usize, Vec<Tile>> = BTreeMap::new();
        for tile in tiles.iter().filter(|tile| !tile.is_empty()) {
            check_bounds(tile, queries, keys)?;
            let group = by_prefix.entry(tile.prefix.start).or_default();
            if !tile.causal || tile.len <= CAUSAL_PIECE {
                group.push(*tile);
                continue;
            }
            for first in (0..tile.len).step_by(CAUSAL_PIECE) {
                // all keys before the piece are a prefix that each of its queries sees
                let prefix = KeyRange::new(tile.prefix.start, tile.prefix.len + first);
                let len = CAUSAL_PIECE.min(tile.len - first);
                let (query, own) = (tile.query + first, tile.own.start + first);
                group.push(Tile::causal(query, len, prefix, own));
            }
        }
        let plan = TilePlan { groups: by_prefix.into_values().collect(), queries, keys };
        plan.check_coverage()?;
        plan.check_groups()?;
        Ok(plan)
    }

    /// The tiles in groups that run in parallel.
    pub(crate) fn groups(&self) -> &[Vec<Tile>] {
        &self.groups
    }

    /// Positions that attention is computed for.
    pub(crate) fn queries(&self) -> usize {
        self.queries
    }

    /// Positions that attention is computed over.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// Every query belongs to exactly one tile.
    fn check_coverage(&self) -> Result<()> {
        let mut tiles: Vec<&Tile> = self.groups.iter().flatten().collect();
        tiles.sort_by_key(|tile| tile.query);
        let mut end = 0;
        for tile in tiles {
            if tile.query != end {
                return Err(invalid(tile, format!("the tiles before it end at query {end}")));
            }
            end += tile.len;
        }
        if end == self.queries {
            return Ok(());
        }
        Err(Error::Mismatch(format!(
            "attention tiles cover {end} of {} queries; this is a bug, please report it",
            self.queries
        )))
    }

    /// No key belongs to two groups.
    fn check_groups(&self) -> Result<()> {
        let mut ranges: Vec<(KeyRange, usize, &Tile)> = Vec::new();
        for (group, tiles) in self.groups.iter().enumerate() {
            for tile in tiles {
                ranges.extend([tile.prefix, tile.own].map(|range| (range, group, tile)));
            }
        }
        ranges.retain(|(range, ..)| range.len > 0);
        ranges.sort_by_key(|(range, ..)| range.start);
        let (mut end, mut owner) = (0, 0);
        for (range, group, tile) in ranges {
            if range.start < end && group != owner {
                return Err(invalid(tile, "it shares keys with tiles of another prefix".into()));
            }
            if range.start + range.len > end {
                (end, owner) = (range.start + range.len, group);
            }
        }
        Ok(())
    }
}

/// The tile lies inside the stream; the pieces of a causal tile that is cut see one contiguous
/// prefix.
fn check_bounds(tile: &Tile, queries: usize, keys: usize) -> Result<()> {
    let inside = |start: usize, len: usize, end: usize| {
        start.checked_add(len).is_some_and(|last| last <= end)
    };
    if !inside(tile.query, tile.len, queries) {
        return Err(invalid(tile, format!("the stream has {queries} queries")));
    }
    if ![tile.prefix, tile.own].iter().all(|range| inside(range.start, range.len, keys)) {
        return Err(invalid(tile, format!("the stream has {keys} keys")));
    }
    if tile.own.len == 0 {
        return Err(invalid(tile, "its queries do not see themselves".into()));
    }
    let is_cut = tile.causal && tile.len > CAUSAL_PIECE;
    if is_cut && tile.prefix.start + tile.prefix.len != tile.own.start {
        return Err(invalid(
            tile,
            "the prefix of a long causal tile must end where its keys start".into(),
        ));
    }
    Ok(())
}

fn invalid(tile: &Tile, problem: String) -> Error {
    Error::Mismatch(format!("attention tile {tile:?}: {problem}; this is a bug, please report it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(query: usize, len: usize, prefix: (usize, usize), own: (usize, usize)) -> Tile {
        Tile::new(query, len, KeyRange::new(prefix.0, prefix.1), KeyRange::new(own.0, own.1))
    }

    fn refused(tiles: &[Tile], queries: usize, keys: usize, words: &str) {
        let error = TilePlan::new(tiles, queries, keys).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn tiles_outside_the_stream_are_refused() {
        let good = block(0, 4, (0, 0), (0, 4));
        assert!(TilePlan::new(&[good], 4, 4).is_ok());
        refused(&[good], 3, 4, "3 queries");
        refused(&[good], 4, 3, "3 keys");
        refused(&[block(0, 4, (5, 0), (0, 4))], 4, 4, "4 keys");
        refused(&[block(0, 4, (0, 9), (0, 4))], 4, 4, "4 keys");
        refused(&[block(usize::MAX, 4, (0, 0), (0, 4))], 4, 4, "4 queries");
        refused(&[block(0, 4, (usize::MAX, 1), (0, 4))], 4, 4, "4 keys");
        refused(&[block(0, 4, (0, 0), (usize::MAX, usize::MAX))], 4, 4, "4 keys");
        refused(&[block(0, 4, (0, 4), (0, 0))], 4, 4, "see themselves");
    }

    #[test]
    fn every_query_belongs_to_one_tile() {
        let (a, b) = (block(0, 4, (0, 0), (0, 4)), block(4, 4, (0, 4), (4, 4)));
        assert!(TilePlan::new(&[b, a], 8, 8).is_ok());
        refused(&[a], 8, 8, "4 of 8 queries");
        refused(&[a, b, block(3, 1, (0, 0), (0, 4))], 8, 8, "end at query 4");
        refused(&[b], 8, 8, "end at query 0");
    }

    #[test]
    fn groups_share_no_keys() {
        let (a, b) = (block(0, 4, (0, 0), (0, 4)), block(4, 4, (4, 0), (4, 4)));
        assert_eq!(TilePlan::new(&[a, b], 8, 8).unwrap().groups().len(), 2);
        refused(&[a, block(4, 4, (4, 0), (3, 5))], 8, 8, "shares keys");
        refused(&[block(0, 4, (0, 8), (0, 4)), b], 8, 8, "shares keys");
        // a short range between does not hide an overlap with the long one before it
        let long = block(0, 4, (0, 20), (0, 4));
        let short = block(4, 4, (0, 2), (4, 4));
        refused(&[long, short, block(8, 4, (10, 0), (10, 4))], 12, 24, "shares keys");
    }

    #[test]
    fn long_causal_tiles_are_cut() {
        let tile = Tile::causal(8, 150, KeyRange::new(8, 2), 10);
        let first = block(0, 8, (0, 0), (0, 8));
        let plan = TilePlan::new(&[first, tile], 158, 160).unwrap();
        let pieces = &plan.groups()[1];
        assert_eq!(pieces.iter().map(Tile::len).collect::<Vec<_>>(), [64, 64, 22]);
        assert_eq!(pieces[1].prefix(), KeyRange::new(8, 66));
        assert_eq!((pieces[2].query(), pieces[2].own()), (136, KeyRange::new(138, 22)));
        assert_eq!(pieces.iter().map(Tile::pairs).sum::<usize>(), tile.pairs());
        refused(&[first, Tile::causal(8, 65, KeyRange::new(8, 0), 9)], 73, 80, "must end where");
        // one that is not cut may see any prefix
        let apart = Tile::causal(8, 4, KeyRange::new(0, 5), 8);
        assert!(TilePlan::new(&[first, apart], 12, 12).is_ok());
    }
}

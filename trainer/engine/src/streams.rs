//! What a caller gives: streams of tokens and who sees whom.

/// A run of queries that see the same keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First query.
    pub query: usize,
    /// Number of queries.
    pub len: usize,
    /// Start and number of the clean keys before them; the number may be 0.
    pub prefix: (usize, usize),
    /// Start and number of the keys of their own block.
    pub own: (usize, usize),
    /// Query i sees only the first i + 1 keys of its own block.
    pub causal: bool,
}

/// The streams of one micro-batch, end to end.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, `[T]`.
    pub input_ids: Vec<i32>,
    /// Position of each token in its document, `[T]`.
    pub positions: Vec<i32>,
    /// Together they hold every query once.
    pub tiles: Vec<Tile>,
    /// The stream position whose logits predict a target, `[N]`.
    pub predicted_at: Vec<i32>,
    /// The token that is predicted there, `[N]`.
    pub targets: Vec<i32>,
    /// For each target the token, with hidden states of the source, whose logits say what the
    /// source predicts there, `[N]`; empty where the loss is cross-entropy alone.
    pub teachers: Vec<i32>,
    /// Share of the divergence from the teachers in the loss, 0 to 1; cross-entropy has the rest.
    pub distill: f32,
    /// The first so many tokens, whole tiles, are those that gated adapters act on; no other token
    /// may see them. Not read without gated adapters.
    pub adapted: usize,
}

/// The new tokens of one pass, rows end to end.
#[derive(Clone, Debug, Default)]
pub struct CachedPass {
    /// Token ids, `[T]`.
    pub input_ids: Vec<i32>,
    /// Position of each token in its row, `[T]`.
    pub positions: Vec<i32>,
    /// Where its key and value go: row of the cache times its positions, plus the position.
    pub slots: Vec<i32>,
    /// Queries count over the new tokens, keys over the slots of the cache.
    pub tiles: Vec<Tile>,
    /// As in [`Batch::adapted`]; other tokens may see the first ones' keys here.
    pub adapted: usize,
}

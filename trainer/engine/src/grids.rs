//! How many blocks and threads each kernel gets; the comments above the kernels say what they
//! expect.

use crate::options::Precision;
use crate::program::Grid;
use crate::shape::Shape;

/// Threads of kernels without sums across threads.
const FLAT: usize = 256;
/// Widest row that one warp handles alone; eight such rows share a block.
const WARP_ROW: usize = 1024;
/// Queries or keys of a block of attention in fp32.
const FP32_ROWS: usize = 16;
/// Queries that one block of attention threads handles.
pub(crate) const ITEM_QUERIES: usize = 32;
/// Keys that one block of the backward pass over keys handles.
pub(crate) const TILE_KEYS: usize = 64;
/// Blocks of `column_sums` along the rows.
const COLUMN_BLOCKS: usize = 64;
/// Threads of `cross_entropy`, and the bytes of a row that it keeps in shared memory.
const LOSS_THREADS: usize = 512;
const LOSS_SHARED: usize = 113_664;

/// Launch geometry for one model on one GPU.
#[derive(Clone, Debug)]
pub(crate) struct Grids {
    shape: Shape,
    precision: Precision,
    multiprocessors: usize,
}

impl Grids {
    pub(crate) fn new(shape: &Shape, precision: Precision, multiprocessors: usize) -> Self {
        Grids { shape: shape.clone(), precision, multiprocessors }
    }

    /// One thread per element.
    pub(crate) fn elements(&self, elements: usize) -> Grid {
        Grid::over(elements, FLAT)
    }

    /// `quantize_rows`: one block per row.
    pub(crate) fn quantize(&self, rows: usize) -> Grid {
        Grid::new(rows, FLAT)
    }

    /// One thread per eight elements.
    pub(crate) fn vectors(&self, elements: usize) -> Grid {
        Grid::over(elements.div_ceil(8), FLAT)
    }

    /// One thread per four elements.
    pub(crate) fn quads(&self, elements: usize) -> Grid {
        Grid::over(elements.div_ceil(4), FLAT)
    }

    fn norm_threads(&self) -> usize {
        match self.shape.hidden_size {
            e if e <= WARP_ROW => FLAT,
            e => 32 * e.div_ceil(512),
        }
    }

    /// `rms_norm` and `add_rms_norm`.
    pub(crate) fn norm(&self, rows: usize) -> Grid {
        let threads = self.norm_threads();
        if self.shape.hidden_size <= WARP_ROW {
            Grid::new(rows.div_ceil(8), threads)
        } else {
            Grid::new(rows, threads)
        }
    }

    /// `rms_norm_backward`; each block leaves one row of sums.
    pub(crate) fn norm_backward(&self) -> Grid {
        let per_multiprocessor = (512 / self.norm_threads()).max(1);
        Grid::new(per_multiprocessor * self.multiprocessors, self.norm_threads())
    }

    /// `reduce_rows`.
    pub(crate) fn reduce(&self, columns: usize) -> Grid {
        Grid::new(columns.div_ceil(32), 1024)
    }

    fn head_lanes(&self) -> usize {
        (self.shape.head_dim / 16).next_power_of_two()
    }

    /// `qkv_forward`.
    pub(crate) fn qkv(&self, tokens: usize) -> Grid {
        let s = &self.shape;
        let turned = s.num_attention_heads + s.num_key_value_heads;
        let heads = if s.qkv_bias { turned + s.num_key_value_heads } else { turned };
        Grid::over(tokens * heads * self.head_lanes(), FLAT)
    }

    /// `qkv_backward`; each block leaves one row of sums where q and k have norms.
    pub(crate) fn qkv_backward(&self) -> Grid {
        Grid::new(3 * self.multiprocessors, FLAT)
    }

    /// `column_sums`; each block in y leaves one row of sums.
    pub(crate) fn column_sums(&self, columns: usize) -> Grid {
        Grid { blocks: (columns.div_ceil(FLAT), COLUMN_BLOCKS), threads: FLAT, shared: 0 }
    }

    /// `sum_squares`; each block leaves one number.
    pub(crate) fn sum_squares(&self) -> Grid {
        Grid::new(8 * self.multiprocessors, FLAT)
    }

    /// `cross_entropy`: one block per row.
    pub(crate) fn cross_entropy(&self, rows: usize, with_gradient: bool) -> Grid {
        let row = self.precision.element() * self.shape.padded_vocab();
        let shared = row.min(LOSS_SHARED);
        let shared = if with_gradient { shared } else { 0 };
        Grid { blocks: (rows, 1), threads: LOSS_THREADS, shared }
    }

    /// `mixed_losses`: one block per row.
    pub(crate) fn mixed_losses(&self, rows: usize) -> Grid {
        Grid::new(rows, LOSS_THREADS)
    }

    /// `best_token`: one block per row.
    pub(crate) fn best_token(&self, rows: usize) -> Grid {
        Grid::new(rows, 512)
    }

    /// Most elements that blocks leave for `reduce_rows`, in fp32.
    pub(crate) fn parts(&self) -> usize {
        let s = &self.shape;
        let norm = self.norm_backward().blocks.0 * s.hidden_size;
        let heads = self.qkv_backward().blocks.0 * 2 * s.head_dim;
        let wide = match s.sub_norms {
            // every multiprocessor has at most two blocks of a norm's backward pass
            true => 2 * self.multiprocessors * s.intermediate_size,
            false => 0,
        };
        norm.max(heads).max(COLUMN_BLOCKS * s.qkv()).max(wide)
    }

    /// Query heads per block of attention, and blocks that the heads of a key/value head take.
    fn heads(&self) -> (usize, usize) {
        let group = self.shape.num_attention_heads / self.shape.num_key_value_heads;
        let splits = group.div_ceil(if self.short_heads() { 4 } else { 2 });
        (group.div_ceil(splits), splits)
    }

    fn short_heads(&self) -> bool {
        self.shape.head_dim <= 64
    }

    /// How attention divides its work, as macros for the kernels: groups of 16 queries (forward and
    /// `dq`) or keys (`dkv`) that a warp has, and teams of warps that share a tile of keys.
    pub(crate) fn attention_defines(&self) -> [(&'static str, String); 4] {
        let t = self.attention_tiles();
        [
            ("ATTENTION_FORWARD_TILES", t.forward.to_string()),
            ("ATTENTION_DQ_TILES", t.dq.to_string()),
            ("ATTENTION_DKV_TILES", t.dkv.to_string()),
            ("ATTENTION_DKV_TEAMS", t.teams.to_string()),
        ]
    }

    /// Two groups per warp halve the reads of shared memory where registers suffice, which they do
    /// for short heads.
    fn attention_tiles(&self) -> AttentionTiles {
        let (heads, _) = self.heads();
        let two_if = |yes: bool| if yes { 2 } else { 1 };
        let short = self.short_heads();
        AttentionTiles {
            forward: two_if(short && heads > 1),
            dq: two_if(short && heads % 2 == 0),
            dkv: two_if(short),
            teams: two_if(short),
        }
    }

    fn attention_row(&self) -> usize {
        2 * (self.shape.head_dim + 8)
    }

    /// Attention in fp32: blocks of [`FP32_ROWS`] queries or keys, half of that for long heads.
    fn attention_fp32(&self, pieces: usize, heads: usize, rows: usize) -> Grid {
        let rows_of_block = if self.short_heads() { FP32_ROWS } else { FP32_ROWS / 2 };
        Grid::new(pieces * heads * (rows / rows_of_block), 128)
    }

    /// `attention_forward`.
    pub(crate) fn attention(&self, items: usize) -> Grid {
        if self.precision == Precision::Fp32 {
            return self.attention_fp32(items, self.shape.num_attention_heads, ITEM_QUERIES);
        }
        let (heads, splits) = self.heads();
        Grid {
            blocks: (items * self.shape.num_key_value_heads * splits, 1),
            threads: 64 / self.attention_tiles().forward * heads,
            shared: 4 * TILE_KEYS * self.attention_row(),
        }
    }

    /// `attention_backward_dq`.
    pub(crate) fn attention_dq(&self, items: usize) -> Grid {
        if self.precision == Precision::Fp32 {
            return self.attention(items);
        }
        let (heads, _) = self.heads();
        let shared = (2 * TILE_KEYS + (2 * TILE_KEYS).max(96 * heads)) * self.attention_row();
        let threads = 64 / self.attention_tiles().dq * heads;
        Grid { threads, shared, ..self.attention(items) }
    }

    /// `attention_backward_dkv`.
    pub(crate) fn attention_dkv(&self, key_tiles: usize) -> Grid {
        if self.precision == Precision::Fp32 {
            return self.attention_fp32(key_tiles, self.shape.num_key_value_heads, TILE_KEYS);
        }
        let AttentionTiles { dkv, teams, .. } = self.attention_tiles();
        let row = self.attention_row();
        Grid {
            blocks: (key_tiles * self.shape.num_key_value_heads, 1),
            threads: 128 / dkv * teams,
            shared: 2 * TILE_KEYS * row + teams * (2 * TILE_KEYS * row + 512 + 4096),
        }
    }
}

/// How attention divides its work, see [`Grids::attention_defines`].
struct AttentionTiles {
    forward: usize,
    dq: usize,
    dkv: usize,
    teams: usize,
}

//! Where a pass puts everything besides weights and parameters' gradients: addresses inside one
//! arena.

use crate::adapters::{AdapterLayout, LayerGroups};
use crate::arena::Cursor;
use crate::batch::Span;
use crate::frozen;
use crate::options::Options;
use crate::row_lists::PIECE;
use crate::shape::{LayerRole, Layout, Shape};

/// What a layer keeps for its backward pass; addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LayerPlaces {
    /// Input, `[T, E]`.
    pub x: u64,
    /// After the first norm, `[T, E]`, and the norm's factors, `[T]` fp32.
    pub h1: u64,
    pub rstd1: u64,
    /// Queries, keys, values, `[T, (H + 2 K) D]`; rotated, or raw where q and k have a norm.
    pub qkv: u64,
    /// Normed and rotated queries and keys, `[T, (H + K) D]`, and the norms' factors; 0 without.
    pub qk: u64,
    pub qk_rstd: u64,
    /// Output of attention, `[T, H D]`, and the logarithms of its sums, `[H, T]` fp32.
    pub o: u64,
    pub lse: u64,
    /// Residual after attention, `[T, E]`.
    pub mid: u64,
    /// After the second norm, `[T, E]`, and the norm's factors.
    pub h2: u64,
    pub rstd2: u64,
    /// Gate and up projections, `[T, 2 F]`, and their product, `[T, F]`.
    pub gate_up: u64,
    pub a: u64,
    /// What `o_proj` and `down_proj` read: `o` and `a`, or those normed and rounded.
    pub o_in: u64,
    pub a_in: u64,
    /// Factors of the norms before them.
    pub rstd_o: u64,
    pub rstd_a: u64,
    /// Inner columns of the adapters beside `qkv`, `o_proj`, `gate_up` and `down_proj`, `[T, ..]`.
    pub inner: [u64; 4],
}

/// Addresses of everything a pass uses besides weights and gradients.
#[derive(Debug)]
pub(crate) struct Places {
    /// One per layer, or one that all layers use in turn.
    layers: Vec<LayerPlaces>,
    /// Inputs of the layers and the output of the last, `[T, E]` each.
    inputs: Vec<u64>,
    /// Projections back to the residual stream, `[T, E]`.
    pub y: u64,
    /// The input of a frozen BitLinear product, rounded, `[T, widest input]`; 0 elsewhere.
    pub rounded: u64,
    pub gradients: GradientPlaces,
    /// Hidden states at the targets, `[N, E]`: as they are, and after the final norm.
    pub picked: u64,
    pub normed: u64,
    pub rstd: u64,
    /// Some rows of logits, `[chunk, padded vocabulary]`; their gradients in the end.
    pub logits: u64,
    pub chunk: usize,
    /// The same of a chunk's teachers; their hidden states, `[chunk, E]`: as they are, and after
    /// the final norm. 0 without teachers.
    pub teacher: TeacherPlaces,
    /// What the loss says of each target, fp32.
    pub losses: u64,
    pub indices: u64,
    pub rope: u64,
    /// Bytes in all.
    pub bytes: usize,
}

/// Addresses of what is computed of the teachers of a chunk of targets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TeacherPlaces {
    pub picked: u64,
    pub normed: u64,
    pub rstd: u64,
    pub logits: u64,
}

/// Addresses of gradients of activations.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GradientPlaces {
    /// Of the residual stream, `[T, E]`.
    pub x: u64,
    /// Of a norm's output, `[T, E]`.
    pub h: u64,
    pub qkv: u64,
    pub o: u64,
    /// Products of attention's output and its gradient, summed by head, `[H, T]` fp32.
    pub delta: u64,
    pub a: u64,
    pub gate_up: u64,
    /// `[N, E]`.
    pub normed: u64,
    pub picked: u64,
    /// Sums that blocks leave for a second kernel, fp32.
    pub parts: u64,
    /// Sums of pieces for the embedding table, `[pieces, E]` fp32.
    pub pieces: u64,
    /// Of adapters' inner columns, `[T, widest]`.
    pub inner: u64,
}

/// The sizes of a batch that decide how much memory a pass takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub tokens: usize,
    pub targets: usize,
    /// Whether targets have teachers.
    pub taught: bool,
    /// Sums of pieces for the embedding table's gradient.
    pub pieces: usize,
    /// Elements that blocks leave for a second kernel.
    pub parts: usize,
}

impl Places {
    /// Lays everything out from address `start` on. In training with everything kept, every layer
    /// has its own activations; with checkpointing only the layers' inputs are kept; without
    /// training nothing is.
    pub(crate) fn new(
        s: &Shape,
        options: &Options,
        sizes: Sizes,
        start: u64,
        training: bool,
    ) -> Self {
        let (t, n, layers) = (sizes.tokens, sizes.targets, s.num_hidden_layers);
        let (e, f) = (s.hidden_size, s.intermediate_size);
        let keep_all = training && !options.activation_checkpointing;
        let element = options.precision.element();
        let mut c = Cursor::of(start, element);
        let stored_inputs = if training { layers + 1 } else { 2 };
        let stored: Vec<u64> = (0..stored_inputs).map(|_| c.act(t, e)).collect();
        let inputs = (0..=layers).map(|i| stored[i % stored_inputs]).collect();
        let kept = if keep_all { layers } else { 1 };
        let adapters = s.adapters.as_ref().map(|adapters| AdapterLayout::new(s, adapters));
        let groups =
            adapters.map_or(LayerGroups::default(), |mut a| a.layers.pop().unwrap_or_default());
        // where weights are frozen, the input of a matrix is kept for its adapters alone
        let frozen = s.adapters.is_some();
        let one_for_all = |width: usize, c: &mut Cursor, roles: &[LayerRole]| {
            let read = s.adapters.as_ref().is_none_or(|adapters| adapters.reads(roles));
            (!read).then(|| c.act(t, width))
        };
        let shared_h1 =
            one_for_all(e, &mut c, &[LayerRole::Query, LayerRole::Key, LayerRole::Value]);
        let shared_h2 = one_for_all(e, &mut c, &[LayerRole::Gate, LayerRole::Up]);
        let shared_down = one_for_all(f, &mut c, &[LayerRole::Down]);
        let layers = (0..kept)
            .map(|_| {
                let (h1, rstd1) = (shared_h1.unwrap_or_else(|| c.act(t, e)), c.fp32(t, 1));
                let qkv = c.act(t, s.qkv());
                let heads = s.num_attention_heads + s.num_key_value_heads;
                let (qk, qk_rstd) = match s.qk_norm {
                    true => (c.act(t, s.q() + s.kv()), c.fp32(t, heads)),
                    false => (0, 0),
                };
                let (o, lse) = (c.act(t, s.q()), c.fp32(t, s.num_attention_heads));
                let mid = c.act(t, e);
                let (h2, rstd2) = (shared_h2.unwrap_or_else(|| c.act(t, e)), c.fp32(t, 1));
                let gate_up = c.act(t, 2 * f);
                // a norm's input is kept for its gradient
                let a = shared_down.filter(|_| !s.sub_norms).unwrap_or_else(|| c.act(t, f));
                let changed = s.sub_norms || (s.bit_linear && !frozen);
                let (o_in, a_in) = match changed {
                    true => (c.act(t, s.q()), shared_down.unwrap_or_else(|| c.act(t, f))),
                    false => (o, a),
                };
                let (rstd_o, rstd_a) =
                    if s.sub_norms { (c.fp32(t, 1), c.fp32(t, 1)) } else { (0, 0) };
                let widths = [&groups.qkv, &groups.output, &groups.gate_up, &groups.down];
                let inner =
                    widths.map(|group| if group.width > 0 { c.act(t, group.width) } else { 0 });
                LayerPlaces {
                    x: 0,
                    h1,
                    rstd1,
                    qkv,
                    qk,
                    qk_rstd,
                    o,
                    lse,
                    mid,
                    h2,
                    rstd2,
                    gate_up,
                    a,
                    o_in,
                    a_in,
                    rstd_o,
                    rstd_a,
                    inner,
                }
            })
            .collect();
        let y = c.act(t, e);
        let widest = e.max(f).max(s.q());
        let rounded = if frozen && s.bit_linear { c.act(t, widest) } else { 0 };
        let (picked, normed, rstd) = (c.act(n, e), c.act(n, e), c.fp32(n, 1));
        let vocabulary = s.padded_vocab();
        let row = element * vocabulary * if sizes.taught { 2 } else { 1 };
        let chunk = (options.logits_bytes / row).clamp(1, n.max(1));
        let logits = c.act(chunk, vocabulary);
        let teacher = match sizes.taught {
            true => TeacherPlaces {
                picked: c.act(chunk, e),
                normed: c.act(chunk, e),
                rstd: c.fp32(chunk, 1),
                logits: c.act(chunk, vocabulary),
            },
            false => TeacherPlaces::default(),
        };
        let gradients = if training {
            GradientPlaces {
                x: c.act(t, e),
                h: y,
                qkv: c.act(t, s.qkv()),
                o: c.act(t, s.q()),
                delta: c.fp32(t, s.num_attention_heads),
                a: c.act(t, f),
                gate_up: c.act(t, 2 * f),
                normed: c.act(n, e),
                picked: c.act(n, e),
                parts: c.fp32(sizes.parts, 1),
                pieces: c.fp32(sizes.pieces, e),
                inner: c.act(t, groups.widest()),
            }
        } else {
            GradientPlaces::default()
        };
        Places {
            layers,
            inputs,
            y,
            rounded,
            gradients,
            picked,
            normed,
            rstd,
            logits,
            chunk,
            teacher,
            losses: 0,
            indices: 0,
            rope: 0,
            bytes: c.used(),
        }
    }

    /// What layer `i` keeps.
    pub(crate) fn layer(&self, i: usize) -> LayerPlaces {
        LayerPlaces { x: self.inputs[i], ..self.layers[i % self.layers.len()] }
    }

    /// Whether each layer keeps its own activations, so that none has to run again.
    pub(crate) fn keeps_all(&self) -> bool {
        self.layers.len() + 1 == self.inputs.len()
    }

    /// The input of layer `i`, or with the number of layers the output of the last.
    pub(crate) fn input(&self, i: usize) -> u64 {
        self.inputs[i]
    }

    /// Address of an index array.
    pub(crate) fn index(&self, span: Span) -> u64 {
        self.indices + 4 * span.at as u64
    }
}

/// Bytes of device memory that an engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Weights, gradients, moments, and what the libraries take.
    pub fixed: usize,
    /// Activations of a pass.
    pub activations: usize,
}

/// What CUDA, the kernels and cuBLAS take besides our own arrays: about this much on an H100.
const LIBRARIES: usize = 1 << 30;

/// The memory for a model and passes over `tokens` tokens with `targets` targets, that have
/// teachers where `taught` says so; an upper bound.
pub fn memory_need(
    shape: &Shape,
    options: &Options,
    (tokens, targets): (usize, usize),
    taught: bool,
) -> MemoryNeed {
    let element = options.precision.element();
    let layout = Layout::new(shape);
    let adapters = shape.adapters.as_ref().map(|adapters| AdapterLayout::new(shape, adapters));
    let frozen = adapters.as_ref().map_or(0, |_| frozen::bytes(&layout, options.precision));
    let total = adapters.as_ref().map_or(layout.total, |adapters| adapters.total);
    let has_copy = element == 2 || (shape.bit_linear && adapters.is_none());
    let copy = if has_copy { element } else { 0 };
    let per_weight = if options.training { 8 + copy } else { 4 + copy };
    let moments = if options.training { 8 * options.share.range(total).len() } else { 0 };
    let staging = if options.training { options.share.staging_bytes(total) } else { 0 };
    // every token could be another row of the table, unless the mask token's alone is trained;
    // blocks leave a few MiB of sums
    let pieces = if adapters.is_some() { tokens.div_ceil(PIECE) } else { tokens };
    let sizes = Sizes { tokens, targets, taught, pieces: pieces + 1, parts: 1 << 20 };
    MemoryNeed {
        fixed: frozen + per_weight * total + moments + staging + LIBRARIES,
        activations: Places::new(shape, options, sizes, 0, options.training).bytes,
    }
}

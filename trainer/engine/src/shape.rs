//! The model that an engine computes, and where its parameters stand in memory.

use crate::error::{Error, Result};

/// Sizes and switches of a decoder; the names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream, E.
    pub hidden_size: usize,
    /// Width of the gated MLP, F.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads, H.
    pub num_attention_heads: usize,
    /// Key/value heads, K; divides H.
    pub num_key_value_heads: usize,
    /// Width of one head, D.
    pub head_dim: usize,
    /// Epsilon inside every RMSNorm.
    pub rms_norm_eps: f64,
    /// Angular frequency of each half dimension of RoPE, `[D / 2]`.
    pub inv_freq: Vec<f32>,
    /// Squared ReLU instead of SiLU as the MLP's gate.
    pub relu2: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// RMSNorm on q and k, per head, before RoPE.
    pub qk_norm: bool,
    /// The output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// RMSNorm before `o_proj` and before `down_proj` (BitNet); then `H D` is E.
    pub sub_norms: bool,
    /// Every matrix of the layers is BitLinear: weights rounded to -1, 0, 1 and their inputs to
    /// int8, with straight-through gradients.
    pub bit_linear: bool,
    /// Adapters, which alone are trained then; everything else is frozen. With `bit_linear` the
    /// layers' matrices are given as ternary values.
    pub adapters: Option<Adapters>,
}

impl Shape {
    /// Columns of queries, keys and values together: `(H + 2 K) · D`.
    pub(crate) fn qkv(&self) -> usize {
        (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
    }

    /// Columns of queries: `H · D`.
    pub(crate) fn q(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Columns of keys: `K · D`.
    pub(crate) fn kv(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Rows of the stored embedding table, and elements between two rows of logits: the vocabulary
    /// rounded up, so that rows of logits start at whole memory lines.
    pub(crate) fn padded_vocab(&self) -> usize {
        self.vocab_size.next_multiple_of(64)
    }

    /// Refuses what the kernels are not written for.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::Unsupported(text));
        if ![16, 32, 64, 96, 128].contains(&self.head_dim) {
            return refuse(format!(
                "head_dim is {}; the engine's attention is written for 16, 32, 64, 96 and 128",
                self.head_dim
            ));
        }
        let widths = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads times head_dim", self.q()),
        ];
        for (name, width) in widths {
            if width == 0 || width % 16 != 0 {
                return refuse(format!("{name} is {width}; the engine needs a multiple of 16"));
            }
        }
        let normed = if self.sub_norms { self.intermediate_size } else { 0 };
        if self.hidden_size.max(normed) > 8192 {
            return refuse(format!(
                "a norm is {} wide; the engine's norms are written for at most 8192",
                self.hidden_size.max(normed)
            ));
        }
        if self.num_attention_heads % self.num_key_value_heads.max(1) != 0
            || self.inv_freq.len() != self.head_dim / 2
            || (self.sub_norms && self.q() != self.hidden_size)
        {
            return refuse("the shape of the model contradicts itself".into());
        }
        self.adapters.as_ref().map_or(Ok(()), |adapters| adapters.check(self))
    }

    /// The sizes as macros for the kernels.
    pub(crate) fn defines(&self) -> Vec<(&'static str, String)> {
        let mut defines = vec![
            ("HIDDEN", self.hidden_size.to_string()),
            ("FFN", self.intermediate_size.to_string()),
            ("HEADS", self.num_attention_heads.to_string()),
            ("KV_HEADS", self.num_key_value_heads.to_string()),
            ("HEAD_DIM", self.head_dim.to_string()),
            ("VOCAB", self.vocab_size.to_string()),
            ("VOCAB_STRIDE", self.padded_vocab().to_string()),
            ("EPS", format!("{:e}f", self.rms_norm_eps)),
        ];
        if self.relu2 {
            defines.push(("RELU2", "1".into()));
        }
        defines
    }
}

/// Adapters of a model; they alone are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapters {
    /// Inner width r.
    pub rank: usize,
    /// Factor on the output of an adapter, alpha / r.
    pub scale: f32,
    /// Matrices of a layer that have one: `Query`, `Key`, `Value`, `Output`, `Gate`, `Up`, `Down`.
    pub targets: Vec<LayerRole>,
    /// The token whose row of the embedding table is trained; not read with `gated`.
    pub mask_token_id: usize,
    /// Adapters and the trained row act on the first tokens of a batch alone
    /// ([`Batch::adapted`](crate::Batch::adapted)), and the tables stay as they are. Without it
    /// they act on all tokens, and the table has the trained row; the head too where it is tied.
    pub gated: bool,
}

impl Adapters {
    /// Refuses what contradicts itself.
    pub(crate) fn check(&self, s: &Shape) -> Result<()> {
        let refuse = |text: String| Err(Error::Unsupported(text));
        let known = |role: &LayerRole| outputs(s, *role).is_some();
        let has_row = self.gated || self.mask_token_id < s.vocab_size;
        if self.rank == 0 || !has_row || !self.scale.is_finite() {
            return refuse(format!(
                "adapters of rank {} with a factor of {} and the mask token {} of {} tokens",
                self.rank, self.scale, self.mask_token_id, s.vocab_size
            ));
        }
        let twice = self.targets.iter().enumerate().any(|(i, t)| self.targets[..i].contains(t));
        if self.targets.is_empty() || twice || !self.targets.iter().all(known) {
            return refuse(format!("adapters beside {:?}", self.targets));
        }
        Ok(())
    }

    /// Whether any of these matrices has an adapter.
    pub(crate) fn reads(&self, roles: &[LayerRole]) -> bool {
        roles.iter().any(|role| self.targets.contains(role))
    }
}

/// Output columns of a matrix of the layers.
pub(crate) fn outputs(s: &Shape, role: LayerRole) -> Option<usize> {
    use LayerRole as L;
    match role {
        L::Query => Some(s.q()),
        L::Key | L::Value => Some(s.kv()),
        L::Output | L::Down => Some(s.hidden_size),
        L::Gate | L::Up => Some(s.intermediate_size),
        _ => None,
    }
}

/// What a parameter is in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Embedding table, `[vocab_size, E]`.
    Embedding,
    /// Output head where it has a table of its own, `[vocab_size, E]`.
    Head,
    /// The norm before the head, `[E]`.
    FinalNorm,
    /// A parameter of the layer with this number.
    Layer(usize, LayerRole),
    /// A of the adapter beside a matrix of a layer, `[r, in]`.
    AdapterA(usize, LayerRole),
    /// Its B, `[out, r]`.
    AdapterB(usize, LayerRole),
    /// The mask token's row of the embedding table where adapters are trained, `[E]`.
    MaskRow,
}

/// What a parameter is in its layer; the names are those of the modules in Hugging Face
/// checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerRole {
    /// `input_layernorm`, `[E]`.
    InputNorm,
    /// `q_proj`, `[H D, E]`.
    Query,
    /// `k_proj`, `[K D, E]`.
    Key,
    /// `v_proj`, `[K D, E]`.
    Value,
    /// Bias of `q_proj`.
    QueryBias,
    /// Bias of `k_proj`.
    KeyBias,
    /// Bias of `v_proj`.
    ValueBias,
    /// `q_norm`, `[D]`.
    QueryNorm,
    /// `k_norm`, `[D]`.
    KeyNorm,
    /// `attn_sub_norm`, `[H D]`.
    OutputNorm,
    /// `ffn_sub_norm`, `[F]`.
    DownNorm,
    /// `o_proj`, `[E, H D]`.
    Output,
    /// `post_attention_layernorm`, `[E]`.
    MlpNorm,
    /// `gate_proj`, `[F, E]`.
    Gate,
    /// `up_proj`, `[F, E]`.
    Up,
    /// `down_proj`, `[E, F]`.
    Down,
}

/// A parameter's place in the arenas of weights, gradients and moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// What it is.
    pub role: Role,
    /// First element.
    pub(crate) offset: usize,
    /// Number of elements, as in the checkpoint.
    pub len: usize,
    /// Not trained: without gradient and moments, and in the dtype of the passes where it is a
    /// matrix or a table.
    pub frozen: bool,
}

/// Element offsets of one layer's parameters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LayerOffsets {
    pub input_norm: usize,
    /// `q_proj`, `k_proj` and `v_proj`, one after the other: one matrix `[(H + 2 K) D, E]`.
    pub qkv: usize,
    /// Their biases, one after the other.
    pub qkv_bias: usize,
    /// `q_norm` and `k_norm`, one after the other.
    pub qk_norm: usize,
    pub output_norm: usize,
    pub down_norm: usize,
    pub output: usize,
    pub mlp_norm: usize,
    /// `gate_proj` and `up_proj`, one after the other: one matrix `[2 F, E]`.
    pub gate_up: usize,
    pub down: usize,
}

/// Where every parameter stands: first those with weight decay, then norms and biases.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub parameters: Vec<Parameter>,
    pub layers: Vec<LayerOffsets>,
    pub embedding: usize,
    pub head: usize,
    pub final_norm: usize,
    /// First element of the layers' matrices; they reach to `decayed`.
    pub matrices: usize,
    /// Elements with weight decay; the rest has none.
    pub decayed: usize,
    /// Elements in all.
    pub total: usize,
}

impl Layout {
    pub(crate) fn new(s: &Shape) -> Self {
        use LayerRole as L;
        let (e, f, q, kv) = (s.hidden_size, s.intermediate_size, s.q(), s.kv());
        let mut parameters = Vec::new();
        let mut end = 0usize;
        // `room` can be more than `len`: tables have rows that the vocabulary does not
        let mut place = |role, len: usize, room: usize, fresh: bool| {
            if fresh {
                end = end.next_multiple_of(128);
            }
            parameters.push(Parameter { role, offset: end, len, frozen: s.adapters.is_some() });
            end += room;
            end - room
        };
        let mut layers = vec![LayerOffsets::default(); s.num_hidden_layers];
        let (table, room) = (s.vocab_size * e, s.padded_vocab() * e);
        let embedding = place(Role::Embedding, table, room, true);
        let head =
            if s.tie_word_embeddings { embedding } else { place(Role::Head, table, room, true) };
        let mut matrices = None;
        for (i, l) in layers.iter_mut().enumerate() {
            let mut matrix = |role, len, fresh| place(Role::Layer(i, role), len, len, fresh);
            l.qkv = matrix(L::Query, q * e, true);
            matrices.get_or_insert(l.qkv);
            matrix(L::Key, kv * e, false);
            matrix(L::Value, kv * e, false);
            l.output = matrix(L::Output, e * q, true);
            l.gate_up = matrix(L::Gate, f * e, true);
            matrix(L::Up, f * e, false);
            l.down = matrix(L::Down, e * f, true);
        }
        let final_norm = place(Role::FinalNorm, e, e, true);
        let decayed = final_norm;
        for (i, l) in layers.iter_mut().enumerate() {
            let mut vector = |role, len, fresh| place(Role::Layer(i, role), len, len, fresh);
            l.input_norm = vector(L::InputNorm, e, true);
            l.mlp_norm = vector(L::MlpNorm, e, true);
            if s.sub_norms {
                l.output_norm = vector(L::OutputNorm, q, true);
                l.down_norm = vector(L::DownNorm, f, true);
            }
            if s.qkv_bias {
                l.qkv_bias = vector(L::QueryBias, q, true);
                vector(L::KeyBias, kv, false);
                vector(L::ValueBias, kv, false);
            }
            if s.qk_norm {
                l.qk_norm = vector(L::QueryNorm, s.head_dim, true);
                vector(L::KeyNorm, s.head_dim, false);
            }
        }
        let total = end.next_multiple_of(128);
        let matrices = matrices.unwrap_or(decayed);
        Layout { parameters, layers, embedding, head, final_norm, matrices, decayed, total }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn shape() -> Shape {
        Shape {
            vocab_size: 320,
            hidden_size: 96,
            intermediate_size: 192,
            num_hidden_layers: 3,
            num_attention_heads: 6,
            num_key_value_heads: 3,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            inv_freq: vec![0.5; 8],
            relu2: false,
            qkv_bias: true,
            qk_norm: true,
            tie_word_embeddings: false,
            sub_norms: true,
            bit_linear: true,
            adapters: None,
        }
    }

    #[test]
    fn parameters_do_not_overlap_and_neighbours_are_one_matrix() {
        let s = shape();
        let layout = Layout::new(&s);
        let mut spans: Vec<(usize, usize)> =
            layout.parameters.iter().map(|p| (p.offset, p.offset + p.len)).collect();
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(spans.last().unwrap().1 <= layout.total);
        let at = |layer, role| {
            let role = Role::Layer(layer, role);
            layout.parameters.iter().find(|p| p.role == role).unwrap().offset
        };
        for (i, l) in layout.layers.iter().enumerate() {
            assert_eq!(at(i, LayerRole::Query), l.qkv);
            assert_eq!(at(i, LayerRole::Key), l.qkv + s.q() * s.hidden_size);
            assert_eq!(at(i, LayerRole::Up), l.gate_up + s.intermediate_size * s.hidden_size);
            assert_eq!(at(i, LayerRole::ValueBias), l.qkv_bias + s.q() + s.kv());
            assert_eq!(at(i, LayerRole::KeyNorm), l.qk_norm + s.head_dim);
        }
        let decayed = layout.parameters.iter().filter(|p| p.offset < layout.decayed);
        assert!(decayed.clone().all(|p| p.len >= s.hidden_size * s.kv()));
        assert_eq!(decayed.count(), 2 + 7 * 3);
    }
}

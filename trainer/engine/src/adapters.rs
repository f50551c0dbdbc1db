//! Low-rank adapters (LoRA) beside frozen weights: which matrices have one, and where their
//! parameters stand.
//!
//! A target W `[out, in]` gets A `[r, in]` and B `[out, r]`, and its map becomes
//! `W x + scale · B A x`. Targets that read the same input share one product with their As, which
//! stand one below the other. Beside the adapters one row is trained, the mask token's. Everything
//! else is frozen: it has no gradient, no moments and no fp32 copy.

use crate::shape::{Adapters, LayerRole, Parameter, Role, Shape, outputs};

/// An adapter's B in a group of targets that read the same input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    /// First element of B.
    pub b: usize,
    /// First of the group's inner columns that this B reads.
    pub inner: usize,
    /// First of the group's output columns that it adds to, and their number.
    pub column: usize,
    pub outputs: usize,
}

/// Targets that read the same input: `inner` = scale · A x, and each B reads a part of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// First element of the As, `[width, inputs]`.
    pub a: usize,
    /// Rows of all As.
    pub width: usize,
    pub inputs: usize,
    /// Columns of the matrices' output, those without an adapter too.
    pub stride: usize,
    pub branches: Vec<Branch>,
}

/// The groups of a layer; those without targets are empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerGroups {
    pub qkv: Group,
    pub output: Group,
    pub gate_up: Group,
    pub down: Group,
}

impl LayerGroups {
    fn all(&self) -> [&Group; 4] {
        [&self.qkv, &self.output, &self.gate_up, &self.down]
    }

    /// Inner columns of the widest group.
    pub(crate) fn widest(&self) -> usize {
        self.all().iter().map(|group| group.width).max().unwrap_or(0)
    }
}

/// Where every trained parameter stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct AdapterLayout {
    pub parameters: Vec<Parameter>,
    pub layers: Vec<LayerGroups>,
    /// The mask token's row.
    pub mask_row: usize,
    /// Elements in all.
    pub total: usize,
}

impl AdapterLayout {
    pub(crate) fn new(s: &Shape, adapters: &Adapters) -> Self {
        use LayerRole as L;
        let mut layout = AdapterLayout::default();
        for i in 0..s.num_hidden_layers {
            let mut group = |roles: &[L], inputs| layout.place(s, adapters, i, roles, inputs);
            let groups = LayerGroups {
                qkv: group(&[L::Query, L::Key, L::Value], s.hidden_size),
                output: group(&[L::Output], s.q()),
                gate_up: group(&[L::Gate, L::Up], s.hidden_size),
                down: group(&[L::Down], s.intermediate_size),
            };
            layout.layers.push(groups);
        }
        layout.mask_row = layout.add(Role::MaskRow, s.hidden_size, true);
        layout.total = layout.total.next_multiple_of(128);
        layout
    }

    fn add(&mut self, role: Role, len: usize, fresh: bool) -> usize {
        if fresh {
            self.total = self.total.next_multiple_of(128);
        }
        let offset = self.total;
        self.parameters.push(Parameter { role, offset, len, frozen: false });
        self.total += len;
        offset
    }

    /// Places the As of a group one below the other, then the Bs.
    fn place(
        &mut self,
        s: &Shape,
        adapters: &Adapters,
        layer: usize,
        roles: &[LayerRole],
        inputs: usize,
    ) -> Group {
        let mut group = Group { inputs, ..Group::default() };
        let rank = adapters.rank;
        let has = |role: &&LayerRole| adapters.targets.contains(role);
        for role in roles.iter().filter(has) {
            let a = self.add(Role::AdapterA(layer, *role), rank * inputs, group.width == 0);
            if group.width == 0 {
                group.a = a;
            }
            group.width += rank;
        }
        let mut inner = 0;
        for role in roles {
            let outputs = outputs(s, *role).unwrap_or(0);
            if has(&role) {
                let b = self.add(Role::AdapterB(layer, *role), outputs * rank, true);
                group.branches.push(Branch { b, inner, column: group.stride, outputs });
                inner += rank;
            }
            group.stride += outputs;
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::shape;

    fn adapters(targets: &[LayerRole]) -> Adapters {
        let targets = targets.to_vec();
        Adapters { rank: 3, scale: 2.0, targets, mask_token_id: 319, gated: false }
    }

    #[test]
    fn groups_share_an_input_and_nothing_overlaps() {
        use LayerRole as L;
        let (s, a) = (shape(), adapters(&[L::Down, L::Value, L::Query, L::Up]));
        a.check(&s).unwrap();
        let layout = AdapterLayout::new(&s, &a);
        let mut spans: Vec<_> =
            layout.parameters.iter().map(|p| (p.offset, p.offset + p.len)).collect();
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(spans.last().unwrap().1 <= layout.total);
        assert_eq!(layout.parameters.len(), 3 * 8 + 1);
        for (i, l) in layout.layers.iter().enumerate() {
            let at = |role| layout.parameters.iter().find(|p| p.role == role).unwrap().offset;
            assert_eq!((l.qkv.width, l.output.width, l.gate_up.width, l.down.width), (6, 0, 3, 3));
            assert_eq!(l.widest(), 6);
            assert_eq!(at(Role::AdapterA(i, L::Query)), l.qkv.a);
            assert_eq!(at(Role::AdapterA(i, L::Value)), l.qkv.a + 3 * s.hidden_size);
            let value = Branch {
                b: at(Role::AdapterB(i, L::Value)),
                inner: 3,
                column: s.q() + s.kv(),
                outputs: s.kv(),
            };
            assert_eq!(l.qkv.branches[1], value);
            assert_eq!(l.gate_up.branches[0].column, s.intermediate_size);
            assert_eq!((l.qkv.stride, l.gate_up.stride), (s.qkv(), 2 * s.intermediate_size));
            // vector loads begin at multiples of 16 elements
            assert!(layout.parameters.iter().all(|p| p.offset % 16 == 0));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        use LayerRole as L;
        let (s, good) = (shape(), adapters(&[L::Query]));
        let wrong = [
            Adapters { rank: 0, ..good.clone() },
            Adapters { mask_token_id: 320, ..good.clone() },
            Adapters { scale: f32::NAN, ..good.clone() },
            adapters(&[]),
            adapters(&[L::Query, L::Query]),
            adapters(&[L::InputNorm]),
        ];
        assert!(good.check(&s).is_ok());
        assert!(wrong.iter().all(|adapters| adapters.check(&s).is_err()));
    }
}

//! Where the new tokens of a pass stand, and which keys each of them sees.
//!
//! In: spans of rows whose tokens all stand at their positions ([`of_spans`]), or rows of clean
//! tokens with groups of mask tokens behind some of them ([`of_branches`]). Out: a [`Placed`] for
//! each token of the pass, in order.
//!
//! A group stands for what may follow one of the clean tokens: its masks have the positions from
//! there on and see the clean tokens before, and the earlier masks of their own group. The keys of
//! a row's new tokens lie one behind the other in the cache, clean ones at their positions, masks
//! behind them: they are scratch, which the next pass writes over.

use super::cached::{Order, Span};

/// Mask tokens that propose what follows a clean token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// Position of the first mask. All masks see the clean tokens before it.
    pub position: usize,
    /// Masks.
    pub len: usize,
}

/// The new tokens of a row: clean ones, then the masks of each group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Branches {
    /// Row of the cache.
    pub row: usize,
    /// Position of the first clean token.
    pub start: usize,
    /// Clean tokens.
    pub clean: usize,
    pub groups: Vec<Group>,
}

impl Branches {
    /// New tokens.
    pub(crate) fn len(&self) -> usize {
        self.clean + self.groups.iter().map(|group| group.len).sum::<usize>()
    }
}

/// A new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Row of the cache.
    pub row: usize,
    /// Position in the text.
    pub position: usize,
    /// Place of its key among those of the row.
    pub slot: usize,
    /// It sees the keys below this place.
    pub seen: usize,
    /// A mask also sees those from this place to its own.
    pub own: Option<usize>,
}

impl Placed {
    /// The place behind the last key that the token sees.
    pub(crate) fn end(&self) -> usize {
        match self.own {
            Some(_) => self.slot + 1,
            None => self.seen,
        }
    }

    /// Whether the token sees the key at a place.
    pub(crate) fn sees(&self, slot: usize) -> bool {
        slot < self.seen || self.own.is_some_and(|own| (own..=self.slot).contains(&slot))
    }
}

/// The tokens of a pass over `len` new tokens in each of `spans`.
pub(crate) fn of_spans(
    spans: &[Span],
    len: usize,
    order: Order,
) -> impl Iterator<Item = Placed> + '_ {
    spans.iter().flat_map(move |span| {
        (0..len).map(move |i| {
            let seen = match order {
                Order::Full => span.visible,
                Order::Blocks(size) => {
                    let size = size.max(1);
                    span.start + ((i / size + 1) * size).min(len)
                }
            };
            let position = span.start + i;
            Placed { row: span.row, position, slot: position, seen, own: None }
        })
    })
}

/// The tokens of a pass over rows with groups of masks.
pub(crate) fn of_branches(rows: &[Branches]) -> impl Iterator<Item = Placed> + '_ {
    rows.iter().flat_map(|branches| {
        let Branches { row, start, clean, .. } = *branches;
        let causal = (start..start + clean).map(move |position| Placed {
            row,
            position,
            slot: position,
            seen: position + 1,
            own: None,
        });
        let mut slot = start + clean;
        let masks = branches.groups.iter().flat_map(move |group| {
            let own = slot;
            slot += group.len;
            (0..group.len).map(move |i| Placed {
                row,
                position: group.position + i,
                slot: own + i,
                seen: group.position,
                own: Some(own),
            })
        });
        causal.chain(masks)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_see_what_stands_before_their_group_and_themselves() {
        let groups = vec![Group { position: 8, len: 2 }, Group { position: 10, len: 3 }];
        let rows = [Branches { row: 1, start: 7, clean: 3, groups }];
        let tokens: Vec<Placed> = of_branches(&rows).collect();
        assert_eq!(tokens.len(), rows[0].len());
        let places: Vec<_> = tokens.iter().map(|token| (token.position, token.slot)).collect();
        let clean = [(7, 7), (8, 8), (9, 9)];
        let masks = [(8, 10), (9, 11), (10, 12), (11, 13), (12, 14)];
        assert_eq!(places, [&clean[..], &masks[..]].concat());
        let seen = |i: usize| (0..16).filter(|slot| tokens[i].sees(*slot)).collect::<Vec<_>>();
        let text = |end: usize| (0..end).collect::<Vec<_>>();
        assert_eq!((seen(0), seen(2)), (text(8), text(10)));
        assert_eq!(seen(3), [text(8), vec![10]].concat());
        assert_eq!(seen(4), [text(8), vec![10, 11]].concat());
        assert_eq!(seen(7), [text(10), vec![12, 13, 14]].concat());
        assert_eq!(
            tokens.iter().map(Placed::end).collect::<Vec<_>>(),
            [8, 9, 10, 11, 12, 13, 14, 15]
        );
    }
}

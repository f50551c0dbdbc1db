//! Streams of the lossless objective: runs of mask tokens that propose what the source's own causal
//! pass would say.
//!
//! In: [`PackedRow`], and which starting offsets of blocks are taken: `offsets[o]` for each o below
//! `bd_size`. Out: [`Stream`]s as of [`super::layout`].
//!
//! For an offset o the positions of a document are cut at o, o + D, o + 2D, …; a *run* is a longest
//! sequence of consecutive labelled positions, without the document's first, between two cuts. Each
//! is shown as the mask token once per offset. A mask at p of a run that begins at f sees the clean
//! tokens before f and the masks from f to p; a clean token sees the clean tokens up to itself, as
//! in the source. The logits at p predict token p + 1, which counts where it has a label. What the
//! clean tokens predict is the source's already and not trained.

use super::layout::{Stream, StreamRole, Target, Token};
use super::spec::{IGNORE, ObjectiveSpec, PackedRow};
use crate::attention::{KeyRange, Tile};

/// Whether a query sees a key: the reference that tests compare the tiles with. The `block` of a
/// masked token is the first position of its run.
pub(crate) fn sees(q: &Token, k: &Token) -> bool {
    let earlier = k.position <= q.position;
    q.document == k.document
        && match (q.role, k.role) {
            (StreamRole::Clean, StreamRole::Clean) => earlier,
            (StreamRole::Noised(a), StreamRole::Noised(b)) => {
                a == b && k.block == q.block && earlier
            }
            (StreamRole::Noised(_), StreamRole::Clean) => k.position < q.block,
            (StreamRole::Pad, StreamRole::Pad) => true,
            _ => false,
        }
}

/// The runs of a document's labels for an offset, as (first position, length).
fn runs(labels: &[i32], bd_size: usize, offset: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (p, label) in labels.iter().enumerate().skip(1) {
        let is_cut = (p + bd_size - offset % bd_size) % bd_size == 0;
        match runs.last_mut() {
            _ if *label == IGNORE => {}
            Some((first, length)) if *first + *length == p && !is_cut => *length += 1,
            _ => runs.push((p, 1)),
        }
    }
    runs
}

/// The chosen offsets in order.
fn chosen(offsets: &[bool]) -> impl Iterator<Item = usize> + '_ {
    offsets.iter().enumerate().filter(|(_, taken)| **taken).map(|(offset, _)| offset)
}

/// Predictions that count in a row.
pub(crate) fn count(row: &PackedRow, offsets: &[bool], spec: &ObjectiveSpec) -> usize {
    let of_document = |(doc, start, n): (i32, usize, usize)| -> usize {
        let labels = &row.labels[start..start + n];
        let counted = |(first, length): (usize, usize)| {
            (first..first + length).filter(|p| p + 1 < n && labels[p + 1] != IGNORE).count()
        };
        let all = chosen(offsets).flat_map(|o| runs(labels, spec.bd_size, o)).map(counted);
        if doc < 0 { 0 } else { all.sum() }
    };
    spec.documents(row).into_iter().map(of_document).sum()
}

/// One stream with a single clean copy: runs that predict nothing are dropped, and so are clean
/// tokens behind the last one that a run sees; `taught`, behind the last one at which a run
/// predicts something.
pub(crate) fn saving(
    row: &PackedRow,
    offsets: &[bool],
    spec: &ObjectiveSpec,
    taught: bool,
) -> Stream {
    let mut stream = Stream::default();
    for (doc, start, n) in spec.documents(row) {
        if doc < 0 {
            continue;
        }
        let labels = &row.labels[start..start + n];
        let mut masked = Vec::new();
        for (view, offset) in chosen(offsets).enumerate() {
            for (first, length) in runs(labels, spec.bd_size, offset) {
                // positions behind the last that predicts something are seen by none before them
                let end = (first..first + length)
                    .rev()
                    .find(|p| p + 1 < n && labels[p + 1] != IGNORE)
                    .map_or(first, |p| p + 1);
                if end > first {
                    masked.push((view as u8, first, end - first));
                }
            }
        }
        let clean = stream.tokens.len();
        let needed = |(_, first, length): &(u8, usize, usize)| match taught {
            true => first + length,
            false => *first,
        };
        let needed = masked.iter().map(needed).max().unwrap_or(0);
        push_clean(&mut stream, row, doc, start, needed);
        for run in masked {
            push_run(&mut stream, row, spec, (doc, start, n), run, (clean, taught));
        }
    }
    stream
}

/// For each offset one stream of a whole clean copy and all runs.
pub(crate) fn reference(
    row: &PackedRow,
    offsets: &[bool],
    spec: &ObjectiveSpec,
    taught: bool,
) -> Vec<Stream> {
    let of_offset = |(view, offset): (usize, usize)| {
        let mut stream = Stream::default();
        for (doc, start, n) in spec.documents(row) {
            let clean = stream.tokens.len();
            push_clean(&mut stream, row, doc, start, n);
            if doc < 0 {
                continue;
            }
            for (first, length) in runs(&row.labels[start..start + n], spec.bd_size, offset) {
                let run = (view as u8, first, length);
                push_run(&mut stream, row, spec, (doc, start, n), run, (clean, taught));
            }
        }
        stream
    };
    chosen(offsets).enumerate().map(of_offset).collect()
}

/// The first `len` tokens of a document, each seeing those up to itself.
fn push_clean(stream: &mut Stream, row: &PackedRow, doc: i32, start: usize, len: usize) {
    let at = stream.tokens.len();
    if len > 0 {
        stream.tiles.push(Tile::causal(at, len, KeyRange::new(at, 0), at));
    }
    stream.tokens.extend((0..len).map(|j| Token {
        id: row.input_ids[start + j],
        position: j as i32,
        document: doc,
        block: 0,
        role: StreamRole::Clean,
    }));
}

/// A run of masks with the predictions that count, `taught` with their teachers; the document's
/// clean copy begins at `clean`.
fn push_run(
    stream: &mut Stream,
    row: &PackedRow,
    spec: &ObjectiveSpec,
    (doc, start, n): (i32, usize, usize),
    (view, first, length): (u8, usize, usize),
    (clean, taught): (usize, bool),
) {
    let at = stream.tokens.len();
    stream.tiles.push(Tile::causal(at, length, KeyRange::new(clean, first), at));
    for p in first..first + length {
        stream.tokens.push(Token {
            id: spec.mask_token_id,
            position: p as i32,
            document: doc,
            block: first as i32,
            role: StreamRole::Noised(view),
        });
        if p + 1 < n && row.labels[start + p + 1] != IGNORE {
            let id = row.input_ids[start + p + 1];
            stream.targets.push(Target { at: at + p - first, id });
            if taught {
                stream.teachers.push(clean + p);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::DocumentMask;

    fn row() -> PackedRow {
        let mut labels = vec![IGNORE; 40];
        for i in (5..17).chain(22..24).chain(27..38) {
            labels[i] = i as i32;
        }
        PackedRow { input_ids: (0..40).collect(), labels, documents: vec![(0, 24), (24, 14)] }
    }

    fn spec(bd_size: usize) -> ObjectiveSpec {
        let document_mask = DocumentMask::Document;
        ObjectiveSpec {
            bd_size,
            mask_token_id: 99,
            complementary: true,
            document_mask,
            token_shift: true,
        }
    }

    #[test]
    fn runs_are_cut_at_the_grid_and_at_prompts() {
        let labels = &row().labels[..24];
        assert_eq!(runs(labels, 8, 0), [(5, 3), (8, 8), (16, 1), (22, 2)]);
        assert_eq!(runs(labels, 8, 6), [(5, 1), (6, 8), (14, 3), (22, 2)]);
        assert_eq!(runs(labels, 8, 7), [(5, 2), (7, 8), (15, 2), (22, 1), (23, 1)]);
        // a document's first token is never proposed
        assert_eq!(runs(&[7; 4], 2, 0), [(1, 1), (2, 2)]);
    }

    /// Each position is proposed from each distance, once over all offsets.
    #[test]
    fn all_offsets_give_every_distance() {
        let labels = vec![1; 41];
        let mut seen = vec![vec![0; 8]; 41];
        for offset in 0..8 {
            for (first, length) in runs(&labels, 8, offset) {
                (first..first + length).for_each(|p| seen[p][p - first] += 1);
            }
        }
        for (p, of_distance) in seen.iter().enumerate().skip(8) {
            assert_eq!(of_distance, &[1; 8], "{p}");
        }
    }

    #[test]
    fn both_layouts_count_the_same_predictions() {
        for bd_size in [2, 4, 8, 32] {
            for taken in [vec![0], vec![1], vec![0, 1], (0..bd_size).collect::<Vec<_>>()] {
                let offsets: Vec<bool> = (0..bd_size).map(|o| taken.contains(&o)).collect();
                let (row, spec) = (row(), spec(bd_size));
                let one = saving(&row, &offsets, &spec, false);
                let all = reference(&row, &offsets, &spec, false);
                let mut a: Vec<i32> = one.targets.iter().map(|t| t.id).collect();
                let mut b: Vec<i32> =
                    all.iter().flat_map(|s| s.targets.iter().map(|t| t.id)).collect();
                a.sort_unstable();
                b.sort_unstable();
                assert_eq!(a, b);
                assert_eq!(a.len(), count(&row, &offsets, &spec));
                let total: usize = all.iter().map(|s| s.tokens.len()).sum();
                assert!(one.tokens.len() < total);
            }
        }
    }
    /// The teacher of a target is the clean copy of the mask that predicts it, and nothing else of
    /// a stream depends on whether teachers are asked for but the clean tokens behind.
    #[test]
    fn teachers_are_the_clean_copies_of_the_masks() {
        for (bd_size, taken) in [(2, vec![1]), (8, vec![0, 5]), (32, vec![3, 17, 30])] {
            let offsets: Vec<bool> = (0..bd_size).map(|o| taken.contains(&o)).collect();
            let (row, spec) = (row(), spec(bd_size));
            let mut all = reference(&row, &offsets, &spec, true);
            let bare = saving(&row, &offsets, &spec, false);
            let saving = saving(&row, &offsets, &spec, true);
            assert!(bare.teachers.is_empty());
            let ids = |s: &Stream| s.targets.iter().map(|t| t.id).collect::<Vec<_>>();
            assert_eq!(ids(&bare), ids(&saving));
            assert!(saving.tokens.len() - bare.tokens.len() <= bd_size * row.documents.len());
            all.push(saving);
            for stream in &all {
                assert_eq!(stream.teachers.len(), stream.targets.len());
                for (target, teacher) in stream.targets.iter().zip(&stream.teachers) {
                    let (mask, clean) = (&stream.tokens[target.at], &stream.tokens[*teacher]);
                    assert_eq!((mask.id, clean.role), (99, StreamRole::Clean));
                    assert_eq!((mask.document, mask.position), (clean.document, clean.position));
                    assert_eq!(clean.id + 1, target.id);
                }
            }
        }
    }
}

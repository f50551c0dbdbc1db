//! The output head at chosen positions: the most probable token and its probability in one pass
//! over the vocabulary, or the logits.

use crate::kernels::panels::{PANEL, Row, groups, product};
use crate::kernels::simd::{exp, widest};
use crate::kernels::team::Team;

use super::CpuModel;
use super::pointwise::{gather, rms_norm, scatter};

/// Panels of a task. It is fixed, and tasks are joined in order, so that sums do not depend on the
/// number of threads.
const PANELS: usize = 16;
/// Positions computed together.
const TOGETHER: usize = 8;
/// The logit of a token that must not be predicted.
const NEVER: f32 = -1e30;

/// The largest logit among some tokens, and the sum of all exponentials relative to it.
#[derive(Clone, Copy)]
struct Best {
    logit: f32,
    token: usize,
    sum: f32,
}

const NONE: Best = Best { logit: f32::NEG_INFINITY, token: 0, sum: 0.0 };

impl CpuModel {
    /// The most probable tokens at the rows `at` of the last pass, each with its probability; the
    /// token `never` is left out.
    pub(in crate::decode) fn predict(
        &mut self,
        at: &[usize],
        never: Option<i64>,
    ) -> Vec<(i64, f32)> {
        let normed = self.normed(at);
        let (count, panels) = (at.len(), self.head.matrix.panels());
        let mut best = vec![NONE; panels.div_ceil(PANELS) * count];
        Team::gather(|team| {
            team.for_chunks(&mut best, count, |_, task, best| {
                let end = panels.min((task + 1) * PANELS);
                for panel in task * PANELS..end {
                    self.logits_of(panel, &normed, count, never, |row, logits| {
                        fold(logits, panel * PANEL, &mut best[row]);
                    });
                }
            });
        });
        let joined = |row: usize| {
            let parts = best.iter().skip(row).step_by(count.max(1));
            let best = parts.fold(NONE, |all, part| {
                let (high, low) = if part.logit > all.logit { (*part, all) } else { (all, *part) };
                let rest = low.sum * (low.logit - high.logit).exp();
                // nothing was seen yet
                let rest = if low.sum == 0.0 { 0.0 } else { rest };
                Best { sum: high.sum + rest, ..high }
            });
            (best.token as i64, 1.0 / best.sum)
        };
        (0..count).map(joined).collect()
    }

    /// The logits at the rows `at` of the last pass, `[at, vocab_size]`.
    pub(in crate::decode) fn logits(&mut self, at: &[usize]) -> Vec<f32> {
        let normed = self.normed(at);
        let (count, vocab) = (at.len(), self.vocab_size);
        let mut by_panel = vec![[0f32; PANEL]; self.head.matrix.panels() * count];
        Team::gather(|team| {
            team.for_chunks(&mut by_panel, PANELS * count, |_, task, out| {
                for (i, out) in out.chunks_mut(count.max(1)).enumerate() {
                    let with = |row: usize, logits: &Row| out[row] = *logits;
                    self.logits_of(task * PANELS + i, &normed, count, None, with);
                }
            });
        });
        let mut logits = vec![0f32; count * vocab];
        for (row, logits) in logits.chunks_mut(vocab).enumerate() {
            let panels = by_panel.iter().skip(row).step_by(count.max(1));
            for (part, panel) in logits.chunks_mut(PANEL).zip(panels) {
                part.copy_from_slice(&panel[..part.len()]);
            }
        }
        logits
    }

    /// The final norm at the rows `at`, in groups.
    fn normed(&self, at: &[usize]) -> Vec<f32> {
        let (width, b) = (self.hidden_size, &self.buffers);
        let mut chosen = vec![0f32; groups(width) * at.len() * PANEL];
        let mut row = vec![0f32; width];
        for (i, from) in at.iter().enumerate() {
            gather(&b.x, b.rows, *from, 0, &mut row);
            scatter(&mut chosen, at.len(), i, 0, &row);
        }
        let mut normed = vec![0f32; chosen.len()];
        rms_norm(&chosen, &self.norm, at.len(), width, self.eps, &mut normed);
        normed
    }

    /// Calls `with` for each row with the logits of a panel of tokens.
    fn logits_of(
        &self,
        panel: usize,
        normed: &[f32],
        count: usize,
        never: Option<i64>,
        mut with: impl FnMut(usize, &Row),
    ) {
        let (first, matrix) = (panel * PANEL, &self.head.matrix);
        let never = never.and_then(|id| usize::try_from(id).ok()?.checked_sub(first));
        for block in (0..count).step_by(TOGETHER) {
            let mut logits = [[0f32; PANEL]; TOGETHER];
            let logits = &mut logits[..TOGETHER.min(count - block)];
            product(matrix.panel(panel), normed, count, block, logits);
            for (i, logits) in logits.iter_mut().enumerate() {
                logits.iter_mut().skip(self.vocab_size - first).for_each(|v| *v = NEVER);
                if let Some(logit) = never.and_then(|lane| logits.get_mut(lane)) {
                    *logit = NEVER;
                }
                with(block + i, logits);
            }
        }
    }
}

widest! {
    /// Takes the logits of the tokens from `first` on into account.
    fn fold(logits: &Row, first: usize, best: &mut Best) {
        let mut most = f32::NEG_INFINITY;
        for v in logits {
            most = if *v > most { *v } else { most };
        }
        if most > best.logit {
            if best.sum > 0.0 {
                best.sum *= exp(best.logit - most);
            }
            best.logit = most;
            best.token = first + logits.iter().position(|v| *v == most).unwrap_or(0);
        }
        let (mut sum, most) = (0f32, best.logit);
        let mut terms = [0f32; PANEL];
        for (term, v) in terms.iter_mut().zip(logits) {
            *term = exp(*v - most);
        }
        for term in terms {
            sum += term;
        }
        best.sum += sum;
    }
}

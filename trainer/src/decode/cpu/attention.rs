//! Attention of a few new tokens to the cache, one key/value head and some queries a task.
//!
//! A task's rows are its queries in each of the head's G query heads. Scores are a product with the
//! panels of keys, results one with the panels of values; both read the cache in place.

use std::sync::Mutex;

use crate::decode::placed::Placed;
use crate::kernels::panels::{PANEL, Row, groups, product};
use crate::kernels::team::Team;
use crate::model::ModelConfig;

use super::cache::LayerCache;
use super::pointwise::{self, Rotary};
use super::weights::Layer;

/// Rows of a task at most, unless one query has more.
const ROWS: usize = 32;

/// Shapes of attention, and the workers' buffers.
pub(super) struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    scratch: Vec<Mutex<Scratch>>,
}

/// Some queries of one row in one key/value head.
pub(super) struct Task {
    /// Row of the cache.
    row: usize,
    kv_head: usize,
    /// The queries, as tokens of the pass.
    queries: std::ops::Range<usize>,
}

/// Queries and scores of a task.
#[derive(Default)]
struct Scratch {
    head: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
}

impl Attention {
    pub(super) fn new(c: &ModelConfig) -> Self {
        let threads = rayon::current_num_threads().max(1);
        Attention {
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            dim: c.head_dim,
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// Queries of a task at most.
    fn queries(&self) -> usize {
        (ROWS / self.group().max(1)).max(1)
    }

    /// Values of one task's results.
    fn task_len(&self) -> usize {
        groups(self.dim) * self.queries() * self.group() * PANEL
    }

    /// The tasks of a pass over `tokens`, those of a row together.
    pub(super) fn tasks(&self, tokens: &[Placed]) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut end = 0;
        for of_row in tokens.chunk_by(|one, next| one.row == next.row) {
            let first = end;
            end += of_row.len();
            for first in (first..end).step_by(self.queries()) {
                let queries = first..end.min(first + self.queries());
                let row = tokens[first].row;
                let task = |kv_head| Task { row, kv_head, queries: queries.clone() };
                tasks.extend((0..self.kv_heads).map(task));
            }
        }
        tasks
    }

    /// Runs `tasks` on `qkv` `[.., rows, PANEL]`; the results by task go to `attended` and by token
    /// to `mixed`.
    pub(super) fn run(
        &self,
        team: &Team<'_>,
        layer: &Layer,
        inputs: &Inputs<'_>,
        tasks: &[Task],
        attended: &mut Vec<f32>,
        mixed: &mut Vec<f32>,
    ) {
        attended.resize(tasks.len() * self.task_len(), 0.0);
        team.for_chunks(attended, self.task_len(), |worker, i, out| {
            let mut spare = Scratch::default();
            match self.scratch.get(worker).map(Mutex::lock) {
                Some(Ok(mut scratch)) => self.attend(layer, inputs, &tasks[i], &mut scratch, out),
                _ => self.attend(layer, inputs, &tasks[i], &mut spare, out),
            }
        });
        let (rows, group) = (inputs.rows, self.group());
        mixed.clear();
        mixed.resize(groups(self.heads * self.dim) * rows * PANEL, 0.0);
        let mut head = vec![0f32; self.dim];
        for (task, out) in tasks.iter().zip(attended.chunks(self.task_len())) {
            let count = task.queries.len() * group;
            for row in 0..count {
                pointwise::gather(out, count, row, 0, &mut head);
                let (token, own) = (task.queries.start + row / group, row % group);
                let first = (task.kv_head * group + own) * self.dim;
                pointwise::scatter(mixed, rows, token, first, &head);
            }
        }
    }

    fn attend(
        &self,
        layer: &Layer,
        inputs: &Inputs<'_>,
        task: &Task,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let (group, dims) = (self.group(), groups(self.dim));
        let rows = task.queries.len() * group;
        let Scratch { head, queries, scores, sums } = scratch;
        head.resize(self.dim, 0.0);
        queries.clear();
        queries.resize(dims * rows * PANEL, 0.0);
        let scale = 1.0 / (self.dim as f32).sqrt();
        for row in 0..rows {
            let (token, own) = (task.queries.start + row / group, row % group);
            let first = (task.kv_head * group + own) * self.dim;
            pointwise::gather(inputs.qkv, inputs.rows, token, first, head);
            if let Some(weight) = &layer.q_norm {
                pointwise::norm_head(head, weight, inputs.eps);
            }
            inputs.rotary.rotate(inputs.tokens[token].position, head);
            head.iter_mut().for_each(|v| *v *= scale);
            pointwise::scatter(queries, rows, row, 0, head);
        }
        let tokens = &inputs.tokens[task.queries.clone()];
        let most = tokens.iter().map(Placed::end).max().unwrap_or(0);
        let panels = groups(most);
        scores.resize(panels * rows * PANEL, 0.0);
        let by_row = as_rows(scores);
        for panel in 0..panels {
            let keys = inputs.cache.keys(task.row, task.kv_head, panel);
            product(keys, queries, rows, 0, &mut by_row[panel * rows..(panel + 1) * rows]);
        }
        sums.resize(rows, 0.0);
        for (row, sum) in sums.iter_mut().enumerate() {
            let token = &tokens[row / group];
            // between what a mask sees of the text and the first mask of its group
            let gap = token.seen..token.own.unwrap_or(token.seen);
            pointwise::set(by_row, row, rows, gap.clone(), f32::NEG_INFINITY);
            pointwise::exponentials(by_row, row, rows, token.end(), sum);
            pointwise::set(by_row, row, rows, gap, 0.0);
        }
        for (dim, out) in as_rows(out).chunks_exact_mut(rows).take(dims).enumerate() {
            let values = inputs.cache.values(task.row, task.kv_head, dim, panels);
            product(values, scores, rows, 0, out);
            for (out, sum) in out.iter_mut().zip(sums.iter()) {
                out.iter_mut().for_each(|v| *v /= sum);
            }
        }
    }
}

/// What the tasks of a layer read.
pub(super) struct Inputs<'a> {
    pub qkv: &'a [f32],
    /// T.
    pub rows: usize,
    pub tokens: &'a [Placed],
    pub rotary: &'a Rotary,
    pub cache: &'a LayerCache,
    pub eps: f32,
}

fn as_rows(values: &mut [f32]) -> &mut [Row] {
    values.as_chunks_mut().0
}

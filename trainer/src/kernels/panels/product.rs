//! Products of a few rows of activations with one panel of weights.
//!
//! Each output is one sum over the inputs in their order, so it has the same bits however many rows
//! are computed together and however many threads work; a weight is read once for as many rows as
//! have their sums in registers.
#![allow(unsafe_code, reason = "calls of functions with target features")]

use super::matrix::{Bytes, Floats, Panel, Words};
use super::vectors::{LANES, Plain, Vectors};
use super::{PANEL, Row};

/// One group of [`PANEL`] inputs of a panel.
trait Group<S: Vectors>: Copy {
    /// The weights of an input: of the first and the last [`LANES`] outputs.
    fn weights(self, s: S, input: usize) -> (S::V, S::V);
}

/// A panel as a sequence of groups.
trait Groups<S: Vectors> {
    type Group: Group<S>;
    fn groups(self, s: S) -> impl Iterator<Item = Self::Group>;
}

impl<S: Vectors> Group<S> for &[Floats; 2 * PANEL] {
    #[inline(always)]
    fn weights(self, s: S, input: usize) -> (S::V, S::V) {
        let [low, high] = [&self[2 * input], &self[2 * input + 1]];
        s.fetch_ahead(low);
        s.fetch_ahead(high);
        (s.load(&low.0), s.load(&high.0))
    }
}

impl<S: Vectors> Group<S> for &[Words; PANEL] {
    #[inline(always)]
    fn weights(self, s: S, input: usize) -> (S::V, S::V) {
        s.fetch_ahead(&self[input]);
        s.bf16(&self[input].0)
    }
}

/// Codes, and the factors of the two vectors of outputs.
impl<S: Vectors> Group<S> for (&[Bytes; PANEL / 2], S::V, S::V) {
    #[inline(always)]
    fn weights(self, s: S, input: usize) -> (S::V, S::V) {
        if input.is_multiple_of(2) {
            s.fetch_ahead(&self.0[input / 2]);
        }
        let [low, high] = &self.0[input / 2].0[input % 2];
        (s.mul(s.int8(low), self.1), s.mul(s.int8(high), self.2))
    }
}

impl<'a, S: Vectors> Groups<S> for &'a [Floats] {
    type Group = &'a [Floats; 2 * PANEL];

    #[inline(always)]
    fn groups(self, _: S) -> impl Iterator<Item = Self::Group> {
        self.as_chunks().0.iter()
    }
}

impl<'a, S: Vectors> Groups<S> for &'a [Words] {
    type Group = &'a [Words; PANEL];

    #[inline(always)]
    fn groups(self, _: S) -> impl Iterator<Item = Self::Group> {
        self.as_chunks().0.iter()
    }
}

impl<'a, S: Vectors> Groups<S> for (&'a [Bytes], &'a [[Floats; 2]]) {
    type Group = (&'a [Bytes; PANEL / 2], S::V, S::V);

    #[inline(always)]
    fn groups(self, s: S) -> impl Iterator<Item = Self::Group> {
        let (codes, scales) = self;
        let groups = codes.as_chunks().0.iter();
        groups.enumerate().map(move |(g, codes)| {
            let [low, high] = &scales[g / 2];
            (codes, s.load(&low.0), s.load(&high.0))
        })
    }
}

/// Rows `first..first + out.len()` of `x` times one panel. `x` is `[groups, rows, PANEL]` with
/// `rows` rows.
///
/// # Panics
/// Where `x` has fewer groups or rows.
pub(crate) fn product(panel: Panel<'_>, x: &[f32], rows: usize, first: usize, out: &mut [Row]) {
    let (x, _) = x.as_chunks::<PANEL>();
    assert!(first + out.len() <= rows && panel.groups() * rows <= x.len(), "rows of a product");
    let job = Job { panel, x, rows, first };
    let done = (0..SETS).any(|set| run_with(set, job, out));
    debug_assert!(done, "plain code runs on every machine");
}

/// Instruction sets, widest first.
pub(super) const SETS: usize = 3;

/// Runs a product with one of [`SETS`]; false where the machine lacks it.
pub(super) fn run_with(set: usize, job: Job<'_>, out: &mut [Row]) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use super::vectors::{Avx2, Avx512};

        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
        fn wide(s: Avx512, job: Job<'_>, out: &mut [Row]) {
            run(s, job, out);
        }
        #[target_feature(enable = "avx2,fma")]
        fn medium(s: Avx2, job: Job<'_>, out: &mut [Row]) {
            run(s, job, out);
        }
        match set {
            0 => {
                let Some(s) = Avx512::detect() else { return false };
                // SAFETY: the features that `wide` is compiled for were detected.
                unsafe { wide(s, job, out) };
                return true;
            }
            1 => {
                let Some(s) = Avx2::detect() else { return false };
                // SAFETY: the features that `medium` is compiled for were detected.
                unsafe { medium(s, job, out) };
                return true;
            }
            _ => {}
        }
    }
    if set + 1 == SETS {
        run(Plain, job, out);
    }
    set + 1 == SETS
}

/// A product whose shapes were checked.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub panel: Panel<'a>,
    pub x: &'a [Row],
    pub rows: usize,
    pub first: usize,
}

#[inline(always)]
fn run<S: Vectors>(s: S, job: Job<'_>, out: &mut [Row]) {
    match job.panel {
        Panel::Fp32(panel) => run_panel(s, job, panel, out),
        Panel::Bf16(panel) => run_panel(s, job, panel, out),
        Panel::Int8(codes, scales) => run_panel(s, job, (codes, scales), out),
    }
}

#[inline(always)]
fn run_panel<S: Vectors, P: Groups<S> + Copy>(s: S, mut job: Job<'_>, panel: P, out: &mut [Row]) {
    let mut out = out;
    while !out.is_empty() {
        let rows = match out.len() {
            8.. if S::ROWS >= 8 => 8,
            4.. if S::ROWS >= 4 => 4,
            2.. => 2,
            _ => 1,
        };
        let (now, rest) = out.split_at_mut(rows);
        match rows {
            8 => run_rows::<S, P, 8>(s, job, panel, now),
            4 => run_rows::<S, P, 4>(s, job, panel, now),
            2 => run_rows::<S, P, 2>(s, job, panel, now),
            _ => run_rows::<S, P, 1>(s, job, panel, now),
        }
        job.first += rows;
        out = rest;
    }
}

#[inline(always)]
fn run_rows<S: Vectors, P: Groups<S>, const R: usize>(
    s: S,
    job: Job<'_>,
    panel: P,
    out: &mut [Row],
) {
    let mut sums = [[s.splat(0.0); 2]; R];
    for (group, x) in panel.groups(s).zip(job.x.chunks_exact(job.rows)) {
        let Some((x, _)) = x.get(job.first..).and_then(|x| x.split_first_chunk::<R>()) else {
            return;
        };
        for input in 0..PANEL {
            let (low, high) = group.weights(s, input);
            for (sum, x) in sums.iter_mut().zip(x) {
                let x = s.splat(x[input]);
                sum[0] = s.add_product(sum[0], low, x);
                sum[1] = s.add_product(sum[1], high, x);
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        let (halves, _) = out.as_chunks_mut::<LANES>();
        for (half, sum) in halves.iter_mut().zip(sum) {
            s.store(sum, half);
        }
    }
}

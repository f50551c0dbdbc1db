//! Decoding: forward passes over a few new tokens per row, with a cache of keys and values.
//!
//! In: [`CachedPass`]. Out: the most probable tokens at chosen positions, with their probabilities.
//! Keys and values of the new tokens overwrite the cache at their slots.

use crate::arena::Cursor;
use crate::batch::Packed;
use crate::cache::Cache;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::graphs::PassKey;
use crate::program::launch;
use crate::streams::CachedPass;

/// Most bytes of logits of a prediction; training leaves them this much room.
const LOGITS_BYTES: usize = 128 << 20;

impl Engine {
    /// A cache of `positions` tokens for each of `rows` rows, in place of the one before. What rows
    /// hold of the cache before is kept where `keep` is set and the number of rows is the same.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn open_cache(&mut self, rows: usize, positions: usize, keep: bool) -> Result<()> {
        let m = &self.model;
        m.device.enter()?;
        let old = self.cache.take().filter(|old| keep && old.rows == rows);
        let row = m.shape.kv() * m.element();
        let parts = 2 * m.shape.num_hidden_layers * rows;
        let buffer = m.device.allocate(parts * positions * row, "cached keys and values")?;
        if let Some(old) = old {
            let held = old.positions.min(positions);
            for part in 0..parts {
                let from = old.buffer.address() + (part * old.positions * row) as u64;
                let to = buffer.address() + (part * positions * row) as u64;
                m.device.copy(to, from, held * row)?;
            }
            m.device.wait()?;
        }
        self.cache = Some(Cache { rows, positions, buffer });
        Ok(())
    }

    /// Runs the layers on new tokens; [`Engine::predict`] reads the result.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pass that contradicts itself or the cache, or what the driver
    /// says.
    pub fn run_cached(&mut self, pass: &CachedPass) -> Result<()> {
        let cache = self.cache.as_ref().map(|c| (c.rows * c.positions, c.buffer.address()));
        let (slots, at) = cache.unwrap_or((0, 0));
        let tokens = pass.input_ids.len();
        if pass.slots.len() != tokens
            || pass.slots.iter().any(|slot| *slot < 0 || *slot as usize >= slots)
        {
            return Err(Error::Unsupported("a pass whose slots are outside the cache".into()));
        }
        let (vocab, gated) = (self.model.shape.vocab_size, self.model.is_gated());
        let packed = Packed::for_cache(pass, vocab, slots, gated)?;
        self.model.device.enter()?;
        let places = self.prepare(&packed, false)?;
        let m = &self.model;
        let size = (m.shape.kv() * slots * m.element()) as u64;
        m.ready()?;
        let key = PassKey {
            tokens,
            items: packed.item_count,
            adapted: packed.adapted,
            slots,
            addresses: [places.input(0), places.indices, places.rope, at],
        };
        let launch = || {
            m.forward(&packed, &places, |i| {
                let keys = at + 2 * i as u64 * size;
                Some((keys, keys + size))
            })
        };
        // events between kernels cannot be recorded
        let timed = m.program.profile.borrow().is_timed();
        if timed { launch() } else { self.graphs.run(key, launch) }?;
        self.hidden = Some((places.input(m.shape.num_hidden_layers), tokens));
        Ok(())
    }

    /// The most probable token, and its probability, after each of the tokens `at` of the last
    /// pass; `never` is not predicted.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for tokens that the last pass did not have, or what the driver says.
    pub fn predict(&mut self, at: &[i32], never: Option<i32>) -> Result<Vec<(i32, f32)>> {
        let (n, picked) = (at.len(), self.pick_states(at)?);
        let m = &self.model;
        for first in (0..n).step_by(picked.chunk) {
            let rows = picked.chunk.min(n - first);
            m.fp32_logits(picked.states(first), picked.logits, rows)?;
            launch!(
                m.program,
                "best_token",
                m.grids.best_token(rows),
                picked.logits,
                never.unwrap_or(-1),
                picked.best + 4 * first as u64,
                picked.best + 4 * (n + first) as u64
            )?;
        }
        let mut found = vec![0i32; 2 * n];
        if n > 0 {
            m.device.download(picked.best, &mut found)?;
        }
        let (tokens, probabilities) = found.split_at(n);
        let number = |bits: &i32| f32::from_bits(*bits as u32);
        Ok(tokens.iter().copied().zip(probabilities.iter().map(number)).collect())
    }

    /// Logits in fp32 after each of the tokens `at` of the last pass, on the host:
    /// `[at.len(), vocab_size]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for tokens that the last pass did not have, or what the driver says.
    pub fn cached_logits(&mut self, at: &[i32]) -> Result<Vec<f32>> {
        let (n, picked) = (at.len(), self.pick_states(at)?);
        let m = &self.model;
        let (vocab, stride) = (m.shape.vocab_size, m.shape.padded_vocab());
        let mut all = Vec::with_capacity(n * vocab);
        for first in (0..n).step_by(picked.chunk) {
            let rows = picked.chunk.min(n - first);
            m.fp32_logits(picked.states(first), picked.logits, rows)?;
            let mut part = vec![0f32; rows * stride];
            m.device.download(picked.logits, &mut part)?;
            all.extend(part.chunks(stride).flat_map(|row| row.iter().copied().take(vocab)));
        }
        Ok(all)
    }

    /// Hidden states after the tokens `at` of the last pass, behind the final norm, with room for
    /// what is computed from them.
    fn pick_states(&mut self, at: &[i32]) -> Result<Picked> {
        let Some((hidden, tokens)) = self.hidden else {
            return Err(Error::Unsupported("a prediction without a pass".into()));
        };
        if at.iter().any(|at| *at < 0 || *at as usize >= tokens) {
            return Err(Error::Unsupported("a prediction outside the last pass".into()));
        }
        let m = &self.model;
        m.device.enter()?;
        let (n, e, stride) = (at.len(), m.shape.hidden_size, m.shape.padded_vocab());
        // rows at a time, so that the logits of many predictions need little memory
        let chunk = (m.options.logits_bytes.min(LOGITS_BYTES) / (4 * stride)).clamp(1, n.max(1));
        let row = e * m.element();
        let bytes = 2 * (n * row).next_multiple_of(256) + 12 * n + 1024 + 4 * chunk * stride;
        let start = self.predictions.room(&m.device, bytes, "predictions")?;
        let mut c = Cursor::new(start);
        let (indices, rstd) = (c.fp32(n, 1), c.fp32(n, 1));
        let best = c.take(8 * n);
        let (gathered, normed) = (c.take(n * row), c.take(n * row));
        let logits = c.fp32(chunk, stride);
        if n > 0 {
            m.device.upload(indices, at)?;
            let grid = m.grids.vectors(n * e);
            launch!(m.program, "gather_rows", grid, hidden, indices, gathered, n)?;
            m.norm(gathered, m.layout.final_norm, normed, rstd, n)?;
        }
        Ok(Picked { normed, row, best, logits, chunk })
    }
}

/// Addresses of what is computed from the states of chosen tokens.
struct Picked {
    /// Normalised states, `row` bytes each.
    normed: u64,
    row: usize,
    /// Tokens, then probabilities.
    best: u64,
    /// Logits of `chunk` states at a time, fp32.
    logits: u64,
    chunk: usize,
}

impl Picked {
    /// The states from the one at `first` on.
    fn states(&self, first: usize) -> u64 {
        self.normed + (first * self.row) as u64
    }
}

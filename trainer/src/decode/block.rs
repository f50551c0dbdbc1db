//! Block-diffusion decoding, greedy: Fast-dLLM v2's `batch_sample` (arXiv:2509.26328).
//!
//! In: prompts. Out: completions. The sequence is cut into blocks of `block_size` from position 0.
//! Whole prompt blocks are prefilled. The block in work starts with what is known of it (the end of
//! the prompt, or the token that the last commit gave) and MASK elsewhere. Its sub-blocks are
//! filled from left to right: a pass runs the whole block behind the cache, token j is judged by
//! the logits of j-1, and every MASK of the sub-block whose likeliest token is above the threshold
//! is fixed, at least the likeliest one. A full block is run once more (commit): its keys and
//! values join the cache, its last logits give the first token of the next block. Every row of a
//! batch is at its own block; a pass runs the rows that need one, so that none is idle.

use crate::decode::cached::{KvCache, Order, Span};
use crate::error::{Error, Result};

use super::engine::{Engine, Verdict};
use super::{Completion, Passes};

/// How to decode.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockOptions {
    /// Tokens a block; must be what the model was trained with.
    pub block_size: usize,
    /// Tokens a sub-block; divides `block_size`.
    pub sub_block_size: usize,
    /// Probability above which a token is fixed.
    pub threshold: f64,
    /// Length limit: whole blocks, so that up to `block_size` tokens more or less may come; a limit
    /// that is no multiple of the block size is rounded up, and the completion cut to it.
    pub max_new_tokens: usize,
    /// The id of MASK; never produced.
    pub mask_id: i64,
    /// Ids that end a completion; none: it runs to its limit.
    pub stop_ids: Vec<i64>,
    /// Run only the sub-block where the rest of the block has been run before: faster in large
    /// batches, approximate.
    pub sub_block_cache: bool,
}

/// What a row needs next; `sub` is the first token of the sub-block, counted within the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Block { sub: usize },
    Small { sub: usize },
    Commit,
}

/// One prompt on its way.
struct Row {
    ids: Vec<i64>,
    prompt: usize,
    /// First token of the block in work.
    start: usize,
    /// First token of the block that is to be decoded.
    open: usize,
    blocks_left: usize,
    /// Whether the cache holds keys and values of the whole block in work.
    stored: bool,
    done: bool,
    passes: Passes,
}

impl Row {
    /// Opens the next block, or ends the row.
    fn begin_block(&mut self, options: &BlockOptions) {
        let generated = self.ids.get(self.prompt..).unwrap_or_default();
        if self.blocks_left == 0 || generated.iter().any(|id| options.stop_ids.contains(id)) {
            self.done = true;
            return;
        }
        self.blocks_left -= 1;
        self.open = self.ids.len();
        self.start = self.open / options.block_size * options.block_size;
        self.ids.resize(self.start + options.block_size, options.mask_id);
        self.stored = false;
    }

    fn want(&self, options: &BlockOptions) -> Want {
        let masked = |at: &usize| self.ids.get(*at) == Some(&options.mask_id);
        let Some(first) = (self.open..self.ids.len()).find(masked) else {
            return Want::Commit;
        };
        let sub = (first - self.start) / options.sub_block_size * options.sub_block_size;
        match options.sub_block_cache && self.stored && !masked(&(self.start + sub)) {
            true => Want::Small { sub },
            false => Want::Block { sub },
        }
    }

    /// Places within the block that hold MASK in the sub-block at `sub`.
    fn masked(&self, sub: usize, options: &BlockOptions) -> Vec<usize> {
        let places = sub..sub + options.sub_block_size;
        places.filter(|at| self.ids.get(self.start + at) == Some(&options.mask_id)).collect()
    }

    /// Fixes what is above the threshold, at least the likeliest; ends the row when a stop token
    /// has nothing open before it.
    fn accept(&mut self, places: &[usize], verdicts: &[Verdict], options: &BlockOptions) {
        let best =
            verdicts.iter().enumerate().fold(None, |best: Option<(usize, f32)>, (i, verdict)| {
                match best {
                    Some((_, most)) if verdict.probability <= most => best,
                    _ => Some((i, verdict.probability)),
                }
            });
        for (i, (place, verdict)) in places.iter().zip(verdicts).enumerate() {
            let sure = f64::from(verdict.probability) > options.threshold;
            if (sure || best.is_some_and(|(most, _)| most == i))
                && let Some(id) = self.ids.get_mut(self.start + place)
            {
                *id = verdict.token;
            }
        }
        let decoded = self.ids.get(self.open..).unwrap_or_default();
        let end =
            decoded.iter().find(|id| **id == options.mask_id || options.stop_ids.contains(id));
        self.done = end.is_some_and(|id| options.stop_ids.contains(id));
    }
}

impl Engine {
    /// Decodes `prompts` together in diffusion blocks; each gets what it would get alone.
    pub fn block(
        &mut self,
        prompts: &[Vec<i64>],
        options: &BlockOptions,
    ) -> Result<Vec<Completion>> {
        self.check(prompts, Some(options.mask_id))?;
        let (size, small) = (options.block_size, options.sub_block_size);
        if size == 0 || small == 0 || !size.is_multiple_of(small) {
            return Err(Error::Usage(format!(
                "sub-blocks of {small} tokens do not divide blocks of {size}"
            )));
        }
        let limit = options.max_new_tokens.div_ceil(size).saturating_mul(size);
        let longest = prompts
            .iter()
            .map(|prompt| (prompt.len() / size * size).saturating_add(limit))
            .max()
            .unwrap_or(0);
        let mut cache = self.new_cache(prompts.len(), longest);
        let mut rows = Vec::with_capacity(prompts.len());
        for (at, prompt) in prompts.iter().enumerate() {
            let mut row = Row {
                ids: prompt.clone(),
                prompt: prompt.len(),
                start: 0,
                open: 0,
                blocks_left: options.max_new_tokens.div_ceil(size),
                stored: false,
                done: false,
                passes: Passes::default(),
            };
            let whole = prompt.len() / size * size;
            if whole > 0 {
                let next =
                    self.prefill(prompt, whole, size, &mut cache, at, Some(options.mask_id))?;
                row.passes.prefill += 1;
                if whole == prompt.len() {
                    row.ids.push(next.token);
                }
            }
            row.begin_block(options);
            rows.push(row);
        }
        loop {
            let wants: Vec<(usize, Want)> = rows
                .iter()
                .enumerate()
                .filter(|(_, row)| !row.done)
                .map(|(at, row)| (at, row.want(options)))
                .collect();
            if wants.is_empty() {
                break;
            }
            let (small, block): (Vec<_>, Vec<_>) =
                wants.into_iter().partition(|(_, want)| matches!(want, Want::Small { .. }));
            self.decode_pass(&mut rows, &block, size, &mut cache, options)?;
            self.decode_pass(&mut rows, &small, options.sub_block_size, &mut cache, options)?;
        }
        let cut = |row: Row| {
            let mut ids = row.ids;
            if !options.max_new_tokens.is_multiple_of(size) {
                ids.truncate(row.prompt.saturating_add(options.max_new_tokens));
            }
            let done = Completion { ids, prompt: row.prompt, stopped: false, passes: row.passes };
            done.cut(&options.stop_ids)
        };
        Ok(rows.into_iter().map(cut).collect())
    }

    /// Runs `len` tokens of each of `wants`: their blocks, or sub-blocks over the keys and values
    /// of their blocks.
    fn decode_pass(
        &mut self,
        rows: &mut [Row],
        wants: &[(usize, Want)],
        len: usize,
        cache: &mut KvCache,
        options: &BlockOptions,
    ) -> Result<()> {
        if wants.is_empty() {
            return Ok(());
        }
        let (mut ids, mut spans, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &(at, want)) in wants.iter().enumerate() {
            let row = &rows[at];
            let first = match want {
                Want::Small { sub } => sub,
                Want::Block { .. } | Want::Commit => 0,
            };
            ids.extend(row.ids.iter().skip(row.start + first).take(len));
            let visible = row.start + options.block_size;
            spans.push(Span { row: at, start: row.start + first, visible });
            match want {
                // The first token of a pass has none before it and judges itself; it is never a
                // MASK, but for odd inputs.
                Want::Block { sub } | Want::Small { sub } => {
                    asked.extend(
                        row.masked(sub, options)
                            .iter()
                            .map(|place| i * len + (place - first).saturating_sub(1)),
                    );
                }
                Want::Commit => asked.push(i * len + len - 1),
            }
        }
        let hidden = self.pass(&ids, &spans, Order::Full, cache)?;
        let verdicts = self.judge(hidden, &asked, Some(options.mask_id))?;
        let mut verdicts = verdicts.as_slice();
        for &(at, want) in wants {
            let row = &mut rows[at];
            match want {
                Want::Block { sub } | Want::Small { sub } => {
                    let places = row.masked(sub, options);
                    let (mine, rest) = verdicts.split_at(places.len().min(verdicts.len()));
                    verdicts = rest;
                    match want {
                        Want::Small { .. } => row.passes.small += 1,
                        _ => row.passes.block += 1,
                    }
                    row.stored = true;
                    row.accept(&places, mine, options);
                }
                Want::Commit => {
                    row.passes.commit += 1;
                    if let Some((next, rest)) = verdicts.split_first() {
                        row.ids.push(next.token);
                        verdicts = rest;
                    }
                    row.begin_block(options);
                }
            }
        }
        Ok(())
    }
}

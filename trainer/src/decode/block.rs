//! Block-diffusion decoding, greedy: Fast-dLLM v2's `batch_sample` (arXiv:2509.26328).
//!
//! In: prompts. Out: completions. The sequence is cut into blocks of `block_size` from position 0. Whole prompt blocks are
//! prefilled. The block in work starts with what is known of it (the end of the prompt, or the token that the last commit
//! gave) and MASK elsewhere. Its sub-blocks are filled from left to right: a pass runs the whole block behind the cache,
//! token j is judged by the logits of j-1, and every MASK of the sub-block whose likeliest token is above the threshold is
//! fixed, at least the likeliest one. A full block is run once more (commit): its keys and values join the cache, its
//! last logits give the first token of the next block. Every row is at its own block, so that a batch has no idle rows.

use crate::error::{Error, Result};
use crate::model::cached::{Fresh, KvCache, Own};

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
    /// Length limit: whole blocks, so that up to `block_size` tokens more or less may come; a limit that is no multiple
    /// of the block size is rounded up, and the completion cut to it.
    pub max_new_tokens: usize,
    /// The id of MASK; never produced.
    pub mask_id: i64,
    /// Ids that end a completion; none: it runs to its limit.
    pub stop_ids: Vec<i64>,
    /// Run only the sub-block where the rest of the block has been run before: faster in large batches, approximate.
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
    stored: Option<Fresh>,
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
        self.stored = None;
    }

    fn want(&self, options: &BlockOptions) -> Want {
        let masked = |at: &usize| self.ids.get(*at) == Some(&options.mask_id);
        let Some(first) = (self.open..self.ids.len()).find(masked) else {
            return Want::Commit;
        };
        let sub = (first - self.start) / options.sub_block_size * options.sub_block_size;
        match options.sub_block_cache && self.stored.is_some() && !masked(&(self.start + sub)) {
            true => Want::Small { sub },
            false => Want::Block { sub },
        }
    }

    /// Places within the block that hold MASK in the sub-block at `sub`.
    fn masked(&self, sub: usize, options: &BlockOptions) -> Vec<usize> {
        let places = sub..sub + options.sub_block_size;
        places.filter(|at| self.ids.get(self.start + at) == Some(&options.mask_id)).collect()
    }

    /// Fixes what is above the threshold, at least the likeliest; ends the row when a stop token has nothing open before it.
    fn accept(&mut self, places: &[usize], verdicts: &[Verdict], options: &BlockOptions) {
        let best = verdicts.iter().enumerate().fold(None, |best: Option<(usize, f32)>, (i, verdict)| match best {
            Some((_, most)) if verdict.probability <= most => best,
            _ => Some((i, verdict.probability)),
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
        let end = decoded.iter().find(|id| **id == options.mask_id || options.stop_ids.contains(id));
        self.done = end.is_some_and(|id| options.stop_ids.contains(id));
    }
}

impl Engine {
    /// Decodes `prompts` together in diffusion blocks; each gets what it would get alone.
    pub fn block(&mut self, prompts: &[Vec<i64>], options: &BlockOptions) -> Result<Vec<Completion>> {
        self.check(prompts, Some(options.mask_id))?;
        let (size, small) = (options.block_size, options.sub_block_size);
        if size == 0 || small == 0 || !size.is_multiple_of(small) {
            return Err(Error::Usage(format!("sub-blocks of {small} tokens do not divide blocks of {size}")));
        }
        let mut cache = KvCache::new(prompts.len());
        let mut rows = Vec::with_capacity(prompts.len());
        for (slot, prompt) in prompts.iter().enumerate() {
            let mut row = Row {
                ids: prompt.clone(),
                prompt: prompt.len(),
                start: 0,
                open: 0,
                blocks_left: options.max_new_tokens.div_ceil(size),
                stored: None,
                done: false,
                passes: Passes::default(),
            };
            let whole = prompt.len() / size * size;
            if whole > 0 {
                let next = self.prefill(prompt, whole, size, &mut cache, slot, Some(options.mask_id))?;
                row.passes.prefill += 1;
                if whole == prompt.len() {
                    row.ids.push(next.token);
                }
            }
            row.begin_block(options);
            rows.push(row);
        }
        // Which row each slot of the cache belongs to.
        let mut slots: Vec<usize> = (0..rows.len()).collect();
        loop {
            let live: Vec<usize> = (0..slots.len()).filter(|&slot| !rows[slots[slot]].done).collect();
            if live.is_empty() {
                break;
            }
            if live.len() < slots.len() {
                cache.keep(&live);
                slots = live.iter().map(|&slot| slots[slot]).collect();
            }
            let wants: Vec<Want> = slots.iter().map(|&row| rows[row].want(options)).collect();
            if wants.iter().all(|want| matches!(want, Want::Small { .. })) {
                self.small_pass(&mut rows, &slots, &wants, &cache, options)?;
            } else {
                self.block_pass(&mut rows, &slots, &wants, &mut cache, options)?;
            }
        }
        let cut = |row: Row| {
            let mut ids = row.ids;
            if !options.max_new_tokens.is_multiple_of(size) {
                ids.truncate(row.prompt + options.max_new_tokens);
            }
            let done = Completion {
                ids,
                prompt: row.prompt,
                stopped: false,
                passes: row.passes,
            };
            done.cut(&options.stop_ids)
        };
        Ok(rows.into_iter().map(cut).collect())
    }

    /// Runs every slot's block; rows that wait for a small pass ride along unchanged.
    fn block_pass(&mut self, rows: &mut [Row], slots: &[usize], wants: &[Want], cache: &mut KvCache, options: &BlockOptions) -> Result<()> {
        let size = options.block_size;
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut asked, mut commits) = (Vec::new(), Vec::new());
        for (slot, (&row, want)) in slots.iter().zip(wants).enumerate() {
            let row = &rows[row];
            ids.extend(row.ids.iter().skip(row.start).take(size));
            positions.extend((row.start..row.start + size).map(|position| position as i32));
            match want {
                Want::Block { sub } => asked.extend(judges(&row.masked(*sub, options), slot * size)),
                Want::Commit => {
                    asked.push(slot * size + size - 1);
                    commits.push(slot);
                }
                Want::Small { .. } => {}
            }
        }
        let (hidden, fresh) = self.pass(&ids, &positions, slots.len(), cache, &Own::All);
        let verdicts = self.judge(hidden, &asked, Some(options.mask_id))?;
        let mut verdicts = verdicts.as_slice();
        if commits.len() == slots.len() {
            cache.append(&commits, &fresh);
        } else if !commits.is_empty() {
            cache.append(&commits, &fresh.rows(&commits));
        }
        for (slot, (&row, want)) in slots.iter().zip(wants).enumerate() {
            let row = &mut rows[row];
            match want {
                Want::Block { sub } => {
                    let places = row.masked(*sub, options);
                    let (mine, rest) = verdicts.split_at(places.len().min(verdicts.len()));
                    verdicts = rest;
                    row.passes.block += 1;
                    row.stored = options.sub_block_cache.then(|| fresh.rows(&[slot]));
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
                Want::Small { .. } => {}
            }
        }
        Ok(())
    }

    /// Runs one sub-block of every slot, over the stored keys and values of its block.
    fn small_pass(&mut self, rows: &mut [Row], slots: &[usize], wants: &[Want], cache: &KvCache, options: &BlockOptions) -> Result<()> {
        let size = options.sub_block_size;
        let (mut ids, mut positions, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        let (mut subs, mut stored) = (Vec::new(), Vec::new());
        for (slot, (&row, want)) in slots.iter().zip(wants).enumerate() {
            let (row, Want::Small { sub }) = (&mut rows[row], want) else {
                continue;
            };
            let first = row.start + sub;
            ids.extend(row.ids.iter().skip(first).take(size));
            positions.extend((first..first + size).map(|position| position as i32));
            let places: Vec<usize> = row.masked(*sub, options).iter().map(|at| at - sub).collect();
            asked.extend(judges(&places, slot * size));
            subs.push(*sub);
            stored.extend(row.stored.take());
        }
        let stored = match &stored[..] {
            [one] => one.clone(),
            several => Fresh::stack(several),
        };
        let (hidden, fresh) = self.pass(&ids, &positions, slots.len(), cache, &Own::Over(&stored, &subs));
        let verdicts = self.judge(hidden, &asked, Some(options.mask_id))?;
        let mut verdicts = verdicts.as_slice();
        for (slot, (&row, sub)) in slots.iter().zip(subs).enumerate() {
            let row = &mut rows[row];
            let places = row.masked(sub, options);
            let (mine, rest) = verdicts.split_at(places.len().min(verdicts.len()));
            verdicts = rest;
            row.passes.small += 1;
            row.stored = Some(fresh.rows(&[slot]));
            row.accept(&places, mine, options);
        }
        Ok(())
    }
}

/// The hidden states that judge `places`: each the one before; the first token of a pass has none before it and judges itself.
fn judges(places: &[usize], offset: usize) -> impl Iterator<Item = usize> {
    places.iter().map(move |at| offset + at.saturating_sub(1))
}

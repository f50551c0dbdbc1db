//! Estimates what a run would give, from a sample of its inputs (`--dry-run`).
//!
//! In: a plan. Out: [`Estimate`]: rows, tokens, dropped rows, packed rows, bytes, time. Of each
//! source some files are sampled (`sample.rs`), and their rows go through the same stages as in a
//! run; counts are scaled by bytes of file. Mixture and budgets are then simulated on the scaled
//! counts. Duplicates are not looked for.

use crate::config::settings::Settings;
use crate::error::Result;
use crate::parse::drop_reason::DropReason;
use crate::prepare::plan::PreparePlan;
use crate::prepare::sample::read_sample;
use crate::run::batch::{BatchPosition, Cursor, ProcessedBatch};
use crate::run::row_processor::{RowProcessor, Stages};
use dlm_datasets::manifest::Counts;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// Bytes of raw rows that are sampled in all, approximately.
const SAMPLE_BYTES: u64 = 16 << 20;
/// Files that are sampled per source.
const FILES_PER_SOURCE: usize = 8;
/// Measured share of slots that packing fills.
const ROW_FILL: f64 = 0.995;
/// Measured time of a whole run, packing and writing included, relative to its other stages.
const PACK_AND_WRITE: f64 = 1.3;
/// Steps in which a mixture is simulated.
const MIXTURE_STEPS: f64 = 10_000.0;

/// What a run would take from one source.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SourceEstimate {
    /// Name in the manifest.
    pub source: String,
    /// Document tokens in the source.
    pub available_tokens: f64,
    /// Document tokens that the run would take.
    pub tokens: f64,
}

/// What a run would give. All numbers but the first two are estimates.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Estimate {
    /// Rows in the sample.
    #[serde(rename = "looked_at")]
    pub sampled_rows: u64,
    /// Share of the inputs' bytes that was sampled, from 0 to 1.
    pub share_of_bytes: f64,
    /// Rows that would be read.
    pub rows_read: f64,
    /// Rows that would be kept.
    pub rows_kept: f64,
    /// Dropped rows by reason.
    pub dropped: BTreeMap<String, f64>,
    /// Document tokens, padding not included.
    pub tokens: f64,
    /// Tokens that carry loss.
    pub response_tokens: f64,
    /// Padding tokens inside documents, up to the next block boundary.
    pub block_padding: f64,
    /// Conversations longer than a row.
    pub over_long: f64,
    /// Tokens cut from them.
    pub tokens_cut: f64,
    /// Packed rows of `seq_len` tokens.
    pub packed_rows: f64,
    /// Bytes of data files.
    pub bytes: f64,
    /// Seconds of processing, without the time to load.
    pub seconds: f64,
    /// By source of the recipe, or one for all inputs.
    pub sources: Vec<SourceEstimate>,
    /// The option that ends the run (`--max-tokens`), if it ends before its inputs do.
    pub ends_by: Option<String>,
    /// Why the run would fail, if it would.
    pub problem: Option<String>,
}

/// The sampled part of a stream.
#[derive(Default)]
struct Sampled {
    counts: Counts,
    /// Bytes of its files that were sampled.
    bytes: f64,
    /// Bytes of its files in all.
    total_bytes: f64,
}

/// Estimates a run of `plan` from a sample of its inputs.
pub(crate) fn estimate(plan: &PreparePlan, workers: usize) -> Result<Estimate> {
    // The rows of the other machines' parts (`--shard`) are like ours: the sample is taken from all
    // rows and scaled down.
    let settings = Settings { shard: None, ..plan.settings.clone() };
    let stages = Stages { settings: &settings, ..plan.stages() };
    let mut processor = RowProcessor::new(&stages);
    let mut reused = None;
    let begin = Instant::now();
    let mut sampled = Vec::new();
    for range in &plan.streams {
        let files = &plan.inputs[range.clone()];
        let total_bytes = files.iter().map(|i| i.bytes as f64).sum();
        let mut s = Sampled { total_bytes, ..Default::default() };
        // Of files that have to be downloaded only the first is available: the plan has waited for
        // it.
        let available: Vec<usize> =
            range.clone().filter(|&k| k == 0 || plan.inputs[k].remote.is_none()).collect();
        let step = available.len().div_ceil(FILES_PER_SOURCE).max(1);
        let budget =
            SAMPLE_BYTES / (plan.streams.len() * available.len().div_ceil(step).max(1)) as u64;
        for &file in available.iter().step_by(step) {
            let input = &plan.inputs[file];
            let share = read_sample(input, budget, &mut |raw| {
                let done = processor.process(0, Cursor { file, row: 0 }, raw, reused.take())?;
                count(&done, &mut s.counts);
                reused = Some(done);
                Ok(())
            })?;
            s.bytes += share * input.bytes as f64;
        }
        sampled.push(s);
    }
    let seconds = begin.elapsed().as_secs_f64() * PACK_AND_WRITE / workers.clamp(1, cores()) as f64;
    Ok(scale(plan, &sampled, seconds))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

fn count(b: &ProcessedBatch, into: &mut Counts) {
    let mut at = BatchPosition::default();
    for row in &b.rows {
        into.add(&b.counts(row, at, row.dropped));
        at = b.after(row, at);
    }
}

/// Scales the samples to whole sources, then simulates the mixture and the budgets.
fn scale(plan: &PreparePlan, sampled: &[Sampled], seconds: f64) -> Estimate {
    let (s, parts) = (&plan.settings, plan.settings.shard.map_or(1.0, |(_, of)| of as f64));
    // A source of which no file is available yet is taken to be like the others together.
    let (all_bytes, all_total) =
        sampled.iter().fold((0.0, 0.0), |(a, b), s| (a + s.bytes, b + s.total_bytes));
    let mut everything = Counts::default();
    sampled.iter().for_each(|s| everything.add(&s.counts));
    let whole: Vec<(&Counts, f64)> = sampled
        .iter()
        .map(|s| {
            if s.bytes > 0.0 {
                (&s.counts, s.total_bytes / s.bytes / parts)
            } else {
                (&everything, s.total_bytes / f64::max(all_bytes, 1.0) / parts)
            }
        })
        .collect();
    let available: Vec<f64> = whole.iter().map(|(c, k)| c.tokens as f64 * k).collect();
    let (mut state, mut ended) = (plan.mixture.begin(), vec![false; whole.len()]);
    let chunk = (available.iter().sum::<f64>() / MIXTURE_STEPS).max(1.0);
    let mut ends_by = None;
    let share = |k: usize, tokens: &[u64]| {
        if available[k] > 0.0 { (tokens[k] as f64 / available[k]).min(1.0) } else { 1.0 }
    };
    let total = |tokens: &[u64], of: &dyn Fn(&Counts) -> u64| -> f64 {
        whole
            .iter()
            .enumerate()
            .map(|(k, (c, scale))| of(c) as f64 * scale * share(k, tokens))
            .sum()
    };
    loop {
        let over = |limit: Option<u64>, of: &dyn Fn(&Counts) -> u64| {
            limit.is_some_and(|l| total(&state.tokens, of) >= l as f64)
        };
        ends_by = match () {
            () if over(s.max_tokens, &|c| c.tokens) => Some("--max-tokens".to_string()),
            () if over(s.max_response_tokens, &|c| c.response_tokens) => {
                Some("--max-response-tokens".to_string())
            }
            () if over(s.max_rows, &|c| c.rows_read) => Some("--max-rows".to_string()),
            () => ends_by,
        };
        if ends_by.is_some() {
            break;
        }
        let Some(k) = plan.mixture.next(&mut state, &ended) else {
            break;
        };
        let left = available[k] - state.tokens[k] as f64;
        if left < 1.0 {
            ended[k] = true;
        } else {
            state.tokens[k] += left.min(chunk).ceil() as u64;
        }
    }
    let taken = |of: &dyn Fn(&Counts) -> u64| total(&state.tokens, of);
    let mut e = Estimate {
        sampled_rows: everything.rows_read,
        share_of_bytes: all_bytes / f64::max(all_total, 1.0),
        rows_read: taken(&|c| c.rows_read),
        rows_kept: taken(&|c| c.rows_kept),
        tokens: taken(&|c| c.tokens),
        response_tokens: taken(&|c| c.response_tokens),
        block_padding: taken(&|c| c.block_padding),
        over_long: taken(&|c| c.over_long),
        tokens_cut: taken(&|c| c.tokens_cut),
        ends_by,
        ..Default::default()
    };
    for reason in everything.dropped.keys() {
        e.dropped.insert(reason.clone(), taken(&|c| c.dropped.get(reason).copied().unwrap_or(0)));
    }
    e.packed_rows = ((e.tokens + e.block_padding) / s.seq_len as f64 / ROW_FILL).ceil();
    e.bytes = e.packed_rows
        * (8 * s.seq_len + 12 * (e.rows_kept / e.packed_rows.max(1.0)).ceil() as usize + 4) as f64;
    e.seconds = seconds * e.rows_read / f64::max(everything.rows_read as f64, 1.0);
    let name = |k: usize| {
        plan.streams[k]
            .clone()
            .next()
            .and_then(|i| plan.inputs.get(i))
            .map(|i| i.source.clone())
            .unwrap_or_default()
    };
    e.sources = (0..whole.len())
        .map(|k| SourceEstimate {
            source: name(k),
            available_tokens: available[k],
            tokens: available[k] * share(k, &state.tokens),
        })
        .collect();
    let dropped = |d: &DropReason| e.dropped.get(d.name()).copied().unwrap_or(0.0);
    let unsupervised: f64 =
        DropReason::ALL.iter().filter(|d| d.is_unsupervised()).map(dropped).sum();
    if s.too_many_unsupervised(unsupervised, dropped(&DropReason::PromptTooLong), e.rows_read) {
        e.problem = Some(format!(
            "{:.1} % of conversations would have no token to learn from, more than the {:.0} % allowed (--max-unsupervised)",
            100.0 * unsupervised / e.rows_read.max(1.0),
            100.0 * s.max_unsupervised
        ));
    }
    e
}

/// `n` with about three digits.
fn round(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// A summary of some lines for people.
impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let percent = |n: f64, of: f64| 100.0 * n / of.max(1.0);
        writeln!(
            f,
            "estimate   from {} rows, {:.1} % of the inputs; duplicates are not looked for",
            self.sampled_rows,
            100.0 * self.share_of_bytes
        )?;
        writeln!(
            f,
            "read       {} conversations, {} kept",
            round(self.rows_read),
            round(self.rows_kept)
        )?;
        for (reason, n) in self.dropped.iter().filter(|d| *d.1 > 0.0) {
            writeln!(f, "           {:>6.2} % dropped: {reason}", percent(*n, self.rows_read))?;
        }
        writeln!(
            f,
            "tokens     {}, {:.1} % with loss; {:.1} % of conversations are too long, {:.1} % of tokens cut",
            round(self.tokens),
            percent(self.response_tokens, self.tokens),
            percent(self.over_long, self.rows_read),
            percent(self.tokens_cut, self.tokens + self.tokens_cut)
        )?;
        for s in self.sources.iter().filter(|_| self.sources.len() > 1) {
            let (share, of) =
                (percent(s.tokens, self.tokens), percent(s.tokens, s.available_tokens));
            writeln!(f, "           {share:>6.2} % from {}: {:.1} % of its tokens", s.source, of)?;
        }
        write!(
            f,
            "output     {} rows, {:.1} MB, in about {:.0} s",
            round(self.packed_rows),
            self.bytes / 1e6,
            self.seconds.ceil()
        )?;
        if let Some(reason) = &self.ends_by {
            write!(f, "; ends by {reason}")?;
        }
        writeln!(f)?;
        self.problem.iter().try_for_each(|p| writeln!(f, "problem    {p}; the run would fail"))
    }
}

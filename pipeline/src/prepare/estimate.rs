//! What a run would give, from a look at a part of its inputs (`--dry-run`).
//!
//! In: a plan. Out: [`Estimate`]: rows, tokens, what would be left out, the packed rows and bytes,
//! the time. Of each source some files are read, at a few places each, and their rows go through
//! the very stages of a run; counts are scaled by bytes of file. Budgets and mixture are applied to
//! the result. Duplicates are not looked for.

use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::input::json_lines::JsonRows;
use crate::input::source::{self, FileFormat, Input, RawRows};
use crate::parse::drop_reason::DropReason;
use crate::prepare::plan::PreparePlan;
use crate::run::batch::{BatchPosition, Cursor, ProcessedBatch};
use crate::run::row_processor::{RowProcessor, Stages};
use dlm_datasets::manifest::Counts;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// Raw bytes looked at in all, about.
const LOOK_BYTES: u64 = 16 << 20;
/// Files looked at per source.
const FILES: usize = 8;
/// Places looked at per file.
const PLACES: u64 = 16;
/// Slots a packed row fills, by experience.
const FILL: f64 = 0.995;
/// What packing and writing add to the time of the stages before, by measurement.
const REST_OF_RUN: f64 = 1.3;
/// Steps in which a mixture is played through.
const STEPS: f64 = 10_000.0;

/// A source's part.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SourcePart {
    /// Its name.
    pub source: String,
    /// Document tokens it has.
    pub available_tokens: f64,
    /// Document tokens taken of it.
    pub tokens: f64,
}

/// What a run would give. All but the first two are estimates.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Estimate {
    /// Rows looked at.
    pub looked_at: u64,
    /// Their share of the inputs' bytes.
    pub share_of_bytes: f64,
    /// Rows read.
    pub rows_read: f64,
    /// Rows kept.
    pub rows_kept: f64,
    /// Rows left out, by reason.
    pub dropped: BTreeMap<String, f64>,
    /// Document tokens.
    pub tokens: f64,
    /// Tokens with loss.
    pub response_tokens: f64,
    /// Padding to the block grid.
    pub block_padding: f64,
    /// Conversations longer than a row.
    pub over_long: f64,
    /// Tokens cut away.
    pub tokens_cut: f64,
    /// Rows of `seq_len`.
    pub packed_rows: f64,
    /// Bytes of data files.
    pub bytes: f64,
    /// Seconds, the load not counted.
    pub seconds: f64,
    /// By source.
    pub sources: Vec<SourcePart>,
    /// What ends the run, if not the end of the inputs.
    pub ends_by: Option<String>,
    /// Why the run would fail, if it would.
    pub problem: Option<String>,
}

/// What was seen of a stream.
#[derive(Default)]
struct Seen {
    counts: Counts,
    /// Bytes of file looked at, and of all its files.
    bytes: f64,
    of: f64,
}

impl Seen {
    /// How much more there is.
    fn scale(&self) -> f64 {
        if self.bytes > 0.0 { self.of / self.bytes } else { 0.0 }
    }
}

/// Looks at the inputs of `plan`.
pub fn estimate(plan: &PreparePlan, workers: usize) -> Result<Estimate> {
    // Another machine's rows are like ours: all are looked at, and scaled down.
    let settings = Settings { shard: None, ..plan.settings.clone() };
    let stages = Stages { settings: &settings, ..plan.stages() };
    let mut worker = RowProcessor::new(&stages);
    let mut memory = None;
    let begin = Instant::now();
    let mut seen = Vec::new();
    for range in &plan.streams {
        let files = &plan.inputs[range.clone()];
        let mut s = Seen { of: files.iter().map(|i| i.bytes as f64).sum(), ..Default::default() };
        // Of files that are still to be fetched only the very first, which the plan has waited for,
        // is here.
        let here: Vec<usize> =
            range.clone().filter(|&k| k == 0 || plan.inputs[k].remote.is_none()).collect();
        let step = here.len().div_ceil(FILES).max(1);
        let budget = LOOK_BYTES / (plan.streams.len() * here.len().div_ceil(step).max(1)) as u64;
        for &file in here.iter().step_by(step) {
            let input = &plan.inputs[file];
            let share = look(input, budget, &mut |raw| {
                let done = worker.process(0, Cursor { file, row: 0 }, raw, memory.take())?;
                count(&done, &mut s.counts);
                memory = Some(done);
                Ok(())
            })?;
            s.bytes += share * input.bytes as f64;
        }
        seen.push(s);
    }
    let seconds = begin.elapsed().as_secs_f64() * REST_OF_RUN / workers.clamp(1, cores()) as f64;
    Ok(scale(plan, &seen, seconds))
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

/// Scales what was seen to whole sources, and plays mixture and budgets through.
fn scale(plan: &PreparePlan, seen: &[Seen], seconds: f64) -> Estimate {
    let (s, parts) = (&plan.settings, plan.settings.shard.map_or(1.0, |(_, of)| of as f64));
    // A source of which nothing is here yet is taken to be like the others.
    let (all_bytes, all_of) = seen.iter().fold((0.0, 0.0), |(a, b), s| (a + s.bytes, b + s.of));
    let mut everything = Counts::default();
    seen.iter().for_each(|s| everything.add(&s.counts));
    let whole: Vec<(&Counts, f64)> = seen
        .iter()
        .map(|s| {
            if s.bytes > 0.0 {
                (&s.counts, s.scale() / parts)
            } else {
                (&everything, s.of / f64::max(all_bytes, 1.0) / parts)
            }
        })
        .collect();
    let available: Vec<f64> = whole.iter().map(|(c, k)| c.tokens as f64 * k).collect();
    let (mut given, mut ended) = (plan.mixture.begin(), vec![false; whole.len()]);
    let chunk = (available.iter().sum::<f64>() / STEPS).max(1.0);
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
            limit.is_some_and(|l| total(&given.tokens, of) >= l as f64)
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
        let Some(k) = plan.mixture.next(&mut given, &ended) else {
            break;
        };
        let left = available[k] - given.tokens[k] as f64;
        if left < 1.0 {
            ended[k] = true;
        } else {
            given.tokens[k] += left.min(chunk).ceil() as u64;
        }
    }
    let taken = |of: &dyn Fn(&Counts) -> u64| total(&given.tokens, of);
    let mut e = Estimate {
        looked_at: everything.rows_read,
        share_of_bytes: all_bytes / f64::max(all_of, 1.0),
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
    for why in everything.dropped.keys() {
        e.dropped.insert(why.clone(), taken(&|c| c.dropped.get(why).copied().unwrap_or(0)));
    }
    e.packed_rows = ((e.tokens + e.block_padding) / s.seq_len as f64 / FILL).ceil();
    e.bytes = e.packed_rows
        * (8 * s.seq_len + 12 * (e.rows_kept / e.packed_rows.max(1.0)).ceil() as usize + 4) as f64;
    e.seconds = seconds * e.rows_read / f64::max(everything.rows_read as f64, 1.0);
    let name = |k: usize| {
        plan.streams[k]
            .clone()
            .next()
            .and_then(|i| plan.inputs.get(i))
            .map(|i| i.label.clone())
            .unwrap_or_default()
    };
    e.sources = (0..whole.len())
        .map(|k| SourcePart {
            source: name(k),
            available_tokens: available[k],
            tokens: available[k] * share(k, &given.tokens),
        })
        .collect();
    let dropped = |d: &DropReason| e.dropped.get(d.name()).copied().unwrap_or(0.0);
    let bare: f64 = DropReason::ALL.iter().filter(|d| d.is_unsupervised()).map(dropped).sum();
    if s.too_many_unsupervised(bare, dropped(&DropReason::PromptTooLong), e.rows_read) {
        e.problem = Some(format!(
            "{:.1} % of conversations would have no token to learn from, more than the {:.0} % allowed (--max-unsupervised)",
            100.0 * bare / e.rows_read.max(1.0),
            100.0 * s.max_unsupervised
        ));
    }
    e
}

/// Where place `k` of `n` begins in a file of `size`, so that `length` from there stays before the
/// next: at a point of its stretch that follows no pattern, since files do.
fn start(k: u64, n: u64, size: u64, length: u64) -> u64 {
    let free = (size / n).saturating_sub(length) as f64;
    size * k / n + (free * (k as f64 * 0.618_034).fract()) as u64
}

/// Gives `each` some rows of a file, about `budget` bytes of them; their share of the file.
fn look(input: &Input, budget: u64, each: &mut dyn FnMut(RawRows) -> Result<()>) -> Result<f64> {
    let path = input.ready()?;
    match source::kind(&input.path) {
        Some(FileFormat::Parquet) => {
            let (rows, bytes) = source::parquet_size(&path)?;
            let wanted =
                (budget as f64 / (bytes as f64 / rows.max(1) as f64).max(1.0)).ceil() as u64;
            let (places, per_place) =
                if wanted + PLACES >= rows { (1, rows) } else { (PLACES, wanted.div_ceil(PLACES)) };
            let mut looked = 0;
            for place in 0..places {
                let mut left = per_place;
                for batch in source::open(input, start(place, places, rows, per_place))? {
                    let batch = match batch? {
                        RawRows::Table(b) if b.num_rows() as u64 > left => {
                            RawRows::Table(b.slice(0, left as usize))
                        }
                        other => other,
                    };
                    left -= batch.len() as u64;
                    looked += batch.len() as u64;
                    each(batch)?;
                    if left == 0 {
                        break;
                    }
                }
            }
            Ok(if rows == 0 { 1.0 } else { looked as f64 / rows as f64 })
        }
        Some(FileFormat::Json) => {
            let size = input.bytes.max(1);
            if size > budget
                && let Some(places) = (0..PLACES)
                    .map(|p| {
                        JsonRows::from_byte(&path, start(p, PLACES, size, budget / PLACES))
                            .transpose()
                    })
                    .collect::<Option<Vec<_>>>()
            {
                let mut looked = 0;
                for rows in places {
                    let mut left = (budget / PLACES) as i64;
                    for batch in rows? {
                        let batch = batch?;
                        let RawRows::Lines { bytes, ends } = &batch else {
                            continue;
                        };
                        let n = (bytes.len() + ends.len()) as i64;
                        (left, looked) = (left - n, looked + n);
                        each(batch)?;
                        if left <= 0 {
                            break;
                        }
                    }
                }
                return Ok((looked as f64 / size as f64).min(1.0));
            }
            // Compressed, or one array: from its start only.
            let (mut rows, mut left) = (JsonRows::open(&path, 0)?, budget as i64);
            while let Some(batch) = rows.next() {
                let batch = batch?;
                if let RawRows::Lines { bytes, .. } = &batch {
                    left -= bytes.len() as i64;
                }
                each(batch)?;
                if left <= 0 {
                    return Ok((rows.consumed() as f64 / size as f64).clamp(1e-6, 1.0));
                }
            }
            Ok(1.0)
        }
        Some(FileFormat::Arrow) => {
            let mut looked = 0;
            for batch in source::open(input, 0)? {
                let batch = batch?;
                if let RawRows::Table(b) = &batch {
                    looked += b
                        .columns()
                        .iter()
                        .map(|c| c.to_data().get_slice_memory_size().unwrap_or(0) as u64)
                        .sum::<u64>();
                }
                each(batch)?;
                if looked >= budget {
                    return Ok((looked as f64 / input.bytes.max(1) as f64).min(1.0));
                }
            }
            Ok(1.0)
        }
        None => Err(Error::Internal(format!("{}: unknown kind of file", path.display()))),
    }
}

/// A number of three digits or so.
fn round(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let percent = |n: f64, of: f64| 100.0 * n / of.max(1.0);
        writeln!(
            f,
            "estimate   from {} rows, {:.1} % of the inputs; duplicates not looked for",
            self.looked_at,
            100.0 * self.share_of_bytes
        )?;
        writeln!(
            f,
            "read       {} conversations, {} kept",
            round(self.rows_read),
            round(self.rows_kept)
        )?;
        for (why, n) in self.dropped.iter().filter(|d| *d.1 > 0.0) {
            writeln!(f, "           {:>6.2} % left out: {why}", percent(*n, self.rows_read))?;
        }
        writeln!(
            f,
            "tokens     {}, {:.1} % with loss; {:.1} % of conversations too long, {:.1} % of tokens cut",
            round(self.tokens),
            percent(self.response_tokens, self.tokens),
            percent(self.over_long, self.rows_read),
            percent(self.tokens_cut, self.tokens + self.tokens_cut)
        )?;
        for s in self.sources.iter().filter(|_| self.sources.len() > 1) {
            let (share, of) =
                (percent(s.tokens, self.tokens), percent(s.tokens, s.available_tokens));
            writeln!(f, "           {share:>6.2} % from {}: {:.1} % of what it has", s.source, of)?;
        }
        write!(
            f,
            "output     {} rows, {:.1} MB, in about {:.0} s",
            round(self.packed_rows),
            self.bytes / 1e6,
            self.seconds.ceil()
        )?;
        if let Some(why) = &self.ends_by {
            write!(f, "; ends by {why}")?;
        }
        writeln!(f)?;
        self.problem.iter().try_for_each(|p| writeln!(f, "problem    {p}; the run would fail"))
    }
}

//! A row in the terminal: what is prompt, what is response, where blocks begin, what each of the
//! two views would hide.

use crate::cli::args::InspectArgs;
use crate::error::{Error, Result};
use crate::tokenize::tokenizer::Tokenizer;
use dlm_datasets::{Dataset, IGNORE, Split, mask};
use std::fmt::Write;
use std::io::IsTerminal;

/// How a position is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Prompt,
    Response,
    Padding,
    Hidden,
}

impl Look {
    fn code(self) -> &'static str {
        match self {
            Look::Prompt => "\x1b[2m",
            Look::Response => "\x1b[32m",
            Look::Padding => "\x1b[90m",
            Look::Hidden => "\x1b[7;33m",
        }
    }
}

/// Which masks to show.
struct ViewArgs {
    seed: u64,
    epoch: u64,
    noise_eps: f64,
}

/// Shows rows.
pub fn run(a: &InspectArgs) -> Result<()> {
    let colour = match a.color.as_str() {
        "always" => true,
        "never" => false,
        "auto" => std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        other => {
            return Err(Error::Usage(format!("--color {other:?}: expected auto, always or never")));
        }
    };
    let ds = Dataset::open(&a.dir)?;
    let tokenizer = Tokenizer::load(&a.dir.join("tokenizer"))?;
    let split = if a.eval { Split::Eval } else { Split::Train };
    let views = a.views.map(|seed| ViewArgs { seed, epoch: a.epoch, noise_eps: a.noise_eps });
    let mut out = String::new();
    for i in a.row..a.row.saturating_add(a.rows.max(1)) {
        show(&ds, &tokenizer, split, i, views.as_ref(), colour, &mut out)?;
    }
    print!("{out}");
    Ok(())
}

fn show(
    ds: &Dataset,
    tokenizer: &Tokenizer,
    split: Split,
    i: usize,
    views: Option<&ViewArgs>,
    colour: bool,
    out: &mut String,
) -> Result<()> {
    let m = ds.manifest();
    let row = ds.row(split, i)?;
    // The masks that training draws for this row; evaluation draws those of its own epoch number.
    let hidden = views.map_or([const { Vec::new() }; 2], |v| {
        let epoch = if split == Split::Eval { mask::EVAL_EPOCH } else { v.epoch };
        let drawn = mask::row_mask(v.seed, epoch, i as u64, m.seq_len, m.bd_size, v.noise_eps);
        mask::views(&drawn, row.labels)
    });
    let loss = row.labels.iter().filter(|&&l| l != IGNORE).count();
    let _ = writeln!(
        out,
        "row {i} of the {} split: {} documents, {loss} of {} positions carry loss",
        split.name(),
        row.documents.len(),
        m.seq_len
    );
    for (k, d) in row.documents.iter().enumerate() {
        let source = m.sources.get(d.source).map_or("?", |s| s.name.as_str());
        let (ids, labels) =
            (&row.input_ids[d.start..d.start + d.length], &row.labels[d.start..d.start + d.length]);
        let padding = dlm_datasets::verify::summarize(ids, labels, m).block_padding as usize;
        let _ = writeln!(
            out,
            "── document {k}: positions {}..{}, {} blocks, {padding} of padding, from {source}",
            d.start,
            d.start + d.length,
            d.length / m.bd_size
        );
        let looks: Vec<Look> = (0..d.length)
            .map(|p| match labels[p] {
                _ if p >= d.length - padding => Look::Padding,
                IGNORE => Look::Prompt,
                _ => Look::Response,
            })
            .collect();
        match views {
            None => text(ids, &looks, m.bd_size, tokenizer, colour, out)?,
            Some(_) => {
                for (name, hidden) in
                    ["A", "B (hides what A shows of the response)"].iter().zip(&hidden)
                {
                    let _ = writeln!(out, "   view {name}:");
                    let looks: Vec<Look> = looks
                        .iter()
                        .zip(&hidden[d.start..d.start + d.length])
                        .map(|(l, h)| if *h { Look::Hidden } else { *l })
                        .collect();
                    text(ids, &looks, m.bd_size, tokenizer, colour, out)?;
                }
            }
        }
    }
    let end = row.documents.last().map_or(0, |d| d.start + d.length);
    if end < m.seq_len {
        let _ = writeln!(out, "── {} slots of row padding", m.seq_len - end);
    }
    Ok(())
}

/// The decoded text, one run of a look at a time; `¦` where a block begins.
fn text(
    ids: &[i32],
    looks: &[Look],
    bd_size: usize,
    tokenizer: &Tokenizer,
    colour: bool,
    out: &mut String,
) -> Result<()> {
    let mut p = 0;
    while p < ids.len() {
        let boundary = (p / bd_size + 1) * bd_size;
        let end = (p..ids.len().min(boundary))
            .find(|&q| looks[q] != looks[p])
            .unwrap_or(ids.len().min(boundary));
        if p % bd_size == 0 && p > 0 {
            out.push_str(if colour { "\x1b[36m¦\x1b[0m" } else { "¦" });
        }
        let run: Vec<u32> = ids[p..end].iter().map(|&i| i.max(0) as u32).collect();
        let shown = match looks[p] {
            Look::Padding => format!("·{}·", end - p),
            Look::Hidden => run.iter().map(|_| "▒").collect(),
            _ => tokenizer.decode(&run, false)?,
        };
        let shown = safe(&shown);
        match (colour, looks[p]) {
            (true, look) => {
                let _ = write!(out, "{}{shown}\x1b[0m", look.code());
            }
            (false, Look::Response) => {
                let _ = write!(out, "[{shown}]");
            }
            (false, _) => out.push_str(&shown),
        }
        p = end;
    }
    out.push('\n');
    Ok(())
}

/// Text from a dataset must not steer the terminal.
fn safe(s: &str) -> String {
    s.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

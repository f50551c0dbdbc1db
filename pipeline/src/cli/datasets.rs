//! Commands on finished datasets: `inspect`, `stats`, `verify`, `merge`, `export-hf`.

use crate::buckets::address::BucketAddress;
use crate::buckets::dataset::fetch_dataset;
use crate::cli::args::{InspectArgs, StatsArgs};
use crate::cli::choices::ColourChoice;
use crate::cli::console::{self, ConsoleProgress};
use crate::dataset::inspect::InspectOptions;
use crate::dataset::merge::joined_fingerprint;
use crate::dataset::row_view::MaskViews;
use crate::dataset::totals::{self, fill, slots};
use crate::dataset::{self, totals_html};
use crate::error::{Error, Result};
use crate::prepare::bucket_out::BucketOut;
use dlm_datasets::{Dataset, Split, mask};
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

pub(super) fn inspect(a: &InspectArgs) -> Result<()> {
    let colour = match a.color.unwrap_or_default() {
        ColourChoice::Always => true,
        ColourChoice::Never => false,
        ColourChoice::Auto => {
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
        }
    };
    let defaults = InspectOptions::default();
    let views = a.views.map(|seed| MaskViews {
        seed,
        epoch: a.epoch.unwrap_or(0),
        noise_eps: a.noise_eps.unwrap_or(mask::NOISE_EPS),
    });
    let options = InspectOptions {
        split: if a.eval { Split::Eval } else { Split::Train },
        row: a.row.unwrap_or(defaults.row),
        rows: a.rows.unwrap_or(defaults.rows),
        views,
        colour,
    };
    console::print(&dataset::inspect::inspect(local(&a.dir)?, &options)?)
}

/// Shows totals; with `--html` writes them as a page, too.
pub(super) fn stats(a: &StatsArgs) -> Result<()> {
    let ds = Dataset::open(&local(&a.dir)?)?;
    let m = ds.manifest();
    let d = totals::distributions(&ds)?;
    if let Some(path) = &a.html {
        dlm_datasets::fs::write_atomic(path, totals_html::page(&ds, &d).as_bytes())?;
    }
    if !a.json {
        return console::print(&(totals::summary(m) + &totals::histogram(m, &d)));
    }
    console::print_json(&json!({
        "train_rows": m.packing.train_rows,
        "eval_rows": m.packing.eval_rows,
        "seq_len": m.seq_len,
        "bd_size": m.bd_size,
        "slots": slots(m),
        "fill": fill(m),
        "counts": m.counts,
        "row_padding": m.packing.row_padding,
        "sources": m.sources,
        "documents_by_blocks": d.documents_by_blocks,
        "documents_by_loss_tenth": d.documents_by_loss_tenth,
        "rows_by_documents": d.rows_by_documents,
        "mask_token_id": m.mask_token_id,
        "fingerprint": ds.fingerprint(),
        "zero_copy": ds.is_zero_copy(),
    }))
}

pub(super) fn verify(dir: &Path, as_json: bool) -> Result<()> {
    let r = dataset::verify::verify(local(dir)?)?;
    if !as_json {
        return console::print(&format!(
            "ok: {} train and {} eval rows, {} documents, {} tokens ({} with loss), {} bytes hashed; every invariant and every total holds\n",
            r.train_rows, r.eval_rows, r.documents, r.tokens, r.response_tokens, r.bytes
        ));
    }
    let mut line = json!({"ok": true});
    let report = serde_json::to_value(&r).map_err(|e| Error::Internal(e.to_string()))?;
    for (key, value) in report.as_object().into_iter().flatten() {
        line[key] = value.clone();
    }
    console::print_json(&line)
}

pub(super) fn merge(dirs: &[PathBuf], out: &Path) -> Result<()> {
    let dirs: Vec<PathBuf> = dirs.iter().map(|dir| local(dir)).collect::<Result<_>>()?;
    let Some(address) = address_of("--out", out)? else {
        return console::print(&totals::summary(&dataset::merge::merge(&dirs, out)?));
    };
    let progress = ConsoleProgress::default();
    let out = BucketOut::open(&address, false, &progress)?;
    if let Some(finished) = &out.finished {
        let parts: Vec<Dataset> =
            dirs.iter().map(|dir| Dataset::open(dir)).collect::<std::result::Result<_, _>>()?;
        // The same call, on a machine that took over after the work was done.
        return match finished.recipe_fingerprint == joined_fingerprint(&parts) {
            true => console::print(&totals::summary(finished)),
            false => Err(out.holds_another()),
        };
    }
    let manifest = dataset::merge::merge(&dirs, &out.staging)?;
    out.publish(&manifest)?;
    console::print(&totals::summary(&manifest))
}

/// The address of a bucket's folder, where a path is one.
fn address_of(key: &str, path: &Path) -> Result<Option<BucketAddress>> {
    path.to_str().map_or(Ok(None), |text| BucketAddress::parse(key, text))
}

/// The local folder of a dataset; one in a bucket is fetched first.
fn local(dir: &Path) -> Result<PathBuf> {
    match address_of("DIR", dir)? {
        Some(address) => fetch_dataset(&address, "DIR", &ConsoleProgress::default()),
        None => Ok(dir.to_path_buf()),
    }
}

/// Exports a dataset for the Python library.
pub(super) fn export_hf(dir: &Path, out: &Path) -> Result<()> {
    if let Some(address) = address_of("--out", out)? {
        return Err(Error::Usage(format!("--out {address}: expected a local folder")));
    }
    let m = dataset::export_hf::export_hf(local(dir)?, out)?;
    console::print(&format!(
        "{}: {} train and {} eval rows for datasets.load_from_disk\n",
        out.display(),
        m.packing.train_rows,
        m.packing.eval_rows
    ))
}

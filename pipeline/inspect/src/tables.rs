//! The tables that queries can name.
//!
//! In: an open dataset. Out: `packed` (the columns of the Arrow files, scanned from the files, with
//! `split` and `row`) and `documents`:
//!
//! | column | meaning |
//! |---|---|
//! | split | train or eval |
//! | row | row of the split |
//! | start | first token in the row |
//! | length | tokens, block padding included |
//! | tokens | tokens without padding |
//! | padding | block padding |
//! | loss_tokens | positions with a label |
//! | source, category | of the manifest's sources |

use anyhow::{Context, Result};
use dlm_datasets::{Dataset, Split, verify};
use polars::prelude::*;
use polars::sql::SQLContext;

/// Runs a query over the tables that it names.
pub(crate) fn query(dataset: &Dataset, query: &str) -> Result<DataFrame> {
    let mut context = SQLContext::new();
    let lower = query.to_lowercase();
    // A table that the query does not name is not registered: `documents` reads every row.
    if lower.contains("packed") {
        context.register("packed", packed(dataset)?);
    }
    if lower.contains("documents") {
        context.register("documents", documents(dataset)?.lazy());
    }
    Ok(context.execute(query)?.collect()?)
}

/// The query that makes the summary.
pub(crate) fn summary(by_category: bool) -> String {
    let by = if by_category { "category" } else { "source" };
    format!(
        "SELECT {by}, COUNT(*) AS documents, SUM(tokens) AS tokens, SUM(loss_tokens) AS loss_tokens, \
         ROUND(SUM(loss_tokens) * 1.0 / SUM(tokens), 4) AS loss_share, SUM(padding) AS padding, \
         ROUND(AVG(tokens), 1) AS mean, MIN(tokens) AS shortest, QUANTILE_CONT(tokens, 0.5) AS median, \
         QUANTILE_CONT(tokens, 0.95) AS p95, MAX(tokens) AS longest \
         FROM documents GROUP BY {by} ORDER BY tokens DESC, {by}"
    )
}

/// The Arrow files, one after the other.
fn packed(dataset: &Dataset) -> Result<LazyFrame> {
    let mut parts = Vec::new();
    for split in [Split::Train, Split::Eval] {
        let files = dataset.manifest().files.iter().filter(|f| f.split == split);
        let mut frames = Vec::new();
        for file in files {
            let path = dataset.dir().join(&file.path);
            let path = path
                .to_str()
                .with_context(|| format!("{}: a path that is no text", path.display()))?;
            frames.push(LazyFrame::scan_ipc(
                PlRefPath::new(path),
                Default::default(),
                UnifiedScanArgs::default(),
            )?);
        }
        if !frames.is_empty() {
            let rows = concat(frames, UnionArgs::default())?.with_row_index("row", None);
            parts.push(rows.with_column(lit(split.name()).alias("split")));
        }
    }
    Ok(concat(parts, UnionArgs::default())?)
}

/// One row per document.
fn documents(dataset: &Dataset) -> Result<DataFrame> {
    let manifest = dataset.manifest();
    let (mut splits, mut sources, mut categories) = (Vec::new(), Vec::new(), Vec::new());
    let mut numbers: [Vec<u64>; 6] = Default::default();
    for split in [Split::Train, Split::Eval] {
        for (index, row) in dataset.split(split).iter().enumerate() {
            let row = row?;
            for d in &row.documents {
                let range = d.start..d.start + d.length;
                let (Some(ids), Some(labels)) =
                    (row.input_ids.get(range.clone()), row.labels.get(range))
                else {
                    continue;
                };
                let s = verify::summarize(ids, labels, manifest);
                let line = [
                    index as u64,
                    d.start as u64,
                    d.length as u64,
                    s.tokens,
                    s.block_padding,
                    s.response_tokens,
                ];
                numbers.iter_mut().zip(line).for_each(|(column, n)| column.push(n));
                let source = manifest.sources.get(d.source);
                splits.push(split.name());
                sources.push(source.map(|s| s.name.as_str()));
                categories.push(source.and_then(|s| s.category.as_deref()));
            }
        }
    }
    let mut columns = vec![Column::new("split".into(), &splits)];
    for (name, values) in
        ["row", "start", "length", "tokens", "padding", "loss_tokens"].into_iter().zip(&numbers)
    {
        columns.push(Column::new(name.into(), values));
    }
    columns.push(Column::new("source".into(), &sources));
    columns.push(Column::new("category".into(), &categories));
    Ok(DataFrame::new_infer_height(columns)?)
}

//! Finished datasets: check them, show their rows and totals, join and export them.

pub(crate) mod export_hf;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod row_view;
pub(crate) mod rows_html;
pub(crate) mod totals;
pub(crate) mod totals_html;
pub(crate) mod verify;

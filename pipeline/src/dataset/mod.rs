//! Finished datasets: check them, show their rows and totals, join and export them.

pub mod export_hf;
pub mod inspect;
pub mod merge;
pub mod totals;
pub mod totals_html;
pub mod verify;

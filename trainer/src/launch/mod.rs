//! `wf`: training runs on rented machines, through SkyPilot's `sky` command.
//!
//! In: a model, a source, a scale, configuration overrides. Out: a SkyPilot task (from
//! `configs/launch/dlm_train.yaml`) and the command that launches it. The configuration is composed
//! and checked here first, so that a mistyped key costs seconds and not a machine. `plan.rs`
//! decides, `task.rs` fills the YAML in, `sky.rs` runs `sky`.

mod plan;
mod sky;
mod task;

pub use plan::{DlmArgs, LaunchPlan, LaunchTarget, Scale};
pub use sky::{cancel, launch, logs, runs};

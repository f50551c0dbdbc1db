//! `wf`: training runs on rented machines, through SkyPilot's `sky` command.
//!
//! In: a model, a source, a scale, configuration overrides. Out: a SkyPilot task (from
//! `configs/launch/dlm_train.yaml`) and the command that launches it. The configuration is composed
//! and checked locally first, so that a mistyped key is found before a machine is rented.
//! `plan.rs` checks the options, `task.rs` fills in the YAML, `sky.rs` runs `sky`,
//! `queue.rs` finds jobs by name.

mod command;
mod plan;
mod queue;
mod sky;
mod task;

pub(crate) use plan::{LaunchOptions, Scale};
pub(crate) use sky::{cancel, launch, logs, runs};

//! `wf`: training runs, data preparation and smoke tests on rented machines, through SkyPilot's
//! `sky` command.
//!
//! In: options as typed. Out: a SkyPilot task (from `configs/launch`) and the command that launches
//! it. `plan.rs` and `prep.rs` check the options (`scale.rs` the machine, `location.rs` inputs and
//! buckets, `program.rs` what the machine runs, `secrets.rs` what it must know), `task.rs` fills in
//! the YAML, `sky.rs` runs `sky`, `queue.rs` finds jobs by name, `smoke.rs` tries every step here.

mod command;
mod location;
mod plan;
mod prep;
mod program;
mod queue;
mod scale;
mod secrets;
mod sky;
mod smoke;
mod task;

pub(crate) use plan::{LaunchOptions, MachineOptions};
pub(crate) use prep::PrepOptions;
pub(crate) use scale::Scale;
pub(crate) use sky::{cancel, launch, logs, prep, runs, smoke_there};
pub(crate) use smoke::{SmokeOptions, smoke};

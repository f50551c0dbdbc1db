//! What a run is asked to do: settings that decide the output's bytes, their overrides as typed,
//! recipes, and options of a run that leave the output as it is.

pub mod overrides;
pub mod policies;
pub mod recipe;
pub mod run_options;
pub mod settings;

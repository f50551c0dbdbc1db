//! What a run is asked to do: settings that decide the output's bytes, their overrides as typed,
//! recipes, and options of a run that leave the output as it is.

pub(crate) mod overrides;
pub(crate) mod policies;
pub(crate) mod recipe;
pub(crate) mod run_options;
pub(crate) mod settings;
pub(crate) mod trained_roles;

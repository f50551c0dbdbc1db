//! What a run is asked to do, resolved: settings that decide the output's bytes, and recipes.

pub mod policies;
pub mod recipe;
pub mod settings;

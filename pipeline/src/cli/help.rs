//! Parses the command line, whose help texts name the defaults.
//!
//! The defaults come from where they are defined: settings, run options, options of the library.

use crate::cli::args::{BENCH_REPEAT, BENCH_WORKERS, Cli, EXIT_CODES};
use crate::config::run_options::{DEFAULT_OUT, EngineChoice, RenderChoice};
use crate::config::settings::Settings;
use crate::dataset::inspect::InspectOptions;
use crate::template::limits;
use clap::{CommandFactory, FromArgMatches, ValueEnum};

/// Parses the process's arguments. The error is the answer to `--help`, or says what is wrong.
pub(super) fn parse() -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches()?)
}

/// The command line with the defaults in its help texts.
pub(super) fn command() -> clap::Command {
    let text = |v: serde_json::Value| match v {
        serde_json::Value::String(s) => s,
        v => v.to_string(),
    };
    let more = format!("{EXIT_CODES}\n\n{}", limits::HELP);
    let mut command = Cli::command().after_long_help(more);
    let settings = Settings::default().all_to_json();
    for (key, value) in settings.as_object().into_iter().flatten() {
        if !value.is_null() && !value.is_boolean() {
            command = with_default(command, key, &text(value.clone()));
        }
    }
    let name = |choice: clap::builder::PossibleValue| choice.get_name().to_string();
    for (key, value) in [
        ("out", Some(DEFAULT_OUT.to_string())),
        ("engine", EngineChoice::default().to_possible_value().map(name)),
        ("render", RenderChoice::default().to_possible_value().map(name)),
    ] {
        command = with_default(command, key, &value.unwrap_or_default());
    }
    let inspect = InspectOptions::default();
    command
        .mut_subcommand("inspect", |c| {
            [
                ("row", inspect.row.to_string()),
                ("rows", inspect.rows.to_string()),
                ("epoch", "0".to_string()),
                ("noise_eps", dlm_datasets::mask::NOISE_EPS.to_string()),
                ("color", "auto".to_string()),
            ]
            .iter()
            .fold(c, |c, (key, value)| with_default(c, key, value))
        })
        .mut_subcommand("bench", |c| {
            let c = with_default(c, "workers", &BENCH_WORKERS.to_string());
            with_default(c, "repeat", &BENCH_REPEAT.to_string())
        })
}

/// Adds a default to the help text of an argument.
fn with_default(command: clap::Command, key: &str, value: &str) -> clap::Command {
    command.mut_arg(key, |mut arg| {
        if let Some(help) = arg.get_help().map(|help| format!("{help} [default: {value}]")) {
            arg = arg.help(help);
        }
        if let Some(help) = arg.get_long_help().map(|help| format!("{help} [default: {value}]")) {
            arg = arg.long_help(help);
        }
        arg
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_the_defaults() {
        let mut command = command();
        command.clone().debug_assert();
        let help = command.render_long_help().to_string();
        // the help is wrapped to the width of the terminal
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&help).contains(&words(limits::HELP)), "{help}");
        for default in ["[default: 512]", "[default: 0.05]", "[default: truncate]", DEFAULT_OUT] {
            assert!(help.contains(default), "{default} in {help}");
        }
        let inspect = command.find_subcommand_mut("inspect").unwrap().render_help().to_string();
        assert!(inspect.contains("[default: 0.001]"), "{inspect}");
    }
}

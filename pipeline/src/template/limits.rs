//! What a chat template may cost.
//!
//! A template comes with a model from anywhere and is a program, so everything that it can make
//! grow has a bound here. `--help` prints [`HELP`]; docs/security.md lists the same numbers.

/// Bytes of a template's source.
pub(crate) const SOURCE_BYTES: usize = 1 << 20;
/// Names, numbers, strings and signs in one tag; long chains of operators nest as deeply as they
/// are long.
pub(crate) const TAG_TOKENS: usize = 5_000;
/// `elif` tags of a template; each is nested in the one before it.
pub(crate) const ELIF_TAGS: usize = 500;
/// Signs `-` and words `not` that follow each other.
pub(crate) const SIGNS_IN_A_ROW: usize = 50;

/// Fuel of one render: about one step of the template, or 64 bytes of text that it makes.
pub(crate) const FUEL: u64 = 4_000_000;
/// Fuel that is added for each message of a conversation.
pub(crate) const FUEL_PER_MESSAGE: u64 = 2_000;
/// Renders with full fuel that all renders of one row may use up together.
pub(crate) const RENDERS_PER_ROW: u64 = 3;
/// Renders with full fuel that all experiments with a template may use up together.
pub(crate) const RENDERS_PER_PROBE: u64 = 25;
/// A render that fails counts as this part of a render with full fuel, unless more is known.
pub(crate) const FAILED_RENDER: u64 = 64;

/// Nesting of lists and maps that a template builds.
pub(crate) const VALUE_DEPTH: usize = 100;
/// Values in a list or map, those in the lists and maps in it included.
pub(crate) const VALUE_ITEMS: u64 = 1_000_000;
/// Bytes of a text that a filter, method or operator of this program makes.
pub(crate) const TEXT_BYTES: usize = 64 << 20;
/// Bytes of a format for `strftime_now`.
pub(crate) const TIME_FORMAT_BYTES: usize = 1_000;
/// Characters of an error message that comes from a template.
pub(crate) const MESSAGE_CHARS: usize = 1_000;

/// Stack of a thread that renders.
pub(crate) const RENDER_STACK: usize = 16 << 20;
/// Stack of a thread that reads a template's source.
pub(crate) const COMPILE_STACK: usize = 64 << 20;

/// The limits in words, for `--help`.
pub(crate) const HELP: &str = "Limits of a chat template: 1 MiB of source, 5,000 words and signs in a tag, 500 elif; \
for each render 4 million steps (a step is an operation, or 64 bytes of text) and 2,000 more for each message and \
1 more for each byte of the conversation, three times as many for all renders of a row; lists and maps 100 levels \
deep with 1 million values, texts of 64 MiB. A template beyond the first three is refused, a conversation on which \
it goes beyond the others is dropped as template_refused.";

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of `--help` names the numbers of this file.
    #[test]
    fn help_names_the_numbers() {
        let grouped = |n: u64| {
            let text = n.to_string();
            let at = text.len() - 3;
            format!("{},{}", &text[..at], &text[at..])
        };
        for number in [
            format!("{} MiB of source", SOURCE_BYTES >> 20),
            format!("{} words", grouped(TAG_TOKENS as u64)),
            format!("{ELIF_TAGS} elif"),
            format!("{} million steps", FUEL / 1_000_000),
            format!("{} more for each message", grouped(FUEL_PER_MESSAGE)),
            format!("{VALUE_DEPTH} levels"),
            format!("{} million values", VALUE_ITEMS / 1_000_000),
            format!("texts of {} MiB", TEXT_BYTES >> 20),
        ] {
            assert!(HELP.contains(&number), "{number}");
        }
        assert_eq!(RENDERS_PER_ROW, 3);
    }
}

//! Named choices of a run and their defaults.
//!
//! These types are part of [`Settings`](crate::config::settings::Settings), so their serialized
//! names are part of the manifest. The stages that apply them (`label`, `template`, `tokenize`)
//! import them from here.

use serde::{Deserialize, Serialize};

/// The mask token that is added to a tokenizer that does not have it, unless `--mask-token` names
/// another.
pub(crate) const MASK_TOKEN: &str = "|<MASK>|";

/// The time that `strftime_now` returns in chat templates unless `--now` is given. It is fixed so
/// that the output does not depend on the day on which it is made.
pub(crate) fn default_now() -> jiff::civil::DateTime {
    jiff::civil::datetime(2025, 1, 1, 12, 0, 0, 0)
}

/// What happens to a conversation that is longer than a packed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverLong {
    /// Keep the start, cut the rest.
    #[default]
    Truncate,
    /// Drop the conversation.
    Drop,
    /// Keep as many whole turns as fit.
    Turns,
    /// Continue in further documents. Each of them opens with the last tokens of the one before as
    /// context, which carries no loss there.
    Split,
}

impl OverLong {
    /// The name in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            OverLong::Truncate => "truncate",
            OverLong::Drop => "drop",
            OverLong::Turns => "turns",
            OverLong::Split => "split",
        }
    }
}

/// What happens to an assistant turn whose text the chat template deletes or rewrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LostText {
    /// Drop the conversation.
    #[default]
    Drop,
    /// Keep the turn as context without loss.
    Mask,
    /// Take the loss on the text as the template rendered it.
    Keep,
    /// Make one document of each turn, with the messages before it as decoding sees them.
    Split,
}

/// What happens to strings in message content that spell a control token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpecialText {
    /// They are encoded as ordinary text.
    #[default]
    Text,
    /// They are encoded as control tokens, as transformers does.
    AsSpecial,
    /// The conversation is dropped.
    Reject,
}

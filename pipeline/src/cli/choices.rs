//! Values of options on the command line, with their help texts.

use clap::ValueEnum;

/// A choice that the command line offers for an enum of another crate or room.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident => $target:path { $($(#[$vdoc:meta])* $v:ident),+ }) => {
        $(#[$doc])*
        #[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $v),+ }
        impl From<$name> for $target {
            fn from(v: $name) -> Self {
                match v { $($name::$v => <$target>::$v),+ }
            }
        }
    };
}

choice!(
PaddingArg => dlm_datasets::manifest::Padding {
    /// The mask token, as in the paper.
    Mask,
    /// The end-of-sequence token.
    Eos
});
choice!(
AlignmentArg => dlm_datasets::manifest::Alignment {
    /// From the document's start, as in decoding.
    Sample,
    /// From the start of the last response, whose length becomes a multiple of the block size.
    Response
});
choice!(
LossOnArg => dlm_datasets::manifest::LossOn {
    /// All assistant turns.
    All,
    /// The last assistant turn.
    Last
});
choice!(
SpecialTextArg => crate::config::policies::SpecialText {
    /// They are encoded as ordinary text.
    Text,
    /// They are encoded as control tokens, as transformers does.
    AsSpecial,
    /// The conversation is dropped.
    Reject
});
choice!(
LostTextArg => crate::config::policies::LostText {
    /// The conversation is dropped.
    Drop,
    /// The turn stays as context without loss.
    Mask,
    /// The text as the template rendered it carries loss.
    Keep,
    /// One document is made of each turn, with the messages before it as decoding sees them.
    Split
});

/// When terminal colours are used.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ColourChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Even if standard output is not a terminal.
    Always,
    /// Not even on a terminal.
    Never,
}

//! Named reasons for dropping a row.
//!
//! Every row that is read is either kept or dropped for exactly one [`DropReason`], which the
//! manifest counts.

/// Why a row was dropped. The names are part of the output format: the manifest counts dropped rows
/// by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum DropReason {
    /// The line is not a JSON object. Lone surrogates and nesting deeper than 128 levels count as
    /// invalid JSON.
    BadJson,
    /// The line is longer than the limit of the reader.
    LineTooLong,
    /// The line is not UTF-8.
    BadUtf8,
    /// The columns match none of the known shapes.
    UnknownShape,
    /// There are no messages, or none besides the answer.
    NoPrompt,
    /// A message has neither text nor tool calls.
    NullContent,
    /// The content of a message is not text (an image, audio, a number).
    NonTextContent,
    /// A message has a role that is not known.
    UnknownRole,
    /// There is no assistant turn.
    NoAssistant,
    /// The last assistant turn is empty.
    EmptyResponse,
    /// The tool calls of a message, or their arguments, cannot be read.
    BadToolCalls,
    /// The tool declarations cannot be read.
    BadTools,
    /// The variables for the template are no object, or name one that a template gets from
    /// elsewhere.
    BadTemplateKwargs,
    /// What the data says about the loss of a message cannot be read, or is not 0 or 1.
    BadLossMask,
    /// The data marks the answer as a bad one (`label` is false).
    RejectedAnswer,
    /// The text contains Unicode noncharacters that this program uses as placeholders.
    ReservedCharacters,
    /// The text contains strings that spell a control token (policy `reject`, or a template that
    /// treats such a string specially).
    SpecialText,
    /// The text contains the mask token (policy `as-special`).
    MaskInText,
    /// The template raised an error for this conversation.
    TemplateRefused,
    /// The template deletes or rewrites assistant text.
    AssistantTextLost,
    /// The name or an argument of a tool call does not occur in the rendered turn.
    ToolCallsLost,
    /// The results of calls that a message holds itself (`tool_responses`) do not occur in the
    /// rendered text.
    ToolResponsesLost,
    /// The position of an assistant turn in the rendered text cannot be determined.
    NoAssistantSpan,
    /// The thoughts of an assistant turn, which are to carry no loss, cannot be located.
    ThoughtsNotFound,
    /// The conversation is longer than a packed row (policy `drop`).
    TooLong,
    /// Not even the first assistant turn fits into a row (policy `turns`).
    FirstTurnTooLong,
    /// The prompt alone fills the row, so that no response token is left.
    PromptTooLong,
    /// No token carries loss.
    NoLabel,
    /// The tokenizer failed on the text.
    TokenizerFailed,
    /// The same conversation was seen before (`--dedup`).
    Duplicate,
}

impl DropReason {
    /// All reasons, in the order of the stages that drop rows.
    pub(crate) const ALL: [DropReason; 30] = [
        DropReason::BadJson,
        DropReason::LineTooLong,
        DropReason::BadUtf8,
        DropReason::UnknownShape,
        DropReason::NoPrompt,
        DropReason::NullContent,
        DropReason::NonTextContent,
        DropReason::UnknownRole,
        DropReason::NoAssistant,
        DropReason::EmptyResponse,
        DropReason::BadToolCalls,
        DropReason::BadTools,
        DropReason::BadTemplateKwargs,
        DropReason::BadLossMask,
        DropReason::RejectedAnswer,
        DropReason::ReservedCharacters,
        DropReason::SpecialText,
        DropReason::MaskInText,
        DropReason::TemplateRefused,
        DropReason::AssistantTextLost,
        DropReason::ToolCallsLost,
        DropReason::ToolResponsesLost,
        DropReason::NoAssistantSpan,
        DropReason::ThoughtsNotFound,
        DropReason::TooLong,
        DropReason::FirstTurnTooLong,
        DropReason::PromptTooLong,
        DropReason::NoLabel,
        DropReason::TokenizerFailed,
        DropReason::Duplicate,
    ];

    /// Whether the conversation was dropped because it has no token to learn from. A run fails when
    /// the share of such conversations exceeds `--max-unsupervised`.
    pub(crate) fn is_unsupervised(self) -> bool {
        matches!(
            self,
            DropReason::NoLabel | DropReason::PromptTooLong | DropReason::NoAssistantSpan
        )
    }

    /// What is wrong and what helps, where the row itself need not be looked at.
    pub(crate) fn advice(self) -> Option<&'static str> {
        Some(match self {
            DropReason::BadTools => {
                "tools must be a list of declarations, one declaration, or the JSON text of these"
            }
            DropReason::BadToolCalls => {
                "tool_calls must be a list of calls with a name, one call, or the JSON text of these"
            }
            DropReason::BadTemplateKwargs => {
                "chat_template_kwargs must be an object of variables that no column gives"
            }
            DropReason::BadLossMask => {
                "flags of the loss must be 0, 1, true or false, a loss_mask one per message or turn"
            }
            DropReason::RejectedAnswer => "label: false marks an answer that nobody should learn",
            DropReason::ToolCallsLost => {
                "the template does not write the name or an argument of a call; --template names one that does"
            }
            DropReason::ToolResponsesLost => {
                "the template does not write tool_responses; results can be messages of the role tool"
            }
            DropReason::NoAssistantSpan => {
                "the assistant's turn cannot be located in what the template writes"
            }
            DropReason::ThoughtsNotFound => {
                "thoughts without an end cannot be told from the answer, as --mask-thinking needs"
            }
            _ => return None,
        })
    }

    /// Whether documents that end with each of its turns might be kept.
    pub(crate) fn is_about_earlier_turns(self) -> bool {
        matches!(self, DropReason::AssistantTextLost | DropReason::NoAssistantSpan)
    }

    /// Whether a conversation without its last turns might be kept.
    pub(crate) fn is_about_length(self) -> bool {
        matches!(
            self,
            DropReason::TooLong
                | DropReason::FirstTurnTooLong
                | DropReason::PromptTooLong
                | DropReason::NoLabel
        )
    }

    /// The name in the manifest.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DropReason::BadJson => "bad_json",
            DropReason::LineTooLong => "line_too_long",
            DropReason::BadUtf8 => "bad_utf8",
            DropReason::UnknownShape => "unknown_shape",
            DropReason::NoPrompt => "no_prompt",
            DropReason::NullContent => "null_content",
            DropReason::NonTextContent => "non_text_content",
            DropReason::UnknownRole => "unknown_role",
            DropReason::NoAssistant => "no_assistant",
            DropReason::EmptyResponse => "empty_response",
            DropReason::BadToolCalls => "bad_tool_calls",
            DropReason::BadTools => "bad_tools",
            DropReason::BadTemplateKwargs => "bad_template_kwargs",
            DropReason::BadLossMask => "bad_loss_mask",
            DropReason::RejectedAnswer => "rejected_answer",
            DropReason::ReservedCharacters => "reserved_characters",
            DropReason::SpecialText => "special_text",
            DropReason::MaskInText => "mask_in_text",
            DropReason::TemplateRefused => "template_refused",
            DropReason::AssistantTextLost => "assistant_text_lost",
            DropReason::ToolCallsLost => "tool_calls_lost",
            DropReason::ToolResponsesLost => "tool_responses_lost",
            DropReason::NoAssistantSpan => "no_assistant_span",
            DropReason::ThoughtsNotFound => "thoughts_not_found",
            DropReason::TooLong => "too_long",
            DropReason::FirstTurnTooLong => "first_turn_too_long",
            DropReason::PromptTooLong => "prompt_too_long",
            DropReason::NoLabel => "no_label",
            DropReason::TokenizerFailed => "tokenizer_failed",
            DropReason::Duplicate => "duplicate",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|d| d.name()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}

//! Turns of other roles than the assistant that carry loss (`--train-on-roles`).
//!
//! In: the positions of the contents in a render. Out: a span for each message of those roles: its
//! content, up to and including the end-of-turn token that follows it.

use crate::config::trained_roles::TrainedRoles;
use crate::parse::conversation::Message;
use crate::parse::drop_reason::DropReason;
use crate::template::alignment::{ContentMatch, ContentPosition};
use crate::template::control::ControlTokens;
use crate::template::python_text::is_space;
use crate::template::rendered::Span;

/// Finds the spans of other roles.
pub(crate) struct OtherRoles<'a> {
    pub roles: TrainedRoles,
    pub control: &'a ControlTokens,
}

impl OtherRoles<'_> {
    /// The spans; `positions` are those of the contents, by message index. A content that the
    /// template deletes or rewrites drops the row.
    pub(crate) fn spans(
        &self,
        messages: &[Message],
        positions: &[Option<ContentPosition>],
        text: &str,
    ) -> Result<Vec<Span>, DropReason> {
        let trained = |m: &Message| {
            !m.is_assistant() && !m.no_loss && !m.content.is_empty() && self.roles.includes(&m.role)
        };
        let mut out = Vec::new();
        for (_, position) in messages.iter().zip(positions).filter(|(m, _)| trained(m)) {
            let Some(p) = position else { return Err(DropReason::NoAssistantSpan) };
            if p.matches == ContentMatch::Differs {
                return Err(DropReason::AssistantTextLost);
            }
            let rest = &text[p.end..];
            let after = match self.control.first(rest) {
                Some((at, len, _)) if rest[..at].chars().all(is_space) => at + len,
                _ => 0,
            };
            out.push(Span { start: p.start, end: p.end + after, loss: true, continues: false });
        }
        Ok(out)
    }
}

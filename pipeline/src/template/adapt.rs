//! Conversations in the form that a template reads.
//!
//! In: a conversation with tool calls or thoughts. Out: the same messages, changed as `forms.rs`
//! says.

use crate::parse::conversation::{Conversation, Message};
use crate::parse::drop_reason::DropReason;
use crate::template::chat::ChatTemplate;

/// The messages of a conversation in the form that the template reads; None if it has neither tool
/// calls nor thoughts.
pub(crate) fn adapt<'m>(
    template: &ChatTemplate,
    c: &Conversation<'m>,
) -> Result<Option<Vec<Message<'m>>>, DropReason> {
    if !c.messages.iter().any(Message::has_extras) {
        return Ok(None);
    }
    let forms = template.forms(c.tools.is_some());
    let mut messages = c.messages.clone();
    messages.iter_mut().try_for_each(|m| forms.adapt(m))?;
    Ok(Some(messages))
}

//! A conversation turn by turn (`--lost-text split`).
//!
//! In: a conversation. Out: for each assistant turn with loss, the conversation up to it, in which
//! the turns before it are context, as in decoding.

use crate::parse::conversation::Conversation;

/// The conversations that end with an assistant turn of `c`; with `last_only` that of the last turn
/// alone.
pub(crate) fn turn_by_turn<'c>(
    c: &'c Conversation<'_>,
    last_only: bool,
) -> impl Iterator<Item = Conversation<'c>> {
    let answers = |k: &usize| {
        let m = &c.messages[*k];
        m.is_assistant() && (!m.content.is_empty() || m.has_extras())
    };
    let last = (0..c.messages.len()).rfind(answers);
    let chosen =
        move |k: &usize| answers(k) && !c.messages[*k].no_loss && (!last_only || Some(*k) == last);
    (0..c.messages.len()).filter(chosen).map(|k| {
        let mut messages = c.messages[..=k].to_vec();
        messages[..k].iter_mut().for_each(|m| m.no_loss = true);
        Conversation { messages, ..c.clone() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::conversation::Message;

    #[test]
    fn every_turn_with_loss_once() {
        let mut messages: Vec<Message> = ["user", "assistant", "user", "assistant", "assistant"]
            .iter()
            .zip(["q", "a", "r", "b", ""])
            .map(|(role, text)| Message::new(*role, text))
            .collect();
        let c = Conversation { messages: messages.clone(), ..Default::default() };
        let lengths = |c: &Conversation, last| {
            turn_by_turn(c, last).map(|c| c.messages.len()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&c, false), [2, 4]);
        assert_eq!(lengths(&c, true), [4]);
        let parts: Vec<_> = turn_by_turn(&c, false).collect();
        assert!(parts[1].messages[1].no_loss && !parts[1].messages[3].no_loss);
        messages[1].no_loss = true;
        let c = Conversation { messages, ..Default::default() };
        assert_eq!(lengths(&c, false), [4]);
    }
}

//! How a template ends the turns of the assistant.
//!
//! In: a template. Out: [`Closing`], found in the render of a sample conversation. Most templates
//! write one token behind an answer; some write two, and some write more behind the last message:
//! the end of the text, or the beginning of the next answer.

use crate::parse::conversation::Message;
use crate::template::chat::{ChatTemplate, Inputs};
use crate::template::control::ControlTokens;
use crate::template::python_text::is_space;

/// What a template writes behind answers.
#[derive(Debug, Default)]
pub(crate) struct Closing {
    /// The text up to the last token that ends a turn, where there are several.
    pub tokens: String,
    /// The text behind every content up to the first such token, where it is more than white space.
    pub text: String,
    /// What it writes behind the last message, whether or not an answer is asked for.
    pub standing: String,
    /// What it writes behind the last message only; None if it does not write the sample.
    pub behind_the_last: Option<String>,
    /// The generation prompt, where it opens the thoughts of the answer.
    pub opening: String,
}

const OPEN: &str = "<think>";

fn opens_thoughts(prompt: &str) -> bool {
    prompt.trim_end_matches(is_space).ends_with(OPEN)
}

const TEXTS: [&str; 4] = ["zqone", "zqtwo", "zqthree", "zqfour"];

impl Closing {
    /// Finds out what the template writes in conversations with `inputs`.
    pub(crate) fn probe(template: &ChatTemplate, control: &ControlTokens, inputs: Inputs) -> Self {
        let messages: Vec<Message> = TEXTS
            .iter()
            .zip(["user", "assistant", "user", "assistant"])
            .map(|(text, role)| Message::new(role, *text))
            .collect();
        let render = |n: usize, prompt| {
            template.render_with(&messages[..n], inputs, prompt, false).unwrap_or_default()
        };
        let (text, before, prompt) = (render(4, false), render(1, false), render(1, true));
        let added = prompt.strip_prefix(before.as_str()).unwrap_or_default();
        let opening = if opens_thoughts(added) { added.to_string() } else { String::new() };
        let places: Option<Vec<usize>> = TEXTS.iter().map(|t| text.find(t)).collect();
        let Some([_, second, third, fourth]) = places.as_deref() else {
            return Closing { opening, ..Closing::default() };
        };
        let middle = text.get(second + TEXTS[1].len()..*third).unwrap_or_default();
        let last = &text[fourth + TEXTS[3].len()..];
        // Tokens that begin a text or a generation prompt end no turn.
        let mut openers = Vec::new();
        for (part, token) in control.split(&text) {
            openers.extend(token.filter(|_| part.chars().all(is_space)));
            if !part.chars().all(is_space) {
                break;
            }
        }
        openers.extend(control.split(added).filter_map(|(_, token)| token));
        let (mut at, mut end, mut count) = (0, 0, 0);
        let mut text = "";
        for (part, token) in control.split(last) {
            let Some((id, len)) = token else { break };
            at += part.len() + len;
            let opens = openers.iter().any(|o| o.0 == id);
            let everywhere = !opens && middle.starts_with(&last[..at]);
            match part.chars().all(is_space) {
                true if count == 0 || everywhere => {}
                false if count == 0 && everywhere => text = &last[..at],
                _ => break,
            }
            (end, count) = (at, count + 1);
        }
        let tokens = if count > 1 { last[..end].trim_start_matches(is_space) } else { "" };
        let standing = if count > 0 { last[end..].trim_matches(is_space) } else { "" };
        let behind_the_last = match count {
            0 if middle.starts_with(last.trim_end_matches(is_space)) => "",
            0 => last.trim_matches(is_space),
            _ => standing,
        };
        let [tokens, text, standing, behind_the_last] =
            [tokens, text, standing, behind_the_last].map(String::from);
        Closing { tokens, text, standing, behind_the_last: Some(behind_the_last), opening }
    }

    /// Whether the generation prompt may have opened thoughts that a content begins with.
    pub(crate) fn may_open(&self, messages: &[Message]) -> bool {
        let opens = |m: &Message| m.content.trim_start_matches(is_space).starts_with(OPEN);
        !self.opening.is_empty() && messages.iter().any(opens)
    }

    /// Length in bytes of what the generation prompt has written already of the text at `start`:
    /// the mark that opens the thoughts.
    pub(crate) fn opened_by_prompt(
        &self,
        template: &ChatTemplate,
        inputs: Inputs,
        text: &str,
        start: usize,
    ) -> usize {
        let rest = text[start..].trim_start_matches(is_space);
        if self.opening.is_empty() || !rest.starts_with(OPEN) {
            return 0;
        }
        let mut opening = self.opening.clone();
        if inputs.kwargs.is_some() {
            // Variables of the template decide whether thoughts are opened.
            let sample = [Message::new("user", TEXTS[0])];
            let render = |prompt| template.render_with(&sample, inputs, prompt, false);
            let (before, prompt) = (render(false), render(true));
            let added = before.ok().zip(prompt.ok()).and_then(|(before, prompt)| {
                Some(prompt.strip_prefix(before.as_str())?.to_string())
            });
            opening = added.unwrap_or_default();
        }
        let Some(at) = opening.rfind(OPEN).filter(|_| opens_thoughts(&opening)) else { return 0 };
        let (header, mark) = opening.split_at(at);
        let spaces = text.len() - start - rest.len();
        if !text[..start + spaces].ends_with(header) {
            return 0;
        }
        match rest.starts_with(mark) {
            true => spaces + mark.len(),
            false => spaces + OPEN.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policies::default_now;
    use crate::tokenize::tokenizer::AddedToken;

    #[test]
    fn tokens_behind_answers() {
        let added = ["<|a|>", "<|b|>", "<|start|>", "</s>"]
            .iter()
            .zip(1..)
            .map(|(t, id)| AddedToken { content: t.to_string(), id, special: true });
        let control = ControlTokens::new(&added.collect::<Vec<_>>(), None).unwrap();
        let probe = |tail: &str, end: &str, prompt: &str| {
            let source = format!(
                "{{% for m in messages %}}<|start|>{{{{ m.role }}}}:{{{{ m.content }}}}{tail}{{% endfor %}}{end}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
            );
            let t = ChatTemplate::new(source, None, "t", Default::default(), default_now());
            let closing = Closing::probe(&t.unwrap(), &control, Inputs::default());
            (closing.tokens + &closing.text, closing.standing, !closing.opening.is_empty())
        };
        let ask = "<|start|>assistant:";
        let none = || (String::new(), String::new(), false);
        assert_eq!(probe("<|a|>\n", "", ask), none());
        assert_eq!(probe("<|a|>", "</s>", ask), (String::new(), "</s>".into(), false));
        assert_eq!(probe("<|a|><|b|>", "", ask), ("<|a|><|b|>".into(), String::new(), false));
        assert_eq!(probe(" END<|a|>\n", "", ask), (" END<|a|>".into(), String::new(), false));
        assert_eq!(probe(" END<|start|>", "", ask), none());
        let always = ("<|a|><|b|>".to_string(), ask.to_string(), false);
        assert_eq!(probe("<|a|><|b|>", ask, ""), always);
        assert_eq!(probe("<|a|>", ask, "").1, ask);
        assert!(probe("<|a|>\n", "", "<|start|>assistant:<think>\n").2);
        assert_eq!(probe("", "", ""), none());
    }
}

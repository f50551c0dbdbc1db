//! Where an assistant turn with tool calls or thoughts begins and ends.
//!
//! In: a render, or a render with placeholders for contents, and the messages. Out: byte ranges.
//! The start of a turn is where the generation prompt of the messages before it ends, also where
//! the template wrote a part of it only or wrote the messages before it differently. The end is the
//! last control token that the template writes for this message, or the one that follows it.

use crate::parse::conversation::Message;
use crate::template::alignment::empty_think_block;
use crate::template::chat::{ChatTemplate, Inputs};
use crate::template::control::ControlTokens;
use crate::template::placeholder::{CONTENT_END, CONTENT_START};
use crate::template::presence::Searchable;
use crate::template::python_text::is_space;
use crate::template::skeleton::Extent;

/// Locates turns in one text.
pub(crate) struct TurnEdges<'a> {
    pub template: &'a ChatTemplate,
    pub control: &'a ControlTokens,
    pub messages: &'a [Message<'a>],
    pub inputs: Inputs<'a>,
    /// Whether `{% generation %}` blocks are marked in the text.
    pub marked: bool,
    pub text: &'a str,
}

pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let mut n = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    while !a.is_char_boundary(n) {
        n -= 1;
    }
    n
}

/// The placeholder of the last content in a text, and the text behind it.
fn behind_last_content(text: &str) -> Option<(&str, &str)> {
    let (start, end) = (text.rfind(CONTENT_START)?, text.rfind(CONTENT_END)?);
    Some((text.get(start..end)?, text.get(end + CONTENT_END.len_utf8()..)?))
}

/// Length in bytes of an empty thought block at the start of `text`, or of its closing mark alone,
/// with the white space around it.
fn empty_thoughts(text: &str) -> usize {
    match text.trim_start_matches(is_space).strip_prefix("</think>") {
        Some(rest) => text.len() - rest.trim_start_matches(is_space).len(),
        None => empty_think_block(text),
    }
}

/// How much of `rest` is the text `own` that the template writes for a last message, which may end
/// with another token than those before it.
pub(crate) fn ending(control: &ControlTokens, rest: &str, own: &str) -> Option<usize> {
    if rest.starts_with(own) {
        return Some(own.len());
    }
    let (mut last, mut at) = (None, 0);
    for (part, token) in control.split(own) {
        at += part.len();
        last = token.map(|_| at).or(last);
        at += token.map_or(0, |t| t.1);
    }
    let head = last.filter(|&n| rest.starts_with(&own[..n]))?;
    let (_, len, _) = control.first(&rest[head..]).filter(|t| t.0 == 0)?;
    Some(head + len)
}

/// Where a turn ends of which the template wrote `rest[..n]`: behind its last control token, if
/// only white space follows; else behind the one that follows the turn, or at the end of its text.
pub(crate) fn closed(control: &ControlTokens, rest: &str, n: usize) -> usize {
    let (mut at, mut closed) = (0, None);
    for (part, token) in control.split(&rest[..n]) {
        if !part.chars().all(is_space) {
            closed = None;
        }
        at += part.len();
        if let Some((_, len)) = token {
            at += len;
            closed = Some(at);
        }
    }
    closed.unwrap_or_else(|| match control.first(&rest[n..]) {
        Some((at, len, _)) if rest[n..n + at].chars().all(is_space) => n + at + len,
        _ => rest[..n].trim_end_matches(is_space).len(),
    })
}

impl TurnEdges<'_> {
    pub(crate) fn render(&self, messages: usize, generation_prompt: bool) -> Option<String> {
        let messages = self.messages.get(..messages)?;
        self.template.render_with(messages, self.inputs, generation_prompt, self.marked).ok()
    }

    /// Length in bytes of the text before the content of turn `k`, which begins at `content`, that
    /// the model writes in decoding because the generation prompt does not contain it: white space,
    /// or the name of a channel. An empty thought block is none of it, and where the template has
    /// no generation prompt, only white space is. The text has placeholders for contents.
    /// `standing` is what the template writes behind the last message in any case.
    pub(crate) fn not_in_the_prompt(&self, k: usize, content: usize, standing: &str) -> usize {
        let Some(prompt) = self.render(k, true).filter(|p| !p.is_empty()) else { return 0 };
        let before = &self.text[..content];
        let without = self.render(k, false).unwrap_or_default();
        let mut added = prompt.strip_prefix(without.as_str()).map_or("", str::trim);
        if added.is_empty() && prompt.trim_end().ends_with(standing) {
            added = standing;
        }
        // Where earlier messages are written differently, only what follows the last content
        // counts.
        let rest = before.strip_prefix(prompt.as_str()).or_else(|| {
            let (literal, asked) = (behind_last_content(before)?, behind_last_content(&prompt)?);
            (literal.0 == asked.0).then_some(())?;
            literal.1.strip_prefix(asked.1)
        });
        match rest {
            Some(rest) if rest.chars().all(is_space) => rest.len(),
            Some(rest) if !added.is_empty() => rest.len() - empty_thoughts(rest),
            Some(_) => 0,
            // The prompt has other white space than the text.
            None => {
                let written = before.trim_end_matches(is_space);
                match !added.is_empty() && written.ends_with(added) {
                    true => before.len() - written.len(),
                    false => 0,
                }
            }
        }
    }

    /// The byte range of turn `k`, which begins at `floor` or behind it.
    pub(crate) fn of(&self, k: usize, floor: usize) -> Option<(usize, usize)> {
        let prompt = self.render(k, true)?;
        let (start, shared) = self.start(k, &prompt, floor)?;
        let end = self.end(k, &prompt[..shared], start)?;
        let from = self.skip_empty_thoughts(start, k);
        (from <= end).then_some((from, end))
    }

    /// Moves `start` behind an empty thought block that the template writes by itself, also where
    /// the generation prompt has opened it.
    pub(crate) fn skip_empty_thoughts(&self, start: usize, k: usize) -> usize {
        if self.messages[k].content.trim_start().starts_with("<think>") {
            return start;
        }
        let (before, rest) = self.text.split_at(start);
        let before = before.trim_end_matches(is_space);
        let from = match before.ends_with("<think>") {
            true => before.len() - "<think>".len(),
            false => start + rest.len() - rest.trim_start_matches(is_space).len(),
        };
        match empty_thoughts(&self.text[from..]) {
            0 => start,
            n => from + n,
        }
    }

    /// Where turn `k` begins, and how much of the generation prompt is before it.
    fn start(&self, k: usize, prompt: &str, floor: usize) -> Option<(usize, usize)> {
        if self.text.starts_with(prompt) && prompt.len() >= floor && !prompt.is_empty() {
            return Some((prompt.len(), prompt.len()));
        }
        let before = self.render(k, false)?;
        let added = prompt.strip_prefix(before.as_str())?;
        // Where the generation prompt would begin.
        let at = match self.text.starts_with(before.as_str()) && before.len() >= floor {
            true => before.len(),
            false => {
                // The template wrote earlier messages differently, but not what follows the last
                // content.
                let last = self.messages[..k].iter().rfind(|m| !m.content.is_empty())?;
                let tail = &before[before.rfind(&*last.content)? + last.content.len()..];
                let follows = self.text.get(..floor)?.ends_with(&*last.content)
                    && self.text[floor..].starts_with(tail);
                follows.then_some(floor + tail.len())?
            }
        };
        let same = common_prefix(self.text.get(at..)?, added);
        // As much of the prompt as the text has, up to a white space or the end of a token.
        let whole = |n: &usize| {
            let head = &added[..*n];
            *n == added.len()
                || head.ends_with(is_space)
                || self.control.tokens().iter().any(|(t, _)| head.ends_with(t.as_str()))
        };
        let from = usize::from(!added.is_empty());
        let cut = (from..=same).rev().filter(|&n| added.is_char_boundary(n)).find(whole)?;
        Some((at + cut, before.len() + cut))
    }

    /// The end of turn `k`, which begins at `start`, behind the prompt `shared`.
    fn end(&self, k: usize, shared: &str, start: usize) -> Option<usize> {
        let rest = &self.text[start..];
        let alone = self.render(k + 1, false)?;
        let own = match alone.strip_prefix(shared) {
            Some(own) => own,
            None => {
                let same = common_prefix(&alone, self.text);
                alone.get(start..).filter(|_| same >= start)?
            }
        };
        let thoughts = if rest.starts_with(own) { 0 } else { empty_thoughts(rest) };
        let (start, rest) = (start + thoughts, &rest[thoughts..]);
        let own = &own[if rest.starts_with(own) { 0 } else { empty_thoughts(own) }..];
        let n = ending(self.control, rest, own)?;
        Some(start + closed(self.control, rest, n))
    }

    /// Turn `k` in a text without placeholders. A message that holds results of calls is not
    /// located in it.
    pub(crate) fn extent(&self, k: usize) -> Option<Extent<usize>> {
        let m = self.messages.get(k).filter(|m| m.tool_responses.is_none())?;
        let (start, end) = self.of(k, 0)?;
        // What the content says does not show that a call was written.
        let turn = Searchable::new(&self.text[start..end].replacen(&*m.content, " ", 1));
        Some(Extent {
            pieces: vec![(start, end)],
            calls_written: m.tool_calls.as_ref().is_none_or(|calls| turn.has_calls(calls)),
            thoughts_written: m.thoughts().is_none_or(|t| turn.has_text(t)),
        })
    }
}

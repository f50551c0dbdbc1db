//! Where the thoughts of assistant turns are (`--mask-thinking`).
//!
//! In: a render with its spans. Out: the byte ranges that carry no loss: the thoughts with the
//! marks around them and the white space behind these. Thoughts that a message holds in a field of
//! its own are located by a render with placeholders in their place; thoughts inside contents by
//! the marks that the usual formats put around them. Rows whose thoughts cannot be located are
//! dropped.

use crate::parse::conversation::Message;
use crate::parse::drop_reason::DropReason;
use crate::template::alignment::{ContentMatch, ContentPosition, align};
use crate::template::chat::{ChatTemplate, Inputs};
use crate::template::control::ControlTokens;
use crate::template::presence::Searchable;
use crate::template::python_text::is_space;
use crate::template::rendered::Rendered;
use crate::template::skeleton::{Skeleton, content_placeholder};
use std::ops::Range;

/// What stands before and behind thoughts.
const MARKS: [(&str, &str); 15] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|think|>", "<|/think|>"),
    ("◁think▷", "◁/think▷"),
    ("<unused94>", "<unused95>"),
];

/// The thoughts that messages hold in a field of their own.
pub(crate) struct FieldThoughts<'a> {
    messages: &'a [Message<'a>],
    /// Their places in the text, by message index.
    places: Vec<Option<ContentPosition>>,
}

impl<'a> FieldThoughts<'a> {
    /// Locates the thoughts of all messages in `text`, the render of these messages.
    pub(crate) fn locate(
        template: &ChatTemplate,
        messages: &'a [Message<'a>],
        inputs: Inputs,
        text: &str,
    ) -> Self {
        let n = messages.len();
        let mut places = vec![None; n];
        let mut trial = messages.to_vec();
        // Thoughts are numbered behind the contents, as if they were messages of their own.
        let mut parts = messages.to_vec();
        for (k, m) in trial.iter_mut().enumerate() {
            parts.push(Message::new("thoughts", m.thoughts().unwrap_or_default().to_string()));
            if !m.content.is_empty() {
                m.content = content_placeholder(k).into();
            }
            m.thoughts_mut().for_each(|t| *t = content_placeholder(n + k));
        }
        let aligned = (2 * n <= 0xFFFF)
            .then(|| template.render_with(&trial, inputs, false, false).ok())
            .flatten()
            .and_then(|marked| align(&Skeleton::parse(&marked)?, text, &parts));
        for p in aligned.iter().flat_map(|a| &a.contents).filter(|p| p.message >= n) {
            places[p.message - n] = Some(*p);
        }
        FieldThoughts { messages, places }
    }

    /// The range of the thoughts of message `k` and of the marks around them in its turn `span`.
    /// `content` is where the message's content begins. None if the template did not write them.
    pub(crate) fn of(
        &self,
        k: usize,
        span: (usize, usize),
        content: Option<usize>,
        control: &ControlTokens,
        text: &str,
    ) -> Result<Option<Range<usize>>, DropReason> {
        let turn = text.get(span.0..span.1).ok_or(DropReason::ThoughtsNotFound)?;
        let thoughts = self.messages[k].thoughts().unwrap_or_default();
        let place = self.places[k].filter(|p| p.matches != ContentMatch::Differs);
        let Some(place) = place else {
            return match Searchable::new(turn).has_text(thoughts) {
                true => Err(DropReason::ThoughtsNotFound),
                false => Ok(None),
            };
        };
        if place.end <= span.0 || place.start >= span.1 {
            return Ok(None);
        }
        // Whatever the template writes before the thoughts announces them, unless the content does.
        let first = content.is_none_or(|at| at >= place.end || at < span.0);
        let start = if first { span.0 } else { open_mark_before(text, place.start) };
        let rest = text.get(place.end..span.1).unwrap_or_default();
        let close = rest.trim_start_matches(is_space);
        let spaces = rest.len() - close.len();
        let mark = MARKS.iter().map(|m| m.1).find(|m| close.starts_with(m)).map(str::len);
        // A control token ends them, if it does not end the whole turn.
        let token = || match control.first(close) {
            Some((0, len, _)) if len < close.len() => Some(len),
            _ => None,
        };
        let end = match mark.or_else(token) {
            Some(len) => {
                let behind = &close[len..];
                let more = behind.len() - behind.trim_start_matches(is_space).len();
                place.end + spaces + len + more
            }
            None => place.end.min(span.1),
        };
        Ok(Some(start..end))
    }
}

/// Whether a template leaves out the thoughts of message `k`.
pub(crate) fn deletes_thoughts(
    template: &ChatTemplate,
    messages: &[Message],
    inputs: Inputs,
    k: usize,
) -> bool {
    let mut trial = messages.to_vec();
    let placeholder = content_placeholder(0);
    trial[k].thoughts_mut().for_each(|t| t.clone_from(&placeholder));
    let text = template.render_with(&trial, inputs, false, false);
    text.is_ok_and(|text| !text.contains(&placeholder))
}

/// Where the mark begins that ends at `at`, white space ignored; `at` if there is none.
fn open_mark_before(text: &str, at: usize) -> usize {
    let before = text[..at].trim_end_matches(is_space);
    let opened = MARKS.iter().find(|m| before.ends_with(m.0.trim_end_matches(is_space)));
    opened.map_or(at, |m| before.len() - m.0.trim_end_matches(is_space).len())
}

/// Adds the thoughts between marks to [`Rendered::masked`], in order.
pub(crate) fn mask_marked_thoughts(out: &mut Rendered) -> Result<(), DropReason> {
    let mut masked = std::mem::take(&mut out.masked);
    masked.sort_by_key(|m| m.start);
    let mut found = Vec::new();
    for span in out.spans.iter().filter(|s| s.loss) {
        let mut at = span.start;
        let inside: Vec<_> =
            masked.iter().filter(|m| m.start < span.end && span.start < m.end).cloned().collect();
        for m in inside.iter().cloned().chain([span.end..span.end]) {
            if at < m.start {
                between_marks(&out.text, at..m.start, &mut found)?;
            }
            at = at.max(m.end);
        }
        found.extend(inside.into_iter().filter(|m| m.start < m.end));
    }
    found.sort_by_key(|m| m.start);
    out.masked_turns = out
        .spans
        .iter()
        .filter(|s| s.loss && found.iter().any(|m| m.start < s.end && s.start < m.end))
        .count() as u64;
    out.masked = found;
    Ok(())
}

/// Appends the thoughts in `range`. Text before a closing mark that nothing opens is thought too:
/// the generation prompt opened it.
fn between_marks(
    text: &str,
    range: Range<usize>,
    found: &mut Vec<Range<usize>>,
) -> Result<(), DropReason> {
    let mut at = range.start;
    loop {
        let rest = text.get(at..range.end).ok_or(DropReason::ThoughtsNotFound)?;
        let open =
            MARKS.iter().filter_map(|m| Some((rest.find(m.0)?, m))).min_by_key(|(at, _)| *at);
        // What closes thoughts without such a mark also ends other parts of a turn.
        let own_close = |m: &&(&str, &str)| m.1 != "<|end|>" && m.1 != "<channel|>";
        let close = MARKS
            .iter()
            .filter(own_close)
            .filter_map(|m| Some((rest.find(m.1)?, m.1.len())))
            .min_by_key(|(at, _)| *at);
        let (from, to) = match (open, close) {
            (None, None) => return Ok(()),
            (Some((start, mark)), close) if close.is_none_or(|c| start < c.0) => {
                let behind = start + mark.0.len();
                let len = rest[behind..].find(mark.1).ok_or(DropReason::ThoughtsNotFound)?;
                (start, behind + len + mark.1.len())
            }
            (_, Some((start, len))) => (0, start + len),
            (Some(_), None) => return Err(DropReason::ThoughtsNotFound),
        };
        let behind = &rest[to..];
        let spaces = behind.len() - behind.trim_start_matches(is_space).len();
        found.push(at + from..at + to + spaces);
        at += to + spaces;
    }
}

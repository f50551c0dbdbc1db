//! The assistant's part of a rendered conversation.
//!
//! In: a conversation and its template. Out: the text, byte-equal to the template's own render, and
//! the byte spans the assistant speaks, end-of-turn token included.
//!
//! How: the template is rendered once more with a mark in place of every message's content, which
//! gives its *skeleton*: the literal text between contents. Laid over the real render it says where
//! each content stands; a conversation whose render is not its skeleton filled in (a template that
//! deletes reasoning, say) is found out by that. Skeletons depend only on the order of roles and
//! are kept. Where the skeleton does not fit, the start of a turn is sought by rendering what
//! precedes it with `add_generation_prompt`. Nothing is assumed about a template; what cannot be
//! established is a named reason.

use crate::config::policies::{LostText, SpecialText};
use crate::parse::conversation::{Conversation, Message};
use crate::parse::drop_reason::DropReason;
use crate::template::chat::ChatTemplate;
use crate::template::control::{ControlMatch, ControlText};
use crate::template::jinja::is_space;
use crate::template::skeleton::{
    Fit, Piece, Skeleton, align, empty_thought, fill_in, loose, parse_skeleton, slot_text,
};
pub use crate::template::skeleton::{Rendered, Span};
use crate::template::verbatim::Verbatim;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Messages of all skeletons kept per worker, and of the longest that is kept.
const CACHE: (usize, usize) = (32_768, 4_096);
/// A conversation of more messages is long: what is done to learn about its order of roles must
/// pay.
const LONG: usize = 32;
/// Messages that may be rendered to find a conversation's turns by what precedes them, and so many
/// times its own number more.
const SEARCH: (usize, usize) = (20_000, 8);
/// Turns behind one literal for which it is looked up what the generation prompt gives, before that
/// is taken to be known.
const PROMPTS: usize = 4;

/// Counts a render of `k` messages for a conversation of `n`; whether that is too much by now. A
/// conversation of many turns that are found only one by one would cost the square of its length.
fn over_search(searched: &mut usize, k: usize, n: usize) -> bool {
    *searched += k;
    *searched > SEARCH.0 + SEARCH.1 * n
}

/// Finds the spans; one per worker, for its cache.
pub struct SpanFinder<'a> {
    template: &'a ChatTemplate,
    control: &'a ControlText,
    special_text: SpecialText,
    lost_text: LostText,
    uses_generation: bool,
    linear: Option<&'a Verbatim>,
    cache: HashMap<String, Option<Arc<Skeleton>>>,
    cached: usize,
    key: String,
}

/// Why there is no rendering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The row is left out.
    Drop(DropReason),
    /// The template turned out not to be what experiment said (see [`crate::template::verbatim`]).
    NotLinear,
}

impl From<DropReason> for Fault {
    fn from(d: DropReason) -> Self {
        Fault::Drop(d)
    }
}

impl<'a> SpanFinder<'a> {
    /// For a template and a tokenizer's control tokens.
    pub fn new(
        template: &'a ChatTemplate,
        control: &'a ControlText,
        special_text: SpecialText,
        lost_text: LostText,
    ) -> Self {
        SpanFinder {
            template,
            control,
            special_text,
            lost_text,
            uses_generation: template.has_generation(),
            linear: None,
            cache: HashMap::new(),
            cached: 0,
            key: String::new(),
        }
    }

    /// Lets rows without triggers be filled into skeletons instead of rendered. `control` must have
    /// been made with its triggers.
    pub fn with_linear(mut self, linear: Option<&'a Verbatim>) -> Self {
        self.linear = linear.filter(|_| !self.uses_generation);
        self
    }

    /// The conversation filled into its skeleton, for [`crate::template::verbatim::probe`].
    pub fn fill(&mut self, messages: &[Message]) -> Option<String> {
        let s = self.skeleton(messages, None)?;
        let mut text = String::new();
        for p in &s.pieces {
            text.push_str(match p {
                Piece::Literal(l) => l,
                Piece::Slot(k) => &messages.get(*k)?.content,
            });
        }
        Some(text)
    }

    /// Renders a conversation and finds its spans.
    pub fn render(&mut self, c: &Conversation) -> Result<Rendered, DropReason> {
        let mut out = Rendered::default();
        match self.render_into(c, false, &mut out) {
            Ok(()) => Ok(out),
            Err(Fault::Drop(d)) => Err(d),
            Err(Fault::NotLinear) => Err(DropReason::TemplateRefused), // only where `check` is asked for
        }
    }

    /// Renders a conversation into `out`; with `check`, a row that was filled into a skeleton is
    /// rendered too and compared.
    pub fn render_into(
        &mut self,
        c: &Conversation,
        check: bool,
        out: &mut Rendered,
    ) -> Result<(), Fault> {
        out.clear();
        let found = self.look(c);
        if found.reserved {
            return Err(DropReason::ReservedCharacters.into());
        }
        if found.control && self.special_text == SpecialText::Reject {
            return Err(DropReason::SpecialText.into());
        }
        let control = found.control && self.special_text == SpecialText::Text;
        if let Some(linear) = self.linear
            && !found.trigger
            && c.tools.is_none()
            && !(linear.edge_space
                && c.messages
                    .iter()
                    .any(|m| m.content.starts_with(is_space) || m.content.ends_with(is_space)))
            && let Some(s) = self.skeleton(&c.messages, None)
            && s.stands_for_render(c.messages.len() > LONG, || self.tried(&s, &c.messages))
        {
            fill_in(&s, &c.messages, control, out);
            if check
                && self.template.render(&c.messages, false).ok().as_deref()
                    != Some(out.text.as_str())
            {
                return Err(Fault::NotLinear);
            }
            out.skeleton = Some(s);
            return Ok(());
        }
        *out = if control {
            self.render_marked(c)?
        } else {
            self.render_plain(&c.messages, c.tools.as_ref())?
        };
        Ok(())
    }

    /// What the contents hold.
    fn look(&self, c: &Conversation) -> ControlMatch {
        let mut found = ControlMatch::default();
        for m in &c.messages {
            self.control.look(&m.content, &mut found);
            m.tool_calls.iter().for_each(|v| self.control.look_json(v, &mut found));
        }
        c.tools.iter().for_each(|v| self.control.look_json(v, &mut found));
        found
    }

    /// The rare row with control-token strings in its text.
    fn render_marked(&mut self, c: &Conversation) -> Result<Rendered, DropReason> {
        let mut messages = c.messages.clone();
        for m in &mut messages {
            m.content = self.control.mark(&m.content).into();
            m.tool_calls.iter_mut().for_each(|v| self.control.mark_json(v));
        }
        let mut tools = c.tools.clone();
        tools.iter_mut().for_each(|v| self.control.mark_json(v));
        let mut out = self.render_plain(&messages, tools.as_ref())?;
        // A template that looks at the text itself could treat a mark otherwise than the string it
        // stands for.
        let truth = self
            .template
            .render_with(&c.messages, c.tools.as_ref(), false, false)
            .map_err(|_| DropReason::TemplateRefused)?;
        // Marks out, places moved along.
        let marked = std::mem::take(&mut out.text);
        let mut control = Vec::new();
        let mut edges: Vec<usize> = out.spans.iter().flat_map(|s| [s.start, s.end]).collect();
        edges.sort_unstable();
        let mut moved = HashMap::new();
        let (mut from, mut edge) = (0, 0);
        let mut at = 0;
        for (part, token) in self.control.split(&marked) {
            let end = at + part.len();
            while edge < edges.len() && edges[edge] <= end {
                let Some(piece) = marked.get(from..edges[edge]) else {
                    return Err(DropReason::NoAssistantSpan);
                };
                out.text.push_str(&self.control.unmark(piece));
                moved.insert(edges[edge], out.text.len());
                from = edges[edge];
                edge += 1;
            }
            out.text.push_str(&self.control.unmark(&marked[from..end]));
            at = end;
            if let Some((id, len)) = token {
                control.push((out.text.len(), len, id));
                out.text.push_str(&marked[at..at + len]);
                at += len;
            }
            from = at;
        }
        for s in &mut out.spans {
            let (Some(&start), Some(&end)) = (moved.get(&s.start), moved.get(&s.end)) else {
                return Err(DropReason::NoAssistantSpan);
            };
            (s.start, s.end) = (start, end);
        }
        if out.text != truth {
            return Err(DropReason::SpecialText);
        }
        out.control = Some(control);
        Ok(out)
    }

    fn render_plain(
        &mut self,
        messages: &[Message],
        tools: Option<&Value>,
    ) -> Result<Rendered, DropReason> {
        let text = self
            .template
            .render_with(messages, tools, false, false)
            .map_err(|_| DropReason::TemplateRefused)?;
        let mut out = Rendered { text, ..Default::default() };
        let skeleton = self.skeleton(messages, tools);
        let places =
            skeleton.as_deref().and_then(|s| align(s, &out.text, messages).map(|p| (s, p)));
        if let (Some((s, (_, starts, _))), true) = (&places, self.uses_generation) {
            out.spans = self.generation_spans(s, starts, &out.text);
        }
        let mut slot_of = vec![None; messages.len()];
        for p in places.iter().flat_map(|(_, (slots, ..))| slots) {
            slot_of[p.0] = Some(*p);
        }
        let mut searched = 0;
        for (k, m) in messages.iter().enumerate().filter(|(_, m)| m.is_assistant()) {
            let placed = places.as_ref().and_then(|(s, _)| slot_of[k].map(|p| (*s, p)));
            let (span, fit) = match placed {
                Some((s, (_, start, end, fit))) => {
                    let (back, forward) = s.reach.get(k).copied().flatten().unwrap_or((0, 0));
                    ((start - back, end + forward), fit)
                }
                None if m.content.is_empty() && m.tool_calls.is_none() => continue,
                None if over_search(&mut searched, k, messages.len()) => {
                    return Err(DropReason::NoAssistantSpan);
                }
                None => match self.by_prefix(messages, tools, k, &out.text) {
                    Some(found) => found,
                    None if places.is_some() && self.lost_text != LostText::Drop => {
                        out.rewritten += 1;
                        continue; // the template shows nothing of this turn
                    }
                    None if places.is_some() => return Err(DropReason::AssistantTextLost),
                    None => return Err(DropReason::NoAssistantSpan),
                },
            };
            let mut loss = true;
            match fit {
                Fit::Verbatim => {}
                Fit::Respaced => out.respaced += 1,
                Fit::Lost => {
                    out.rewritten += 1;
                    match self.lost_text {
                        LostText::Drop => return Err(DropReason::AssistantTextLost),
                        LostText::Mask => loss = false,
                        LostText::Keep => {}
                    }
                }
            }
            if self.uses_generation {
                // The template's own marks are the spans; ours only say what became of the text.
                let from = out.spans.partition_point(|g| g.end <= span.0);
                for g in out.spans[from..].iter_mut().take_while(|g| g.start < span.1) {
                    g.loss &= loss;
                }
            } else {
                out.spans.push(Span { start: span.0, end: span.1, loss });
            }
        }
        out.spans.sort_by_key(|s| s.start);
        if out.spans.windows(2).any(|w| w[0].end > w[1].start)
            || out.spans.iter().any(|s| s.end > out.text.len())
        {
            return Err(DropReason::NoAssistantSpan);
        }
        Ok(out)
    }

    /// The skeleton for this order of roles; none if the template refuses it.
    fn skeleton(&mut self, messages: &[Message], tools: Option<&Value>) -> Option<Arc<Skeleton>> {
        let plain = tools.is_none()
            && messages
                .iter()
                .all(|m| m.tool_calls.is_none() && m.name.is_none() && m.tool_call_id.is_none());
        if !plain {
            return self.make_skeleton(messages, tools).map(Arc::new);
        }
        self.key.clear();
        for m in messages {
            self.key.push_str(&m.role);
            self.key.push(if m.content.is_empty() { '0' } else { '1' });
        }
        if let Some(s) = self.cache.get(&self.key) {
            return s.clone();
        }
        let made = self.make_skeleton(messages, tools).map(Arc::new);
        if messages.len() <= CACHE.1 {
            self.cached += messages.len();
            if self.cached > CACHE.0 {
                self.cache.clear();
                self.cached = messages.len();
            }
            self.cache.insert(self.key.clone(), made.clone());
        }
        made
    }

    fn make_skeleton(&self, messages: &[Message], tools: Option<&Value>) -> Option<Skeleton> {
        if messages.len() > 0xFFFF {
            return None;
        }
        let mut marked = messages.to_vec();
        for (k, m) in marked.iter_mut().enumerate().filter(|(_, m)| !m.content.is_empty()) {
            m.content = slot_text(k).into();
        }
        let text = self.template.render_with(&marked, tools, false, self.uses_generation).ok()?;
        let mut s = parse_skeleton(&text)?;
        let mut reach = vec![None; messages.len()];
        // By the literal before a content: how much of it the generation prompt does not give, seen
        // so often without exception.
        let mut known: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut searched = 0;
        for (i, piece) in s.pieces.iter().enumerate() {
            let &Piece::Slot(k) = piece else { continue };
            if !messages[k].is_assistant() {
                continue;
            }
            let literal = |i: Option<usize>| match i.and_then(|i| s.pieces.get(i)) {
                Some(Piece::Literal(l)) => l.as_str(),
                _ => "",
            };
            let (before, after) = (literal(i.checked_sub(1)), literal(Some(i + 1)));
            let forward = self.end_of_turn(after, messages[k].tool_calls.is_some());
            let mut back = 0;
            let seen = known.entry(before).or_default();
            if seen.1 >= PROMPTS {
                back = seen.0;
            } else if before.ends_with(is_space) && !before.ends_with('\n') {
                if over_search(&mut searched, k, messages.len()) {
                    return None;
                }
                // White space the generation prompt does not give is the model's to write.
                let upto = text.find(&slot_text(k))?;
                let prompt = self
                    .template
                    .render_with(&marked[..k], tools, true, self.uses_generation)
                    .unwrap_or_default();
                if let Some(rest) = text[..upto].strip_prefix(prompt.as_str())
                    && !prompt.is_empty()
                    && rest.chars().all(is_space)
                {
                    back = rest.len().min(before.len());
                }
                *seen = if seen.1 == 0 || seen.0 == back { (back, seen.1 + 1) } else { (back, 0) };
            }
            reach[k] = Some((back, forward));
        }
        s.reach = reach;
        for (i, piece) in s.pieces.iter().enumerate() {
            if let Piece::Literal(l) = piece {
                let mut at = 0;
                for (part, token) in self.control.split(l) {
                    at += part.len();
                    if let Some((id, len)) = token {
                        s.control.push((i, at, len, id));
                        at += len;
                    }
                }
            }
        }
        // Every content has its slot, in order, and the shape behaves as the shapes that were tried
        // out.
        let order =
            s.pieces.iter().filter_map(|p| if let Piece::Slot(k) = p { Some(*k) } else { None });
        let whole = order.eq((0..messages.len()).filter(|&k| !messages[k].content.is_empty()));
        let answers = messages.iter().all(|m| !m.is_assistant() || !m.content.is_empty());
        s.linear = self.linear.is_some() && whole && answers && tools.is_none();
        Some(s)
    }

    /// Whether a skeleton filled in with a few texts equals the render.
    fn tried(&self, s: &Skeleton, messages: &[Message]) -> bool {
        let long =
            |k: usize| "word ".repeat(if k < LONG { 200 * (k % 3) + 1 } else { 1 + k % 3 }) + "end";
        let texts: [&dyn Fn(usize) -> String; 2] =
            [&|k| format!("text {k},\n\nnumber {}", k * k), &long];
        texts.iter().all(|text| {
            let mut trial = messages.to_vec();
            for (k, m) in trial.iter_mut().enumerate().filter(|(_, m)| !m.content.is_empty()) {
                m.content = text(k).into();
            }
            let mut out = Rendered::default();
            fill_in(s, &trial, false, &mut out);
            self.template.render(&trial, false).is_ok_and(|t| t == out.text)
        })
    }

    /// Bytes of the literal after a turn's content that belong to the turn: up to its end-of-turn
    /// token.
    fn end_of_turn(&self, after: &str, calls: bool) -> usize {
        match self.control.first(after) {
            // Between content and end of turn stands white space at most, or the calls.
            Some((at, len, _)) if calls || after[..at].chars().all(is_space) => at + len,
            _ => 0,
        }
    }

    fn generation_spans(&self, s: &Skeleton, starts: &[usize], text: &str) -> Vec<Span> {
        let mut out = Vec::new();
        let mut open = None;
        for &(piece, offset, start) in &s.generation {
            let at = starts.get(piece).map_or(text.len(), |a| a + offset);
            let at = if start {
                at
            } else {
                at.min(starts.get(piece + 1).copied().unwrap_or(text.len()))
            };
            match (start, open.take()) {
                (true, _) => open = Some(at),
                (false, Some(from))
                    if from < at && text.is_char_boundary(from) && text.is_char_boundary(at) =>
                {
                    // A block that ends just before the end-of-turn token takes it in.
                    let closed = self
                        .control
                        .tokens()
                        .iter()
                        .any(|(t, _)| text[from..at].trim_end().ends_with(t.as_str()));
                    let more = if closed { 0 } else { self.end_of_turn(&text[at..], false) };
                    out.push(Span { start: from, end: at + more, loss: true });
                }
                _ => {}
            }
        }
        out
    }

    /// Where turn `k` stands, found by rendering what precedes it.
    fn by_prefix(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        k: usize,
        text: &str,
    ) -> Option<((usize, usize), Fit)> {
        let prompt = self.template.render_with(&messages[..k], tools, true, false).ok()?;
        let mut rest = text.strip_prefix(prompt.as_str()).filter(|_| !prompt.is_empty())?;
        let content = &*messages[k].content;
        if !content.trim_start().starts_with("<think>") {
            rest = &rest[empty_thought(rest)..];
        }
        let start = text.len() - rest.len();
        let (end, fit) = if rest.starts_with(content) {
            (content.len(), Fit::Verbatim)
        } else {
            match loose(rest, content) {
                Some(n) => (n, Fit::Respaced),
                None => (0, Fit::Lost),
            }
        };
        let tail = &rest[end..];
        let calls = messages[k].tool_calls.is_some();
        let end = match self.control.first(tail) {
            Some((at, len, _)) if calls || fit == Fit::Lost || tail[..at].chars().all(is_space) => {
                end + at + len
            }
            _ if fit == Fit::Lost || calls => return None,
            _ => end,
        };
        Some(((start, start + end), fit))
    }

    /// The ids of the tokens that end an assistant's turn.
    pub fn end_of_turn_ids(&mut self) -> Vec<i32> {
        let talk = [
            Message::new("user", "a"),
            Message::new("assistant", "b"),
            Message::new("user", "c"),
            Message::new("assistant", "d"),
        ];
        let mut ids = Vec::new();
        for n in [2, 4] {
            let Some(s) = self.skeleton(&talk[..n], None) else {
                continue;
            };
            for (i, p) in s.pieces.iter().enumerate() {
                if let (Piece::Slot(k), Some(Piece::Literal(after))) = (p, s.pieces.get(i + 1))
                    && talk[*k].is_assistant()
                    && self.end_of_turn(after, false) > 0
                    && let Some((_, _, id)) = self.control.first(after)
                    && !ids.contains(&id)
                {
                    ids.push(id);
                }
            }
        }
        ids
    }
}

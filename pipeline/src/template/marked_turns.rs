//! Turns with calls or thoughts, located by marks inside these.
//!
//! In: messages whose contents are placeholders, and their render. Out: byte ranges of turns, also
//! where the render of the messages before a turn is no prefix of the text because the template
//! writes more behind the last message. The messages are rendered once more with a mark in the name
//! and in every text among the arguments of each call, and in the thoughts; without the marks this
//! must be the same text. A turn is what the template writes for its message as the last one, if
//! the same stands between the text of its neighbours. Turns that the template writes in several
//! places, between which there is text of other messages, are located piece by piece in
//! `interrupted_turns.rs`.

use crate::parse::conversation::Message;
use crate::parse::json_value::held_integer;
use crate::template::closing::Closing;
use crate::template::control::ControlTokens;
use crate::template::placeholder::{
    CONTENT_END, CONTENT_START, MARK_END, MARK_START, parse_placeholder, push_placeholder,
};
use crate::template::python_text::is_space;
use crate::template::turn_edges::{TurnEdges, closed, common_prefix, ending};
use serde_json::Value;
use std::collections::HashSet;

/// Which texts get marks: names and arguments of calls, and results without text.
#[derive(Clone, Copy)]
struct Marked {
    names: bool,
    arguments: bool,
    results: bool,
}

/// A template may look up names, read arguments or write nothing for an empty result, and then
/// write other text where they have marks.
const TRIALS: [Marked; 6] = [
    Marked { names: true, arguments: true, results: true },
    Marked { names: false, arguments: true, results: true },
    Marked { names: true, arguments: false, results: true },
    Marked { names: true, arguments: true, results: false },
    Marked { names: false, arguments: true, results: false },
    Marked { names: true, arguments: false, results: false },
];

/// A part of a message. Calls and results of calls are numbered as in their lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Content,
    Thoughts,
    Call(usize),
    /// A result that the message itself holds (`tool_responses`).
    Response(usize),
}

/// Puts marks into messages.
struct Marker {
    marked: Marked,
    /// The message and the part of each mark.
    owners: Vec<(usize, Part)>,
    message: usize,
}

impl Marker {
    /// Puts a mark behind the first character, which a template that trims texts leaves alone.
    fn mark(&mut self, text: &mut String, part: Part) {
        let Some((at, c)) = text.char_indices().find(|(_, c)| !is_space(*c)) else { return };
        text.insert_str(at + c.len_utf8(), &self.next(part));
    }

    fn next(&mut self, part: Part) -> String {
        let mut mark = String::new();
        push_placeholder(MARK_START, self.owners.len(), MARK_END, &mut mark);
        self.owners.push((self.message, part));
        mark
    }

    fn mark_values(&mut self, v: &mut Value, part: Part) {
        match v {
            Value::String(s) if held_integer(s).is_none() => self.mark(s, part),
            Value::Array(a) => a.iter_mut().for_each(|v| self.mark_values(v, part)),
            Value::Object(o) => o.values_mut().for_each(|v| self.mark_values(v, part)),
            _ => {}
        }
    }

    fn mark_call(&mut self, call: &mut Value, part: Part) {
        let nested = call.get("function").is_some_and(Value::is_object);
        let inner = if nested { call.get_mut("function") } else { Some(call) };
        let Some(Value::Object(inner)) = inner else { return };
        for (key, value) in inner {
            match (key.as_str(), value) {
                ("name", Value::String(name)) if self.marked.names => self.mark(name, part),
                ("arguments" | "parameters", v) if self.marked.arguments => {
                    self.mark_values(v, part)
                }
                _ => {}
            }
        }
    }

    fn mark_message(&mut self, k: usize, m: &mut Message) {
        self.message = k;
        if self.marked.results && m.content.is_empty() && is_result(m) {
            m.content = self.next(Part::Content).into();
        }
        m.thoughts_mut().for_each(|t| self.mark(t, Part::Thoughts));
        if let Some(Value::Array(calls)) = &mut m.tool_calls {
            calls.iter_mut().zip(0..).for_each(|(v, n)| self.mark_call(v, Part::Call(n)));
        }
        if let Some(Value::Array(list)) = &mut m.tool_responses {
            list.iter_mut().zip(0..).for_each(|(v, n)| self.mark_values(v, Part::Response(n)));
        }
    }
}

/// Whether a message is the result of a call.
pub(super) fn is_result(m: &Message) -> bool {
    matches!(&*m.role, "tool" | "function" | "ipython")
}

/// A mark or the placeholder of a content in a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own<'t> {
    pub message: usize,
    pub part: Part,
    pub start: usize,
    pub end: usize,
    pub text: &'t str,
}

/// A turn or a piece of one at the end of a render.
pub(super) struct Alone<'r> {
    /// The render, and the index of the first mark of the piece among its marks.
    pub text: &'r str,
    pub first: usize,
    /// The messages before the piece, with the generation prompt and without it.
    pub prompt: &'r str,
    pub before: Option<&'r str>,
    /// Whether the template wrote the beginning of the same message before it.
    pub resumed: bool,
}

/// Locates turns by their marks.
pub(crate) struct MarkedTurns<'a> {
    pub(super) edges: &'a TurnEdges<'a>,
    pub(super) messages: Vec<Message<'a>>,
    pub(super) owners: Vec<(usize, Part)>,
    /// The render of `messages`.
    pub(super) text: String,
    /// What the template writes behind the last message only.
    behind_the_last: String,
}

fn without_marks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK_START) {
        out.push_str(&rest[..at]);
        let after = &rest[at + MARK_START.len_utf8()..];
        rest = parse_placeholder(after, MARK_END).map_or(after, |(_, tail)| tail);
    }
    out + rest
}

/// How much of `gap`, the text between two messages, is before the answer that a generation prompt
/// asks for which adds `added` to a text: up to the end of the prompt, or of as much of it as the
/// template writes, up to a white space or the end of a token. None if there is no such text, or if
/// it occurs twice.
fn behind_prompt(edges: &TurnEdges, gap: &str, added: &str) -> Option<usize> {
    let added = added.trim_start_matches(is_space);
    let tokens = edges.control.tokens();
    let whole = |head: &&str| {
        head.len() >= added.trim_end_matches(is_space).len()
            || head.ends_with(is_space)
            || tokens.iter().any(|(t, _)| head.ends_with(t.as_str()))
    };
    let mut heads = (1..=added.len()).rev().filter_map(|n| added.get(..n)).filter(whole);
    let head = heads.find(|head| gap.contains(head))?;
    let at = gap.find(head)?;
    (gap.rfind(head) == Some(at)).then_some(at + head.len())
}

/// How much of `text` a template also writes where the turn ends there, which `ended` is: the same
/// up to a control token. None if it writes more than the end of the turn.
fn up_to_the_end(control: &ControlTokens, text: &str, ended: &str) -> Option<usize> {
    let mut n = common_prefix(text, ended);
    for text in [text, ended, text] {
        let mut at = 0;
        for (part, token) in control.split(text) {
            at += part.len();
            let Some((_, len)) = token.filter(|t| at < n && n < at + t.1) else {
                at += token.map_or(0, |t| t.1);
                continue;
            };
            (n, at) = (at, at + len);
        }
    }
    let rest = &ended[n..];
    let closing = control.first(rest).map_or(rest.len(), |t| t.0);
    rest[..closing].chars().all(is_space).then_some(n)
}

impl<'a> MarkedTurns<'a> {
    /// The messages of `edges` with marks; None if the template writes other text then.
    pub(crate) fn new(edges: &'a TurnEdges<'a>) -> Option<Self> {
        let closing = Closing::probe(edges.template, edges.control, edges.inputs);
        let behind_the_last = closing.behind_the_last?;
        TRIALS.into_iter().find_map(|marked| {
            // Whether empty results have marks only matters where there are some.
            let empty = |m: &Message| m.content.is_empty() && is_result(m);
            if !marked.results && !edges.messages.iter().any(empty) {
                return None;
            }
            let mut messages = edges.messages.to_vec();
            let mut marker = Marker { marked, owners: Vec::new(), message: 0 };
            messages.iter_mut().enumerate().for_each(|(k, m)| marker.mark_message(k, m));
            if marker.owners.is_empty() || marker.owners.len() > 0xFFFF {
                return None;
            }
            let marked = TurnEdges { messages: &messages, ..*edges };
            let text = marked.render(messages.len(), false)?;
            (without_marks(&text) == edges.text).then(|| MarkedTurns {
                edges,
                messages,
                owners: marker.owners,
                text,
                behind_the_last: behind_the_last.clone(),
            })
        })
    }

    fn render(&self, messages: usize, generation_prompt: bool) -> Option<String> {
        let edges = TurnEdges { messages: &self.messages, ..*self.edges };
        edges.render(messages, generation_prompt)
    }

    /// The marks and placeholders of contents in a text, in order.
    pub(super) fn owned<'t>(&self, text: &'t str) -> Vec<Own<'t>> {
        let starts = text.match_indices([CONTENT_START, MARK_START]);
        let owned = starts.filter_map(|(start, c)| {
            let after = &text[start + c.len()..];
            let mark = c.starts_with(MARK_START);
            let (n, tail) = parse_placeholder(after, if mark { MARK_END } else { CONTENT_END })?;
            let (message, part) = if mark { *self.owners.get(n)? } else { (n, Part::Content) };
            let end = text.len() - tail.len();
            Some(Own { message, part, start, end, text: &text[start..end] })
        });
        owned.collect()
    }

    /// The byte range of turn `k` in the text without marks, if it is in one place.
    pub(crate) fn of(&self, k: usize) -> Option<(usize, usize)> {
        let alone = self.render(k + 1, false)?;
        let owned = self.owned(&alone);
        let first = owned.iter().position(|o| o.message == k)?;
        let own = &owned[first..];
        let written: HashSet<&str> = own.iter().map(|o| o.text).collect();
        let marks = self.owners.iter().filter(|o| o.0 == k).count();
        let given = marks + usize::from(!self.messages[k].content.is_empty());
        let foreign = |o: &Own| o.message != k || matches!(o.part, Part::Response(_));
        if own.iter().any(foreign) || written.len() != given {
            return None;
        }
        let (prompt, before) = (self.render(k, true)?, self.render(k, false));
        let (prompt, before) = (prompt.as_str(), before.as_deref());
        self.place(k, &Alone { text: &alone, first, prompt, before, resumed: false })
    }

    /// Where the piece of turn `k` that ends the render `alone` is in the text without marks: the
    /// same between the text of its neighbours.
    pub(super) fn place(&self, k: usize, alone: &Alone) -> Option<(usize, usize)> {
        let owned = self.owned(alone.text);
        let (others, own) = owned.split_at_checked(alone.first)?;
        let (from, to) = others.last().map_or((0, 0), |o| (o.start, o.end));
        let (first, last) = (own.first()?.start, own.last()?.end);
        // The same from the text of the message before to the last mark.
        let known = &alone.text[from..last];
        let at = self.text.find(known).filter(|&at| self.text.rfind(known) == Some(at))?;
        if others.is_empty() && at > 0 {
            return None;
        }
        let (gap, prompt) = (&alone.text[to..first], alone.prompt);
        // From the same text on, if that is the last of others in it too.
        let asked = |prompt: &'_ str| match (self.owned(prompt).last(), others.last()) {
            (Some(a), Some(b)) if a.text == b.text => Some(a.end),
            (None, None) => Some(0),
            _ => None,
        };
        let asked_here = asked(prompt).map(|at| &prompt[at..]);
        // The prompt may end with other white space than the text.
        let by_space = || {
            let asked = asked_here.map(|a| (a, a.trim_end_matches(is_space)));
            let (asked, written) = asked.filter(|a| !a.1.is_empty() && gap.starts_with(a.1))?;
            Some(written.len().max(common_prefix(gap, asked)))
        };
        let by_prompt = || {
            let added = prompt.strip_prefix(alone.before?)?;
            behind_prompt(self.edges, gap, added)
        };
        let by_end = || {
            let goes_on = |o: &Own| self.messages.get(o.message).is_some_and(|m| m.is_assistant());
            let same_turn = alone.resumed || others.last().is_some_and(goes_on);
            let ended = alone.before.filter(|_| same_turn)?;
            up_to_the_end(self.edges.control, gap, &ended[asked(ended)?..])
        };
        let before_turn = match asked_here.filter(|a| gap.starts_with(a)) {
            Some(asked) => asked.len(),
            None => by_prompt().or_else(by_space).or_else(by_end)?,
        };
        let start = at + to - from + before_turn;

        let rest = &self.text[at + known.len()..];
        let mut own = &alone.text[last..];
        if !self.behind_the_last.is_empty() {
            own = own.trim_end_matches(is_space).strip_suffix(&*self.behind_the_last)?;
        }
        let next = rest.find([CONTENT_START, MARK_START]).unwrap_or(rest.len());
        let behind = match ending(self.edges.control, rest, own) {
            Some(n) => closed(self.edges.control, rest, n.min(next)),
            None => rest[..self.merged(k, rest, own)?].trim_end_matches(is_space).len(),
        };
        let end = at + known.len() + behind;

        let plain = |at: usize| without_marks(&self.text[..at]).len();
        let (start, end) = (self.edges.skip_empty_thoughts(plain(start), k), plain(end));
        (start <= end).then_some((start, end))
    }
    /// How much of `rest` is a piece of turn `k` behind which the template writes `own` at the end
    /// of a text, if the text of a later answer follows in the same turn.
    fn merged(&self, k: usize, rest: &str, own: &str) -> Option<usize> {
        let next = *self.owned(rest).first()?;
        let answers = next.message > k && self.messages.get(next.message)?.is_assistant();
        answers.then(|| up_to_the_end(self.edges.control, &rest[..next.start], own)).flatten()
    }
}

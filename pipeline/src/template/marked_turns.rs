//! Turns with calls or thoughts, located by marks inside these.
//!
//! In: messages whose contents are placeholders, and their render. Out: byte ranges of turns, also
//! where the render of the messages before a turn is no prefix of the text because the template
//! writes more behind the last message. The messages are rendered once more with a mark in the name
//! and in every text among the arguments of each call, and in the thoughts; without the marks this
//! must be the same text. A turn is what the template writes for its message as the last one, if
//! the same stands between the text of its neighbours. What the template writes in several places,
//! between which there is text of other messages, is not located.

use crate::parse::conversation::Message;
use crate::parse::json_value::held_integer;
use crate::template::closing::Closing;
use crate::template::placeholder::{
    CONTENT_END, CONTENT_START, MARK_END, MARK_START, parse_placeholder, push_placeholder,
};
use crate::template::python_text::is_space;
use crate::template::turn_edges::{TurnEdges, closed, ending};
use serde_json::Value;
use std::collections::HashSet;

/// Which parts of calls get marks.
#[derive(Clone, Copy)]
struct Parts {
    names: bool,
    arguments: bool,
}

/// A template may look up names or read arguments, and then write other text where they have marks.
const TRIALS: [Parts; 3] = [
    Parts { names: true, arguments: true },
    Parts { names: false, arguments: true },
    Parts { names: true, arguments: false },
];

/// Puts marks into messages.
struct Marker {
    parts: Parts,
    /// The message of each mark.
    owners: Vec<usize>,
    message: usize,
}

impl Marker {
    /// Puts a mark behind the first character, which a template that trims texts leaves alone.
    fn mark(&mut self, text: &mut String) {
        let Some((at, c)) = text.char_indices().find(|(_, c)| !is_space(*c)) else { return };
        let mut mark = String::new();
        push_placeholder(MARK_START, self.owners.len(), MARK_END, &mut mark);
        text.insert_str(at + c.len_utf8(), &mark);
        self.owners.push(self.message);
    }

    fn mark_values(&mut self, v: &mut Value) {
        match v {
            Value::String(s) if held_integer(s).is_none() => self.mark(s),
            Value::Array(a) => a.iter_mut().for_each(|v| self.mark_values(v)),
            Value::Object(o) => o.values_mut().for_each(|v| self.mark_values(v)),
            _ => {}
        }
    }

    fn mark_call(&mut self, call: &mut Value) {
        let nested = call.get("function").is_some_and(Value::is_object);
        let inner = if nested { call.get_mut("function") } else { Some(call) };
        let Some(Value::Object(inner)) = inner else { return };
        for (key, value) in inner {
            match (key.as_str(), value) {
                ("name", Value::String(name)) if self.parts.names => self.mark(name),
                ("arguments" | "parameters", v) if self.parts.arguments => self.mark_values(v),
                _ => {}
            }
        }
    }

    fn mark_message(&mut self, k: usize, m: &mut Message) {
        self.message = k;
        m.thoughts_mut().for_each(|t| self.mark(t));
        if let Some(Value::Array(calls)) = &mut m.tool_calls {
            calls.iter_mut().for_each(|call| self.mark_call(call));
        }
    }
}

/// A mark or the placeholder of a content in a text.
struct Own<'t> {
    message: usize,
    start: usize,
    end: usize,
    text: &'t str,
}

/// Locates turns by their marks.
pub(crate) struct MarkedTurns<'a> {
    edges: &'a TurnEdges<'a>,
    messages: Vec<Message<'a>>,
    owners: Vec<usize>,
    /// The render of `messages`.
    text: String,
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

impl<'a> MarkedTurns<'a> {
    /// The messages of `edges` with marks; None if the template writes other text then.
    pub(crate) fn new(edges: &'a TurnEdges<'a>) -> Option<Self> {
        let closing = Closing::probe(edges.template, edges.control, edges.inputs);
        let behind_the_last = closing.behind_the_last?;
        TRIALS.into_iter().find_map(|parts| {
            let mut messages = edges.messages.to_vec();
            let mut marker = Marker { parts, owners: Vec::new(), message: 0 };
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
    fn owned<'t>(&self, text: &'t str) -> Vec<Own<'t>> {
        let starts = text.match_indices([CONTENT_START, MARK_START]);
        let owned = starts.filter_map(|(start, c)| {
            let after = &text[start + c.len()..];
            let mark = c.starts_with(MARK_START);
            let (n, tail) = parse_placeholder(after, if mark { MARK_END } else { CONTENT_END })?;
            let message = if mark { *self.owners.get(n)? } else { n };
            let end = text.len() - tail.len();
            Some(Own { message, start, end, text: &text[start..end] })
        });
        owned.collect()
    }

    /// The byte range of turn `k` in the text without marks.
    pub(crate) fn of(&self, k: usize) -> Option<(usize, usize)> {
        let alone = self.render(k + 1, false)?;
        let owned = self.owned(&alone);
        let begin = owned.iter().position(|o| o.message == k)?;
        let (others, own) = owned.split_at(begin);
        let written: HashSet<&str> = own.iter().map(|o| o.text).collect();
        let marks = self.owners.iter().filter(|o| **o == k).count();
        let given = marks + usize::from(!self.messages[k].content.is_empty());
        if own.iter().any(|o| o.message != k) || written.len() != given {
            return None;
        }
        let (from, to) = others.last().map_or((0, 0), |o| (o.start, o.end));
        let (first, last) = (own.first()?.start, own.last()?.end);
        // The same from the text of the message before to the last mark.
        let known = &alone[from..last];
        let at = self.text.find(known).filter(|&at| self.text.rfind(known) == Some(at))?;
        if others.is_empty() && at > 0 {
            return None;
        }
        let (gap, prompt) = (&alone[to..first], self.render(k, true)?);
        // The prompt from the same text on, if that is the last of others in it too.
        let asked = match (self.owned(&prompt).last(), others.last()) {
            (Some(a), Some(b)) if a.text == b.text => Some(&prompt[a.end..]),
            (None, None) => Some(prompt.as_str()),
            _ => None,
        };
        let before_turn = match asked.filter(|asked| gap.starts_with(asked)) {
            Some(asked) => asked.len(),
            None => {
                let added = prompt.strip_prefix(self.render(k, false)?.as_str())?;
                behind_prompt(self.edges, gap, added)?
            }
        };
        let start = at + to - from + before_turn;

        let rest = &self.text[at + known.len()..];
        let mut own = &alone[last..];
        if !self.behind_the_last.is_empty() {
            own = own.trim_end_matches(is_space).strip_suffix(&*self.behind_the_last)?;
        }
        let n = ending(self.edges.control, rest, own)?;
        let next = rest.find([CONTENT_START, MARK_START]).unwrap_or(rest.len());
        let end = at + known.len() + closed(self.edges.control, rest, n.min(next));

        let plain = |at: usize| without_marks(&self.text[..at]).len();
        let (start, end) = (self.edges.skip_empty_thoughts(plain(start), k), plain(end));
        (start <= end).then_some((start, end))
    }
}

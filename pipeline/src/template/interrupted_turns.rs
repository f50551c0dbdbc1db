//! Turns of which the template writes the parts in several places.
//!
//! In: messages with marks, and their render. Out: for one message the byte ranges of its pieces:
//! calls, thoughts and text between which the results of the calls stand, as Gemma 4's template
//! writes them. A piece is what the model writes from one result to the next. It is located like a
//! whole turn, as the end of a conversation that has of this message only what was written before,
//! and the results that stand before it. What the message has twice is context the second time.

use crate::parse::conversation::Message;
use crate::template::marked_turns::{Alone, MarkedTurns, Own, Part, is_result};
use crate::template::python_text::is_space;
use crate::template::turn_edges::TurnEdges;
use serde_json::Value;
use std::collections::HashSet;

/// Parts of one message without text of others between them.
#[derive(Default)]
struct Run<'t> {
    /// The results between the run before and this one: their messages, or their places in the
    /// message itself.
    results: Vec<(usize, Part)>,
    own: Vec<Own<'t>>,
}

/// The entries of a list that `kept` names.
fn reduced(list: &Option<Value>, kept: impl Fn(usize) -> bool) -> Option<Value> {
    let entries = list.as_ref()?.as_array()?.iter().enumerate();
    let left: Vec<Value> = entries.filter(|(n, _)| kept(*n)).map(|(_, v)| v.clone()).collect();
    (!left.is_empty()).then_some(Value::Array(left))
}

impl<'a> MarkedTurns<'a> {
    /// The byte ranges of the pieces of turn `k` in the text without marks, in order.
    pub(crate) fn pieces(&self, k: usize) -> Option<Vec<(usize, usize)>> {
        let owned = self.owned(&self.text);
        let runs = self.runs(k, &owned)?;
        let (mut parts, mut results) = (HashSet::new(), Vec::new());
        let mut out: Vec<(usize, usize)> = Vec::with_capacity(runs.len());
        for run in &runs {
            results.extend(&run.results);
            let prompt = self.reduced_to(k, &parts, &results);
            let before = self.render_reduced(&prompt, false);
            let prompt = self.render_reduced(&prompt, true)?;
            parts.extend(run.own.iter().map(|o| o.part));
            let alone = self.render_reduced(&self.reduced_to(k, &parts, &results), false)?;
            let owned = self.owned(&alone);
            let first =
                owned.iter().position(|o| o.text == run.own.first().map_or("", |o| o.text))?;
            // Behind what is written alone, only repetitions may follow here.
            let (here, alone_here) = (&run.own, &owned[first..]);
            let repeated = here.get(alone_here.len()..)?;
            let written = &here[..alone_here.len()];
            let known = |o: &Own| written.iter().any(|w| w.text == o.text);
            if !written.iter().map(|o| o.text).eq(alone_here.iter().map(|o| o.text))
                || !repeated.iter().all(known)
            {
                return None;
            }
            let place = Alone {
                text: &alone,
                first,
                prompt: &prompt,
                before: before.as_deref(),
                resumed: !out.is_empty(),
            };
            let (mut start, end) = self.place(k, &place)?;
            if !out.is_empty() {
                start = self.without_header(start, end, run)?;
            }
            if out.last().is_some_and(|before| before.1 > start) {
                return None;
            }
            out.push((start, end));
        }
        Some(out)
    }

    /// The parts of message `k` in the order of the text, cut where text of others is between them.
    /// None if a part is not written, or in two places; or if what is between is no result.
    fn runs<'t>(&self, k: usize, owned: &[Own<'t>]) -> Option<Vec<Run<'t>>> {
        let (mut runs, mut seen) = (Vec::<Run>::new(), HashSet::new());
        let mut between = Vec::new();
        for o in owned {
            if o.message != k || matches!(o.part, Part::Response(_)) {
                between.push((o.message, o.part));
                continue;
            }
            let first = seen.insert(o.text);
            match runs.last_mut() {
                Some(run) if between.is_empty() => run.own.push(*o),
                // A repetition beside a result is context.
                Some(_) if !first => {}
                _ => {
                    let results = std::mem::take(&mut between);
                    let results = if runs.is_empty() { Vec::new() } else { results };
                    runs.push(Run { results, own: vec![*o] });
                }
            }
        }
        let follow = |j: usize| {
            let between = self.messages.get(k + 1..=j);
            between.is_some_and(|m| m.iter().all(is_result))
        };
        let is_result = |(j, part): &(usize, Part)| match part {
            Part::Response(_) => *j == k,
            Part::Content => *j > k && follow(*j),
            _ => false,
        };
        let sets = runs.iter().map(|r| r.own.iter().map(|o| o.part).collect::<HashSet<_>>());
        let (mut all, mut parts) = (HashSet::new(), 0);
        sets.for_each(|set| {
            parts += set.len();
            all.extend(set);
        });
        let whole = parts == all.len() && all == self.parts_of(k)? && seen.len() == self.given(k);
        (whole && runs.iter().flat_map(|r| &r.results).all(is_result)).then_some(runs)
    }

    /// Number of marks and placeholders of a message, without those in results.
    fn given(&self, k: usize) -> usize {
        let own = |o: &&(usize, Part)| o.0 == k && !matches!(o.1, Part::Response(_));
        let content = usize::from(!self.messages[k].content.is_empty());
        self.owners.iter().filter(own).count() + content
    }

    /// The parts of a message, without results. None if one of them, or a result, has no mark.
    fn parts_of(&self, k: usize) -> Option<HashSet<Part>> {
        let m = &self.messages[k];
        let length =
            |list: &Option<Value>| list.as_ref().map_or(Some(0), |v| Some(v.as_array()?.len()));
        let marked = |part: Part| self.owners.contains(&(k, part));
        let mut out: HashSet<Part> = (0..length(&m.tool_calls)?).map(Part::Call).collect();
        out.extend(m.thoughts().map(|_| Part::Thoughts));
        let results = (0..length(&m.tool_responses)?).map(Part::Response);
        if !out.iter().copied().chain(results).all(marked) {
            return None;
        }
        out.extend((!m.content.is_empty()).then_some(Part::Content));
        Some(out)
    }

    /// The messages before `k`, what `parts` and `results` name of message `k`, and the messages
    /// that `results` names.
    fn reduced_to(
        &self,
        k: usize,
        parts: &HashSet<Part>,
        results: &[(usize, Part)],
    ) -> Vec<Message<'a>> {
        let mut out = self.messages[..k].to_vec();
        if !parts.is_empty() {
            let mut m = self.messages[k].clone();
            if !parts.contains(&Part::Content) {
                m.content = "".into();
            }
            if !parts.contains(&Part::Thoughts) {
                (m.reasoning_content, m.reasoning, m.thinking) = (None, None, None);
            }
            m.tool_calls = reduced(&m.tool_calls, |n| parts.contains(&Part::Call(n)));
            let response = |n| results.contains(&(k, Part::Response(n)));
            m.tool_responses = reduced(&m.tool_responses, response);
            out.push(m);
        }
        let follows = |j: &usize| results.contains(&(*j, Part::Content));
        out.extend((k + 1..self.messages.len()).filter(follows).map(|j| self.messages[j].clone()));
        out
    }

    fn render_reduced(&self, messages: &[Message], generation_prompt: bool) -> Option<String> {
        TurnEdges { messages, ..*self.edges }.render(messages.len(), generation_prompt)
    }

    /// Where a piece begins without the header of an answer. Where the template has no generation
    /// prompt, whatever it writes before a content is that header, and it cannot be told in pieces
    /// that begin otherwise.
    fn without_header(&self, start: usize, end: usize, run: &Run) -> Option<usize> {
        let sample = [Message::new("user", "a")];
        let (before, prompt) =
            (self.render_reduced(&sample, false)?, self.render_reduced(&sample, true)?);
        let header = prompt.strip_prefix(before.as_str())?.trim_matches(is_space);
        let first = run.own.first()?;
        let turn = self.edges.text.get(start..end)?;
        let head = match first.part {
            Part::Content => &turn[..turn.find(first.text)?],
            _ => turn,
        };
        match head.find(header) {
            _ if head.chars().all(is_space) => Some(start),
            _ if header.is_empty() => (first.part == Part::Content).then_some(start + head.len()),
            None => Some(start),
            Some(at) => Some(start + at + header.len()),
        }
    }
}

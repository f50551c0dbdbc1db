//! Builds skeletons and keeps them by the order of roles.
//!
//! In: a template and the roles of a conversation. Out: its [`Skeleton`], with the control tokens
//! in literals and the margins of assistant turns filled in. Skeletons depend only on the order of
//! roles (and on which contents are empty), so they are cached; conversations with tools, tool
//! calls or names get one of their own each time.

use crate::parse::conversation::Message;
use crate::template::chat::{ChatTemplate, Inputs};
use crate::template::closing::Closing;
use crate::template::control::ControlTokens;
use crate::template::marked_turns::MarkedTurns;
use crate::template::presence::Searchable;
use crate::template::python_text::is_space;
use crate::template::rendered::Rendered;
use crate::template::skeleton::{
    ControlPosition, Extent, Piece, PiecePosition, Skeleton, TurnMargins, content_placeholder,
};
use crate::template::turn_edges::TurnEdges;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Limits of the cache, counted in messages: over all its skeletons, and for a single one.
const CACHE_MESSAGES: usize = 32_768;
const CACHED_SKELETON_MESSAGES: usize = 4_096;
/// A conversation with more messages is long. Work on its order of roles is only done if it is
/// likely to pay off.
const LONG_CONVERSATION: usize = 32;
/// Budget of messages that may be rendered to locate turns by their prefixes: a constant, and a
/// multiple of the number of messages in the conversation.
const PREFIX_BUDGET: (usize, usize) = (80_000, 8);
/// After this many assistant turns behind the same literal with the same result, the result is
/// assumed for all further turns behind that literal.
const PROMPT_SAMPLES: usize = 4;

/// Limits the cost of locating turns by rendering the messages before them, which would otherwise
/// grow with the square of a conversation's length.
pub(crate) struct PrefixBudget {
    rendered: usize,
    limit: usize,
}

impl PrefixBudget {
    /// The budget for a conversation of `messages` messages.
    pub(crate) fn new(messages: usize) -> Self {
        PrefixBudget { rendered: 0, limit: PREFIX_BUDGET.0 + PREFIX_BUDGET.1 * messages }
    }

    /// Takes a render of `messages` messages from the budget; false if the budget is exceeded.
    pub(crate) fn take(&mut self, messages: usize) -> bool {
        self.rendered += messages;
        self.rendered <= self.limit
    }
}

/// Whether a text contains the calls of a message.
fn calls_in(m: &Message, text: &str) -> bool {
    m.tool_calls.as_ref().is_none_or(|calls| Searchable::new(text).has_calls(calls))
}

/// The skeletons of one template; one cache per worker.
pub(crate) struct SkeletonCache<'a> {
    template: &'a ChatTemplate,
    control: &'a ControlTokens,
    uses_generation: bool,
    /// Whether skeletons may be filled instead of rendered.
    allow_filling: bool,
    cache: HashMap<String, Option<Arc<Skeleton>>>,
    cached_messages: usize,
    key: String,
    /// The ids of the tokens that end a turn of plain text.
    end_ids: OnceCell<Vec<i32>>,
    announced: OnceCell<bool>,
    closing: OnceCell<Closing>,
}

impl<'a> SkeletonCache<'a> {
    /// An empty cache. With `allow_filling`, [`fillable`](Self::fillable) gives the skeletons that
    /// can replace rendering.
    pub(crate) fn new(
        template: &'a ChatTemplate,
        control: &'a ControlTokens,
        allow_filling: bool,
    ) -> Self {
        SkeletonCache {
            template,
            control,
            uses_generation: template.has_generation(),
            allow_filling,
            cache: HashMap::new(),
            cached_messages: 0,
            key: String::new(),
            end_ids: OnceCell::new(),
            announced: OnceCell::new(),
            closing: OnceCell::new(),
        }
    }

    /// The skeleton of a conversation without tools, if filling it gives the same text as
    /// rendering.
    pub(crate) fn fillable(&mut self, messages: &[Message]) -> Option<Arc<Skeleton>> {
        if messages.iter().any(Message::has_extras) {
            return None;
        }
        let s = self.get(messages, Inputs::default())?;
        let long = messages.len() > LONG_CONVERSATION;
        s.can_replace_rendering(long, || self.verify(&s, messages)).then_some(s)
    }

    /// The skeleton for this order of roles; None if the template refuses it or repeats a content.
    pub(crate) fn get(&mut self, messages: &[Message], inputs: Inputs) -> Option<Arc<Skeleton>> {
        let cacheable = inputs.is_none() && messages.iter().all(Message::is_plain);
        if !cacheable {
            return self.build(messages, inputs).map(Arc::new);
        }
        self.key.clear();
        for m in messages {
            self.key.push_str(&m.role);
            self.key.push(if m.content.is_empty() { '0' } else { '1' });
        }
        if let Some(s) = self.cache.get(&self.key) {
            return s.clone();
        }
        let built = self.build(messages, inputs).map(Arc::new);
        if messages.len() <= CACHED_SKELETON_MESSAGES {
            self.cached_messages += messages.len();
            if self.cached_messages > CACHE_MESSAGES {
                self.cache.clear();
                self.cached_messages = messages.len();
            }
            self.cache.insert(self.key.clone(), built.clone());
        }
        built
    }

    /// Builds a skeleton by rendering the conversation with placeholders for its contents.
    fn build(&self, messages: &[Message], inputs: Inputs) -> Option<Skeleton> {
        if messages.len() > 0xFFFF {
            return None;
        }
        let mut trial = messages.to_vec();
        for (k, m) in trial.iter_mut().enumerate().filter(|(_, m)| !m.content.is_empty()) {
            m.content = content_placeholder(k).into();
        }
        let text = self.template.render_with(&trial, inputs, false, self.uses_generation).ok()?;
        let mut s = Skeleton::parse(&text)?;
        s.turn_margins = self.turn_margins(&s, &trial, inputs, &text)?;
        s.turn_extents = self.turn_extents(&trial, inputs, &text);
        for (i, piece) in s.pieces.iter().enumerate() {
            if let Piece::Literal(l) = piece {
                let mut at = 0;
                for (part, token) in self.control.split(l) {
                    at += part.len();
                    if let Some((id, len)) = token {
                        s.control.push((i, ControlPosition { start: at, len, id }));
                        at += len;
                    }
                }
            }
        }
        // Filling requires that every content has a slot, that slots are in the order of messages,
        // and that no assistant message is empty.
        let order =
            s.pieces.iter().filter_map(|p| if let Piece::Slot(k) = p { Some(*k) } else { None });
        let complete = order.eq((0..messages.len()).filter(|&k| !messages[k].content.is_empty()));
        let answered = messages.iter().all(|m| !m.is_assistant() || !m.content.is_empty());
        s.fillable = self.allow_filling && complete && answered && inputs.is_none();
        Some(s)
    }

    fn edges<'e>(
        &'e self,
        trial: &'e [Message],
        inputs: Inputs<'e>,
        text: &'e str,
    ) -> TurnEdges<'e> {
        let (template, control, marked) = (self.template, self.control, self.uses_generation);
        TurnEdges { template, control, messages: trial, inputs, marked, text }
    }

    /// How the template ends turns.
    pub(crate) fn closing(&self) -> &Closing {
        self.closing.get_or_init(|| Closing::probe(self.template, self.control, Inputs::default()))
    }

    /// Whether the template writes more than white space between the generation prompt and an
    /// answer, which the model has to write in decoding.
    fn answers_announced(&self) -> bool {
        *self.announced.get_or_init(|| {
            let samples =
                [Message::new("user", "a"), Message::new("assistant", content_placeholder(1))];
            let text = self.template.render(&samples, false).unwrap_or_default();
            let content = text.find(&*samples[1].content);
            let edges = self.edges(&samples, Inputs::default(), &text);
            content.is_some_and(|at| {
                let margin = edges.not_in_the_prompt(1, at, &self.closing().standing);
                text[at - margin..at].contains(|c| !is_space(c))
            })
        })
    }

    /// The turns with tool calls or thoughts ([`Skeleton::turn_extents`]) in `text`, the render of
    /// the messages `trial`, whose contents are placeholders. Turns that cannot be located are left
    /// out.
    fn turn_extents(
        &self,
        trial: &[Message],
        inputs: Inputs,
        text: &str,
    ) -> HashMap<usize, Extent<PiecePosition>> {
        let edges = self.edges(trial, inputs, text);
        let mut budget = PrefixBudget::new(trial.len());
        let marked = OnceCell::new();
        let (mut floor, mut out) = (0, HashMap::new());
        for (k, m) in trial.iter().enumerate() {
            let slot = (!m.content.is_empty()).then(|| content_placeholder(k));
            let content = slot.and_then(|s| Some((text.find(&s)?, s.len())));
            let whole = |pieces: &Vec<(usize, usize)>| {
                let has = |&(start, end): &(usize, usize)| {
                    content.is_none_or(|(at, len)| (start..=end).contains(&at) && at + len <= end)
                };
                let start = pieces[0].0;
                // The token behind the turn before may be the first of this one.
                let shared = || {
                    let token =
                        text.get(start..floor).and_then(|t| Some((t, self.control.first(t)?)));
                    token.is_some_and(|(t, (at, len, _))| at == 0 && len == t.len())
                };
                pieces.iter().any(has) && (start >= floor || shared())
            };
            let mut found = None;
            if m.is_assistant() && m.has_extras() && budget.take(k) {
                // Results inside the message interrupt its turn.
                if m.tool_responses.is_none() {
                    found = edges.of(k, floor).map(|turn| vec![turn]).filter(whole);
                }
                if found.is_none() && budget.take(4 * k) {
                    let turns = marked.get_or_init(|| MarkedTurns::new(&edges)).as_ref();
                    if m.tool_responses.is_none() {
                        found = turns.and_then(|t| Some(vec![t.of(k)?])).filter(whole);
                    }
                    found = found.or_else(|| turns.and_then(|t| t.pieces(k)).filter(whole));
                }
            }
            if let Some(mut pieces) = found {
                let written = |pieces: &[(usize, usize)]| -> String {
                    pieces.iter().map(|p| &text[p.0..p.1]).collect::<Vec<_>>().join("\n")
                };
                let thoughts_written =
                    m.thoughts().is_none_or(|t| Searchable::new(&written(&pieces)).has_text(t));
                if let &[(start, end)] = &*pieces {
                    let end = self.first_end_of_turn(m, text, start, end);
                    // Without thoughts the turn begins with its content, unless calls precede it.
                    let behind = content.map(|(at, _)| at).filter(|_| m.thoughts().is_none());
                    let first = behind.filter(|&at| calls_in(m, &text[at..end])).unwrap_or(start);
                    pieces = vec![(first, end)];
                }
                let placed = pieces.iter().map(|p| {
                    Some((Skeleton::position_in(text, p.0)?, Skeleton::position_in(text, p.1)?))
                });
                if let Some(placed) = placed.collect() {
                    let calls_written = calls_in(m, &written(&pieces));
                    out.insert(k, Extent { pieces: placed, calls_written, thoughts_written });
                }
                floor = floor.max(pieces.last().map_or(0, |p| p.1));
            }
            floor = floor.max(content.map_or(0, |(at, len)| at + len));
        }
        out
    }

    /// The end of the turn of `m` in `text[start..end]`: its first end-of-turn token behind all
    /// calls, as some templates write the beginning of the next turn together with a call.
    fn first_end_of_turn(&self, m: &Message, text: &str, start: usize, end: usize) -> usize {
        let (Some(calls), true) = (&m.tool_calls, m.content.is_empty()) else { return end };
        let ids = self.end_ids.get_or_init(|| {
            let samples = [Message::new("user", "a"), Message::new("assistant", "b")];
            self.build(&samples, Inputs::default())
                .map(|s| self.end_ids_in(&s, &samples))
                .unwrap_or_default()
        });
        let mut at = start;
        for (part, token) in self.control.split(&text[start..end]) {
            at += part.len();
            let Some((id, len)) = token else { break };
            at += len;
            if ids.contains(&id) && Searchable::new(&text[start..at]).has_calls(calls) {
                return at;
            }
        }
        end
    }

    /// The ids of the tokens with which the turns of a skeleton end.
    fn end_ids_in(&self, s: &Skeleton, messages: &[Message]) -> Vec<i32> {
        let mut ids = Vec::new();
        for (i, p) in s.pieces.iter().enumerate() {
            if let (Piece::Slot(k), Some(Piece::Literal(after))) = (p, s.pieces.get(i + 1))
                && messages[*k].is_assistant()
                && let tokens = self.control.split(&after[..self.end_of_turn(after, false)])
                && let Some((id, _)) = tokens.filter_map(|(_, token)| token).last()
                && !ids.contains(&id)
            {
                ids.push(id);
            }
        }
        ids
    }

    /// The margins of assistant turns ([`Skeleton::turn_margins`]) in `text`, the render of the
    /// messages `trial`, whose contents are placeholders. None if that would be too expensive.
    fn turn_margins(
        &self,
        s: &Skeleton,
        trial: &[Message],
        inputs: Inputs,
        text: &str,
    ) -> Option<Vec<Option<TurnMargins>>> {
        let mut turn_margins = vec![None; trial.len()];
        // By the literal before a content: how many bytes at its end the generation prompt does not
        // contain, and in how many turns in a row that number was the same.
        let mut margins: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut budget = PrefixBudget::new(trial.len());
        for (i, piece) in s.pieces.iter().enumerate() {
            let &Piece::Slot(k) = piece else { continue };
            if !trial[k].is_assistant() {
                continue;
            }
            let literal = |i: Option<usize>| match i.and_then(|i| s.pieces.get(i)) {
                Some(Piece::Literal(l)) => l.as_str(),
                _ => "",
            };
            let (before, after) = (literal(i.checked_sub(1)), literal(Some(i + 1)));
            let margin_after = self.end_of_turn(after, trial[k].tool_calls.is_some());
            let mut margin_before = 0;
            let known = margins.entry(before).or_default();
            if known.1 >= PROMPT_SAMPLES {
                margin_before = known.0;
            } else if before.ends_with(is_space) && !before.ends_with('\n')
                || self.answers_announced()
            {
                if !budget.take(k) {
                    return None;
                }
                let content_start = text.find(&content_placeholder(k))?;
                let edges = self.edges(trial, inputs, text);
                margin_before = edges
                    .not_in_the_prompt(k, content_start, &self.closing().standing)
                    .min(before.len());
                *known = if known.1 == 0 || known.0 == margin_before {
                    (margin_before, known.1 + 1)
                } else {
                    (margin_before, 0)
                };
            }
            turn_margins[k] = Some(TurnMargins { before: margin_before, after: margin_after });
        }
        Some(turn_margins)
    }

    /// Whether a skeleton filled with sample texts equals the render of the same conversation.
    fn verify(&self, s: &Skeleton, messages: &[Message]) -> bool {
        let long = |k: usize| {
            "word ".repeat(if k < LONG_CONVERSATION { 200 * (k % 3) + 1 } else { 1 + k % 3 })
                + "end"
        };
        let texts: [&dyn Fn(usize) -> String; 2] =
            [&|k| format!("text {k},\n\nnumber {}", k * k), &long];
        texts.iter().all(|text| {
            let mut trial = messages.to_vec();
            for (k, m) in trial.iter_mut().enumerate().filter(|(_, m)| !m.content.is_empty()) {
                m.content = text(k).into();
            }
            let mut out = Rendered::default();
            out.fill(s, &trial, false);
            self.template.render(&trial, false).is_ok_and(|t| t == out.text)
        })
    }

    /// How many bytes at the start of `after`, the text behind a turn's content, belong to the
    /// turn: up to and including its end-of-turn token; 0 if there is none.
    pub(crate) fn end_of_turn(&self, after: &str, has_tool_calls: bool) -> usize {
        let closing = self.closing();
        match self.control.first(after) {
            // Only white space, or tool calls, may precede the end-of-turn token, and text that the
            // template writes before it in every turn.
            _ if !closing.text.is_empty() && after.starts_with(&closing.text) => {
                closing.text.len().max(closing.tokens.len())
            }
            Some((at, len, _)) if has_tool_calls || after[..at].chars().all(is_space) => {
                let tokens = closing.tokens.as_str();
                at + if after[at..].starts_with(tokens) { len.max(tokens.len()) } else { len }
            }
            _ => 0,
        }
    }

    /// The ids of the tokens with which the template ends an assistant turn.
    pub(crate) fn end_of_turn_ids(&mut self) -> Vec<i32> {
        let messages = [
            Message::new("user", "a"),
            Message::new("assistant", "b"),
            Message::new("user", "c"),
            Message::new("assistant", "d"),
        ];
        let mut ids = Vec::new();
        for n in [2, 4] {
            let Some(s) = self.get(&messages[..n], Inputs::default()) else {
                continue;
            };
            for id in self.end_ids_in(&s, &messages[..n]) {
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        ids
    }
}

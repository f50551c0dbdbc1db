//! The assistant turns of a rendered conversation.
//!
//! In: a conversation and its template. Out: the text, byte-equal to the template's own output, and
//! the byte spans of the assistant turns, end-of-turn tokens included.
//!
//! Method: the template is rendered once more with a placeholder in place of every content, which
//! gives the literal text between contents, the *skeleton*. Aligned with the real render it shows
//! where each content is and whether the template changed it (some delete reasoning, for example).
//! Where the skeleton does not fit, the start of a turn is located by rendering the messages before
//! it with `add_generation_prompt`. Nothing is assumed about the template; a conversation whose
//! turns cannot be located is dropped with a named reason. docs/templates.md describes the rules.

use crate::config::policies::{LostText, SpecialText};
use crate::config::trained_roles::TrainedRoles;
use crate::parse::conversation::{Conversation, Message};
use crate::parse::drop_reason::DropReason;
use crate::template::adapt::adapt;
use crate::template::alignment::{ContentMatch, align, empty_think_block, match_ignoring_space};
use crate::template::chat::{ChatTemplate, Inputs};
use crate::template::control::{ControlTokens, TextScan};
use crate::template::other_roles::OtherRoles;
use crate::template::presence::{content_match, lost_or_unlocated, responses_lost};
use crate::template::python_text::is_space;
use crate::template::rendered::{Rendered, Span};
use crate::template::skeleton::{Extent, Piece, Skeleton};
use crate::template::skeleton_cache::{PrefixBudget, SkeletonCache};
use crate::template::thoughts::{FieldThoughts, deletes_thoughts, mask_marked_thoughts};
use crate::template::turn_edges::TurnEdges;
use crate::template::unescape::put_back;
use crate::template::verbatim::Verbatim;

/// Renders conversations and locates their assistant turns; one per worker, because it caches
/// skeletons.
pub(crate) struct SpanFinder<'a> {
    template: &'a ChatTemplate,
    control: &'a ControlTokens,
    special_text: SpecialText,
    lost_text: LostText,
    roles: TrainedRoles,
    mask_thinking: bool,
    uses_generation: bool,
    verbatim: Option<&'a Verbatim>,
    skeletons: SkeletonCache<'a>,
}

/// Why a conversation could not be rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RenderError {
    /// The row is dropped.
    Drop(DropReason),
    /// The template changed a content that, by its [`Verbatim`] conditions, it copies unchanged.
    NotVerbatim,
}

impl From<DropReason> for RenderError {
    fn from(d: DropReason) -> Self {
        RenderError::Drop(d)
    }
}

impl<'a> SpanFinder<'a> {
    /// A finder that renders every row; see [`with_verbatim`](Self::with_verbatim).
    pub(crate) fn new(
        template: &'a ChatTemplate,
        control: &'a ControlTokens,
        special_text: SpecialText,
        lost_text: LostText,
    ) -> Self {
        SpanFinder {
            template,
            control,
            special_text,
            lost_text,
            roles: TrainedRoles::default(),
            mask_thinking: false,
            uses_generation: template.has_generation(),
            verbatim: None,
            skeletons: SkeletonCache::new(template, control, false),
        }
    }

    /// Fills contents into skeletons instead of rendering where `verbatim` allows it. The control
    /// tokens of this finder must have been made with the triggers of `verbatim`.
    pub(crate) fn with_verbatim(mut self, verbatim: Option<&'a Verbatim>) -> Self {
        self.verbatim = verbatim.filter(|_| !self.uses_generation);
        self.skeletons = SkeletonCache::new(self.template, self.control, self.verbatim.is_some());
        self
    }

    /// Takes the loss on the turns of `roles`, and with `mask_thinking` not on thoughts.
    pub(crate) fn supervising(mut self, roles: TrainedRoles, mask_thinking: bool) -> Self {
        (self.roles, self.mask_thinking) = (roles, mask_thinking);
        // Filled skeletons have the spans of assistant turns only.
        if roles == TrainedRoles::default() { self } else { self.with_verbatim(None) }
    }

    /// What happens to the turn of a message whose text the template deletes.
    fn policy(&self, m: &Message) -> LostText {
        match self.lost_text {
            // A turn without loss is context, for which the template decides.
            LostText::Split if m.no_loss => LostText::Mask,
            LostText::Split => LostText::Drop,
            other => other,
        }
    }

    /// The text of a skeleton filled with the contents of `messages`, for
    /// [`crate::template::verbatim::probe`].
    pub(crate) fn fill(&mut self, messages: &[Message]) -> Option<String> {
        let s = self.skeletons.get(messages, Inputs::default())?;
        let mut text = String::new();
        for p in &s.pieces {
            text.push_str(match p {
                Piece::Literal(l) => l,
                Piece::Slot(k) => &messages.get(*k)?.content,
            });
        }
        Some(text)
    }

    /// The rendered conversation with its assistant turns.
    pub(crate) fn render(&mut self, c: &Conversation) -> Result<Rendered, DropReason> {
        let mut out = Rendered::default();
        match self.render_into(c, false, &mut out) {
            Ok(()) => Ok(out),
            Err(RenderError::Drop(d)) => Err(d),
            // Cannot occur, because it is reported only with `check`.
            Err(RenderError::NotVerbatim) => Err(DropReason::TemplateRefused),
        }
    }

    /// Renders a conversation into `out`. With `check`, a conversation that was filled into a
    /// skeleton is rendered too and compared.
    pub(crate) fn render_into(
        &mut self,
        c: &Conversation,
        check: bool,
        out: &mut Rendered,
    ) -> Result<(), RenderError> {
        out.clear();
        let adapted =
            adapt(self.template, c)?.map(|messages| Conversation { messages, ..c.clone() });
        let c = adapted.as_ref().unwrap_or(c);
        let scan = self.scan(c);
        if scan.reserved {
            return Err(DropReason::ReservedCharacters.into());
        }
        if scan.control && self.special_text == SpecialText::Reject {
            return Err(DropReason::SpecialText.into());
        }
        let escape = scan.control && self.special_text == SpecialText::Text;
        if let Some(verbatim) = self.verbatim
            && !scan.trigger
            && Inputs::from(c).is_none()
            && !self.skeletons.closing().may_open(&c.messages)
            && !(verbatim.changes_edge_whitespace
                && c.messages
                    .iter()
                    .any(|m| m.content.starts_with(is_space) || m.content.ends_with(is_space)))
            && let Some(s) = self.skeletons.fillable(&c.messages)
        {
            out.fill(&s, &c.messages, escape);
            if check
                && self.template.render(&c.messages, false).ok().as_deref()
                    != Some(out.text.as_str())
            {
                return Err(RenderError::NotVerbatim);
            }
            out.skeleton = Some(s);
        } else {
            *out = match escape {
                true => self.render_escaped(c)?,
                false => self.render_template(&c.messages, c.into())?,
            };
        }
        if self.mask_thinking {
            mask_marked_thoughts(out)?;
        }
        Ok(())
    }

    /// The kinds of special strings that the conversation contains.
    fn scan(&self, c: &Conversation) -> TextScan {
        let mut scan = self.control.scan_messages(&c.messages);
        let kwargs = c.template_kwargs.iter().flat_map(|k| k.values());
        c.tools.iter().chain(kwargs).for_each(|v| self.control.scan_json(v, &mut scan));
        scan
    }

    /// Renders a conversation whose contents contain strings that spell a control token: they are
    /// replaced by placeholders for the render and put back afterwards.
    fn render_escaped(&mut self, c: &Conversation) -> Result<Rendered, DropReason> {
        let messages = self.control.escape_messages(&c.messages);
        let mut tools = c.tools.clone();
        tools.iter_mut().for_each(|v| self.control.escape_json(v));
        let mut kwargs = c.template_kwargs.clone();
        kwargs.iter_mut().flat_map(|k| k.values_mut()).for_each(|v| self.control.escape_json(v));
        let escaped = Inputs { tools: tools.as_ref(), kwargs: kwargs.as_ref() };
        let mut out = self.render_template(&messages, escaped)?;
        // A template that inspects the text could treat a placeholder differently from the string
        // it stands for, so the result is compared with the render of the original.
        let expected = self
            .template
            .render_with(&c.messages, c, false, false)
            .map_err(|_| DropReason::TemplateRefused)?;
        put_back(self.control, &mut out)?;
        if out.text != expected {
            return Err(DropReason::SpecialText);
        }
        Ok(out)
    }

    /// Renders the template and locates the assistant turns in its output.
    fn render_template(
        &mut self,
        messages: &[Message],
        inputs: Inputs,
    ) -> Result<Rendered, DropReason> {
        let text = self
            .template
            .render_with(messages, inputs, false, false)
            .map_err(|_| DropReason::TemplateRefused)?;
        if responses_lost(self.template, messages, inputs, &text) {
            return Err(DropReason::ToolResponsesLost);
        }
        let mut out = Rendered { text, ..Default::default() };
        let skeleton = self.skeletons.get(messages, inputs);
        let aligned =
            skeleton.as_deref().and_then(|s| align(s, &out.text, messages).map(|a| (s, a)));
        if let (Some((s, alignment)), true) = (&aligned, self.uses_generation) {
            out.spans = self.generation_spans(s, &alignment.piece_starts, &out.text);
        }
        let mut position_of = vec![None; messages.len()];
        for p in aligned.iter().flat_map(|(_, alignment)| &alignment.contents) {
            position_of[p.message] = Some(*p);
        }
        let thoughts = (self.mask_thinking && messages.iter().any(|m| m.thoughts().is_some()))
            .then(|| FieldThoughts::locate(self.template, messages, inputs, &out.text));
        let mut budget = PrefixBudget::new(messages.len());
        // Where the content of the assistant message before ends.
        let mut answered = usize::MAX;
        for (k, m) in messages.iter().enumerate().filter(|(_, m)| m.is_assistant()) {
            let aligned_content =
                aligned.as_ref().and_then(|(s, _)| position_of[k].map(|p| (*s, p)));
            let (pieces, matches) = match aligned_content {
                _ if m.has_extras() => {
                    let turn = match &aligned {
                        Some((s, alignment)) => s.extent(k, &alignment.piece_starts, &out.text),
                        None if budget.take(k) => {
                            let (template, control, text) =
                                (self.template, self.control, &out.text);
                            let marked = false;
                            TurnEdges { template, control, messages, inputs, marked, text }
                                .extent(k)
                        }
                        None => None,
                    };
                    let Some(Extent { mut pieces, calls_written, thoughts_written }) = turn else {
                        let deleted = || deletes_thoughts(self.template, messages, inputs, k);
                        match lost_or_unlocated(m, &out.text, deleted) {
                            DropReason::AssistantTextLost if self.policy(m) != LostText::Drop => {
                                out.rewritten_turns += 1;
                                continue;
                            }
                            reason => return Err(reason),
                        }
                    };
                    if !calls_written {
                        return Err(DropReason::ToolCallsLost);
                    }
                    let matches = match position_of[k] {
                        _ if !thoughts_written => ContentMatch::Differs,
                        Some(p) => p.matches,
                        None if m.content.is_empty() => ContentMatch::Exact,
                        None => content_match(&out.text[pieces[0].0..pieces[0].1], &m.content),
                    };
                    let before = aligned_content
                        .filter(|(_, p)| p.start == pieces[0].0)
                        .and_then(|(s, _)| s.turn_margins.get(k).copied().flatten())
                        .map_or(0, |margins| margins.before);
                    pieces[0].0 -= before;
                    (pieces, matches)
                }
                Some((s, p)) => {
                    let margins = s.turn_margins.get(k).copied().flatten().unwrap_or_default();
                    let start = p.start - margins.before;
                    let closing = self.skeletons.closing();
                    let opened = closing.opened_by_prompt(self.template, inputs, &out.text, start);
                    (vec![(start + opened, p.end + margins.after)], p.matches)
                }
                None if m.content.is_empty() => continue,
                None if !budget.take(k) => {
                    return Err(DropReason::NoAssistantSpan);
                }
                None => match self.locate_by_prefix(messages, inputs, k, &out.text) {
                    Some((span, matches)) => (vec![span], matches),
                    None if aligned.is_some() && self.policy(m) != LostText::Drop => {
                        // The template writes nothing of this turn.
                        out.rewritten_turns += 1;
                        continue;
                    }
                    None if aligned.is_some() => return Err(DropReason::AssistantTextLost),
                    None => return Err(DropReason::NoAssistantSpan),
                },
            };
            let mut loss = !m.no_loss && self.roles.assistant();
            match matches {
                ContentMatch::Exact => {}
                ContentMatch::WhitespaceDiffers => out.whitespace_changed_turns += 1,
                ContentMatch::Differs => {
                    out.rewritten_turns += 1;
                    match self.policy(m) {
                        LostText::Drop | LostText::Split => {
                            return Err(DropReason::AssistantTextLost);
                        }
                        LostText::Mask => loss = false,
                        LostText::Keep => {}
                    }
                }
            }
            if let Some(thoughts) = thoughts.as_ref().filter(|_| loss && m.thoughts().is_some()) {
                let content = position_of[k].map(|p| p.start);
                for &piece in &pieces {
                    out.masked.extend(thoughts.of(k, piece, content, self.control, &out.text)?);
                }
            }
            // The text of an answer that goes on in the same turn has no end of its own.
            if !self.uses_generation
                && let Some(before) = out.spans.last_mut()
                && (answered..before.end).contains(&pieces[0].0)
            {
                before.end = pieces[0].0;
            }
            answered = position_of[k].map_or(usize::MAX, |p| p.end);
            for (n, &(start, end)) in pieces.iter().enumerate() {
                if self.uses_generation {
                    // The template's own blocks are the spans. The located turn only says whether
                    // its text was changed.
                    let from = out.spans.partition_point(|g| g.end <= start);
                    for g in out.spans[from..].iter_mut().take_while(|g| g.start < end) {
                        g.loss &= loss;
                    }
                } else {
                    out.spans.push(Span { start, end, loss, continues: n > 0 });
                }
            }
        }
        if self.roles != TrainedRoles::default() {
            out.spans.iter_mut().for_each(|s| s.loss &= self.roles.assistant());
            let others = OtherRoles { roles: self.roles, control: self.control };
            out.spans.extend(others.spans(messages, &position_of, &out.text)?);
        }
        out.spans.sort_by_key(|s| s.start);
        if out.spans.windows(2).any(|w| w[0].end > w[1].start)
            || out.spans.iter().any(|s| s.end > out.text.len())
        {
            return Err(DropReason::NoAssistantSpan);
        }
        Ok(out)
    }

    /// The spans of the template's `{% generation %}` blocks; `piece_starts` as in
    /// [`SkeletonAlignment`](crate::template::alignment::SkeletonAlignment).
    fn generation_spans(&self, s: &Skeleton, piece_starts: &[usize], text: &str) -> Vec<Span> {
        let mut out = Vec::new();
        let mut open = None;
        for &(piece, offset, start) in &s.generation {
            let at = piece_starts.get(piece).map_or(text.len(), |a| a + offset);
            let at = if start {
                at
            } else {
                at.min(piece_starts.get(piece + 1).copied().unwrap_or(text.len()))
            };
            match (start, open.take()) {
                (true, _) => open = Some(at),
                (false, Some(from))
                    if from < at && text.is_char_boundary(from) && text.is_char_boundary(at) =>
                {
                    // A block that stops just before the end-of-turn token is extended to include
                    // it.
                    let closed = self
                        .control
                        .tokens()
                        .iter()
                        .any(|(t, _)| text[from..at].trim_end().ends_with(t.as_str()));
                    let added =
                        if closed { 0 } else { self.skeletons.end_of_turn(&text[at..], false) };
                    out.push(Span { start: from, end: at + added, loss: true, continues: false });
                }
                _ => {}
            }
        }
        out
    }

    /// The byte range of turn `k` in `text`, located by rendering the messages before it with the
    /// generation prompt.
    fn locate_by_prefix(
        &self,
        messages: &[Message],
        inputs: Inputs,
        k: usize,
        text: &str,
    ) -> Option<((usize, usize), ContentMatch)> {
        let prompt = self.template.render_with(&messages[..k], inputs, true, false).ok()?;
        let mut rest = text.strip_prefix(prompt.as_str()).filter(|_| !prompt.is_empty())?;
        let content = &*messages[k].content;
        if !content.trim_start().starts_with("<think>") {
            rest = &rest[empty_think_block(rest)..];
        }
        let start = text.len() - rest.len();
        let (end, matches) = if rest.starts_with(content) {
            (content.len(), ContentMatch::Exact)
        } else {
            match match_ignoring_space(rest, content) {
                Some(n) => (n, ContentMatch::WhitespaceDiffers),
                None => (0, ContentMatch::Differs),
            }
        };
        let tail = &rest[end..];
        let end = match (matches == ContentMatch::Differs, self.control.first(tail)) {
            (true, found) => found.map(|(at, len, _)| end + at + len)?,
            (false, _) => end + self.skeletons.end_of_turn(tail, false),
        };
        Some(((start, start + end), matches))
    }

    /// The ids of the tokens with which the template ends an assistant turn.
    pub(crate) fn end_of_turn_ids(&mut self) -> Vec<i32> {
        self.skeletons.end_of_turn_ids()
    }
}

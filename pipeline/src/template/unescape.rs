//! Puts the strings that spell control tokens back into a render.
//!
//! In: a render in which placeholders stand for such strings in the contents of messages. Out: the
//! text as the template would have written it, the spans at their new places, and the control
//! tokens that the template itself wrote.

use crate::parse::drop_reason::DropReason;
use crate::template::control::ControlTokens;
use crate::template::rendered::Rendered;
use crate::template::skeleton::ControlPosition;
use std::collections::HashMap;

/// Replaces the placeholders in `out` and moves its spans along.
pub(crate) fn put_back(control: &ControlTokens, out: &mut Rendered) -> Result<(), DropReason> {
    let escaped = std::mem::take(&mut out.text);
    let mut written = Vec::new();
    let spans = out.spans.iter().flat_map(|s| [s.start, s.end]);
    let mut edges: Vec<usize> =
        spans.chain(out.masked.iter().flat_map(|m| [m.start, m.end])).collect();
    edges.sort_unstable();
    let mut moved = HashMap::new();
    let (mut from, mut edge) = (0, 0);
    let mut at = 0;
    for (part, token) in control.split(&escaped) {
        let end = at + part.len();
        while edge < edges.len() && edges[edge] <= end {
            let Some(piece) = escaped.get(from..edges[edge]) else {
                return Err(DropReason::NoAssistantSpan);
            };
            out.text.push_str(&control.unescape(piece));
            moved.insert(edges[edge], out.text.len());
            from = edges[edge];
            edge += 1;
        }
        out.text.push_str(&control.unescape(&escaped[from..end]));
        at = end;
        if let Some((id, len)) = token {
            written.push(ControlPosition { start: out.text.len(), len, id });
            out.text.push_str(&escaped[at..at + len]);
            at += len;
        }
        from = at;
    }
    let ends = out.spans.iter_mut().map(|s| (&mut s.start, &mut s.end));
    for (start, end) in ends.chain(out.masked.iter_mut().map(|m| (&mut m.start, &mut m.end))) {
        let (Some(&new_start), Some(&new_end)) = (moved.get(start), moved.get(end)) else {
            return Err(DropReason::NoAssistantSpan);
        };
        (*start, *end) = (new_start, new_end);
    }
    out.control = Some(written);
    Ok(())
}

//! Rewrites template source so that minijinja can run it.
//!
//! In: the source of a chat template. Out: source in which `{% generation %}` blocks, a tag that
//! transformers adds to jinja2, are call blocks, and `{% for %}` loops check their operand as
//! Python does. All other text keeps its bytes.

/// Turns `{% generation %}` … `{% endgeneration %}` into a call block of `__generation`, and pipes
/// the `y` of `{% for x in y %}` through the filter `__iter`, which refuses values that Python
/// cannot iterate over. White-space control (`{%-`, `-%}`) is kept.
pub(crate) fn rewrite(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        // Tags inside a comment are not tags.
        if let Some(comment) = rest[..at].find("{#") {
            let end = rest[comment..].find("#}").map_or(rest.len(), |n| comment + n + 2);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let Some(len) = tag_end(&rest[at..]) else {
            break;
        };
        let end = at + len;
        let inner = rest.get(at + 2..end - 2).unwrap_or("");
        out.push_str(&rest[..at]);
        let mark = |c: Option<char>| {
            c.filter(|&c| c == '-' || c == '+').map(String::from).unwrap_or_default()
        };
        let (open, close) = (mark(inner.chars().next()), mark(inner.chars().last()));
        let body = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match body {
            "generation" => out.push_str(&format!("{{%{open} call __generation() {close}%}}")),
            "endgeneration" => out.push_str(&format!("{{%{open} endcall {close}%}}")),
            _ => match body.strip_prefix("for ").and_then(guard_for) {
                Some(guarded) => out.push_str(&format!("{{%{open} for {guarded} {close}%}}")),
                None => out.push_str(&rest[at..end]),
            },
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Length in bytes of the `{% … %}` tag at the start of `tag`; `%}` inside a string does not end
/// it.
fn tag_end(tag: &str) -> Option<usize> {
    let mut quote = None;
    let bytes = tag.as_bytes();
    let mut i = 2;
    while i < bytes.len() {
        match (bytes[i], quote) {
            (b'\\', Some(_)) => i += 1,
            (c, Some(q)) if c == q => quote = None,
            (_, Some(_)) => {}
            (c @ (b'"' | b'\''), None) => quote = Some(c),
            (b'%', None) if bytes.get(i + 1) == Some(&b'}') => return Some(i + 2),
            _ => {}
        }
        i += 1;
    }
    None
}

/// The body `x in y if z` of a for tag, with `y` piped through `__iter`.
fn guard_for(body: &str) -> Option<String> {
    // The position of the space before a word outside strings and brackets, from `from` on.
    let word = |w: &str, from: usize| -> Option<usize> {
        let (mut depth, mut quote) = (0i32, None);
        let bytes = body.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            match (bytes[i], quote) {
                (b'\\', Some(_)) => i += 1,
                (c, Some(q)) if c == q => quote = None,
                (_, Some(_)) => {}
                (c @ (b'"' | b'\''), None) => quote = Some(c),
                (b'(' | b'[' | b'{', None) => depth += 1,
                (b')' | b']' | b'}', None) => depth -= 1,
                (b' ' | b'\n' | b'\t', None) if depth == 0 && i >= from => {
                    let tail = body.get(i + 1..)?;
                    if tail
                        .strip_prefix(w)
                        .is_some_and(|t| t.is_empty() || t.starts_with([' ', '\n', '\t', '(', '[']))
                    {
                        return Some(i);
                    }
                }
                _ => {}
            }
            i += 1;
        }
        None
    };
    let at = word("in", 0)?;
    let after = at + 3;
    let end = [word("if", after), word("recursive", after)]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(body.len());
    let (target, iter, tail) = (body.get(..at)?, body.get(after..end)?, body.get(end..)?);
    Some(format!("{target} in ({}) | __iter{tail}", iter.trim()))
}

/// Whether a template marks the assistant's text itself, with `{% generation %}` blocks.
pub(crate) fn has_generation(template: &str) -> bool {
    rewrite(template).contains("call __generation()")
}

//! Detects by experiment whether a template copies message contents verbatim, so that most rows
//! need no render.
//!
//! In: a template. Out: [`Verbatim`], the conditions under which it copies a content unchanged into
//! its skeleton. Every string literal of the template's source is tried as content of each message,
//! alone, in pairs and at the edges of a text, and so are white space, long texts and the like. A
//! literal for which the render is not the filled skeleton is a *trigger*. Rows that contain a
//! trigger are rendered. Of the others, one in [`CHECK_EVERY`] is rendered anyway and compared; a
//! difference stops the run, which then has to be repeated with `--render each`.

use crate::parse::conversation::Message;
use crate::template::chat::ChatTemplate;

/// One row in this many is rendered and compared.
pub(crate) const CHECK_EVERY: u64 = 61;
/// Templates with more literals than this are rendered for every row.
const MAX_LITERALS: usize = 96;

/// Which contents a template does not copy verbatim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verbatim {
    /// Strings that the template treats specially wherever they occur.
    pub triggers: Vec<String>,
    /// Whether the template changes white space at the start or end of a content.
    pub changes_edge_whitespace: bool,
}

/// Gives the text of the skeleton filled with the contents; None if the template refuses the roles.
pub(crate) type Fill<'a> = dyn FnMut(&[Message]) -> Option<String> + 'a;

/// The string literals of a Jinja source, each with whether it occurs in a statement (`{% … %}`).
fn literals(source: &str) -> Vec<(String, bool)> {
    let mut out: Vec<(String, bool)> = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find(['{']) {
        rest = &rest[at..];
        let (statement, close) = match rest.as_bytes().get(1) {
            Some(b'%') => (true, "%}"),
            Some(b'{') => (false, "}}"),
            _ => {
                rest = &rest[1..];
                continue;
            }
        };
        let (mut quote, mut literal, mut chars) = (None, String::new(), rest[2..].char_indices());
        let mut end = rest.len();
        while let Some((i, c)) = chars.next() {
            match quote {
                None if rest[2 + i..].starts_with(close) => {
                    end = 2 + i + 2;
                    break;
                }
                None if c == '"' || c == '\'' => quote = Some(c),
                None => {}
                Some(q) if c == q => {
                    quote = None;
                    let l = std::mem::take(&mut literal);
                    match out.iter_mut().find(|x| x.0 == l) {
                        Some(x) => x.1 |= statement,
                        None => out.push((l, statement)),
                    }
                }
                Some(_) if c == '\\' => literal.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, 't')) => '\t',
                    Some((_, 'r')) => '\r',
                    Some((_, other)) => other,
                    None => '\\',
                }),
                Some(_) => literal.push(c),
            }
        }
        rest = &rest[end.min(rest.len())..];
    }
    out.retain(|(l, _)| !l.trim().is_empty());
    out
}

/// Runs the experiment. None if the template has to be rendered for every row.
pub(crate) fn probe(template: &ChatTemplate, fill: &mut Fill) -> Option<Verbatim> {
    let literals = literals(template.source());
    if literals.len() > MAX_LITERALS {
        return None;
    }
    let shapes: [&[&str]; 4] = [
        &["user", "assistant"],
        &["system", "user", "assistant"],
        &["user", "assistant", "user", "assistant"],
        &["system", "user", "assistant", "user", "assistant"],
    ];
    // A template may refuse a shape (for example one with a system message). It then refuses every
    // row of that shape, which building the skeleton reveals.
    let shapes: Vec<&[&str]> = shapes
        .into_iter()
        .filter(|s| fill(&conversation(s, |_| "x".to_string())).is_some())
        .collect();
    if shapes.is_empty() {
        return None;
    }
    let mut copies = |content: &dyn Fn(usize) -> String| {
        shapes.iter().all(|s| {
            let messages = conversation(s, content);
            match (template.render(&messages, false), fill(&messages)) {
                (Ok(a), Some(b)) => a == b,
                _ => false,
            }
        })
    };
    let long = "word ".repeat(4000) + "end";
    let plain = [
        "x",
        "0",
        "True",
        "None",
        "Hello, world.\n\n\nSecond  paragraph & 'quotes' \"here\" <b>html</b>",
        "{{ x }} {% y %} {# z #}",
        "é中😀\u{301}",
        "[1, 2]",
        "{\"a\": 1}",
        &long,
    ];
    for p in plain {
        if !copies(&|_| p.to_string()) {
            return None;
        }
    }
    if !copies(&|k| format!("m{k}")) {
        return None;
    }
    let mut out = Verbatim::default();
    for p in [
        " x",
        "x ",
        "\nx",
        "x\n",
        "\n\n x",
        "\tx\t",
        "\r\nx\r\n",
        "\u{a0}x\u{a0}",
        "\u{1c}x\u{1c}",
        " ",
        "\n",
    ] {
        out.changes_edge_whitespace |= !copies(&|_| p.to_string())
            || !copies(&|k| {
                if k % 2 == 1 { p.to_string() } else { "x".to_string() }
            });
    }
    let mut harmless: Vec<&str> = Vec::new();
    for (l, statement) in &literals {
        let l = l.trim();
        let forms = [
            format!("a {l} b"),
            format!("{l}b"),
            format!("a{l}"),
            l.to_string(),
            format!("{l}\nb\n{l}"),
        ];
        let in_all_messages = forms.iter().all(|f| copies(&|_| f.clone()));
        let in_single_messages = in_all_messages
            && (0..5).all(|only| {
                [&forms[0], &forms[3]].iter().all(|f| {
                    copies(&|k| {
                        if k == only { f.to_string() } else { "x".to_string() }
                    })
                })
            });
        if !in_single_messages {
            out.triggers.push(l.to_string());
        } else if *statement {
            harmless.push(l);
        }
    }
    let mut pairs = Vec::new();
    for a in &harmless {
        for b in &harmless {
            let both = format!("{a}x{b}");
            if !copies(&|_| both.clone())
                || !copies(&|k| {
                    if k % 2 == 0 { a.to_string() } else { b.to_string() }
                })
            {
                pairs.extend([a.to_string(), b.to_string()]);
            }
        }
    }
    out.triggers.extend(pairs);
    out.triggers.sort();
    out.triggers.dedup();
    Some(out)
}

/// A conversation with these roles; `content` gives the text by message index.
fn conversation(
    roles: &[&'static str],
    content: impl Fn(usize) -> String,
) -> Vec<Message<'static>> {
    roles.iter().enumerate().map(|(k, r)| Message::new(*r, content(k))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_a_source() {
        let got =
            literals("{% if m == 'a\\n' and \"b'\" in m %}'no'{{ '<x>' + \"a\\n\" }}{# 'no' #}");
        assert_eq!(
            got,
            [("a\n".to_string(), true), ("b'".to_string(), true), ("<x>".to_string(), false)]
        );
    }
}

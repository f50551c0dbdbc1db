//! Templates that only copy content: found by experiment, so that most rows need no render.
//!
//! In: a template. Out: [`Verbatim`]: what content must not hold for the template to copy it as it
//! is into its skeleton. Every string literal of the template's source, alone, in pairs and at the
//! edges of a text, is tried as content of each message, with white space, long texts and the like;
//! a render that is not the skeleton filled in makes the literal a *trigger*. Rows that hold a
//! trigger are rendered. Of the others one in [`CHECK_EVERY`] is rendered all the same and
//! compared; a difference stops the run, which then has to be made with `--render each`.

use crate::parse::conversation::Message;
use crate::template::chat::ChatTemplate;

/// One row in so many is rendered and compared.
pub const CHECK_EVERY: u64 = 61;
/// Templates with more literals than this are rendered row by row.
const MAX_LITERALS: usize = 96;

/// What keeps a row from the short way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verbatim {
    /// Strings the template treats specially.
    pub triggers: Vec<String>,
    /// Whether white space at a content's edges is changed.
    pub edge_space: bool,
}

/// Fills in a skeleton with contents: none if the roles do not allow it.
pub type Fill<'a> = dyn FnMut(&[Message]) -> Option<String> + 'a;

/// The string literals of a Jinja source: (literal, whether it stands in a statement).
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

/// Tries a template out. None: it has to be rendered for every row.
pub fn probe(template: &ChatTemplate, fill: &mut Fill) -> Option<Verbatim> {
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
    // A template may refuse a shape (no system turn, say); it then refuses every row of that shape,
    // and the skeleton shows it.
    let shapes: Vec<&[&str]> =
        shapes.into_iter().filter(|s| fill(&talk(s, |_| "x".to_string())).is_some()).collect();
    if shapes.is_empty() {
        return None;
    }
    let mut holds = |content: &dyn Fn(usize) -> String| {
        shapes.iter().all(|s| {
            let messages = talk(s, content);
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
        if !holds(&|_| p.to_string()) {
            return None;
        }
    }
    if !holds(&|k| format!("m{k}")) {
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
        out.edge_space |= !holds(&|_| p.to_string())
            || !holds(&|k| {
                if k % 2 == 1 { p.to_string() } else { "x".to_string() }
            });
    }
    let mut calm: Vec<&str> = Vec::new();
    for (l, statement) in &literals {
        let l = l.trim();
        let forms = [
            format!("a {l} b"),
            format!("{l}b"),
            format!("a{l}"),
            l.to_string(),
            format!("{l}\nb\n{l}"),
        ];
        let everywhere = forms.iter().all(|f| holds(&|_| f.clone()));
        let somewhere = everywhere
            && (0..5).all(|only| {
                [&forms[0], &forms[3]].iter().all(|f| {
                    holds(&|k| {
                        if k == only { f.to_string() } else { "x".to_string() }
                    })
                })
            });
        if !somewhere {
            out.triggers.push(l.to_string());
        } else if *statement {
            calm.push(l);
        }
    }
    let mut pairs = Vec::new();
    for a in &calm {
        for b in &calm {
            let both = format!("{a}x{b}");
            if !holds(&|_| both.clone())
                || !holds(&|k| {
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

fn talk(roles: &[&'static str], content: impl Fn(usize) -> String) -> Vec<Message<'static>> {
    roles.iter().enumerate().map(|(k, r)| Message::new(*r, content(k))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_literals() {
        let got =
            literals("{% if m == 'a\\n' and \"b'\" in m %}'no'{{ '<x>' + \"a\\n\" }}{# 'no' #}");
        assert_eq!(
            got,
            [("a\n".to_string(), true), ("b'".to_string(), true), ("<x>".to_string(), false)]
        );
    }
}

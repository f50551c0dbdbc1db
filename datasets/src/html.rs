//! HTML pages: the look of the reports, and text in them.
//!
//! A page is one file: its style sheet (`report.css`, light and dark) stands in it, and nothing is
//! loaded from elsewhere, which a content security policy in the page holds.

/// The style sheet of every report.
const STYLE: &str = include_str!("report.css");

/// Escapes `text` for HTML content and quoted attribute values. Control characters, which HTML
/// cannot hold, become U+FFFD.
pub fn escape(text: &str) -> String {
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    text.replace(control, "\u{fffd}")
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// A whole page. `title` and `note` (one line under the title) are text, `body` is HTML.
pub fn page(title: &str, note: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>\n{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p class=\"note\">{}</p>\n{body}</body></html>\n",
        escape(note)
    )
}

/// The most important figures of a page, as (name, value) pairs of text.
pub fn tiles<'a>(values: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let tile = |(name, value): (&str, String)| {
        format!(
            "<div class=\"tile\"><b>{}</b><span>{}</span></div>\n",
            escape(&value),
            escape(name)
        )
    };
    format!("<div class=\"tiles\">\n{}</div>\n", values.into_iter().map(tile).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        assert_eq!(
            escape("<a href='x' b=\"&\">"),
            "&lt;a href=&#39;x&#39; b=&quot;&amp;&quot;&gt;"
        );
        assert_eq!(escape("\u{1b}[31m\0\n\t"), "\u{fffd}[31m\u{fffd}\n\t");
        let page = page("<t>", "<n>", &tiles([("<k>", "<v>".to_string())]));
        for markup in ["<t>", "<n>", "<k>", "<v>", "http:", "https:", "src=", "@import"] {
            assert!(!page.contains(markup), "{markup}");
        }
    }
}

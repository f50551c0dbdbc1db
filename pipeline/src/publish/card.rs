//! Cards: the README.md of a repository, whose YAML header the hub reads.
//!
//! In: keys and text of any origin. Out: a header in which every text is quoted, and Markdown in
//! which names from elsewhere cannot become markup. A card that somebody wrote is never replaced.

use crate::error::{Error, Result};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;

/// How a card ends that this program wrote and may write anew.
pub const MARK: &str = "<!-- written by dlm; remove this line to keep your changes -->";
/// Name of the card.
pub(crate) const README: &str = "README.md";
/// The longest card that is looked at.
const MOST_BYTES: u64 = 16 << 20;

/// A card that is being written.
#[derive(Debug, Clone, Default)]
pub struct Card {
    header: Vec<(String, Value)>,
    text: String,
}

impl Card {
    /// A card without anything.
    pub fn new() -> Card {
        Card::default()
    }

    /// Adds a key to the header; null and empty values are left out.
    pub fn key(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        let empty = match &value {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            _ => false,
        };
        if !empty {
            self.header.push((key.to_string(), value));
        }
    }

    /// Adds Markdown, with an empty line behind it.
    pub fn text(&mut self, markdown: &str) {
        self.text.push_str(markdown.trim_end());
        self.text.push_str("\n\n");
    }

    /// Adds a table; its cells are shown as they are.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let _ = writeln!(self.text, "| {} |", head.join(" | "));
        let _ = writeln!(self.text, "|{}", " --- |".repeat(head.len()));
        for row in rows {
            let cells: Vec<String> = row.iter().map(|cell| plain(cell)).collect();
            let _ = writeln!(self.text, "| {} |", cells.join(" | "));
        }
        self.text.push('\n');
    }

    /// The card's text.
    pub fn render(&self) -> String {
        let mut out = String::from("---\n");
        for (key, value) in &self.header {
            // JSON is YAML, and quotes every text.
            let _ = writeln!(out, "{key}: {}", yaml(value));
        }
        let _ = write!(out, "---\n\n{}{MARK}\n", self.text);
        out
    }

    /// Writes the card into `folder`, unless somebody else's is there: then false.
    ///
    /// # Errors
    /// If the folder cannot be read or written.
    pub fn write(&self, folder: &Path) -> Result<bool> {
        let path = folder.join(README);
        match std::fs::metadata(&path) {
            Ok(about) if about.len() <= MOST_BYTES => {
                let old = std::fs::read(&path).map_err(Error::io("reading", &path))?;
                if !String::from_utf8_lossy(&old).contains(MARK) {
                    return Ok(false);
                }
            }
            Ok(_) => return Ok(false),
            Err(_) => {}
        }
        dlm_datasets::fs::write_atomic(&path, self.render().as_bytes())?;
        Ok(true)
    }
}

/// A value in one line of YAML. JSON's escapes are YAML's; characters that YAML does not take
/// unescaped are escaped, too.
fn yaml(value: &Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        match c {
            '\u{20}'..='\u{7e}' | '\u{a0}'..='\u{2027}' | '\u{202f}'..='\u{d7ff}' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out
}

/// Text of any origin within a line of Markdown: shown as it is, without being markup.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in crate::input::not_read::shown(text).chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '!' | '~' | '$' | '&' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_stays_text() {
        let mut card = Card::new();
        card.key("license", "mit\n---\nevil: 1");
        card.key("tags", vec!["a: b".to_string(), "\u{85}\u{2028}\u{1f600}".to_string()]);
        card.key("nothing", Value::Null);
        card.text("# A *title*");
        card.table(&["name", "n"], &[vec!["a|b<script>`x`\n[y](z)".to_string(), "1".to_string()]]);
        let text = card.render();
        let (header, body) = text.split_once("\n---\n\n").unwrap();
        assert_eq!(header.lines().count(), 3, "{header}");
        let parsed: Value = serde_saphyr::from_str(header.trim_start_matches("---\n")).unwrap();
        assert_eq!(parsed["license"], "mit\n---\nevil: 1");
        assert_eq!(parsed["tags"][1], "\u{85}\u{2028}\u{1f600}");
        assert!(parsed.get("nothing").is_none());
        let row = body.lines().find(|l| l.contains("script")).unwrap();
        assert!(row.contains(r"a\|b\<script\>\`x\`") && row.contains(r"\[y\](z)"), "{row}");
        assert!(text.ends_with(&format!("{MARK}\n")));
    }

    #[test]
    fn somebody_elses_card_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut card = Card::new();
        card.text("first");
        assert!(card.write(dir.path()).unwrap());
        card.text("second");
        assert!(card.write(dir.path()).unwrap());
        let path = dir.path().join(README);
        assert!(std::fs::read_to_string(&path).unwrap().contains("second"));
        std::fs::write(&path, "mine").unwrap();
        assert!(!card.write(dir.path()).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}

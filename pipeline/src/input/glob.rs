//! Globs over paths, as Python's `fsspec` reads them: `*` matches within a name, `**` across names,
//! `?` one character, `[a-z]` and `[!a-z]` a character of a set.
//!
//! The time of a match is the length of the path times that of the pattern, whatever they hold.

/// A parsed pattern.
#[derive(Debug, Clone)]
pub(crate) struct Glob {
    parts: Vec<Part>,
    /// What the path must begin with, up to the first part that is no character.
    prefix: String,
}

#[derive(Debug, Clone)]
enum Part {
    Char(char),
    /// `?`: any character but `/`.
    One,
    /// `[…]`: ranges, and whether the set is negated.
    Set(Vec<(char, char)>, bool),
    /// `*`: any number of characters but `/`.
    Name,
    /// `**`: any number of any characters.
    Any,
    /// `**/`: any number of whole folders, also none.
    Folders,
}

impl Glob {
    pub(crate) fn new(pattern: &str) -> Glob {
        let text: Vec<char> = pattern.chars().collect();
        let (mut parts, mut i) = (Vec::new(), 0);
        while i < text.len() {
            let (part, len) = match &text[i..] {
                ['*', '*', '/', ..] => (Part::Folders, 3),
                ['*', '*', ..] => (Part::Any, 2),
                ['*', ..] => (Part::Name, 1),
                ['?', ..] => (Part::One, 1),
                ['[', rest @ ..] => set(rest).unwrap_or((Part::Char('['), 1)),
                rest => (Part::Char(rest[0]), 1),
            };
            parts.push(part);
            i += len;
        }
        let plain = |p: &Part| if let Part::Char(c) = p { Some(*c) } else { None };
        Glob { prefix: parts.iter().map_while(plain).collect(), parts }
    }

    /// Whether a pattern has no wildcard, and so names one file.
    pub(crate) fn is_plain(pattern: &str) -> bool {
        !pattern.contains(['*', '?', '['])
    }

    /// Whether all of `path` fits.
    pub(crate) fn matches(&self, path: &str) -> bool {
        if !path.starts_with(self.prefix.as_str()) {
            return false;
        }
        let n = self.parts.len();
        // `here[i]`: everything before part i has been matched.
        let mut here = vec![false; n + 1];
        let mut next = here.clone();
        self.enter(&mut here, 0);
        for c in path.chars() {
            next.fill(false);
            for i in (0..n).filter(|&i| here[i]) {
                match &self.parts[i] {
                    Part::Char(p) if *p == c => self.enter(&mut next, i + 1),
                    Part::One if c != '/' => self.enter(&mut next, i + 1),
                    Part::Set(ranges, negated)
                        if c != '/'
                            && ranges.iter().any(|(a, b)| (*a..=*b).contains(&c)) != *negated =>
                    {
                        self.enter(&mut next, i + 1);
                    }
                    Part::Name if c != '/' => self.enter(&mut next, i),
                    Part::Any => self.enter(&mut next, i),
                    Part::Folders => {
                        next[i] = true;
                        if c == '/' {
                            self.enter(&mut next, i + 1);
                        }
                    }
                    _ => {}
                }
            }
            std::mem::swap(&mut here, &mut next);
        }
        here[n]
    }

    /// Marks part `i`, and those behind it that are reached without a character.
    fn enter(&self, at: &mut [bool], mut i: usize) {
        loop {
            at[i] = true;
            match self.parts.get(i) {
                Some(Part::Name | Part::Any | Part::Folders) => i += 1,
                _ => return,
            }
        }
    }
}

/// The set that begins behind a `[`, and its length with both brackets; none if it has no end.
fn set(text: &[char]) -> Option<(Part, usize)> {
    let negated = matches!(text.first(), Some('!' | '^'));
    let from = usize::from(negated);
    // A `]` at the beginning is a character of the set.
    let end = from + 1 + text.get(from + 1..)?.iter().position(|&c| c == ']')?;
    let (mut ranges, mut i) = (Vec::new(), from);
    while i < end {
        if i + 2 < end && text[i + 1] == '-' {
            ranges.push((text[i], text[i + 2]));
            i += 3;
        } else {
            ranges.push((text[i], text[i]));
            i += 1;
        }
    }
    Some((Part::Set(ranges, negated), end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, path, fits) in [
            ("SFT/*/*.jsonl", "SFT/chat/chat.jsonl", true),
            ("SFT/*.jsonl", "SFT/chat/chat.jsonl", false),
            ("SFT/**", "SFT/chat/chat.jsonl", true),
            ("**", "a/b.jsonl", true),
            ("**/*.parquet", "a.parquet", true),
            ("**/*.parquet", "a/b/c.parquet", true),
            ("**/x/**", "x/c", true),
            ("**/x/**", "a/b/x/c", true),
            ("**/x/**", "a/bx/c", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("data/train-[0-9][0-9]*.*", "data/train-00.parquet", true),
            ("data/train-[0-9][0-9]*.*", "data/train-0x.parquet", false),
            ("[!a]b", "cb", true),
            ("[!a]b", "ab", false),
            ("[-._ 0-9]", "-", true),
            ("[]]", "]", true),
            ("a[b", "a[b", true),
            ("*", "", true),
            ("é?", "éü", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(path), fits, "{pattern} {path}");
        }
    }

    /// Patterns on which a matcher that goes back takes exponential time.
    #[test]
    fn no_pattern_takes_long() {
        let path = "a".repeat(2_000);
        assert!(!Glob::new(&("*a".repeat(200) + "b")).matches(&path));
        assert!(Glob::new(&("**/".repeat(200) + "*")).matches(&path));
    }
}

//! In which form a JSON file holds its rows.
//!
//! In: the beginning of a file. Out: a [`JsonForm`], and the number of bytes before the first row;
//! or why the file cannot be read.

/// How rows follow each other in a JSON file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JsonForm {
    /// One row per line: an object, or a list of messages.
    Lines,
    /// Arrays of rows, one after another.
    Array,
    /// One object that holds the array of rows, for example `{"data": […]}`.
    Wrapped,
    /// Objects that each take several lines.
    Objects,
}

/// Keys under which one object holds all rows.
const WRAPPERS: [&str; 6] = ["data", "rows", "examples", "instances", "records", "items"];
/// Keys with which a message begins.
const MESSAGE_KEYS: [&str; 4] = ["role", "from", "content", "value"];

impl JsonForm {
    /// The form of a file that begins with `head`, and how many bytes precede its rows.
    pub(crate) fn of(head: &[u8]) -> Result<(JsonForm, usize), String> {
        if head.starts_with(&[0xFF, 0xFE]) || head.starts_with(&[0xFE, 0xFF]) {
            return Err(
                "is UTF-16; convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"
                    .to_string(),
            );
        }
        let skip =
            |at: usize| at + head[at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let first = skip(0);
        // The key of the object that begins at `at`, and the position behind it.
        let key = |at: usize| -> Option<(&str, usize)> {
            let from = skip(at + 1) + 1;
            (head.get(at) == Some(&b'{') && head.get(from - 1) == Some(&b'"')).then_some(())?;
            let len = memchr::memchr(b'"', head.get(from..)?)?;
            Some((std::str::from_utf8(&head[from..from + len]).ok()?, from + len + 1))
        };
        let is_message = |at: usize| key(at).is_some_and(|(k, _)| MESSAGE_KEYS.contains(&k));
        let line_end = memchr::memchr(b'\n', &head[first..]).map(|n| first + n);
        let (depth, string) = nesting(&head[first..line_end.unwrap_or(head.len())]);
        Ok(match head.get(first) {
            Some(b'[') if depth == 0 && !string && is_message(skip(first + 1)) => {
                (JsonForm::Lines, 0)
            }
            Some(b'[') => (JsonForm::Array, first + 1),
            Some(b'{') => {
                if let Some((k, at)) = key(first)
                    && WRAPPERS.contains(&k)
                    && head.get(skip(at)) == Some(&b':')
                    && head.get(skip(skip(at) + 1)) == Some(&b'[')
                {
                    let begin = skip(skip(at) + 1) + 1;
                    if head.get(skip(begin)) == Some(&b'{') && !is_message(skip(begin)) {
                        return Ok((JsonForm::Wrapped, begin));
                    }
                }
                // A line that ends inside an object, and the next line goes on with it.
                let goes_on = line_end.is_some_and(|end| head.get(skip(end)) != Some(&b'{'))
                    || line_end.is_some_and(|end| head[..end].trim_ascii_end().ends_with(b"["));
                match depth > 0 && !string && goes_on {
                    true => (JsonForm::Objects, 0),
                    false => (JsonForm::Lines, 0),
                }
            }
            _ => (JsonForm::Lines, 0),
        })
    }

    /// What may follow a row.
    pub(crate) fn next_row(self) -> &'static str {
        match self {
            JsonForm::Lines | JsonForm::Objects => "an object",
            JsonForm::Array => "an array or the end of the file",
            JsonForm::Wrapped => "the end of the object that holds the rows",
        }
    }
}

/// How many brackets are open at the end of `text`, and whether it ends inside a string.
fn nesting(text: &[u8]) -> (usize, bool) {
    let (mut depth, mut string, mut escaped) = (0usize, false, false);
    for &b in text {
        if string {
            string = escaped || b != b'"';
            escaped = !escaped && b == b'\\';
        } else {
            match b {
                b'"' => string = true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    (depth, string)
}

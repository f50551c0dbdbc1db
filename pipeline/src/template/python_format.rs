//! Python's `str.format`.
//!
//! In: a format and its arguments. Out: the text. Fields are named or numbered, may look up items
//! (`{0[a]}`), convert (`{!r}`), and take parts of their format from other fields (`{:>{width}}`).
//! One field with its format is left to minijinja.

use crate::template::python_guards::type_error;
use crate::template::python_operators::{formatted_fits, type_name};
use crate::template::python_text::{python_repr, python_str, text};
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// The arguments of a format, and which of them comes next.
struct Fields<'s, 'a> {
    state: &'s State<'s, 'a>,
    values: Vec<Value>,
    named: Kwargs,
    next: Option<usize>,
    numbered: bool,
}

/// Python's `text.format(…)`.
pub(crate) fn str_format(state: &State, pattern: &str, args: &[Value]) -> Result<String, Error> {
    formatted_fits(state, pattern, pattern.matches('{').count(), args)?;
    let (values, named): (Rest<Value>, Kwargs) = from_args(args)?;
    let values = values.to_vec();
    let mut fields = Fields { state, values, named, next: Some(0), numbered: false };
    fields.filled(pattern, 0)
}

/// The position of the sign that closes a field, whose text begins behind its `{`.
fn field_end(field: &str) -> Option<usize> {
    let mut depth = 0usize;
    field.char_indices().find_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        None
    })
}

impl Fields<'_, '_> {
    fn filled(&mut self, pattern: &str, depth: usize) -> Result<String, Error> {
        if depth > 1 {
            return Err(type_error("Max string recursion exceeded".into()));
        }
        let (mut out, mut rest) = (String::new(), pattern);
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let (sign, behind) = rest[at..].split_at(1);
            if depth == 0 && behind.starts_with(sign) {
                out.push_str(sign);
                rest = &behind[1..];
                continue;
            }
            let end = field_end(behind).filter(|_| sign == "{");
            let end = end.ok_or_else(|| type_error(format!("Single '{sign}' in a format")))?;
            out.push_str(&self.field(&behind[..end], depth)?);
            rest = &behind[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        let brackets = field.find(']').unwrap_or(0);
        let cut = field[brackets..].find(['!', ':']).map_or(field.len(), |n| brackets + n);
        let (name, rest) = field.split_at(cut);
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => match rest.split_once(':') {
                Some((conversion, spec)) => (conversion, spec),
                None => (rest, ""),
            },
            None => ("", rest.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let value = match conversion {
            "" => value,
            "r" => Value::from(python_repr(&value)),
            "s" => Value::from(text(self.state, &value)?),
            other => return Err(type_error(format!("the conversion !{other} is not known"))),
        };
        let spec = self.filled(spec, depth + 1)?;
        match value.kind() {
            _ if spec.is_empty() => text(self.state, &value),
            ValueKind::Number | ValueKind::Bool
                if spec.contains('.') && spec.ends_with(['d', 'x', 'X', 'o', 'b', 'c']) =>
            {
                Err(type_error("Precision not allowed in integer format specifier".into()))
            }
            ValueKind::String | ValueKind::Number | ValueKind::Bool => {
                let number = match value.kind() {
                    // A format makes a number of it.
                    ValueKind::Bool => Value::from(i64::from(value.is_true())),
                    _ => value,
                };
                format(FormatStyle::StrFormat, &format!("{{:{spec}}}"), &[number])
            }
            _ => Err(type_error(format!(
                "unsupported format string passed to {}.__format__",
                type_name(&value)
            ))),
        }
    }

    /// The value of a field `name`, `0` or nothing, with the items that it looks up.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let lookups = name.find(['[', '.']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(lookups);
        let numbered = first.bytes().all(|b| b.is_ascii_digit()) && !first.is_empty();
        let mixed = (numbered && self.next > Some(0)) || (first.is_empty() && self.numbered);
        if mixed {
            return Err(type_error("numbered and other fields in one format".into()));
        }
        let at = match (numbered, first.is_empty()) {
            (true, _) => {
                self.numbered = true;
                first.parse().ok()
            }
            (_, true) => {
                let at = self.next;
                self.next = at.map(|n| n + 1);
                at
            }
            _ => None,
        };
        let mut value = match at {
            Some(n) => self.values.get(n).cloned(),
            None => self.named.get::<Option<Value>>(first)?,
        }
        .ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
        while let Some(item) = rest.strip_prefix('[') {
            let (key, behind) = item.split_once(']').unwrap_or((item, ""));
            let key = key.parse::<usize>().map_or_else(|_| Value::from(key), Value::from);
            value = value.get_item(&key)?;
            if value.is_undefined() {
                return Err(type_error(format!("no item {}", python_str(&key))));
            }
            rest = behind;
        }
        match rest {
            "" => Ok(value),
            _ => Err(type_error(format!("an attribute in a format: {name}"))),
        }
    }
}

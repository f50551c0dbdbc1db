//! Operators whose rules differ between minijinja and Python become calls of functions.
//!
//! In: an expression of a template. Out: the expression with `a % b`, `a < b` and the like as
//! `__mod(a, b)`, `__lt(a, b)`, which `python_operators.rs` defines, without the sign `+`, and with
//! methods that are not called as `__attribute(a, 'items')` (`python_attributes.rs`). Lists, maps
//! and slices get a guard (`python_guards.rs`), as do `~`, `*` and the comparison of two values. An
//! expression that this parser does not know is refused, because it would be without guards.

use crate::template::jinja_check::{is_constant, string_end};
use crate::template::jinja_comparison::{COMPARISONS, Compared, compared};
use crate::template::jinja_lookup::{attribute, indexed, is_looked_up};

/// Nesting at which an expression is refused, so that the stack cannot overflow.
const MAX_DEPTH: usize = 100;

/// The expression in minijinja's dialect.
///
/// # Errors
/// The expression, if it is not understood.
pub(crate) fn rewrite_expression(source: &str) -> Result<String, String> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '|' | ' ' | '\n');
    let mut names = source.split('.').skip(1).map(|part| Parser::name_in(part.trim_start()));
    let known = !source.contains(" in ") && !source.contains("self");
    if source.chars().all(plain) && known && !names.any(is_looked_up) {
        return Ok(source.to_string());
    }
    let lead = source.len() - source.trim_start().len();
    let trail = source.trim_end().len().max(lead);
    let mut p = Parser { source, at: lead, depth: 0, slice: false };
    match p.list(&[]) {
        Some(text) if p.rest().trim().is_empty() => {
            Ok(format!("{}{}{}", &source[..lead], text.trim_end(), &source[trail..]))
        }
        _ => {
            let shown: String = source.trim().chars().take(80).collect();
            Err(format!("an expression is not understood, or nested too deeply: {shown}"))
        }
    }
}

/// A recursive-descent parser of jinja2's expressions; each method gives the rewritten text of what
/// it read, or None if it does not know it.
struct Parser<'a> {
    source: &'a str,
    at: usize,
    depth: usize,
    /// Whether the list that was read last ends in a slice.
    slice: bool,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// White space, as it stands.
    fn space(&mut self) -> &'a str {
        let rest = self.rest();
        let space = &rest[..rest.len() - rest.trim_start().len()];
        self.at += space.len();
        space
    }

    /// What stands behind white space.
    fn peek(&self) -> &'a str {
        self.rest().trim_start()
    }

    /// The name at the start of a text.
    fn name_in(text: &str) -> &str {
        let name = |c: char| c.is_alphanumeric() || c == '_';
        let end = text.find(|c| !name(c)).unwrap_or(text.len());
        if text.starts_with(|c: char| c.is_numeric()) { "" } else { &text[..end] }
    }

    fn peek_name(&self) -> &'a str {
        Self::name_in(self.peek())
    }

    /// Reads a sign or name, with the white space before it, into `out`.
    fn take(&mut self, token: &str, out: &mut String) {
        out.push_str(self.space());
        out.push_str(token);
        self.at += token.len();
    }

    fn take_if(&mut self, token: &str, out: &mut String) -> bool {
        let found = self.peek().starts_with(token);
        if found {
            self.take(token, out);
        }
        found
    }

    /// Expressions with commas between them, up to one of `ends` or to the end.
    fn list(&mut self, ends: &[&str]) -> Option<String> {
        self.values(ends).map(|v| v.0)
    }

    /// Like [`list`](Self::list), with the number of values: 0, 1, or 2 for more than one or a
    /// comma behind it.
    fn values(&mut self, ends: &[&str]) -> Option<(String, usize)> {
        let mut out = String::new();
        let is_map = ends == ["}"];
        let mut values = 0;
        loop {
            let rest = self.peek();
            if ends.iter().any(|e| rest.starts_with(e)) || rest.is_empty() {
                return Some((out, values));
            }
            values = (values + 1).min(2);
            out.push_str(self.space());
            let stars = rest.len() - rest.trim_start_matches('*').len();
            if stars > 0 {
                self.take(&"**"[..stars.min(2)], &mut out);
            }
            let name = Self::name_in(rest);
            let behind = rest[name.len()..].trim_start();
            if !name.is_empty() && behind.starts_with('=') && !behind.starts_with("==") {
                self.take(name, &mut out);
                self.take("=", &mut out);
            }
            if !self.peek().starts_with(':') {
                let value = self.condition()?;
                match is_map && !is_constant(&value) {
                    true => out.push_str(&format!("(({value})|__key)")),
                    false => out.push_str(&value),
                }
            }
            // A slice, or the value of a key.
            let mut slice = false;
            while self.take_if(":", &mut out) {
                slice = true;
                if !self.peek().starts_with([':', ']', ',']) {
                    out.push_str(self.space());
                    out.push_str(&self.condition()?);
                }
            }
            self.slice = slice;
            if !self.take_if(",", &mut out) {
                return Some((out, values));
            }
            values = 2;
        }
    }

    /// `a if b else c`.
    fn condition(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut out = self.logic()?;
        while self.peek_name() == "if" {
            self.take("if", &mut out);
            out.push_str(self.space());
            out.push_str(&self.logic()?);
            if self.peek_name() == "else" {
                self.take("else", &mut out);
                out.push_str(self.space());
                out.push_str(&self.condition()?);
            }
        }
        self.depth -= 1;
        Some(out)
    }

    /// `a or not b and c`.
    fn logic(&mut self) -> Option<String> {
        let mut out = String::new();
        loop {
            out.push_str(self.space());
            while self.peek_name() == "not" {
                self.take("not", &mut out);
                out.push_str(self.space());
            }
            out.push_str(&self.comparison()?);
            match self.peek_name() {
                word @ ("and" | "or") => self.take(word, &mut out),
                _ => return Some(out),
            }
        }
    }

    /// `a < b`, `a in b`.
    fn comparison(&mut self) -> Option<String> {
        let first = self.sum()?;
        let mut parts: Vec<Compared> = Vec::new();
        loop {
            let mut operator = String::new();
            let function = match self.peek_name() {
                "in" => {
                    self.take("in", &mut operator);
                    "__in"
                }
                "not" => {
                    self.take("not", &mut operator);
                    if self.peek_name() != "in" {
                        return None;
                    }
                    self.take("in", &mut operator);
                    "not __in"
                }
                _ => {
                    let sign = COMPARISONS.iter().find(|c| self.peek().starts_with(c.0));
                    let Some((sign, function)) = sign else { break };
                    self.take(sign, &mut operator);
                    function
                }
            };
            operator.push_str(self.space());
            parts.push((function, operator, self.sum()?));
        }
        compared(first, &parts)
    }

    /// `a + b - c`.
    fn sum(&mut self) -> Option<String> {
        let mut out = self.concatenation()?;
        while let Some(sign) = ["+", "-"].into_iter().find(|s| self.peek().starts_with(s)) {
            self.take(sign, &mut out);
            out.push_str(self.space());
            out.push_str(&self.concatenation()?);
        }
        Some(out)
    }

    /// `a ~ b ~ c`.
    fn concatenation(&mut self) -> Option<String> {
        let first = self.product()?;
        let mut more = Vec::new();
        while self.take_if("~", &mut String::new()) {
            self.space();
            more.push(self.product()?);
        }
        Some(match more.is_empty() {
            true => first,
            false => format!("(({})|__cat({}))", first.trim(), more.join(", ")),
        })
    }

    /// `a * b % c`.
    fn product(&mut self) -> Option<String> {
        let mut out = self.power()?;
        let signs = ["//", "*", "/", "%"];
        let mut repeats = false;
        while let Some(sign) = signs.into_iter().find(|s| self.peek().starts_with(s)) {
            repeats |= sign == "*";
            if sign == "%" {
                self.take("%", &mut String::new());
                self.space();
                out = format!("__mod({}, {})", out.trim_end(), self.power()?);
            } else {
                self.take(sign, &mut out);
                out.push_str(self.space());
                out.push_str(&self.power()?);
            }
        }
        Some(if repeats { format!("(({})|__own)", out.trim()) } else { out })
    }

    /// `a ** b`.
    fn power(&mut self) -> Option<String> {
        let mut out = self.unary(true)?;
        while self.take_if("**", &mut out) {
            out.push_str(self.space());
            out.push_str(&self.unary(true)?);
        }
        Some(out)
    }

    /// `-a`, `+a`, `a.b[c](d)|e is f`.
    fn unary(&mut self, with_filters: bool) -> Option<String> {
        let mut out = String::new();
        match self.peek().chars().next()? {
            '-' => {
                self.take("-", &mut out);
                out.push_str(self.space());
                out.push_str(&self.unary(false)?);
                out = format!("({out})");
            }
            '+' => {
                self.take("+", &mut String::new());
                self.space();
                out = format!("(({})|__pos)", self.unary(false)?);
            }
            _ => out.push_str(&self.primary()?),
        }
        self.postfix(&mut out)?;
        if with_filters {
            self.filters(&mut out)?;
        }
        Some(out)
    }

    fn primary(&mut self) -> Option<String> {
        let mut out = self.space().to_string();
        let rest = self.rest();
        match rest.chars().next()? {
            '"' | '\'' => loop {
                out.push_str(self.string()?);
                if !self.peek().starts_with(['"', '\'']) {
                    return Some(out);
                }
                out.push_str(self.space());
            },
            open @ ('(' | '[' | '{') => {
                let (open, close) = match open {
                    '(' => ("(", ")"),
                    '[' => ("[", "]"),
                    _ => ("{", "}"),
                };
                let mut literal = String::new();
                let values = self.brackets(open, close, &mut literal)?;
                match (open != "(" || values != 1) && !is_constant(&literal) {
                    true => out.push_str(&format!("({literal}|__box)")),
                    false => out.push_str(&literal),
                }
            }
            c if c.is_ascii_digit() => {
                let number = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
                let end = rest.find(|c| !number(c)).unwrap_or(rest.len());
                let mut number = &rest[..end];
                if number.ends_with(['e', 'E']) && rest[end..].starts_with(['+', '-']) {
                    let digits = &rest[end + 1..];
                    let more = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                    number = &rest[..end + 1 + more];
                }
                out.push_str(number);
                self.at += number.len();
            }
            _ => match Self::name_in(rest) {
                "" | "if" | "else" | "and" | "or" | "not" | "in" | "is" => return None,
                // The blocks of a template.
                "self" if !rest[4..].trim_start().starts_with('.') => return None,
                name => {
                    out.push_str(name);
                    self.at += name.len();
                }
            },
        }
        Some(out)
    }

    fn string(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let end = string_end(rest)?;
        self.at += end;
        Some(&rest[..end])
    }

    /// What stands in brackets, and the brackets. The number of values in them, 0 for none and 2
    /// for more than one or a comma behind it.
    fn brackets(&mut self, open: &str, close: &str, out: &mut String) -> Option<usize> {
        self.take(open, out);
        let (inside, values) = self.values(&[close])?;
        out.push_str(&inside);
        self.take_if(close, out).then_some(values)
    }

    fn postfix(&mut self, out: &mut String) -> Option<()> {
        loop {
            match self.peek().chars().next() {
                Some('.') => {
                    self.take(".", out);
                    out.push_str(self.space());
                    let rest = self.rest();
                    let end = rest
                        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                        .unwrap_or(rest.len());
                    if end == 0 {
                        return None;
                    }
                    out.push_str(&rest[..end]);
                    self.at += end;
                    let next = self.peek();
                    let assigned = next.starts_with('=') && !next.starts_with("==");
                    if !next.starts_with('(') && !assigned {
                        attribute(out, &rest[..end])?;
                    }
                }
                Some('[') => {
                    let mut index = String::new();
                    self.take("[", &mut index);
                    self.slice = false;
                    let inside = self.list(&["]"])?;
                    let slice = self.slice;
                    self.take_if("]", &mut String::new()).then_some(())?;
                    indexed(out, &inside, slice);
                }
                Some('(') => {
                    self.brackets("(", ")", out)?;
                }
                _ => return Some(()),
            }
        }
    }

    fn filters(&mut self, out: &mut String) -> Option<()> {
        loop {
            if self.take_if("|", out) {
                let name = self.peek_name();
                if name.is_empty() {
                    return None;
                }
                self.take(name, out);
                while self.take_if(".", out) {
                    self.take(self.peek_name(), out);
                }
                if self.peek().starts_with('(') {
                    self.brackets("(", ")", out)?;
                }
            } else if self.peek_name() == "is" {
                self.take("is", out);
                if self.peek_name() == "not" {
                    self.take("not", out);
                }
                let name = self.peek_name();
                if name.is_empty() {
                    return None;
                }
                self.take(name, out);
                match self.peek().chars().next() {
                    Some('(') => {
                        self.brackets("(", ")", out)?;
                    }
                    Some('[' | '{' | '"' | '\'') => {
                        out.push_str(&self.primary()?);
                        self.postfix(out)?;
                    }
                    Some(c) if c.is_alphanumeric() || c == '_' => {
                        let next = self.peek_name();
                        if !["else", "or", "and", "if", "is", "in", "not"].contains(&next) {
                            out.push_str(&self.primary()?);
                            self.postfix(out)?;
                        }
                    }
                    _ => {}
                }
            } else {
                return Some(());
            }
        }
    }
}

//! Operators whose rules differ between minijinja and Python become calls of functions.
//!
//! In: an expression of a template. Out: the expression with `a % b`, `a < b` and the like as
//! `__mod(a, b)`, `__lt(a, b)`, which `python_operators.rs` defines, without the sign `+`, and with
//! methods that are not called as `__attribute(a, 'items')` (`python_attributes.rs`). An expression
//! that this parser does not know stays as it is.

use crate::template::python_attributes::is_method_name;

/// Comparisons and the functions that replace them.
const COMPARISONS: [(&str, &str); 6] =
    [("<=", "__le"), (">=", "__ge"), ("<", "__lt"), (">", "__gt"), ("==", ""), ("!=", "")];

/// Nesting at which an expression stays as it is, so that the stack cannot overflow.
const MAX_DEPTH: usize = 100;

/// The expression in minijinja's dialect.
pub(crate) fn rewrite_expression(source: &str) -> String {
    let names = source.split('.').skip(1).map(|part| Parser::name_in(part.trim_start()));
    let needed = source.contains(['%', '<', '>', '+'])
        || source.contains(" in ")
        || names.into_iter().any(is_method_name);
    if !needed {
        return source.to_string();
    }
    let lead = source.len() - source.trim_start().len();
    let trail = source.trim_end().len().max(lead);
    let mut p = Parser { source, at: lead, depth: 0 };
    match p.list(&[]) {
        Some(text) if p.rest().trim().is_empty() => {
            format!("{}{}{}", &source[..lead], text.trim_end(), &source[trail..])
        }
        _ => source.to_string(),
    }
}

/// A recursive-descent parser of jinja2's expressions; each method gives the rewritten text of what
/// it read, or None if it does not know it.
struct Parser<'a> {
    source: &'a str,
    at: usize,
    depth: usize,
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
        let mut out = String::new();
        loop {
            let rest = self.peek();
            if ends.iter().any(|e| rest.starts_with(e)) || rest.is_empty() {
                return Some(out);
            }
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
                out.push_str(&self.condition()?);
            }
            // A slice, or the value of a key.
            while self.take_if(":", &mut out) {
                if !self.peek().starts_with([':', ']', ',']) {
                    out.push_str(self.space());
                    out.push_str(&self.condition()?);
                }
            }
            if !self.take_if(",", &mut out) {
                return Some(out);
            }
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
        // The function that replaces an operator, the operator and its right operand.
        let mut parts: Vec<(&str, String, String)> = Vec::new();
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
        if let [(function, _, operand)] = &parts[..]
            && !function.is_empty()
        {
            let call = format!("{function}({}, {operand})", first.trim_end());
            return Some(if function.starts_with("not") { format!("({call})") } else { call });
        }
        Some(parts.into_iter().fold(first, |out, part| out + &part.1 + &part.2))
    }

    /// `a + b - c ~ d`.
    fn sum(&mut self) -> Option<String> {
        let mut out = self.product()?;
        while let Some(sign) = ["+", "-", "~"].into_iter().find(|s| self.peek().starts_with(s)) {
            self.take(sign, &mut out);
            out.push_str(self.space());
            out.push_str(&self.product()?);
        }
        Some(out)
    }

    /// `a * b % c`.
    fn product(&mut self) -> Option<String> {
        let mut out = self.power()?;
        let signs = ["//", "*", "/", "%"];
        while let Some(sign) = signs.into_iter().find(|s| self.peek().starts_with(s)) {
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
        Some(out)
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
                out = self.unary(false)?;
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
            '(' => self.brackets("(", ")", &mut out)?,
            '[' => self.brackets("[", "]", &mut out)?,
            '{' => self.brackets("{", "}", &mut out)?,
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
        let quote = rest.chars().next()?;
        let mut escaped = false;
        let end = rest[1..].find(|c| {
            let end = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            end
        })?;
        self.at += end + 2;
        Some(&rest[..end + 2])
    }

    fn brackets(&mut self, open: &str, close: &str, out: &mut String) -> Option<()> {
        self.take(open, out);
        out.push_str(&self.list(&[close])?);
        self.take_if(close, out).then_some(())
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
                    if is_method_name(&rest[..end]) && !next.starts_with('(') && !assigned {
                        let (of, name) = out.rsplit_once('.')?;
                        *out = format!("__attribute({of}, '{}')", name.trim());
                    }
                }
                Some('[') => self.brackets("[", "]", out)?,
                Some('(') => self.brackets("(", ")", out)?,
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
                    Some('(') => self.brackets("(", ")", out)?,
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

//! Expressions of templates, rewritten before parsing so that operators, filters and methods go
//! through functions of ours: minijinja has no hooks for them, but its strings must stay within
//! limits, and some of its operators are not Jinja's.
//!
//! `a + b`, `a ~ b`, `a * b` and `a % b` become calls; what a filter or method gives is passed
//! through a filter that counts its size. The arithmetic operators bind tighter than everything
//! that stands between two runs of them (comparisons, `and`, commas, keywords), so only their
//! precedence has to be known here. Everything else stays as it is written.

/// The function that each operator becomes.
const FUNCTIONS: [(&str, &str); 4] = [("+", ADD), ("~", CONCAT), ("*", MULTIPLY), ("%", REMAINDER)];
pub(super) const ADD: &str = "hone_add";
pub(super) const CONCAT: &str = "hone_concat";
pub(super) const MULTIPLY: &str = "hone_multiply";
pub(super) const REMAINDER: &str = "hone_remainder";
/// The filter that counts what was made.
pub(super) const SIZED: &str = "hone_sized";

/// Binary operators with their precedence, longer ones first.
const OPERATORS: [(&str, u8); 8] =
    [("**", 4), ("//", 3), ("*", 3), ("/", 3), ("%", 3), ("~", 2), ("+", 1), ("-", 1)];
const KEYWORDS: [&str; 8] = ["if", "elif", "else", "in", "and", "or", "not", "is"];

/// A whole `{{ … }}` or `{% … %}`.
pub(super) fn rewrite(piece: &str) -> String {
    let is_tag = piece.starts_with("{%");
    let end = if is_tag { "%}" } else { "}}" };
    let Some(body) = piece.get(2..).and_then(|rest| rest.strip_suffix(end)) else {
        return piece.to_owned();
    };
    let start = usize::from(body.starts_with(['-', '+']));
    let stop = body.len() - usize::from(body.len() > start && body.ends_with(['-', '+']));
    let mut rewriter = Rewriter { text: &body[start..stop], at: 0 };
    let mut out = format!("{}{}", &piece[..2], &body[..start]);
    if is_tag {
        out += rewriter.space();
        out += rewriter.name();
    }
    out += &rewriter.sequence();
    // A bracket that closes nothing ends a sequence; minijinja says what is wrong with it.
    out + &body[start + rewriter.at..] + end
}

struct Rewriter<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Rewriter<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, num_bytes: usize) -> &'a str {
        let taken = &self.rest()[..num_bytes];
        self.at += num_bytes;
        taken
    }

    fn next_char(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn space(&mut self) -> &'a str {
        self.take(self.rest().len() - self.rest().trim_start().len())
    }

    /// A name or number; empty where there is none.
    fn name(&mut self) -> &'a str {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        self.take(self.rest().find(|c| !is_part(c)).unwrap_or(self.rest().len()))
    }

    fn next_name(&self) -> &'a str {
        Rewriter { ..*self }.name()
    }

    /// Everything up to the bracket that closes the present one, or the end.
    fn sequence(&mut self) -> String {
        let mut out = String::new();
        loop {
            out += self.space();
            match self.next_char() {
                None | Some(')' | ']' | '}') => return out,
                Some(c) => match self.arithmetic(0) {
                    Some(text) => out += &text,
                    None if self.next_name().is_empty() => out += self.take(c.len_utf8()),
                    None => out += self.name(),
                },
            }
        }
    }

    /// Operands joined by operators of at least this precedence.
    fn arithmetic(&mut self, precedence: u8) -> Option<String> {
        let mut left = self.operand(true)?;
        loop {
            let start = self.at;
            self.space();
            let found = OPERATORS.iter().find(|(op, _)| self.rest().starts_with(op));
            let Some((op, _)) = found.filter(|(_, binds)| *binds > precedence) else {
                self.at = start;
                return Some(left);
            };
            self.take(op.len());
            self.space();
            let Some(right) = self.arithmetic(found?.1) else {
                self.at = start;
                return Some(left);
            };
            left = match FUNCTIONS.iter().find(|(name, _)| name == op) {
                Some((_, function)) => format!("{function}({left}, {right})"),
                None => format!("({left} {op} {right})"),
            };
        }
    }

    /// A value with its attributes, calls and (where asked) filters and tests.
    fn operand(&mut self, with_filters: bool) -> Option<String> {
        let start = self.at;
        let mut minus = String::new();
        while self.next_char() == Some('-') {
            minus += self.take(1);
            minus += self.space();
        }
        let Some(value) = self.primary() else {
            self.at = start;
            return None;
        };
        let value = minus + &self.postfix(value);
        Some(if with_filters { self.filters(value) } else { value })
    }

    fn primary(&mut self) -> Option<String> {
        match self.next_char()? {
            quote @ ('"' | '\'') => {
                let mut text = self.string(quote).to_owned();
                let start = self.at;
                let space = self.space();
                match self.next_char() {
                    Some('"' | '\'') => text = text + space + &self.primary()?,
                    _ => self.at = start,
                }
                Some(text)
            }
            '(' | '[' | '{' => Some(self.bracket()),
            c if c.is_alphanumeric() || c == '_' => {
                if KEYWORDS.contains(&self.next_name()) {
                    return None;
                }
                let mut text = self.name().to_owned();
                let is_fraction = self.rest().strip_prefix('.').is_some_and(begins_with_digit);
                if c.is_ascii_digit() && is_fraction {
                    text += self.take(1);
                    text += self.name();
                }
                let has_exponent = c.is_ascii_digit() && text.ends_with(['e', 'E']);
                if has_exponent && self.rest().starts_with(['-', '+']) {
                    text += self.take(1);
                    text += self.name();
                }
                Some(text)
            }
            _ => None,
        }
    }

    fn string(&mut self, quote: char) -> &'a str {
        let mut is_escaped = true;
        let end = self.rest().find(|c| {
            let is_end = c == quote && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        self.take(end.map_or(self.rest().len(), |end| end + 1))
    }

    /// A bracket with what it holds.
    fn bracket(&mut self) -> String {
        let mut out = self.take(1).to_owned();
        out += &self.sequence();
        out + self.take(self.next_char().map_or(0, char::len_utf8))
    }

    fn postfix(&mut self, mut value: String) -> String {
        let mut is_method = false;
        loop {
            let start = self.at;
            self.space();
            match self.next_char() {
                Some('.') => {
                    value += self.take(1);
                    self.space();
                    value += self.name();
                    is_method = true;
                    continue;
                }
                Some('(') if is_method => value = format!("({value}{}|{SIZED})", self.bracket()),
                Some('(' | '[') => value += &self.bracket(),
                _ => {
                    self.at = start;
                    return value;
                }
            }
            is_method = false;
        }
    }

    fn filters(&mut self, mut value: String) -> String {
        loop {
            let start = self.at;
            self.space();
            if self.rest().starts_with('|') {
                self.take(1);
                value += &format!("|{}|{SIZED}", self.filter_name());
            } else if self.next_name() == "is" {
                self.name();
                value += &format!(" is {}", self.test());
            } else {
                self.at = start;
                return value;
            }
        }
    }

    fn filter_name(&mut self) -> String {
        self.space();
        let mut name = self.name().to_owned();
        while self.rest().starts_with('.') {
            name += self.take(1);
            name += self.name();
        }
        let start = self.at;
        self.space();
        match self.next_char() {
            Some('(') => name + &self.bracket(),
            _ => {
                self.at = start;
                name
            }
        }
    }

    fn test(&mut self) -> String {
        self.space();
        let negation = if self.next_name() == "not" { self.take(3) } else { "" };
        let test = self.filter_name();
        let start = self.at;
        self.space();
        let argument = match test.ends_with(')') || self.next_char() == Some('(') {
            true => None,
            false => self.operand(false),
        };
        match argument {
            Some(argument) => format!("{negation} {test} {argument}"),
            None => {
                self.at = start;
                format!("{negation} {test}")
            }
        }
    }
}

fn begins_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn operators_filters_and_methods_become_calls() {
        for (source, want) in [
            ("{{ a }}", "{{ a }}"),
            ("{%- if x == 'a~b' -%}", "{%- if x == 'a~b' -%}"),
            ("{{- a ~ b + c -}}", "{{- hone_add(hone_concat(a, b), c) -}}"),
            ("{{ 1 - -x[a+1:] // 2 }}", "{{ (1 - (-x[hone_add(a, 1):] // 2)) }}"),
            ("{{ a|f('x' ~ y) ~ b }}", "{{ hone_concat(a|f(hone_concat('x', y))|hone_sized, b) }}"),
            ("{{ a.b.c(d).e }}", "{{ (a.b.c(d)|hone_sized).e }}"),
            ("{% set ns.s = ns.s ~ -1 %}", "{% set ns.s = hone_concat(ns.s, -1) %}"),
            ("{% for a, b in -c if a is not none %}", "{% for a, b in -c if a is not none %}"),
            (
                "{% if i % 2 == 0 and not a + b %}",
                "{% if hone_remainder(i, 2) == 0 and not hone_add(a, b) %}",
            ),
            ("{{ a is divisibleby 3 ~ b }}", "{{ hone_concat(a is  divisibleby 3, b) }}"),
            ("{% macro f(a, b=1.5 * 2) %}", "{% macro f(a, b=hone_multiply(1.5, 2)) %}"),
            ("{{ f(*a, **b) }}", "{{ f(*a, **b) }}"),
            ("{{ a + }}", "{{ a + }}"),
            ("{{ a) + b }}", "{{ a) + b }}"),
            ("{% endif", "{% endif"),
        ] {
            assert_eq!(rewrite(source).replace(" is  ", " is "), want.replace(" is  ", " is "));
        }
    }
}

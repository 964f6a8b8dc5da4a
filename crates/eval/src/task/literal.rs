//! Lists, tuples, strings and numbers as Python writes them: what `ast.literal_eval` reads of a
//! template's output.

use serde_json::{Number, Value};

/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// The value of a text that is one literal; `None` of others.
pub fn parse(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text.trim_start_matches([' ', '\t']) };
    let value = reader.value(0)?;
    reader.space();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.space();
        match self.rest.chars().next()? {
            '[' | '(' => self.list(depth),
            '"' | '\'' => {
                let mut text = self.string()?;
                // Strings side by side are one.
                loop {
                    let before = self.rest;
                    self.space();
                    if !self.rest.starts_with(['"', '\'']) {
                        self.rest = before;
                        return Some(Value::String(text));
                    }
                    text += &self.string()?;
                }
            }
            _ => self.word(),
        }
    }

    fn list(&mut self, depth: usize) -> Option<Value> {
        let (is_tuple, mut items, mut ends_with_comma) = (self.take("("), Vec::new(), false);
        let end = if is_tuple { ")" } else { "]" };
        self.take("[");
        loop {
            self.space();
            if self.take(end) {
                break;
            }
            items.push(self.value(depth + 1)?);
            self.space();
            ends_with_comma = self.take(",");
            if !ends_with_comma {
                self.space();
                self.take(end).then_some(())?;
                break;
            }
        }
        match (is_tuple, items.len(), ends_with_comma) {
            // Parentheses alone.
            (true, 1, false) => items.pop(),
            _ => Some(Value::Array(items)),
        }
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next()?;
        self.rest = &self.rest[1..];
        let mut text = String::new();
        loop {
            let c = self.rest.chars().next()?;
            self.rest = &self.rest[c.len_utf8()..];
            match c {
                c if c == quote => return Some(text),
                '\n' => return None,
                '\\' => self.escape(&mut text)?,
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        let hex = |len: usize, reader: &mut Self| {
            let digits = reader.rest.get(..len)?;
            reader.rest = &reader.rest[len..];
            char::from_u32(u32::from_str_radix(digits, 16).ok()?)
        };
        match c {
            'n' => text.push('\n'),
            't' => text.push('\t'),
            'r' => text.push('\r'),
            '0'..='7' => {
                let more =
                    self.rest.bytes().take(2).take_while(|c| (b'0'..b'8').contains(c)).count();
                let digits: String = std::iter::once(c).chain(self.rest[..more].chars()).collect();
                self.rest = &self.rest[more..];
                text.push(char::from_u32(u32::from_str_radix(&digits, 8).ok()?)?);
            }
            'x' => text.push(hex(2, self)?),
            'u' => text.push(hex(4, self)?),
            'U' => text.push(hex(8, self)?),
            '\\' | '\'' | '"' => text.push(c),
            '\n' => {}
            c => text.extend(['\\', c]),
        }
        Some(())
    }

    fn word(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || ['.', '+', '-', '_'].contains(&c);
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "None" => return Some(Value::Null),
            "True" => return Some(Value::Bool(true)),
            "False" => return Some(Value::Bool(false)),
            _ => {}
        }
        let is_number =
            word.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit());
        match word.parse::<i64>() {
            _ if !is_number => None,
            Ok(number) => Some(number.into()),
            Err(_) => word.parse().ok().and_then(Number::from_f64).map(Value::Number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_as_python_reads_them() {
        for (text, want) in [
            (r#"['a', "b's", 'c\'d\n']"#, json!(["a", "b's", "c'd\n"])),
            ("[1, -2.5, True, None,]", json!([1, -2.5, true, null])),
            ("('a', ['b'])", json!(["a", ["b"]])),
            ("('a')", json!("a")),
            ("('a',)", json!(["a"])),
            (r"['\x41' 'é\u00e9']", json!(["Aéé"])),
            (r"['\0', '\012', '\1018']", json!(["\0", "\n", "A8"])),
        ] {
            assert_eq!(parse(text), Some(want), "{text}");
        }
        for text in ["", "[", "['a'", "[a]", "['a'] b", "[1 2]", &"[".repeat(99)] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

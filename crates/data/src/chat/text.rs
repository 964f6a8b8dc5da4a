//! Templates of texts over a record's fields, as evaluation tasks have them: the same environment
//! and limits as for chats, but white space stays as it is written and an unknown field is an
//! error.

use super::{Limited, describe_plainly, environment, generation, limits, unix_lines};
use fancy_regex::{Captures, Regex, RegexBuilder};
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const TEXT: &str = "text";
const VALUE: &str = "value";

/// Steps of backtracking after which a pattern is given up.
const MAX_BACKTRACKING: usize = 1 << 20;

/// A template of a text, compiled.
pub struct TextTemplate {
    environment: Environment<'static>,
    /// Whether it is one expression, whose value may be asked for.
    is_expression: bool,
}

impl TextTemplate {
    /// Compiles a template. The error says what is wrong with it.
    pub fn new(source: &str) -> Result<Self, String> {
        let mut environment = environment::for_texts();
        environment.add_filter("regex_replace", regex_replace);
        let (text, _) = generation::rewrite(&unix_lines(source));
        let expression = expression(&text).map(|of| format!("{{{{ ({of}) | tojson }}}}"));
        let added = environment.add_template_owned(TEXT, text);
        added.map_err(|error| describe_plainly(&error))?;
        let is_expression = expression
            .is_some_and(|expression| environment.add_template_owned(VALUE, expression).is_ok());
        Ok(Self { environment, is_expression })
    }

    /// The text for a record. The error says what the template refused.
    pub fn render(&self, fields: &Map<String, Value>) -> Result<String, String> {
        self.rendered(TEXT, fields)
    }

    /// The value of a template that is one expression, such as `{{choices.text}}`; `None` of
    /// others.
    pub fn value(&self, fields: &Map<String, Value>) -> Option<Result<Value, String>> {
        self.is_expression.then(|| {
            let text = self.rendered(VALUE, fields)?;
            serde_json::from_str(&text).map_err(|error| error.to_string())
        })
    }

    /// Names that the template asks for: fields of a record.
    pub fn variables(&self) -> BTreeSet<String> {
        let template = self.environment.get_template(TEXT);
        let names = template.map(|template| template.undeclared_variables(false));
        names.unwrap_or_default().into_iter().filter(|name| !self.is_global(name)).collect()
    }

    /// Whether a name is a function's.
    fn is_global(&self, name: &str) -> bool {
        self.environment.globals().any(|(global, _)| global == name)
    }

    fn rendered(&self, name: &str, fields: &Map<String, Value>) -> Result<String, String> {
        let template = self.environment.get_template(name).map_err(|e| describe_plainly(&e))?;
        let mut output = Limited(Vec::new());
        limits::begin();
        let rendered = template.render_captured_to(Serde(fields), &mut output);
        rendered.map_err(|error| describe_plainly(&error))?;
        String::from_utf8(output.0).map_err(|error| error.to_string())
    }
}

/// What is between the braces of a template that is one expression.
fn expression(text: &str) -> Option<&str> {
    let inner = text.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let inner = inner.strip_prefix('-').unwrap_or(inner);
    let inner = inner.strip_suffix('-').unwrap_or(inner);
    let is_one = !["{{", "}}", "{%", "%}", "{#"].iter().any(|mark| inner.contains(mark));
    is_one.then_some(inner)
}

/// A pattern as Python's `re` has it, with a bound on backtracking. The error says what is wrong.
pub fn python_regex(pattern: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(&as_rust_has_it(pattern));
    let regex = builder.backtrack_limit(MAX_BACKTRACKING).delegate_size_limit(8 << 20).build();
    regex.map_err(|error| format!("`{pattern}` is not a regular expression: {error}"))
}

/// In Python `\Z` is the very end, `$` may be before a last newline, `\<` and `\>` are characters,
/// a class may begin with `]`, and has no sets in it.
fn as_rust_has_it(pattern: &str) -> String {
    let has_lines = has_lines(pattern);
    let (mut out, mut in_class) = (String::new(), false);
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('Z') if !in_class => out.push_str("\\z"),
                Some(plain @ ('<' | '>')) => out.push(plain),
                escaped => out.extend(std::iter::once(c).chain(escaped)),
            },
            '$' if !in_class && !has_lines => out.push_str("(?=\\n?\\z)"),
            '[' if !in_class => {
                in_class = true;
                out.push(c);
                out.extend(chars.next_if_eq(&'^'));
                if chars.next_if_eq(&']').is_some() {
                    out.push_str("\\]");
                }
            }
            '[' => out.push_str("\\["),
            // Two of them would be an operator of sets.
            '&' | '~' if in_class => out.extend(['\\', c]),
            '-' if in_class && chars.peek() == Some(&'-') => out.push_str("\\-"),
            c => {
                in_class &= c != ']';
                out.push(c);
            }
        }
    }
    out
}

/// Whether flags at the beginning of a group, such as `(?im)`, have `m`.
fn has_lines(pattern: &str) -> bool {
    pattern.split("(?").skip(1).any(|flags| {
        let end = flags.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(flags.len());
        flags[..end].contains('m') && flags[end..].starts_with([')', ':', '-'])
    })
}

/// Python's `re.sub`; `count` 0 replaces all. The error says what is wrong with the replacement,
/// or that the pattern was given up.
pub fn python_sub(regex: &Regex, with: &str, text: &str, count: usize) -> Result<String, String> {
    let (mut out, mut end) = (String::with_capacity(text.len()), 0);
    for (n, found) in regex.captures_iter(text).enumerate() {
        if count > 0 && n == count {
            break;
        }
        let found = found.map_err(|error| error.to_string())?;
        let Some(whole) = found.get(0) else { continue };
        out.push_str(&text[end..whole.start()]);
        expand(with, &found, &mut out)?;
        if out.len() > super::MAX_OUTPUT_BYTES {
            return Err(format!("more than {} bytes", super::MAX_OUTPUT_BYTES));
        }
        end = whole.end();
    }
    out.push_str(&text[end..]);
    Ok(out)
}

/// A replacement as Python writes it: `\1`, `\g<name>` and escapes.
fn expand(with: &str, found: &Captures<'_>, out: &mut String) -> Result<(), String> {
    let mut rest = with;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { return Err("ends with a backslash".to_owned()) };
        rest = &rest[c.len_utf8()..];
        let group = match c {
            '1'..='9' => {
                let second = rest.chars().next().filter(char::is_ascii_digit);
                rest = &rest[usize::from(second.is_some())..];
                let digits: String = std::iter::once(c).chain(second).collect();
                found.get(digits.parse().unwrap_or(usize::MAX))
            }
            'g' => {
                let name = rest.strip_prefix('<').and_then(|rest| rest.split_once('>'));
                let Some((name, after)) = name else { return Err("`\\g` lacks a name".into()) };
                rest = after;
                match name.parse() {
                    Ok(number) => found.get(number),
                    Err(_) => found.name(name),
                }
            }
            _ => {
                match c {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    '\\' => out.push('\\'),
                    c if c.is_ascii_alphanumeric() => {
                        return Err(format!("unknown escape `\\{c}`"));
                    }
                    c => out.extend(['\\', c]),
                }
                continue;
            }
        };
        out.push_str(group.map_or("", |group| group.as_str()));
    }
    out.push_str(rest);
    Ok(())
}

/// lm-evaluation-harness's filter: `re.sub(pattern, repl, string, count)`.
fn regex_replace(
    text: &str,
    pattern: Option<String>,
    with: Option<String>,
    count: Option<usize>,
    kwargs: Kwargs,
) -> Result<Jinja, Error> {
    let given = |value: Option<String>, name: &'static str| match value {
        Some(value) => Ok(value),
        None => kwargs.get(name),
    };
    let (pattern, with) = (given(pattern, "pattern")?, given(with, "repl")?);
    let count = count.or(kwargs.get("count")?).unwrap_or(0);
    kwargs.assert_all_used()?;
    let replaced = python_regex(&pattern).and_then(|regex| python_sub(&regex, &with, text, count));
    let replaced = replaced.map_err(|what| {
        Error::new(ErrorKind::InvalidOperation, format!("regex_replace: {what}"))
    })?;
    Ok(Jinja::from(replaced))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields() -> Map<String, Value> {
        let fields = json!({
            "question": " What? ",
            "text": "one two three",
            "choices": { "text": ["a's", "b \"c\"", "d\n"], "label": ["A", "B", "C"] },
            "key": "C", "label": 1, "share": 0.5, "flag": true, "none": null,
        });
        fields.as_object().unwrap().clone()
    }

    /// Templates of lm-evaluation-harness's tasks, and what Jinja2 3.1 gives.
    #[test]
    fn texts_as_python_has_them() {
        for (source, want) in [
            ("Question: {{question}}\nAnswer:", "Question:  What? \nAnswer:"),
            ("{{question.strip()}}\n", "What?\n"),
            ("{{text.split(' ')[:-1]|join(' ')}}", "one two"),
            ("{{' '+text.split(' ')[-1]}}", " three"),
            ("{{choices.label.index(key)}}", "2"),
            ("{{label}} {{share}} {{flag}} {{none}}", "1 0.5 True None"),
            ("  {% if flag %}\n x {% endif %}\n", "  \n x \n"),
            ("{{text|regex_replace('o(n)', '<\\\\1>')}}", "<n>e two three"),
            ("{{['no', 'yes'][label]}}{{question[1:5]}}", "yesWhat"),
            ("{{missing is defined}}{{none is none}}", "FalseTrue"),
        ] {
            let found = TextTemplate::new(source).unwrap().render(&fields());
            assert_eq!(found.as_deref(), Ok(want), "{source}");
        }
    }

    #[test]
    fn an_expression_has_a_value() {
        let value = |source: &str| {
            TextTemplate::new(source).unwrap().value(&fields()).map(|value| value.unwrap())
        };
        assert_eq!(value("{{choices.text}}"), Some(json!(["a's", "b \"c\"", "d\n"])));
        assert_eq!(value("{{ [text, key] }}"), Some(json!(["one two three", "C"])));
        assert_eq!(value("{{text}} {{key}}"), None);
        assert_eq!(value("text"), None);
    }

    #[test]
    fn a_missing_field_is_named() {
        for source in ["{{missing}}", "{{missing.strip()}}", "{{choices.missing[0]}}"] {
            let error = TextTemplate::new(source).unwrap().render(&fields()).unwrap_err();
            assert!(error.contains("undefined"), "{source}: {error}");
        }
    }

    #[test]
    fn substitutions_as_python_has_them() {
        let sub = |pattern: &str, with: &str, text: &str, count| {
            python_sub(&python_regex(pattern)?, with, text, count)
        };
        assert_eq!(sub("(?s).*#### ", "", "a\n#### 7", 0).as_deref(), Ok("7"));
        assert_eq!(sub(r"\.$", "", "1.5.\n", 0).as_deref(), Ok("1.5\n"));
        assert_eq!(sub(r"\.\Z|[$]", "", "$1.\n", 0).as_deref(), Ok("1.\n"));
        assert_eq!(sub("a", "b", "aaa", 2).as_deref(), Ok("bba"));
        assert_eq!(sub(r"(?P<x>a)(b)", r"\2\g<x>\n", "ab", 0).as_deref(), Ok("ba\n"));
        let tagged = "<answer>5</answer>";
        assert_eq!(sub(r"\<answer\>(.*?)\</answer\>", r"\1", tagged, 0).as_deref(), Ok("5"));
        assert_eq!(
            sub("(?im)^answer: (.*)$", r"\1", "so\nAnswer: 5\n!", 0).as_deref(),
            Ok("so\n5\n!")
        );
        assert_eq!(sub(r"[]$]|[\<>]", "", "a]b$c<d>", 0).as_deref(), Ok("abcd"));
        assert_eq!(sub("[^]]", "", "a]b", 0).as_deref(), Ok("]"));
        assert_eq!(sub("[[a]", "", "x[a", 0).as_deref(), Ok("x"));
        assert_eq!(sub("[a&&b]", "", "a&b&c", 0).as_deref(), Ok("c"));
        assert!(sub("(", "", "", 0).is_err() && sub("a", r"\q", "a", 0).is_err());
        assert!(sub("(x+x+)+(?=y)y", "", &"x".repeat(5000), 0).is_err());
    }
}

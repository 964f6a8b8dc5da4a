//! JSON text as Python's `json.dumps` writes it, which is what templates' `tojson` gives.

use serde_json::Value;

/// The arguments of `json.dumps` that templates may set.
pub(super) struct Style {
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// Between items, and between a key and its value.
    pub separators: (String, String),
    pub indent: Option<usize>,
}

impl Style {
    /// `json.dumps(x, ensure_ascii=False)`.
    pub fn plain() -> Self {
        let separators = (", ".to_owned(), ": ".to_owned());
        Self { ensure_ascii: false, sort_keys: false, separators, indent: None }
    }
}

/// `json.dumps(value, …)`.
pub(super) fn dumps(value: &Value, style: &Style) -> String {
    let mut out = String::new();
    write(value, style, 0, &mut out);
    out
}

/// `dumps` within a limit in bytes; `None` where the text needs more.
pub(super) fn dumps_within(value: &Value, style: &Style, limit: usize) -> Option<String> {
    // The widest line begins with as many indents as values are nested.
    let space = style.indent.unwrap_or(0).checked_mul(depth(value) + 1)?;
    let separators = style.separators.0.len() + style.separators.1.len();
    let num_bytes = num_values(value).checked_mul(space.checked_add(separators)?)?;
    if num_bytes > limit {
        return None;
    }
    Some(dumps(value, style)).filter(|text| text.len() <= limit)
}

fn children(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn depth(value: &Value) -> usize {
    children(value).map(depth).max().map_or(0, |deepest| deepest + 1)
}

/// Lines of an indented text, about.
fn num_values(value: &Value) -> usize {
    2 + children(value).map(num_values).sum::<usize>()
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) if n.is_f64() => out.push_str(&float(n.as_f64().unwrap_or_default())),
        Value::Number(n) => out.push_str(&n.to_string()),
        Value::String(s) => string(s, style.ensure_ascii, out),
        Value::Array(items) => list(('[', ']'), items.iter(), style, depth, out, |item, out| {
            write(item, style, depth + 1, out);
        }),
        Value::Object(map) => {
            let mut pairs = map.iter().collect::<Vec<_>>();
            if style.sort_keys {
                pairs.sort_by_key(|(key, _)| *key);
            }
            list(('{', '}'), pairs.into_iter(), style, depth, out, |(key, item), out| {
                string(key, style.ensure_ascii, out);
                out.push_str(&style.separators.1);
                write(item, style, depth + 1, out);
            });
        }
    }
}

fn list<T>(
    brackets: (char, char),
    items: impl ExactSizeIterator<Item = T>,
    style: &Style,
    depth: usize,
    out: &mut String,
    mut write_item: impl FnMut(T, &mut String),
) {
    let is_empty = items.len() == 0;
    let new_line = |depth: usize, out: &mut String| {
        if let (Some(indent), false) = (style.indent, is_empty) {
            out.push('\n');
            out.push_str(&" ".repeat(indent * depth));
        }
    };
    out.push(brackets.0);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push_str(&style.separators.0);
        }
        new_line(depth + 1, out);
        write_item(item, out);
    }
    new_line(depth, out);
    out.push(brackets.1);
}

fn string(text: &str, ensure_ascii: bool, out: &mut String) {
    // serde_json escapes exactly what Python escapes with ensure_ascii=False.
    let quoted = Value::from(text).to_string();
    if !ensure_ascii {
        return out.push_str(&quoted);
    }
    for c in quoted.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

/// Python's `repr` of a float: shortest digits, exponents below -4 or from 16 up.
pub(super) fn float(x: f64) -> String {
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent = exponent.parse::<i32>().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_python_writes_it() {
        let value = json!({"b": [1, 2.0, 1e16, 1e-5, 0.0001], "a": "ü\n\"<", "e": [], "n": null});
        let plain = r#"{"b": [1, 2.0, 1e+16, 1e-05, 0.0001], "a": "ü\n\"<", "e": [], "n": null}"#;
        assert_eq!(dumps(&value, &Style::plain()), plain);
        let style = Style {
            ensure_ascii: true,
            sort_keys: true,
            separators: (",".into(), ": ".into()),
            indent: Some(2),
        };
        let indented = [
            "{",
            r#"  "a": "\u00fc\n\"<","#,
            r#"  "b": ["#,
            "    1,",
            "    2.0,",
            "    1e+16,",
            "    1e-05,",
            "    0.0001",
            "  ],",
            r#"  "e": [],"#,
            r#"  "n": null"#,
            "}",
        ]
        .join("\n");
        assert_eq!(dumps(&value, &style), indented);
    }
}

//! What a task makes of a document: a field of it, a template over its fields, or a constant.

use super::builtin;
use super::data::Document;
use super::error::TaskError;
use super::file::Setting;
use super::literal;
use super::yaml::Kind;
use hone_data::TextTemplate;
use serde_json::Value;
use std::collections::BTreeSet;

/// `doc_to_text`, `doc_to_target`, `doc_to_choice` or the like.
pub struct Field {
    setting: Setting,
    form: Form,
}

enum Form {
    /// The name of a field, or a template: which, documents say.
    Text {
        source: String,
        template: Box<TextTemplate>,
        variables: BTreeSet<String>,
    },
    Integer(i64),
    List(Vec<Value>),
}

impl Field {
    /// Reads it; functions of well-known tasks have built-in forms.
    ///
    /// # Errors
    /// If it is something else, another Python function, or a template that does not compile.
    pub fn new(setting: &Setting, task: &str) -> Result<Self, TaskError> {
        let form = match &setting.node.kind {
            Kind::Scalar(Value::Number(_)) => Form::Integer(setting.integer()?),
            Kind::List(_) => match setting.json()? {
                Value::Array(items) => Form::List(items),
                _ => Form::List(Vec::new()),
            },
            // A dictionary of choices is a list of its values.
            Kind::Map(_) => match setting.json()? {
                Value::Object(entries) => Form::List(entries.into_iter().map(|(_, v)| v).collect()),
                _ => Form::List(Vec::new()),
            },
            Kind::Function(name) => match builtin::function(task, name) {
                Some(source) => text(setting, source.to_owned())?,
                None => text(setting, setting.string()?)?,
            },
            Kind::Scalar(_) => text(setting, setting.string()?)?,
        };
        Ok(Self { setting: setting.clone(), form })
    }

    /// The template or the name of a field, as it is written; empty of a number or a list.
    pub fn source(&self) -> &str {
        match &self.form {
            Form::Text { source, .. } => source,
            Form::Integer(_) | Form::List(_) => "",
        }
    }

    /// The value of a document. A template's digits are a number where the task has choices, and a
    /// list of Python's in brackets is a list.
    ///
    /// # Errors
    /// If the document lacks a field.
    pub fn value(&self, document: &Document, has_choices: bool) -> Result<Value, TaskError> {
        let value = self.unlisted(document, has_choices)?;
        let Form::Text { template, source, .. } = &self.form else { return Ok(value) };
        let Some(rendered) = value.as_str() else { return Ok(value) };
        let is_bracketed =
            rendered.len() >= 2 && rendered.starts_with('[') && rendered.ends_with(']');
        if is_bracketed && !document.fields.contains_key(source) {
            if let Some(Ok(value @ Value::Array(_))) = template.value(&document.fields) {
                return Ok(value);
            }
            if let Some(value @ Value::Array(_)) = literal::parse(rendered) {
                return Ok(value);
            }
        }
        Ok(value)
    }

    /// The same, where texts in brackets stay texts, as questions do.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn unlisted(&self, document: &Document, has_choices: bool) -> Result<Value, TaskError> {
        let (source, template) = match &self.form {
            Form::Integer(value) => return Ok(Value::from(*value)),
            Form::List(items) => return Ok(Value::Array(items.clone())),
            Form::Text { source, template, .. } => (source, template),
        };
        if let Some(value) = self.named(document, source)? {
            return Ok(value);
        }
        let rendered = self.rendered(document, template)?;
        let is_digits = !rendered.is_empty() && rendered.bytes().all(|c| c.is_ascii_digit());
        if is_digits && has_choices {
            return rendered.parse::<i64>().map(Value::from).map_err(|_| {
                self.error(document, format!("`{rendered}` is too large for a choice's number"))
            });
        }
        Ok(Value::String(rendered))
    }

    /// The text of a document, whatever the value is.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn text(&self, document: &Document) -> Result<String, TaskError> {
        match self.unlisted(document, false)? {
            Value::String(text) => Ok(text),
            other => Err(self.error(document, format!("expected a text, found {other}"))),
        }
    }

    /// The texts of a list: of a document's field, of a template whose value is a list, or the
    /// task's own.
    ///
    /// # Errors
    /// If it is no list of texts, or has none.
    pub fn list(&self, document: &Document) -> Result<Vec<String>, TaskError> {
        let found = match &self.form {
            Form::Text { source, template, .. } => match self.named(document, source)? {
                Some(value) => value,
                None => {
                    let rendered = self.rendered(document, template)?;
                    match template.value(&document.fields) {
                        Some(Ok(value @ Value::Array(_))) => value,
                        _ => literal::parse(&rendered).unwrap_or(Value::String(rendered)),
                    }
                }
            },
            _ => self.value(document, true)?,
        };
        let Value::Array(items) = found else {
            return Err(self.error(document, format!("expected a list, found {found}")));
        };
        let item = |item: Value| match item {
            Value::String(text) => Ok(text),
            other => Err(self.error(document, format!("expected a text, found {other}"))),
        };
        let items: Vec<String> = items.into_iter().map(item).collect::<Result<_, _>>()?;
        match items.is_empty() {
            true => Err(self.error(document, "an empty list")),
            false => Ok(items),
        }
    }

    /// An error of this key and a document.
    pub fn error(&self, document: &Document, what: impl std::fmt::Display) -> TaskError {
        TaskError::Input(format!(
            "{}: {what} ({} of {}:{})",
            document.place(),
            self.setting.key,
            self.setting.file.display(),
            self.setting.node.line
        ))
    }

    /// The document's field of that name, if its file has one.
    fn named(&self, document: &Document, name: &str) -> Result<Option<Value>, TaskError> {
        match document.fields.get(name) {
            Some(value) => Ok(Some(value.clone())),
            None if document.columns.contains(name) => Err(self.missing(document, name)),
            None => Ok(None),
        }
    }

    fn rendered(&self, document: &Document, template: &TextTemplate) -> Result<String, TaskError> {
        template.render(&document.fields).map_err(|what| {
            let Form::Text { variables, .. } = &self.form else {
                return self.error(document, what);
            };
            match variables.iter().find(|name| !document.fields.contains_key(*name)) {
                Some(name) => self.missing(document, name),
                None => self.error(document, what),
            }
        })
    }

    fn missing(&self, document: &Document, name: &str) -> TaskError {
        let what = format!("lacks the field `{name}`; add it, or write null if it has none");
        self.error(document, what)
    }
}

fn text(setting: &Setting, source: String) -> Result<Form, TaskError> {
    let template = TextTemplate::new(&source)
        .map_err(|what| setting.error(format!("not a template: {what}")))?;
    let variables = template.variables();
    Ok(Form::Text { source, template: Box::new(template), variables })
}

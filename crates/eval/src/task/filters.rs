//! Filters of answers: what is cut out of a generated text before it is compared.

use super::error::TaskError;
use super::file::Setting;
use hone_data::chat::{Regex, python_regex, python_sub};
use serde_json::Value;
use std::collections::BTreeMap;

/// Steps with a name, under which the metrics appear.
pub struct Pipeline {
    /// The name.
    pub name: String,
    steps: Vec<Step>,
}

enum Step {
    Regex(Find),
    Choices(Find, Ignored),
    Strip,
    Lower,
    Upper,
    Map(BTreeMap<String, String>, String),
    MajorityVote,
    TakeFirst,
    TakeFirstK(usize),
}

/// A pattern whose match is the answer.
struct Find {
    regex: Regex,
    group: i64,
    fallback: String,
}

/// What `multi_choice_regex` leaves out where it looks for the choices' texts.
#[derive(Default)]
struct Ignored {
    regexes: Vec<Regex>,
    case: bool,
    punctuation: bool,
}

impl Pipeline {
    /// The answer as it is.
    pub fn none() -> Self {
        Self { name: "none".to_owned(), steps: vec![Step::TakeFirst] }
    }

    /// Reads an entry of `filter_list`.
    ///
    /// # Errors
    /// If a filter or key is unknown.
    pub fn new(entry: &Setting) -> Result<Self, TaskError> {
        let (mut name, mut steps) = (None, Vec::new());
        for setting in entry.entries()? {
            match &*setting.key {
                "name" => name = Some(setting.string()?),
                "filter" => {
                    steps = setting.items()?.iter().map(Step::new).collect::<Result<_, _>>()?;
                }
                _ => return Err(setting.error("an unknown key")),
            }
        }
        let name = name.ok_or_else(|| entry.error("an entry without `name`"))?;
        Ok(Self { name, steps })
    }

    /// The answer that is left of several; `choices` are the document's, if it has any.
    ///
    /// # Errors
    /// If a pattern takes too long, or a step needs more than there is.
    pub fn apply(&self, answers: &[String], choices: Option<&Value>) -> Result<String, TaskError> {
        let mut answers = answers.to_vec();
        for step in &self.steps {
            step.apply(&mut answers, choices)
                .map_err(|what| TaskError::Input(format!("filter {}: {what}", self.name)))?;
        }
        Ok(answers.into_iter().next().unwrap_or_default())
    }
}

impl Step {
    fn new(step: &Setting) -> Result<Self, TaskError> {
        let settings = step.entries()?;
        let function = settings.iter().find(|setting| setting.key == "function");
        let function = function.ok_or_else(|| step.error("a filter without `function`"))?;
        let mut options = settings.iter().filter(|setting| setting.key != "function");
        let name = function.string()?;
        let plain = match name.as_str() {
            "regex" => return Ok(Self::Regex(Find::new(options, None)?)),
            "multi_choice_regex" => {
                let mut ignored = Ignored::default();
                let find = Find::new(options, Some(&mut ignored))?;
                return Ok(Self::Choices(find, ignored));
            }
            "map" => return map(options),
            "take_first_k" => {
                let k = settings.iter().find(|setting| setting.key == "k");
                let k = k.ok_or_else(|| function.error("needs `k`"))?;
                return Ok(Self::TakeFirstK(k.count()?));
            }
            "remove_whitespace" => Self::Strip,
            "lowercase" => Self::Lower,
            "uppercase" => Self::Upper,
            "majority_vote" => Self::MajorityVote,
            "take_first" => Self::TakeFirst,
            _ => {
                return Err(function.error(format!(
                    "`{name}` is not known; there are regex, multi_choice_regex, map, \
                     remove_whitespace, lowercase, uppercase, majority_vote, take_first and \
                     take_first_k"
                )));
            }
        };
        match options.next() {
            Some(setting) => Err(setting.error("an unknown key")),
            None => Ok(plain),
        }
    }

    fn apply(&self, answers: &mut Vec<String>, choices: Option<&Value>) -> Result<(), String> {
        match self {
            Self::Regex(find) => {
                for answer in answers {
                    let found = find.first(&find.regex, answer)?;
                    *answer = match found {
                        Some(found) if !found.is_empty() || find.is_one_group() => found,
                        Some(_) | None => find.fallback.clone(),
                    };
                }
            }
            Self::Choices(find, ignored) => {
                let texts = choice_texts(choices)?;
                for answer in answers {
                    *answer = chosen(find, ignored, &texts, answer)?;
                }
            }
            Self::Strip => answers.iter_mut().for_each(|text| *text = text.trim().to_owned()),
            Self::Lower => answers.iter_mut().for_each(|text| *text = text.to_lowercase()),
            Self::Upper => answers.iter_mut().for_each(|text| *text = text.to_uppercase()),
            Self::Map(map, default) => {
                for answer in answers {
                    *answer = map.get(answer).unwrap_or(default).clone();
                }
            }
            Self::MajorityVote => *answers = vec![most_common(answers)],
            Self::TakeFirst => answers.truncate(1),
            Self::TakeFirstK(k) if answers.len() < *k => {
                return Err(format!("take_first_k needs {k} answers, there is {}", answers.len()));
            }
            Self::TakeFirstK(k) => answers.truncate(*k),
        }
        Ok(())
    }
}

/// The first of those that come most often.
fn most_common(answers: &[String]) -> String {
    let count = |answer: &String| answers.iter().filter(|other| *other == answer).count();
    let more = |best: usize, i: usize| match count(&answers[i]) > count(&answers[best]) {
        true => i,
        false => best,
    };
    answers[(0..answers.len()).fold(0, more)].clone()
}

fn map<'a>(options: impl Iterator<Item = &'a Setting>) -> Result<Step, TaskError> {
    let (mut map, mut default) = (BTreeMap::new(), "None".to_owned());
    for setting in options {
        match &*setting.key {
            "mapping_dict" => {
                for entry in setting.entries()? {
                    map.insert(entry.key.clone(), plain(&entry)?);
                }
            }
            "default_value" => default = plain(setting)?,
            _ => return Err(setting.error("an unknown key")),
        }
    }
    Ok(Step::Map(map, default))
}

/// A scalar as text.
fn plain(setting: &Setting) -> Result<String, TaskError> {
    match setting.json()? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(setting.error("expected a text or number")),
    }
}

impl Find {
    /// Reads `regex_pattern`, `group_select` and `fallback`, and what `multi_choice_regex` ignores.
    fn new<'a>(
        options: impl Iterator<Item = &'a Setting>,
        mut ignored: Option<&mut Ignored>,
    ) -> Result<Self, TaskError> {
        let mut pattern = python_regex(r"#### (\-?[0-9\.\,]+)").map_err(TaskError::Input)?;
        let (mut group, mut fallback) = (0, "[invalid]".to_owned());
        let compiled = |setting: &Setting, pattern: &str| {
            python_regex(pattern).map_err(|what| setting.error(what))
        };
        for setting in options {
            match (&*setting.key, &mut ignored) {
                ("regex_pattern", _) => pattern = compiled(setting, &setting.string()?)?,
                ("group_select", _) => group = setting.integer()?,
                ("fallback", _) => fallback = setting.string()?,
                ("ignore_case", Some(ignored)) => ignored.case = setting.boolean()?,
                ("ignore_punctuation", Some(ignored)) => {
                    ignored.punctuation = setting.boolean()?;
                }
                ("regexes_to_ignore", Some(ignored)) => {
                    for pattern in setting.strings()? {
                        ignored.regexes.push(compiled(setting, &pattern)?);
                    }
                }
                _ => return Err(setting.error("an unknown key")),
            }
        }
        Ok(Self { regex: pattern, group, fallback })
    }

    /// With more groups, the first that is not empty counts.
    fn is_one_group(&self) -> bool {
        self.regex.captures_len() <= 2
    }

    /// The match that `group_select` names, of Python's `findall`, without white space around it;
    /// `None` if there are not so many.
    fn first(&self, regex: &Regex, text: &str) -> Result<Option<String>, String> {
        let mut found = Vec::new();
        for captures in regex.captures_iter(text) {
            let captures = captures.map_err(|error| format!("`{}`: {error}", regex.as_str()))?;
            let group = |i: usize| captures.get(i).map_or("", |group| group.as_str());
            let answer = match captures.len() {
                1 => group(0),
                len => (1..len).map(group).find(|text| !text.is_empty()).unwrap_or(""),
            };
            found.push(answer.trim().to_owned());
        }
        let from_end = if self.group < 0 { found.len() as i64 } else { 0 };
        let at = usize::try_from(self.group.saturating_add(from_end)).ok();
        Ok(at.and_then(|at| found.get(at).cloned()))
    }
}

fn choice_texts(choices: Option<&Value>) -> Result<Vec<String>, String> {
    let Some(Value::Array(items)) = choices else {
        return Err("multi_choice_regex needs documents with a list `choices`".to_owned());
    };
    let text = |item: &Value| item.as_str().map(str::to_owned);
    items.iter().map(text).collect::<Option<_>>().ok_or_else(|| "choices must be texts".to_owned())
}

/// The letter `(A)` of the choice that an answer names: by the pattern, by a choice's text, or by a
/// letter after a colon.
fn chosen(
    find: &Find,
    ignored: &Ignored,
    texts: &[String],
    answer: &str,
) -> Result<String, String> {
    let is_some = |found: &Option<String>| found.as_ref().is_some_and(|text| !text.is_empty());
    let found = find.first(&find.regex, answer)?;
    if is_some(&found) {
        return Ok(found.unwrap_or_default());
    }
    let letter = |i: usize| format!("({})", char::from(b'A' + (i % 26) as u8));
    let texts: Vec<String> =
        texts.iter().map(|text| ignored.plain(text.trim())).collect::<Result<_, _>>()?;
    let mut longest_first: Vec<&String> = texts.iter().collect();
    longest_first.sort_by_key(|text| std::cmp::Reverse(text.chars().count()));
    let any: Vec<_> = longest_first.iter().map(|text| escaped(text)).collect();
    let found = find.first(&python_regex(&any.join("|"))?, &ignored.plain(answer)?)?;
    if is_some(&found) {
        // A later choice of the same text counts, as in a dictionary.
        let at = texts.iter().rposition(|text| Some(text) == found.as_ref());
        return Ok(at.map_or(found.unwrap_or_default(), letter));
    }
    let letters: Vec<String> =
        (0..texts.len()).map(|i| char::from(b'A' + (i % 26) as u8).to_string()).collect();
    let after_colon = python_regex(&format!(r":[\s]*({})", letters.join("|")))?;
    Ok(match find.first(&after_colon, answer)? {
        Some(found) if !found.is_empty() => format!("({found})"),
        _ => find.fallback.clone(),
    })
}

/// A text as a pattern of itself.
fn escaped(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || c == '_' || !c.is_ascii();
    text.chars().flat_map(|c| (!is_plain(c)).then_some('\\').into_iter().chain([c])).collect()
}

impl Ignored {
    fn plain(&self, text: &str) -> Result<String, String> {
        let mut text = text.to_owned();
        for regex in &self.regexes {
            text = python_sub(regex, "", &text, 0)?;
        }
        if self.case {
            text = text.to_lowercase();
        }
        if self.punctuation {
            text = python_sub(&python_regex(r"\p{P}")?, "", &text, 0)?;
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::Settings;
    use super::super::yaml;
    use super::*;
    use std::path::Path;
    use std::rc::Rc;

    /// Keys are what they are, whatever is in them.
    #[test]
    fn answers_are_mapped_by_whole_keys() {
        let file: Rc<Path> = Rc::from(Path::new("t.yaml"));
        let text = "filter_list:\n  - name: x\n    filter:\n      - function: map\n        \
                    mapping_dict: {A.: \"0\", \"3.5\": half, \"5\": five}\n";
        let settings = Settings::of_map(&file, &yaml::parse(&file, text).unwrap()).unwrap();
        let list = settings.get("filter_list").unwrap().items().unwrap();
        let pipeline = Pipeline::new(&list[0]).unwrap();
        let found = |answer: &str| pipeline.apply(&[answer.to_owned()], None).unwrap();
        assert_eq!(["A.", "3.5", "5", ""].map(found), ["0", "half", "five", "None"]);
    }
}

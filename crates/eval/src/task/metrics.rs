//! Metrics: what each makes of a document, and how a task's value follows.

use super::error::TaskError;
use super::file::Setting;
use super::output_type::OutputType;
use hone_data::chat::{python_regex, python_sub};
use serde::{Deserialize, Serialize};

/// What is counted of each document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whether the likeliest choice is right, or a continuation is the likeliest.
    Acc,
    /// Of log-probabilities divided by the choices' characters.
    AccNorm,
    /// Of log-probabilities divided by the choices' bytes.
    AccBytes,
    /// Whether the answer is the target, or the right choice is the likeliest continuation.
    ExactMatch,
    /// Of a continuation.
    Perplexity,
    /// Of whole texts, per word.
    WordPerplexity,
    /// Per byte.
    BytePerplexity,
    /// In bits.
    BitsPerByte,
}

use Kind::{
    AccBytes, AccNorm, BitsPerByte, BytePerplexity, ExactMatch, Perplexity, WordPerplexity,
};

/// Names, kinds and aggregations if none is given.
const METRICS: [(&str, Kind, Aggregation); 8] = [
    ("acc", Kind::Acc, Aggregation::Mean),
    ("acc_norm", AccNorm, Aggregation::Mean),
    ("acc_bytes", AccBytes, Aggregation::Mean),
    ("exact_match", ExactMatch, Aggregation::Mean),
    ("perplexity", Perplexity, Aggregation::Perplexity),
    ("word_perplexity", WordPerplexity, Aggregation::WeightedPerplexity),
    ("byte_perplexity", BytePerplexity, Aggregation::WeightedPerplexity),
    ("bits_per_byte", BitsPerByte, Aggregation::BitsPerByte),
];

/// How documents' numbers become a task's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Their mean.
    Mean,
    /// The middle one, the upper of two.
    Median,
    /// `e^-mean`.
    Perplexity,
    /// `e^-(Σ log-probabilities / Σ lengths)`.
    WeightedPerplexity,
    /// The same quotient in bits.
    BitsPerByte,
}

const AGGREGATIONS: [(&str, Aggregation); 5] = [
    ("mean", Aggregation::Mean),
    ("median", Aggregation::Median),
    ("perplexity", Aggregation::Perplexity),
    ("weighted_perplexity", Aggregation::WeightedPerplexity),
    ("bits_per_byte", Aggregation::BitsPerByte),
];

/// What a document adds: a number, and a length where quotients are formed (else 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// The number.
    pub value: f64,
    /// What it is of.
    pub weight: f64,
}

/// What a document adds to a metric, as files have it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Score {
    /// A number.
    One(f64),
    /// A number, and the length that it is of.
    Of(f64, f64),
}

impl From<Term> for Score {
    fn from(Term { value, weight }: Term) -> Self {
        if weight == 1.0 { Self::One(value) } else { Self::Of(value, weight) }
    }
}

impl From<Score> for Term {
    fn from(score: Score) -> Self {
        let (value, weight) = match score {
            Score::One(value) => (value, 1.0),
            Score::Of(value, weight) => (value, weight),
        };
        Self { value, weight }
    }
}

impl Aggregation {
    /// Whether terms are right or wrong, and their mean a share of right ones.
    pub fn is_share<'t>(self, mut terms: impl Iterator<Item = &'t Term>) -> bool {
        self == Self::Mean && terms.all(|t| t.weight == 1.0 && [0.0, 1.0].contains(&t.value))
    }

    /// The task's value of at least one document.
    pub fn of(self, terms: impl Iterator<Item = Term> + Clone) -> f64 {
        let (sum, weight) = terms
            .clone()
            .fold((0.0, 0.0), |(sum, weight), term| (sum + term.value, weight + term.weight));
        match self {
            Self::Mean => sum / weight,
            Self::Median => {
                let mut values: Vec<f64> = terms.map(|term| term.value).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            }
            Self::Perplexity | Self::WeightedPerplexity => (-(sum / weight)).exp(),
            Self::BitsPerByte => -(sum / weight) / std::f64::consts::LN_2,
        }
    }
}

/// A metric of a task.
#[derive(Clone, Debug)]
pub struct Metric {
    /// What is counted.
    pub kind: Kind,
    /// How it is summed up.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// How answers are compared.
    pub comparison: Comparison,
}

impl Metric {
    /// As it is written.
    pub fn name(&self) -> &'static str {
        METRICS.iter().find(|(_, kind, _)| *kind == self.kind).map_or("", |(name, ..)| name)
    }

    /// The metrics of tasks that name none.
    pub fn usual(output: OutputType) -> Vec<Self> {
        let names: &[&str] = match output {
            OutputType::MultipleChoice => &["acc", "acc_norm"],
            OutputType::Loglikelihood => &["perplexity", "acc"],
            OutputType::Rolling => &["word_perplexity", "byte_perplexity", "bits_per_byte"],
            OutputType::Generate => &["exact_match"],
        };
        let usual = |(_, kind, aggregation): &(&str, Kind, Aggregation)| Self {
            kind: *kind,
            aggregation: *aggregation,
            higher_is_better: *aggregation == Aggregation::Mean,
            comparison: Comparison::default(),
        };
        let named = METRICS.iter().filter(|(name, ..)| names.contains(name));
        named.map(usual).collect()
    }

    /// Reads an entry of `metric_list`.
    ///
    /// # Errors
    /// If there is no such metric for this kind of task, or a key is unknown.
    pub fn new(entry: &Setting, output: OutputType) -> Result<Self, TaskError> {
        let settings = entry.entries()?;
        let get = |name: &str| settings.iter().find(|setting| setting.key == name);
        let named = get("metric").ok_or_else(|| entry.error("an entry without `metric`"))?;
        let name = named.string()?;
        let found = METRICS.iter().find(|(known, ..)| *known == name);
        let Some((_, kind, aggregation)) = found.filter(|(_, kind, _)| output.has(*kind)) else {
            let known = METRICS.iter().filter(|(_, kind, _)| output.has(*kind));
            let known: Vec<_> = known.map(|(name, ..)| *name).collect();
            let (output, known) = (output.name(), known.join(", "));
            return Err(
                named.error(format!("`{name}` is not known for {output}, which has {known}"))
            );
        };
        let mut metric = Self {
            kind: *kind,
            aggregation: *aggregation,
            higher_is_better: *aggregation == Aggregation::Mean,
            comparison: Comparison::default(),
        };
        for setting in &settings {
            match &*setting.key {
                "metric" => {}
                // The same as the harness's own for these metrics.
                "hf_evaluate" => _ = setting.boolean()?,
                "aggregation" => metric.aggregation = aggregation_of(setting, *aggregation)?,
                "higher_is_better" => metric.higher_is_better = setting.boolean()?,
                _ if *kind == ExactMatch && output == OutputType::Generate => {
                    metric.comparison.set(setting)?;
                }
                _ => return Err(setting.error("an unknown key")),
            }
        }
        Ok(metric)
    }
}

fn aggregation_of(setting: &Setting, usual: Aggregation) -> Result<Aggregation, TaskError> {
    let name = setting.string()?;
    let found = AGGREGATIONS.iter().find(|(known, _)| *known == name).map(|(_, found)| *found);
    let is_quotient = |of| matches!(of, Aggregation::WeightedPerplexity | Aggregation::BitsPerByte);
    match found {
        Some(found) if is_quotient(found) == is_quotient(usual) => Ok(found),
        Some(_) => Err(setting.error(format!("`{name}` does not fit this metric"))),
        None => {
            let known: Vec<_> = AGGREGATIONS.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            Err(setting.error(format!("`{name}` is not known; there are {known}")))
        }
    }
}

/// How an answer is compared with a target.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    ignored: Vec<hone_data::chat::Regex>,
    ignore_case: bool,
    ignore_punctuation: bool,
    ignore_numbers: bool,
}

impl Comparison {
    fn set(&mut self, setting: &Setting) -> Result<(), TaskError> {
        match &*setting.key {
            "ignore_case" => self.ignore_case = setting.boolean()?,
            "ignore_punctuation" => self.ignore_punctuation = setting.boolean()?,
            "ignore_numbers" => self.ignore_numbers = setting.boolean()?,
            "regexes_to_ignore" => {
                for pattern in setting.strings()? {
                    let regex = python_regex(&pattern).map_err(|what| setting.error(what))?;
                    self.ignored.push(regex);
                }
            }
            _ => return Err(setting.error("an unknown key")),
        }
        Ok(())
    }

    /// Whether both are the same but for what is ignored.
    ///
    /// # Errors
    /// If a pattern takes too long.
    pub fn is_same(&self, answer: &str, target: &str) -> Result<bool, TaskError> {
        Ok(self.plain(answer)? == self.plain(target)?)
    }

    fn plain(&self, text: &str) -> Result<String, TaskError> {
        let mut text = text.to_owned();
        for regex in &self.ignored {
            text = python_sub(regex, "", &text, 0).map_err(|what| {
                TaskError::Input(format!("regexes_to_ignore: `{}`: {what}", regex.as_str()))
            })?;
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        let is_ignored = |c: &char| {
            (self.ignore_punctuation && c.is_ascii_punctuation())
                || (self.ignore_numbers && c.is_ascii_digit())
        };
        text.retain(|c| !is_ignored(&c));
        Ok(text)
    }
}

impl OutputType {
    /// Whether tasks of this kind have such a metric.
    fn has(self, kind: Kind) -> bool {
        match self {
            Self::MultipleChoice => matches!(kind, Kind::Acc | AccNorm | AccBytes | ExactMatch),
            Self::Loglikelihood => matches!(kind, Kind::Acc | Perplexity),
            Self::Rolling => matches!(kind, WordPerplexity | BytePerplexity | BitsPerByte),
            Self::Generate => kind == ExactMatch,
        }
    }
}

/// The first greatest number, as `numpy.argmax` finds it: NaN counts as greatest.
pub fn argmax(values: &[f64]) -> usize {
    let greater = |best: usize, i: usize| {
        let is_greater = values[i] > values[best] || values[i].is_nan();
        if is_greater && !values[best].is_nan() { i } else { best }
    };
    (0..values.len()).fold(0, greater)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_their_lengths() {
        let scores = [Score::One(1.0), Score::Of(-3.5, 12.0)];
        let text = serde_json::to_string(&scores).unwrap();
        assert_eq!(text, "[1.0,[-3.5,12.0]]");
        assert_eq!(serde_json::from_str::<[Score; 2]>(&text).unwrap(), scores);
        assert_eq!(scores.map(|score| Score::from(Term::from(score))), scores);
    }

    #[test]
    fn the_first_greatest_is_chosen() {
        assert_eq!(argmax(&[-1.0, -0.5, -0.5]), 1);
        assert_eq!(argmax(&[-1.0, f64::NAN, 0.0, f64::NAN]), 1);
        assert_eq!(argmax(&[f64::NEG_INFINITY, f64::NEG_INFINITY]), 0);
    }

    #[test]
    fn values_of_a_few_documents() {
        let terms = [(-1.0, 2.0), (-2.0, 2.0), (-6.0, 4.0)];
        let of = |aggregation: Aggregation, weighted: bool| {
            let term = |&(value, weight): &(f64, f64)| Term {
                value,
                weight: if weighted { weight } else { 1.0 },
            };
            aggregation.of(terms.iter().map(term))
        };
        assert_eq!(of(Aggregation::Mean, false), -3.0);
        assert_eq!(of(Aggregation::Median, false), -2.0);
        assert_eq!(of(Aggregation::Perplexity, false), 3f64.exp());
        assert_eq!(of(Aggregation::WeightedPerplexity, true), (9f64 / 8.0).exp());
        assert_eq!(of(Aggregation::BitsPerByte, true), 9.0 / 8.0 / std::f64::consts::LN_2);
    }

    #[test]
    fn answers_are_compared_without_what_is_ignored() {
        let comparison = Comparison {
            ignored: vec![python_regex(",").unwrap(), python_regex("(?s).*#### ").unwrap()],
            ignore_case: true,
            ignore_punctuation: true,
            ignore_numbers: false,
        };
        let same = |a: &str, b: &str| comparison.is_same(a, b).unwrap();
        assert!(same("$1,200", "so\n#### 1200.") && same("ABC", "a-b_c") && !same("1", "2"));
        assert!(!Comparison::default().is_same("a", "A").unwrap());
    }
}

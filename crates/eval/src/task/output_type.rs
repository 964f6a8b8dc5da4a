//! Kinds of tasks.

/// What the model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// Which of several choices is the likeliest.
    MultipleChoice,
    /// How likely a continuation is.
    Loglikelihood,
    /// How likely a whole text is.
    Rolling,
    /// To continue a text.
    Generate,
}

/// Names and kinds.
pub const OUTPUT_TYPES: [(&str, OutputType); 4] = [
    ("multiple_choice", OutputType::MultipleChoice),
    ("loglikelihood", OutputType::Loglikelihood),
    ("loglikelihood_rolling", OutputType::Rolling),
    ("generate_until", OutputType::Generate),
];

impl OutputType {
    /// As it is written.
    pub fn name(self) -> &'static str {
        OUTPUT_TYPES.iter().find(|(_, output)| *output == self).map_or("", |(name, _)| name)
    }
}

//! Heads for other tasks than predicting tokens, as files have them: which weights there are, under
//! which names and of what shapes. An objective for a task finds its weights here; no objective
//! trains them yet, so they stay in an export byte for byte.

/// Why a model cannot do what predicts tokens.
pub const NO_LM_HEAD: &str = "the model's files hold no head that predicts tokens \
                              (`lm_head.weight`), as those of classifiers and bare models: only \
                              `hone embed` and `hone export` work with it";

/// What a head is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// The first token's state, once more transformed: of whole texts.
    Pooler,
    /// BERT's prediction whether one text follows another.
    NextSentence,
    /// Labels of whole texts or of tokens, as the class in `architectures` says.
    Classifier,
    /// Where in a text an answer begins and ends.
    Answers,
}

/// What one of a head's modules is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadModule {
    /// A linear layer `[hidden_size, hidden_size]`.
    Dense,
    /// A layer norm `[hidden_size]`.
    Norm,
    /// A linear layer `[labels, hidden_size]`.
    Labels,
}

/// Names of a head's modules in files of the whole model, in the order in which they compute. The
/// last is found in files of this head alone.
#[derive(Debug, PartialEq, Eq)]
pub struct HeadNames {
    /// What it is for.
    pub kind: HeadKind,
    /// Names, and what they are.
    pub modules: &'static [(&'static str, HeadModule)],
}

/// A head that a model's files hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskHead {
    /// What it is for.
    pub kind: HeadKind,
    /// Its weights, in the order in which they compute, each before its bias.
    pub weights: Vec<HeadWeight>,
}

/// A weight of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadWeight {
    /// What its module is.
    pub module: HeadModule,
    /// Whether it is the module's bias.
    pub is_bias: bool,
    /// Its name in the files.
    pub name: String,
    /// `[labels or hidden_size, hidden_size]` of a matrix, `[len]` of a norm or bias.
    pub shape: Vec<usize>,
}

use HeadModule::{Dense, Labels, Norm};

/// Of decoders: `…ForSequenceClassification` and `…ForTokenClassification`.
pub(crate) const OF_DECODERS: &[HeadNames] =
    &[HeadNames { kind: HeadKind::Classifier, modules: &[("score", Labels)] }];

/// Of BERT.
pub(crate) const OF_BERT: &[HeadNames] = &[
    HeadNames { kind: HeadKind::Pooler, modules: &[("bert.pooler.dense", Dense)] },
    HeadNames { kind: HeadKind::NextSentence, modules: &[("cls.seq_relationship", Labels)] },
    HeadNames { kind: HeadKind::Classifier, modules: &[("classifier", Labels)] },
    HeadNames { kind: HeadKind::Answers, modules: &[("qa_outputs", Labels)] },
];

/// Of RoBERTa and XLM-RoBERTa: classifiers of texts, then of tokens.
pub(crate) const OF_ROBERTA: &[HeadNames] = &[
    HeadNames { kind: HeadKind::Pooler, modules: &[("roberta.pooler.dense", Dense)] },
    HeadNames {
        kind: HeadKind::Classifier,
        modules: &[("classifier.dense", Dense), ("classifier.out_proj", Labels)],
    },
    HeadNames { kind: HeadKind::Classifier, modules: &[("classifier", Labels)] },
    HeadNames { kind: HeadKind::Answers, modules: &[("qa_outputs", Labels)] },
];

/// Of ModernBERT, which shares its first modules with the head for masked tokens.
pub(crate) const OF_MODERNBERT: &[HeadNames] = &[
    HeadNames {
        kind: HeadKind::Classifier,
        modules: &[("head.dense", Dense), ("head.norm", Norm), ("classifier", Labels)],
    },
    HeadNames {
        kind: HeadKind::Answers,
        modules: &[("head.dense", Dense), ("head.norm", Norm), ("qa_outputs", Labels)],
    },
];

/// Of DistilBERT: classifiers of texts, then of tokens.
pub(crate) const OF_DISTILBERT: &[HeadNames] = &[
    HeadNames {
        kind: HeadKind::Classifier,
        modules: &[("pre_classifier", Dense), ("classifier", Labels)],
    },
    HeadNames { kind: HeadKind::Classifier, modules: &[("classifier", Labels)] },
    HeadNames { kind: HeadKind::Answers, modules: &[("qa_outputs", Labels)] },
];

impl TaskHead {
    /// Names of its weights' modules in the files.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        let matrices = self.weights.iter().filter(|weight| !weight.is_bias);
        matrices.map(|weight| weight.name.strip_suffix(".weight").unwrap_or(&weight.name))
    }

    /// Labels that it tells apart; `None`: it has none.
    pub fn num_labels(&self) -> Option<usize> {
        let labels = self.weights.iter().find(|weight| weight.module == Labels)?;
        Some(labels.shape[0])
    }
}

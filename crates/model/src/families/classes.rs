//! Classes of transformers, as far as names of modules and labels depend on them.

use crate::config::DecoderConfig;
use crate::raw_config::RawConfig;
use serde_json::Value;

/// Labels that the class `architecture` tells apart, if `raw` lists them.
pub(super) fn num_labels(raw: &RawConfig, architecture: Option<&str>) -> Option<usize> {
    const CLASSIFIERS: [&str; 2] = ["ForSequenceClassification", "ForTokenClassification"];
    let number = raw.get("num_labels").and_then(Value::as_u64).map(|labels| labels as usize);
    let listed = raw.get("id2label").and_then(Value::as_object).map(serde_json::Map::len);
    let is_classifier =
        architecture.is_some_and(|class| CLASSIFIERS.iter().any(|end| class.ends_with(end)));
    listed.or(number).filter(|_| is_classifier)
}

/// What the class `architecture` puts before the names of `config`'s blocks. Where files hold other
/// parts too, `of_text` is what `AutoModelForCausalLM` has, through which PEFT loads an adapter's
/// base: for some families a class of the text alone, whatever `architecture` says.
pub(super) fn prefix_of_class(
    architecture: Option<&str>,
    config: &DecoderConfig,
    of_text: Option<&'static str>,
) -> &'static str {
    let own = config.own_prefix();
    let ends_in = |end: &str| architecture.is_some_and(|class| class.ends_with(end));
    let is_bare = ends_in("Model") && !ends_in("LMHeadModel");
    match of_text {
        None if is_bare => "",
        None => own,
        Some(_) if is_bare => "language_model.",
        Some(_) if ends_in("ForCausalLM") => own,
        Some(of_text) => of_text,
    }
}

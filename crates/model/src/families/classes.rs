//! Classes of transformers, as far as names of modules depend on them.

use crate::config::DecoderConfig;

/// What the class `architecture` puts before the names of `config`'s blocks. Where files hold other
/// parts too, `of_text` is what their text model has without a class.
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
        Some(of_text) if architecture.is_none() => of_text,
        Some(_) => "model.language_model.",
    }
}

//! From texts to the tokens that are scored, by the rules of lm-evaluation-harness's `hf` model.

use super::error::TaskError;
use hone_data::{DataError, Tokenizer};
use hone_model::score::Text;

/// Texts to tokens.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// What goes before texts without a context: the begin-of-text token, or else the end-of-text
    /// token.
    prefix: u32,
    /// Its text: a text that begins with it gets no other.
    prefix_text: String,
    /// Most tokens that a model reads at a time.
    max_len: usize,
}

impl<'a> Encoder<'a> {
    /// For a model that reads `max_len` tokens at a time, at least 2.
    ///
    /// # Errors
    /// If the tokenizer has neither a begin- nor an end-of-text token.
    pub fn new(tokenizer: &'a Tokenizer, max_len: usize) -> Result<Self, TaskError> {
        let prefix = tokenizer.bos_token_id().or(tokenizer.eos_token_id()).ok_or_else(|| {
            TaskError::Input(
                "the tokenizer names neither a bos_token nor an eos_token, one of which goes \
                 before texts without a context; add one to tokenizer_config.json"
                    .to_owned(),
            )
        })?;
        let prefix_text = tokenizer.decode(&[prefix], false)?;
        Ok(Self { tokenizer, prefix, prefix_text, max_len })
    }

    /// A text with the special tokens that the tokenizer adds, unless it has them.
    pub fn with_special_tokens(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let has_prefix = !self.prefix_text.is_empty() && text.starts_with(&self.prefix_text);
        self.tokenizer.encode(text, !has_prefix)
    }

    /// A continuation after its context. Spaces that end the context belong to the continuation,
    /// whose tokens are those of both together that follow the context's.
    ///
    /// # Errors
    /// If no token is left of the continuation, or it is longer than the model reads: says why.
    pub fn likelihood(&self, context: &str, continuation: &str) -> Result<Text, String> {
        let said = |error: DataError| error.message(|_| None);
        let (mut tokens, scored) = if context.is_empty() {
            let mut tokens = self.tokenizer.encode(continuation, false).map_err(said)?;
            match tokens.first() == Some(&self.prefix) {
                true => (tokens.drain(..1).collect(), tokens),
                false => (vec![self.prefix], tokens),
            }
        } else {
            let kept = context.trim_end_matches(is_space);
            let whole = self.with_special_tokens(&format!("{context}{continuation}"));
            let context = self.with_special_tokens(kept).map_err(said)?;
            let mut whole = whole.map_err(said)?;
            let scored = whole.split_off(context.len().min(whole.len()));
            (context, scored)
        };
        if scored.is_empty() {
            return Err("there is no token to score: the text after the context is empty".into());
        }
        if tokens.is_empty() {
            // A context of spaces alone, which went to the continuation.
            tokens.push(self.prefix);
        }
        tokens.extend(&scored);
        self.cut(tokens, scored.len())
    }

    /// A whole text, in windows as long as the model reads; each goes on where the last one ended,
    /// with as much before it as there is room for.
    ///
    /// # Errors
    /// If the text has no tokens: says so.
    pub fn rolling(&self, text: &str) -> Result<Vec<Text>, String> {
        let all = self.with_special_tokens(text).map_err(|error| error.message(|_| None))?;
        if all.is_empty() {
            return Err("there is no token to score: the text is empty".to_owned());
        }
        let all: Vec<u32> = std::iter::once(self.prefix).chain(all).collect();
        let mut windows = Vec::new();
        let mut first = 1;
        while first < all.len() {
            let end = (first + self.max_len).min(all.len());
            let begin = (end - 1).saturating_sub(self.max_len);
            let tokens = all[begin..end].to_vec();
            windows.push(Text { tokens, first: first - begin });
            first = end;
        }
        Ok(windows)
    }

    /// A prompt, of which so many last tokens are kept that `max_new_tokens` fit after it.
    ///
    /// # Errors
    /// If there is no room for a prompt: says so.
    pub fn prompt(&self, text: &str, max_new_tokens: usize) -> Result<Vec<u32>, String> {
        let mut tokens = self.with_special_tokens(text).map_err(|error| error.message(|_| None))?;
        let Some(room) = self.max_len.checked_sub(max_new_tokens).filter(|&room| room > 0) else {
            return Err(format!(
                "max_gen_toks {max_new_tokens} leaves no room for a prompt: the model reads {} \
                 tokens",
                self.max_len
            ));
        };
        if tokens.is_empty() {
            tokens.push(self.prefix);
        }
        tokens.drain(..tokens.len().saturating_sub(room));
        Ok(tokens)
    }

    /// The last tokens that fit, of which the last `num_scored` are scored.
    fn cut(&self, mut tokens: Vec<u32>, num_scored: usize) -> Result<Text, String> {
        if num_scored > self.max_len {
            return Err(format!(
                "{num_scored} tokens are to be scored at once, and the model reads {}",
                self.max_len
            ));
        }
        // The last token is only predicted.
        let excess = tokens.len().saturating_sub(self.max_len + 1);
        tokens.drain(..excess);
        let first = tokens.len() - num_scored;
        Ok(Text { tokens, first })
    }
}

/// White space as Python has it, in `str.rstrip` and in `\s`.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

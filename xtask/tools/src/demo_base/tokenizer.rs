//! Trains the demo's tokenizer: byte-level BPE, in which a word takes the blank before it along.
//!
//! Nothing else is merged across words and marks, so that a name is the same tokens wherever a
//! blank precedes it: copying it into a record is then copying of tokens.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Begin of text, id 0.
pub const BOS: &str = "<s>";
/// End of text, id 1.
pub const EOS: &str = "</s>";

/// Words, numbers and runs of marks, each with the blank before it; other blanks.
const PIECES: &str = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s";

/// A tokenizer of at most `vocab_size` tokens (at least 258) from `documents`. Errors are those of
/// the `tokenizers` library.
pub fn train_tokenizer(
    documents: impl Iterator<Item = String> + Send,
    vocab_size: usize,
) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    let pieces = SplitPattern::Regex(PIECES.to_owned());
    let split = Split::new(pieces, SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    let steps = vec![split.into(), bytes.into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps))).with_decoder(Some(bytes));
    let special = [BOS, EOS].map(|text| AddedToken::from(text, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut TrainerWrapper::from(trainer), documents)?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))?
        .special_tokens(vec![(BOS, 0)])
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

//! Arguments of `hone embed`.

use super::{ModelArgs, sequence_length};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Examples:
  hone embed path/to/all-MiniLM-L6-v2 texts.txt --out embeddings.npy
  hone embed path/to/model records.jsonl --field question --pooling last --normalize \\
      --out embeddings.jsonl")]
pub struct EmbedArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The texts: a .txt file with one a line, or a .jsonl file of strings or records
    #[arg(value_name = "INPUT")]
    pub input: PathBuf,
    /// The file to write: .jsonl ({"embedding": [...]} a line), .npy or .safetensors
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Of records: the field with the text
    #[arg(long, default_value = "text")]
    pub field: String,
    /// How the states of a text's tokens become one vector (default: as modules.json says;
    /// without it the mean for encoders, the last token for decoders)
    #[arg(long)]
    pub pooling: Option<PoolingArg>,
    /// Make vectors of length 1, as modules.json may say too
    #[arg(long)]
    pub normalize: bool,
    /// What is put before each text: a prompt of config_sentence_transformers.json (default: the
    /// one that default_prompt_name there names, if any)
    #[arg(long, value_name = "NAME")]
    pub prompt_name: Option<String>,
    /// Maximum length of a text in tokens (default: as sentence_bert_config.json says, or
    /// tokenizer_config.json, or the model's positions)
    #[arg(long, value_parser = sequence_length)]
    pub max_seq_len: Option<usize>,
    /// Embed the beginnings of longer texts instead of refusing them; they are counted
    #[arg(long)]
    pub truncate: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PoolingArg {
    /// The first token
    Cls,
    /// The mean of all tokens
    Mean,
    /// The last token
    Last,
}

impl From<PoolingArg> for hone_model::embed::Pooling {
    fn from(arg: PoolingArg) -> Self {
        match arg {
            PoolingArg::Cls => Self::Cls,
            PoolingArg::Mean => Self::Mean,
            PoolingArg::Last => Self::Last,
        }
    }
}

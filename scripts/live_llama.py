"""Files that Hone writes, in llama.cpp's own programs.

    python scripts/live_llama.py ask PROGRAMS FOLDER
    python scripts/live_llama.py compare PROGRAMS FOLDER [CASE ...]

`cargo xtask live llama PROGRAMS` calls both, and between them lets Hone answer in FOLDER what `ask`
asked there. PROGRAMS is the folder of llama-server, llama-perplexity and llama-quantize. Needs
SmolLM2 in target/models and ../shared; of Python's packages `gguf` and `safetensors`. Cases:

- `texts`: 2,000 random strings become the same tokens, by a byte-level tokenizer (SmolLM2) and a
  SentencePiece-like one (stories260k).
- `chats`: ten chat templates render the same conversations.
- `greedy`: 32 tokens after each of 100 prompts, in f32 with a cache in f32, are those that Hone
  finds; one may differ.
- `adapters`: a model with an adapter of its own file computes what the merged model does: plain,
  rank-stabilised, with ranks and alphas of single layers.
- `errors`: tensors are in llama-quantize's types, and of each in K- and I-types the weighted error
  is at most llama-quantize's, with weights as llama.cpp takes them without an importance matrix.
- `speed`: seconds that plain types take; only noted.

Figures are printed as they come. Exits with 1 if a case fails.
"""

import argparse
import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import time
import unicodedata
import urllib.error
import urllib.request
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent
HONE = ROOT / "target" / "release" / "hone"
SMOLLM2 = ROOT / "target" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
STORIES = ROOT.parent / "shared" / "models" / "stories260k"
TEMPLATES = ROOT.parent / "shared" / "data" / "chat-templates"
NUM_STRINGS, NUM_PROMPTS, NUM_TOKENS, NUM_TEMPLATES = 2000, 100, 32, 10
THREADS = 2
SCRIPTS = [
    (0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A),
    (0x900, 0x97F), (0xE01, 0xE3A), (0x1780, 0x17D2), (0x3041, 0x30FF), (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3), (0x1F300, 0x1F64F), (0x2190, 0x22FF), (0x300, 0x36F), (0xFF01, 0xFF5E),
]
PIECES = [
    " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u200b", "\u200d", "\ufeff",
    "'s", "'LL", "'Re", "don't", "1", "12", "123", "1234567", "3.14", "e-9", "=>", "!==", "...",
    "?!", "http://a.b/c?d=e", "\u0001", "\u007f", "\u0085", "</s>x", "<|im", "É", "ß", "İ", "ﬁ",
]


def strings():
    """The same 2,000 strings every time: scripts, emoji, blanks, digits, control characters."""
    pick = random.Random(20260)

    def letter(first, last):
        while True:
            c = chr(pick.randint(first, last))
            if unicodedata.category(c) != "Cn":
                return c

    def piece():
        if pick.random() < 0.4:
            return pick.choice(PIECES)
        script = pick.choice(SCRIPTS)
        return "".join(letter(*script) for _ in range(pick.randint(1, 9)))

    return ["".join(piece() for _ in range(pick.randint(1, 12))) for _ in range(NUM_STRINGS)]


def conversations():
    user = {"role": "user", "content": "Is it raining in Zürich? 🌧️"}
    return [
        [user],
        [
            user,
            {"role": "assistant", "content": "Yes, and it is cold."},
            {"role": "user", "content": " And\n\n  tomorrow? "},
        ],
        [{"role": "system", "content": "Be brief."}, user],
    ]


def hone(*arguments, **options):
    command = [str(HONE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def export(model, out, *more):
    """Exports what is not there yet."""
    if not Path(out).exists():
        Path(out).with_suffix(".md").unlink(missing_ok=True)
        hone("export", model, "--format", "gguf", "--out", out, *more)
    return Path(out)


def template_names():
    """Ten that show no date and know no thinking, which llama-server switches on, spread over the
    folder's."""
    skip = ["strftime_now", "raise_exception", "think", "date"]
    names = sorted(TEMPLATES.glob("*.jinja"))
    plain = [path for path in names if not any(s in path.read_text() for s in skip)]
    return plain[:: max(1, len(plain) // NUM_TEMPLATES)][:NUM_TEMPLATES]


def with_template(folder, path):
    """stories260k with another chat template, as a GGUF file."""
    out = folder / f"chat-{path.stem}.gguf"
    model = folder / f"chat-{path.stem}"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(STORIES, model)
    shutil.copy(path, model / "chat_template.jinja")
    return export(model, out)


def ask(folder):
    """Writes the files, and what Hone is to say of them."""
    smollm2 = export(SMOLLM2, folder / "smollm2-f32.gguf", "--dtype", "f32")
    stories = export(STORIES, folder / "stories-f32.gguf", "--dtype", "f32")
    texts = strings()
    questions = [{"model": str(model), "texts": texts} for model in [smollm2, stories]]
    for path in template_names():
        model = with_template(folder, path)
        questions.append({"model": str(model), "conversations": conversations()})
    (folder / "questions.json").write_text(json.dumps(questions))


class Server:
    """llama-server with a model, until it is closed."""

    def __init__(self, programs, model, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [programs / "llama-server", "-m", model, "--port", self.port, "-t", THREADS,
                   "-ngl", 0, "-fa", "off", "-ctk", "f32", "-ctv", "f32", "-c", 512,
                   "--no-warmup", "-np", 1, *more]
        log = subprocess.DEVNULL
        self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"llama-server does not start with {model}")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").read()
                return
            time.sleep(0.1)
        raise RuntimeError("llama-server does not answer")

    def __call__(self, path, **body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        return json.load(urllib.request.urlopen(request))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def texts(programs, folder, answered):
    failed = 0
    for question, answer in answered:
        if "texts" not in question:
            continue
        model = Path(question["model"])
        with Server(programs, model) as server:
            found = [
                server("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
                for text in question["texts"]
            ]
        pairs = list(zip(question["texts"], found, answer["ids"]))
        other = [pair for pair in pairs if pair[1] != pair[2]]
        print(f"texts {model.stem}: {len(pairs) - len(other)} of {len(pairs)} the same")
        for text, theirs, ours in other[:5]:
            print(f"  {text!r}\n    llama.cpp {theirs}\n    Hone      {ours}")
        failed += len(other)
    return failed == 0


def chats(programs, folder, answered):
    same = num = 0
    for question, answer in answered:
        if "conversations" not in question:
            continue
        with Server(programs, question["model"], "--jinja") as server:
            for messages, ours in zip(question["conversations"], answer["rendered"]):
                num += 1
                try:
                    theirs = server("/apply-template", messages=messages)["prompt"]
                except urllib.error.HTTPError as error:
                    theirs = None
                    refusal = error.read()[:200]
                # What every text is given, the server adds as it makes tokens of it.
                if theirs is not None and theirs == (ours or "").removeprefix("<s>"):
                    same += 1
                    continue
                print(f"  {Path(question['model']).stem} {messages[0]['role']}")
                print(f"    llama.cpp {theirs!r}" if theirs else f"    refused {refusal}")
                print(f"    Hone      {ours!r}")
    print(f"chats: {same} of {num} conversations in {NUM_TEMPLATES} templates the same")
    return same == num


def prompts():
    openings = ["Once upon a time, ", "The capital of France is", "def add(a, b):\n    ",
                "In 1969, ", "Dear Sir or Madam,\n", "Water boils at", "Q: What is 7 x 8?\nA:",
                "The opposite of hot is", "She opened the door and", "To bake bread you need"]
    subjects = ["", "Note: ", "Lesson one. ", "# Title\n\n", "\"Hello!\" ", "1. ", "Well, ",
                "Fact: ", "Story: ", "He said: "]
    return [subject + opening for subject in subjects for opening in openings][:NUM_PROMPTS]


def greedy(programs, folder, _):
    model = folder / "smollm2-f32.gguf"
    same = 0
    with Server(programs, model) as server:
        for prompt in prompts():
            answer = hone("generate", model, "--prompt", prompt, "--temperature", 0, "--compute",
                          "f32", "--max-new-tokens", NUM_TOKENS, "--json")
            ours = json.loads(answer)["text"]
            theirs = server("/completion", prompt=prompt, n_predict=NUM_TOKENS, temperature=0,
                            cache_prompt=False, seed=1)["content"]
            # Hone may repeat the prompt, and drops what ends a text.
            ours = ours.removeprefix(prompt)
            if ours.strip() == theirs.strip():
                same += 1
            else:
                print(f"  {prompt!r}\n    llama.cpp {theirs!r}\n    Hone      {ours!r}")
    print(f"greedy: {same} of {NUM_PROMPTS} answers the same")
    return same >= NUM_PROMPTS - 1


def adapter(folder, name, settings):
    """A random adapter in PEFT's layout for SmolLM2."""
    from safetensors.numpy import save_file

    directory = folder / f"adapter-{name}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    pick = numpy.random.default_rng(len(name))
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 12, "target_modules": "all-linear",
              "base_model_name_or_path": "SmolLM2", **settings}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    hidden, kv, inner, layers = 576, 192, 1536, 30
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
              "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden),
              "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    tensors = {}
    for layer in range(layers):
        for module, (n, k) in shapes.items():
            rank = settings.get("rank_pattern", {}).get(module.rsplit(".")[-1], 8)
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            a = pick.uniform(-1, 1, (rank, k)) / k**0.5
            b = pick.normal(0, 0.05, (n, rank))
            tensors[f"{prefix}.lora_A.weight"] = a.astype(numpy.float32)
            tensors[f"{prefix}.lora_B.weight"] = b.astype(numpy.float32)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


ADAPTERS = {
    "plain": {},
    "stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 3, "down_proj": 16}, "alpha_pattern": {"q_proj": 5.0}},
}


def divergence(programs, model, logits, *more):
    """Mean KL of a model from saved logits, and how often the most likely token is the same."""
    command = [programs / "llama-perplexity", "-m", model, "-ngl", 0, "-t", THREADS, "-fa", "off",
               "-ctk", "f32", "-ctv", "f32", *more, "--kl-divergence",
               "--kl-divergence-base", logits]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()

    def figure(name):
        line = next((line for line in lines if line.strip().startswith(name)), None)
        if line is None:
            raise RuntimeError("\n".join(lines[-20:]))
        return float(line.split(":")[1].split()[0])

    return figure("Mean    KLD"), figure("Same top p")


def adapters(programs, folder, _):
    base = folder / "smollm2-f32.gguf"
    text = folder / "text.txt"
    text.write_text("\n".join(prompts()) * 3)
    passed = True
    for name, settings in ADAPTERS.items():
        directory = adapter(folder, name, settings)
        merged, alone = folder / f"merged-{name}.gguf", folder / f"adapter-{name}.gguf"
        merged.unlink(missing_ok=True)
        alone.unlink(missing_ok=True)
        export(base, merged, "--adapter", directory, "--dtype", "f32")
        export(base, alone, "--adapter", directory, "--adapter-only")
        logits = folder / "logits.bin"
        command = [programs / "llama-perplexity", "-m", merged, "-f", text, "-c", 128, "-ngl", 0,
                   "-t", THREADS, "-fa", "off", "-ctk", "f32", "-ctv", "f32",
                   "--kl-divergence-base", logits]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        with_adapter = divergence(programs, base, logits, "--lora", alone)
        without = divergence(programs, base, logits)
        merged.unlink()
        is_same = with_adapter[0] < 1e-5 and with_adapter[1] > 99.5
        print(f"adapters {name}: KL {with_adapter[0]:.2e}, same top {with_adapter[1]:.2f} %; "
              f"without it KL {without[0]:.2e}, same top {without[1]:.2f} %")
        passed = passed and is_same and without[0] > 100 * abs(with_adapter[0])
    return passed


def quantize(programs, model, kind, out):
    out.unlink(missing_ok=True)
    command = [programs / "llama-quantize", model, out, kind.upper(), THREADS]
    begun = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return time.monotonic() - begun


def compress(model, kind, out):
    out.unlink(missing_ok=True)
    out.with_suffix(".md").unlink(missing_ok=True)
    begun = time.monotonic()
    hone("compress", model, "--type", kind, "--fallback", "llama.cpp", "--out", out)
    return time.monotonic() - begun


def values(path):
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    return {t.name: (t.tensor_type.name, gguf.quants.dequantize(t.data, t.tensor_type))
            for t in tensors}


def errors(programs, folder, _):
    model = folder / "smollm2-f32.gguf"
    source = {name: x for name, (_, x) in values(model).items()}
    passed = True
    for kind in ["q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k", "iq4_xs", "iq4_nl"]:
        theirs, ours = folder / f"theirs-{kind}.gguf", folder / f"ours-{kind}.gguf"
        quantize(programs, model, kind, theirs)
        compress(model, kind, ours)
        found, expected = values(ours), values(theirs)
        ratios, other = [], sorted(found.keys() ^ expected.keys())
        for name in found.keys() & expected.keys():
            (type_of, x), (their_type, y) = found[name], expected[name]
            if type_of != their_type:
                other.append(f"{name} {type_of} {their_type}")
                continue
            if type_of in ["F32", "F16", "BF16"]:
                continue
            w = source[name]
            # What llama.cpp weighs by: a row's mean square and each weight's own.
            weight = (w**2).mean(axis=-1, keepdims=True) + w**2
            error = [float((weight * (q.reshape(w.shape) - w) ** 2).sum()) for q in (x, y)]
            ratios.append((error[0] / max(error[1], 1e-30), name, type_of))
        worst = max(ratios)
        mean = sum(ratio for ratio, *_ in ratios) / len(ratios)
        print(f"errors {kind}: of llama-quantize's on average {mean:.4f}, at most {worst[0]:.4f} "
              f"({worst[1]}, {worst[2]}); {len(other)} tensors of another type {other[:2]}")
        passed = passed and worst[0] <= 1.0 + 1e-6 and not other
        theirs.unlink()
        ours.unlink()
    return passed


def speed(programs, folder, _):
    model = folder / "smollm2-f32.gguf"
    for kind in ["q8_0", "q4_0", "q5_1"]:
        out = folder / "speed.gguf"
        theirs = min(quantize(programs, model, kind, out) for _ in range(3))
        ours = min(compress(model, kind, out) for _ in range(3))
        out.unlink()
        print(f"speed {kind}: llama-quantize {theirs:.2f} s, hone compress {ours:.2f} s with "
              "loading, reading back and comparing")
    return True


CASES = {"texts": texts, "chats": chats, "greedy": greedy, "adapters": adapters, "errors": errors,
         "speed": speed}


def compare(programs, folder, cases):
    questions = json.loads((folder / "questions.json").read_text())
    answers = json.loads((folder / "answers.json").read_text())
    answered = list(zip(questions, answers))
    results = {case: CASES[case](programs, folder, answered) for case in cases or CASES}
    failed = [case for case, passed in results.items() if not passed]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["ask", "compare"])
    parser.add_argument("programs", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES])
    arguments = parser.parse_args()
    if arguments.what == "ask":
        ask(arguments.folder)
    else:
        compare(arguments.programs, arguments.folder, arguments.cases)


if __name__ == "__main__":
    main()

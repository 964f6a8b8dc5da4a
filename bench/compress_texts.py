"""Texts and tokenizer of `cargo xtask bench compress`.

    PYTHON bench/compress_texts.py texts DATA OUT
    PYTHON bench/compress_texts.py second OUT
    PYTHON bench/compress_texts.py cut MODEL TEXT WINDOWS OUT

The first form reads the sets in DATA (`../shared/data`) and writes into OUT what is learnt from
(`train.jsonl`), what is calibrated on (`calibration.txt`, a sample of it) and what is evaluated on:
`own.txt`, the last tenth of each set, and `other.txt`, a kind of text that is not learnt. The
second trains a byte-level BPE of 4,096 tokens on `train.jsonl` there, and writes a Llama of random
weights with it into OUT/second-init: rows of multiples of 256, as K-types of GGUF want them. The
third writes the beginning of TEXT that gives so many windows of 512 tokens by the tokenizer of the folder MODEL.

Texts hold no special tokens, since llama.cpp's programs read those of a file as plain characters.
"""

import gzip
import json
import random
import sys
from pathlib import Path

# Of each set the last part is held out.
HELD_OUT = 0.1
# Characters to calibrate on, and of each of the two texts to evaluate on.
CALIBRATION, EVALUATION = 700_000, 400_000


def json_lines(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def gsm8k(data):
    """As the task of that name asks and answers."""
    rows = json_lines(data / "sft/gsm8k/train.jsonl")
    return [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows]


def wikitext(data):
    """Articles of the file, in which an article begins with a line of one equals sign."""
    articles, lines = [], []
    for line in (data / "text/wikitext-2-valid.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(" = ") and not line.startswith(" = = ") and lines:
            articles.append("\n".join(lines).strip())
            lines = []
        lines.append(line.strip())
    articles.append("\n".join(lines).strip())
    return [article for article in articles if article]


def instructions(data):
    texts = []
    for name in ["seed_tasks.jsonl", "user_oriented_instructions.jsonl"]:
        for row in json_lines(data / "sft" / name):
            for case in row["instances"]:
                parts = [row["instruction"], case["input"], case["output"]]
                texts.append("\n\n".join(part for part in parts if part))
    return texts


def turns(messages, speaker, said):
    return "\n\n".join(f"{message[speaker].capitalize()}: {message[said]}" for message in messages)


def chats(data):
    formats = data / "formats"
    texts = []
    for row in json.loads((formats / "dpo_en_demo.json").read_text(encoding="utf-8")):
        texts.append(turns([*row["conversations"], row["chosen"]], "from", "value"))
    for row in json.loads((formats / "glaive_toolcall_en_demo.json").read_text(encoding="utf-8")):
        texts.append(turns(row["conversations"], "from", "value"))
    for row in json.loads((formats / "kto_en_demo.json").read_text(encoding="utf-8")):
        texts.append(turns(row["messages"], "role", "content"))
    return texts


def preferred(data):
    with gzip.open(data / "preference/hh-rlhf/harmless-base-test.jsonl.gz", "rt") as lines:
        return [json.loads(line)["chosen"].strip() for line in lines]


def write_texts(data, out):
    stories = json.loads((data / "text/tinystories_1000.json").read_text(encoding="utf-8"))
    sets = {
        "stories": [story.strip() for story in stories],
        "wikitext": wikitext(data),
        "gsm8k": gsm8k(data),
        "instructions": instructions(data),
        "chats": chats(data),
        "preferred": preferred(data),
        "web": [row["text"] for row in json_lines(data / "formats/c4_demo.jsonl")],
    }
    draw = random.Random(1)
    draw_held_out = random.Random(2)
    learnt, held_out = {}, {}
    for name, texts in sets.items():
        cut = round(len(texts) * (1 - HELD_OUT))
        learnt[name], held_out[name] = texts[:cut], texts[cut:]
    rows = [(name, text) for name, texts in learnt.items() for text in texts]
    draw.shuffle(rows)
    write_rows(out / "train.jsonl", rows)
    write_rows(out / "train-smollm2.jsonl", [row for row in rows if row[0] in SHARES])
    write(out / "calibration.txt", mixed(learnt, CALIBRATION, draw))
    write(out / "own.txt", mixed(held_out, EVALUATION, draw_held_out))
    write(out / "other.txt", (data / "text/tinyshakespeare.txt").read_text()[:EVALUATION])
    for name, texts in learnt.items():
        print(name, len(texts), "learnt,", sum(map(len, texts)), "characters;",
              sum(map(len, held_out[name])), "held out", file=sys.stderr)


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for _, text in rows:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


# The three that both models learn from, in these shares of the characters.
SHARES = {"gsm8k": 0.5, "stories": 0.25, "wikitext": 0.25}


def mixed(sets, num_characters, draw):
    """Texts of the sets in a drawn order, shortened where a set would have more than its share."""
    texts = []
    for name, share in SHARES.items():
        left = int(share * num_characters)
        for text in draw.sample(sets[name], len(sets[name])):
            texts.append(text[:left])
            left -= len(texts[-1])
            if left <= 0:
                break
    draw.shuffle(texts)
    return "\n\n".join(texts)


def write(path, text):
    path.write_text(text, encoding="utf-8")


SECOND = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "float32",
}
END = "<|endoftext|>"


def write_tokenizer(train, model):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SECOND["vocab_size"],
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["text"] for row in json_lines(train)), trainer)
    tokenizer.save(str(model / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    write(model / "tokenizer_config.json", json.dumps(config, indent=1))


def write_second(out):
    import numpy
    from safetensors.numpy import save_file

    model = out / "second-init"
    model.mkdir(exist_ok=True)
    write_tokenizer(out / "train.jsonl", model)
    write(model / "config.json", json.dumps(SECOND, indent=1))
    hidden, inner, layers = 256, 768, SECOND["num_hidden_layers"]
    kv = SECOND["num_key_value_heads"] * SECOND["head_dim"]
    draw = numpy.random.default_rng(1)

    def normal(rows, columns, deviation=0.02):
        return draw.normal(0, deviation, (rows, columns)).astype(numpy.float32)

    # What is added to the stream of hidden states is small at first, as GPT-2 has it.
    added = 0.02 / (2 * layers) ** 0.5
    ones = numpy.ones(hidden, numpy.float32)
    tensors = {"model.embed_tokens.weight": normal(SECOND["vocab_size"], hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = ones.copy()
        tensors[at + "post_attention_layernorm.weight"] = ones.copy()
        tensors[at + "self_attn.q_proj.weight"] = normal(hidden, hidden)
        tensors[at + "self_attn.k_proj.weight"] = normal(kv, hidden)
        tensors[at + "self_attn.v_proj.weight"] = normal(kv, hidden)
        tensors[at + "self_attn.o_proj.weight"] = normal(hidden, hidden, added)
        tensors[at + "mlp.gate_proj.weight"] = normal(inner, hidden)
        tensors[at + "mlp.up_proj.weight"] = normal(inner, hidden)
        tensors[at + "mlp.down_proj.weight"] = normal(hidden, inner, added)
    tensors["model.norm.weight"] = ones
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    print(sum(tensor.size for tensor in tensors.values()), "weights", file=sys.stderr)


WINDOW = 512


def cut(model, text, windows, out):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = text.read_text(encoding="utf-8")
    encoded = tokenizer.encode(text, add_special_tokens=False)
    # A few more than asked for, as the last may be others without what follows them; programs leave
    # out what is no whole window.
    last = windows * WINDOW + 8
    if len(encoded.ids) <= last:
        sys.exit(f"{out.name}: the text has {len(encoded.ids)} tokens, {last} are needed")
    write(out, text[: encoded.offsets[last][0]])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["texts", data, out]:
            write_texts(Path(data), Path(out))
        case ["second", out]:
            write_second(Path(out))
        case ["cut", model, text, windows, out]:
            cut(Path(model), Path(text), int(windows), Path(out))
        case _:
            sys.exit(__doc__)

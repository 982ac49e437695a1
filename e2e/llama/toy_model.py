"""Writes a small GGUF file of random weights: toy_model.py FILE llama|gemma3 [SEED [LAYERS]].

`llama` has full attention in every layer, `gemma3` a sliding window in five of six. Weights are so large that an answer depends on
the whole prompt. A token is a byte.
"""

import random
import statistics
import struct
import sys
from typing import Any, BinaryIO

ALIGNMENT = 32
WIDTH, FEED_FORWARD, HEADS, KV_HEADS = 512, 1024, 8, 4
HEAD = WIDTH // HEADS
WINDOW = 256
F32, F16 = 0, 1
# Types of values in the file's table.
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5

QUANTILES = 4096


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def plain(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return text(value)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def entry(name: str, kind: int, value: Any, of: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", kind)
    if kind == ARRAY:
        return head + struct.pack("<IQ", of, len(value)) + b"".join(plain(of, item) for item in value)
    return head + plain(kind, value)


class Tensors:
    """Names, shapes (the innermost axis first) and bytes."""

    def __init__(self, seed: int) -> None:
        self.all: list[tuple[str, tuple[int, ...], int, bytes]] = []
        self.random = random.Random(seed)
        normal = statistics.NormalDist()
        self.quantiles = [normal.inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)]

    def matrix(self, name: str, inputs: int, outputs: int, scale: float) -> None:
        table = [struct.pack("<e", value * scale) for value in self.quantiles]
        data = b"".join(self.random.choices(table, k=inputs * outputs))
        self.all.append((name, (inputs, outputs), F16, data))

    def constant(self, name: str, count: int, value: float) -> None:
        self.all.append((name, (count,), F32, struct.pack("<f", value) * count))


def tensors(architecture: str, seed: int, layers: int, vocabulary: int) -> Tensors:
    made = Tensors(seed)
    gemma = architecture == "gemma3"
    # What comes out of a matrix is then as large as what goes in.
    even = WIDTH**-0.5
    made.matrix("token_embd.weight", WIDTH, vocabulary, even if gemma else 1.0)
    # Of its own: with the embedding's weights the most likely token would be the last one again.
    made.matrix("output.weight", WIDTH, vocabulary, even)
    made.constant("output_norm.weight", WIDTH, 1.0)
    for i in range(layers):
        block = f"blk.{i}."
        # Large queries and keys: attention looks at a few tokens instead of the mean of all.
        sharp = even if gemma else 2 * even
        made.matrix(block + "attn_q.weight", WIDTH, HEAD * HEADS, sharp)
        made.matrix(block + "attn_k.weight", WIDTH, HEAD * KV_HEADS, sharp)
        made.matrix(block + "attn_v.weight", WIDTH, HEAD * KV_HEADS, even)
        made.matrix(block + "attn_output.weight", HEAD * HEADS, WIDTH, even)
        made.matrix(block + "ffn_gate.weight", WIDTH, FEED_FORWARD, even)
        made.matrix(block + "ffn_up.weight", WIDTH, FEED_FORWARD, even)
        made.matrix(block + "ffn_down.weight", FEED_FORWARD, WIDTH, FEED_FORWARD**-0.5)
        made.constant(block + "attn_norm.weight", WIDTH, 1.0)
        made.constant(block + "ffn_norm.weight", WIDTH, 1.0)
        if gemma:
            made.constant(block + "attn_q_norm.weight", HEAD, 2.0)
            made.constant(block + "attn_k_norm.weight", HEAD, 2.0)
            # The layer that sees beyond the window counts for more than the others.
            made.constant(block + "post_attention_norm.weight", WIDTH, 4.0 if i % 6 == 5 else 1.0)
            made.constant(block + "post_ffw_norm.weight", WIDTH, 1.0)
    return made


def write(file: BinaryIO, architecture: str, seed: int, layers: int) -> None:
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    # Unknown, control, and bytes.
    kinds = [2, 3, 3] + [6] * 256
    made = tensors(architecture, seed, layers, len(tokens))
    entries = [
        entry("general.architecture", STRING, architecture),
        entry("general.name", STRING, f"random {architecture} {seed}"),
        entry(f"{architecture}.context_length", UINT32, 32768),
        entry(f"{architecture}.embedding_length", UINT32, WIDTH),
        entry(f"{architecture}.block_count", UINT32, layers),
        entry(f"{architecture}.feed_forward_length", UINT32, FEED_FORWARD),
        entry(f"{architecture}.attention.head_count", UINT32, HEADS),
        entry(f"{architecture}.attention.head_count_kv", UINT32, KV_HEADS),
        entry(f"{architecture}.attention.key_length", UINT32, HEAD),
        entry(f"{architecture}.attention.value_length", UINT32, HEAD),
        entry(f"{architecture}.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        entry(f"{architecture}.rope.freq_base", FLOAT32, 10000.0),
        entry("tokenizer.ggml.model", STRING, "llama"),
        entry("tokenizer.ggml.tokens", ARRAY, tokens, STRING),
        entry("tokenizer.ggml.scores", ARRAY, [0.0] * len(tokens), FLOAT32),
        entry("tokenizer.ggml.token_type", ARRAY, kinds, INT32),
        entry("tokenizer.ggml.bos_token_id", UINT32, 1),
        entry("tokenizer.ggml.eos_token_id", UINT32, 2),
        entry("tokenizer.ggml.unknown_token_id", UINT32, 0),
        entry("tokenizer.ggml.add_space_prefix", BOOL, False),
    ]
    if architecture == "llama":
        entries.append(entry("llama.rope.dimension_count", UINT32, HEAD))
    else:
        entries.append(entry("gemma3.attention.sliding_window", UINT32, WINDOW))
    offset = 0
    table = b""
    for name, shape, kind, data in made.all:
        table += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        table += struct.pack("<IQ", kind, offset)
        offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(made.all), len(entries)) + b"".join(entries) + table
    file.write(head + b"\0" * (-len(head) % ALIGNMENT))
    for _, _, _, data in made.all:
        file.write(data + b"\0" * (-len(data) % ALIGNMENT))


if __name__ == "__main__":
    path, architecture = sys.argv[1:3]
    with open(path, "wb") as out:
        write(out, architecture, int(sys.argv[3]) if sys.argv[3:] else 1, int(sys.argv[4]) if sys.argv[4:] else 6)

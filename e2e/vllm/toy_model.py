"""Writes a model of a few layers with random weights: large enough that its text depends on all that came before.

toy_model.py DIRECTORY KIND [SEED], where a kind is one of `KINDS`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, WORDS, INNER = 256, 512, 512
COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "vocab_size": WORDS,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS, KV_HEADS, HEAD = 4, 2, 64
ATTENTION = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD}
# A window is a part of a chunk and no multiple of a block.
WINDOW = 200
WINDOWED, FULL = "sliding_attention", "full_attention"
LAYERS = [WINDOWED, WINDOWED, FULL, WINDOWED, WINDOWED, FULL]
LATENT, ROTARY, PLAIN = 512, 64, 64

KINDS: dict[str, dict[str, Any]] = {
    "full": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, **ATTENTION},
    # Of one layer, to guess the words of "full".
    "draft": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, **ATTENTION},
    "windows": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": len(LAYERS),
        "layer_types": LAYERS,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": HEAD,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        **ATTENTION,
    },
    "latent": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": None,
        "kv_lora_rank": LATENT,
        "qk_rope_head_dim": ROTARY,
        "qk_nope_head_dim": PLAIN,
        "v_head_dim": PLAIN,
        # None of them is in a layer.
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 2,
        "moe_layer_freq": 1,
    },
}


def shapes(kind: str) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Names and shapes of a layer's weights, and how large they are; 0: by their inputs."""
    if kind == "latent":
        # Sharp attention: the text hangs on single tokens of the prompt.
        yield "self_attn.q_proj", (HEADS * (PLAIN + ROTARY), HIDDEN), 0.15
        yield "self_attn.kv_a_proj_with_mqa", (LATENT + ROTARY, HIDDEN), 0.0
        yield "self_attn.kv_b_proj", (HEADS * 2 * PLAIN, LATENT), 0.15
        yield "self_attn.o_proj", (HIDDEN, HEADS * PLAIN), 0.0
    else:
        yield "self_attn.q_proj", (HEADS * HEAD, HIDDEN), 0.15
        yield "self_attn.k_proj", (KV_HEADS * HEAD, HIDDEN), 0.15
        yield "self_attn.v_proj", (KV_HEADS * HEAD, HIDDEN), 0.0
        yield "self_attn.o_proj", (HIDDEN, HEADS * HEAD), 0.0
    yield "mlp.gate_proj", (INNER, HIDDEN), 0.0
    yield "mlp.up_proj", (INNER, HIDDEN), 0.0
    yield "mlp.down_proj", (HIDDEN, INNER), 0.0


def norms(kind: str) -> Iterator[tuple[str, int, float]]:
    """Names and sizes of a layer's norms, and what is in them."""
    if kind == "windows":
        # This model adds one to each; attention is as sharp as that of the others.
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{name}_layernorm", HIDDEN, 0.0
        yield "self_attn.q_norm", HEAD, 1.4
        yield "self_attn.k_norm", HEAD, 1.4
    else:
        yield "input_layernorm", HIDDEN, 1.0
        yield "post_attention_layernorm", HIDDEN, 1.0
    if kind == "latent":
        yield "self_attn.kv_a_layernorm", LATENT, 1.0


def weights(kind: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) * (scale or shape[-1] ** -0.5)
        return values.to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": random(WORDS, HIDDEN, scale=1.0),
        # Far apart, so that rounding does not decide between two words.
        "lm_head.weight": random(WORDS, HIDDEN, scale=0.3),
        "model.norm.weight": torch.full((HIDDEN,), float(kind != "windows"), dtype=torch.bfloat16),
    }
    for layer in range(KINDS[kind]["num_hidden_layers"]):
        of_layer = {name: random(*shape, scale=scale) for name, shape, scale in shapes(kind)}
        of_layer.update({name: torch.full((size,), value, dtype=torch.bfloat16) for name, size, value in norms(kind)})
        tensors.update({f"model.layers.{layer}.{name}.weight": tensor for name, tensor in of_layer.items()})
    return tensors


if __name__ == "__main__":
    place, kind = Path(sys.argv[1]), sys.argv[2]
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps({**COMMON, **KINDS[kind]}))
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 7
    save_file(weights(kind, seed), str(place / "model.safetensors"), metadata={"format": "pt"})

"""Writes a Llama of two layers with random weights: large enough that its text depends on all that came before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, WORDS, INNER, HEADS, KV_HEADS, HEAD = 256, 2, 512, 512, 4, 2, 64


def config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
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


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.0) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) * (scale or shape[-1] ** -0.5)
        return values.to(torch.bfloat16)

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors = {
        "model.embed_tokens.weight": random(WORDS, HIDDEN, scale=1.0),
        # Far apart, so that rounding does not decide between two words.
        "lm_head.weight": random(WORDS, HIDDEN, scale=0.3),
        "model.norm.weight": ones.clone(),
    }
    for layer in range(LAYERS):
        of_layer = {
            # Sharp attention: the text hangs on single tokens of the prompt.
            "self_attn.q_proj.weight": random(HEADS * HEAD, HIDDEN, scale=0.15),
            "self_attn.k_proj.weight": random(KV_HEADS * HEAD, HIDDEN, scale=0.15),
            "self_attn.v_proj.weight": random(KV_HEADS * HEAD, HIDDEN),
            "self_attn.o_proj.weight": random(HIDDEN, HEADS * HEAD),
            "mlp.gate_proj.weight": random(INNER, HIDDEN),
            "mlp.up_proj.weight": random(INNER, HIDDEN),
            "mlp.down_proj.weight": random(HIDDEN, INNER),
            "input_layernorm.weight": ones.clone(),
            "post_attention_layernorm.weight": ones.clone(),
        }
        tensors.update({f"model.layers.{layer}.{name}": tensor for name, tensor in of_layer.items()})
    return tensors


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(config()))
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    save_file(weights(seed), str(place / "model.safetensors"), metadata={"format": "pt"})

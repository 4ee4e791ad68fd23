"""The exact numerics against transformers' independent implementation, same weights, fp32."""

from __future__ import annotations

import pytest
import torch

from oracles.transformers_v4 import oracle, relative
from wellhead.model.batch import Batch, Chunk
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.deepseek_v4 import DeepseekV4
from wellhead.model.numerics import Numerics
from wellhead.model.parameters import Named, load_parameters
from wellhead.testing.checkpoints import random_checkpoint, tiny_config_dict

TOLERANCE = 1e-4
# With few index heads two entries can both score exactly 0 at the boundary of the choice (every relu shut),
# and which of them is taken is not defined: narrow choices below use 16 heads. The steps cross the end of a
# C128 block (256) and reach 72 C4 entries, more than are chosen; the window is full
TOKENS, PREFILL = 290, 250

CONFIGS = {
    "tiny": {},
    # the compressing layers first, more heads and groups, every layer routed, a narrow choice
    "c128 first": {
        "num_hidden_layers": 4, "compress_ratios": [128, 4, 0, 4, 0], "num_attention_heads": 8, "o_groups": 4,
        "index_topk": 16, "index_n_heads": 16, "num_hash_layers": 0,
        "num_experts_per_tok": 3, "routed_scaling_factor": 2.5,
    },
    # every layer hashed, many index heads, a clamp that bites, one expert short of all
    "all hashed": {
        "num_hidden_layers": 3, "compress_ratios": [4, 4, 128, 0], "index_n_heads": 16, "index_topk": 48,
        "num_hash_layers": 3, "n_routed_experts": 4, "num_experts_per_tok": 3, "swiglu_limit": 0.5,
        "hidden_size": 384, "q_lora_rank": 128,
    },
    "short window": {
        "num_hidden_layers": 4, "compress_ratios": [0, 128, 4, 128, 0], "sliding_window": 32,
        "index_topk": 40, "num_hash_layers": 1, "n_routed_experts": 16, "num_experts_per_tok": 4,
        "moe_intermediate_size": 128, "num_attention_heads": 2, "o_groups": 1, "o_lora_rank": 256,
        "hc_sinkhorn_iters": 5,
    },
}  # fmt: skip


def ours(config: ModelConfig, named: Named, ids: list[int], sizes: list[int]) -> torch.Tensor:
    model = DeepseekV4(named, config, Numerics.named("exact"))
    state = model.allocate(3, 2)
    logits, start = [], 0
    for size in sizes:
        batch = Batch.build([Chunk(ids[start : start + size], start, [2, 0], 1, "all")])
        logits.append(model.logits(model.forward(batch, state)[batch.logits_at]))
        start += size
    return torch.cat(logits)


@torch.inference_mode()
@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_transformers_at_prefill_and_token_by_token(name: str) -> None:
    raw = tiny_config_dict(**CONFIGS[name])
    config = load_config(raw)
    named = load_parameters(random_checkpoint(config, seed=len(name)), config, with_mtp=False)
    model = oracle(raw, named)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, config.vocab_size, (TOKENS,), generator=generator).tolist()

    whole = model(torch.tensor([ids]), use_cache=False).logits[0]
    first = model(torch.tensor([ids[:PREFILL]]), use_cache=True)
    stepped, cache = [first.logits[0]], first.past_key_values
    for token in ids[PREFILL:]:
        out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        stepped.append(out.logits[0])

    decode = [1] * (TOKENS - PREFILL)
    assert relative(ours(config, named, ids, [TOKENS]), whole) < TOLERANCE
    assert relative(ours(config, named, ids, [PREFILL, *decode]), torch.cat(stepped)) < TOLERANCE

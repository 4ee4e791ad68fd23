"""The weights that training begins with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wellhead.ops.compressor import reference as compressor
from wellhead.ops.rope import reference as rope

Weights = dict[str, Tensor]


def init_weights(c: dict[str, Any], seed: int = 0) -> Weights:
    """fp32 training weights by official name; the experts of a layer are stacked [E, out, in]."""
    gen = torch.Generator().manual_seed(seed)
    d, heads, hd, m = c["hidden_size"], c["num_attention_heads"], c["head_dim"], c["moe_intermediate_size"]
    q, n, e, v = c["q_lora_rank"], c["hc_mult"], c["n_routed_experts"], c["vocab_size"]
    groups, o_rank = c["o_groups"], c["o_lora_rank"]
    w: Weights = {}

    def matrix(name: str, *shape: int, gain: float = 1.0) -> None:
        w[name] = torch.randn(*shape, generator=gen) * gain / math.sqrt(shape[-1])

    def hyper_site(name: str, rows: int) -> None:
        w[f"{name}_fn"] = torch.randn(rows, n * d, generator=gen) * 0.01
        base = torch.zeros(rows)
        if rows > n:
            base[2 * n :] = (3.0 * torch.eye(n)).flatten()
        w[f"{name}_base"] = base
        w[f"{name}_scale"] = torch.full((3 if rows > n else 1,), 0.5)

    def pooled(prefix: str, ratio: int, dim: int) -> None:
        width = compressor.overlap(ratio) * dim
        matrix(f"{prefix}.wkv.weight", width, d)
        matrix(f"{prefix}.wgate.weight", width, d)
        w[f"{prefix}.ape"] = torch.zeros(ratio, width)
        w[f"{prefix}.norm.weight"] = torch.ones(dim)

    def block(p: str, ratio: int, hashed: bool) -> None:
        for name, width in (("attn_norm", d), ("ffn_norm", d), ("attn.q_norm", q), ("attn.kv_norm", hd)):
            w[f"{p}.{name}.weight"] = torch.ones(width)
        hyper_site(f"{p}.hc_attn", n * (n + 2))
        hyper_site(f"{p}.hc_ffn", n * (n + 2))
        w[f"{p}.attn.attn_sink"] = torch.zeros(heads)
        matrix(f"{p}.attn.wq_a.weight", q, d)
        matrix(f"{p}.attn.wq_b.weight", heads * hd, q)
        matrix(f"{p}.attn.wkv.weight", hd, d)
        matrix(f"{p}.attn.wo_a.weight", groups * o_rank, heads * hd // groups)
        matrix(f"{p}.attn.wo_b.weight", d, groups * o_rank, gain=0.2)
        if ratio:
            pooled(f"{p}.attn.compressor", ratio, hd)
        if ratio == 4:
            ih, idim = c["index_n_heads"], c["index_head_dim"]
            matrix(f"{p}.attn.indexer.wq_b.weight", ih * idim, q)
            matrix(f"{p}.attn.indexer.weights_proj.weight", ih, d)
            pooled(f"{p}.attn.indexer.compressor", 4, idim)
        matrix(f"{p}.ffn.gate.weight", e, d)
        if hashed:
            table = torch.rand(v, e, generator=gen).topk(c["num_experts_per_tok"]).indices
            w[f"{p}.ffn.gate.tid2eid"] = table
        else:
            w[f"{p}.ffn.gate.bias"] = torch.zeros(e)
        for kind, lead in (("shared_experts", ()), ("experts", (e,))):
            matrix(f"{p}.ffn.{kind}.w1.weight", *lead, m, d)
            matrix(f"{p}.ffn.{kind}.w3.weight", *lead, m, d)
            matrix(f"{p}.ffn.{kind}.w2.weight", *lead, d, m, gain=0.2)

    w["embed.weight"] = torch.randn(v, d, generator=gen) * 0.3
    matrix("head.weight", v, d)
    w["norm.weight"] = torch.ones(d)
    hyper_site("hc_head", n)
    for layer in range(c["num_hidden_layers"]):
        block(f"layers.{layer}", c["compress_ratios"][layer], layer < c["num_hash_layers"])
    block("mtp.0", 0, False)
    _look_back(w, c, gen)
    for name in ("enorm", "hnorm", "norm"):
        w[f"mtp.0.{name}.weight"] = torch.ones(d)
    matrix("mtp.0.e_proj.weight", d, d)
    matrix("mtp.0.h_proj.weight", d, d)
    hyper_site("mtp.0.hc_head", n)
    return w


def _look_back(w: Weights, c: dict[str, Any], gen: torch.Generator) -> None:
    """Start heads 1, 2, 3 of layer 0 as "the token h back", so that a value knows its key from the first step on.

    Keys and values are one vector here, so a position-only head is slow to be found. All embeddings share a mean m;
    wkv sends m to the four fastest rotary pairs (u), wq_b of head h sends what wq_a makes of m to u turned h back.
    """
    d, hd, dim = c["hidden_size"], c["head_dim"], c["qk_rope_head_dim"]
    mean = torch.randn(d, generator=gen)
    mean /= mean.norm()
    w["embed.weight"] += 0.3 * math.sqrt(d) * mean
    shared = math.sqrt(d / 2)  # length of the normed input along m: half of its energy
    pairs = torch.zeros(dim // 2, 2)
    pairs[:4, 0] = 0.5
    wkv, wq_b = w["layers.0.attn.wkv.weight"], w["layers.0.attn.wq_b.weight"]
    wkv[hd - dim :] = pairs.flatten()[:, None] * mean * (17.3 / shared)  # 40 % of a record's energy
    seen = w["layers.0.attn.wq_a.weight"] @ mean
    seen /= seen.norm()
    freqs = rope.frequencies(dim, c["rope_theta"], None)
    for head in range(1, c["num_attention_heads"]):
        angle = -head * freqs
        turned = torch.stack((pairs[:, 0] * angle.cos(), pairs[:, 0] * angle.sin()), -1).flatten()
        rows = wq_b[head * hd : (head + 1) * hd]
        rows[: hd - dim] *= 0.3
        rows[hd - dim :] = turned[:, None] * seen * (19.0 / shared)  # 90 % of a query's energy

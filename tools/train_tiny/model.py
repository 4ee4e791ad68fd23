"""The training forward: whole sequences at once, differentiable, over the same op references that the engine runs.

Weights live in fp32 under their official names. Every product sees what the shipped bytes will hold (E4M3 blocks,
MXFP4 experts, rounded activations and records) through straight-through rounding, so training is quantisation-aware.
The indexer learns from its own loss: cross-entropy of softmax(I) against the attention mass of the entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wellhead.formats import block_fp8, mxfp4
from wellhead.ops.compressor import reference as compressor
from wellhead.ops.hyper_connection import reference as hyper
from wellhead.ops.indexer import reference as indexer
from wellhead.ops.moe import reference as moe
from wellhead.ops.norm_quant import reference as norm
from wellhead.ops.rope import reference as rope
from wellhead.ops.routing import reference as routing

from .initial import Weights

_NEG = -1e30


def straight_through(x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Value of the rounded tensor, gradient of the unrounded one."""
    return x + (rounded(x.detach()).to(x.dtype) - x.detach())


class TrainModel:
    """Forward over [B, S] with S a multiple of 128. `sparse` turns the indexer's top-k on; `quantize` the rounding."""

    def __init__(self, c: dict[str, Any], *, dtype: torch.dtype, quantize: bool, device: str) -> None:
        self.c, self.dtype, self.quantize, self.device = c, dtype, quantize, device
        s = c["rope_scaling"]
        yarn = rope.Yarn(s["factor"], s["original_max_position_embeddings"], s["beta_fast"], s["beta_slow"])
        dim = c["qk_rope_head_dim"]
        self.plain = rope.frequencies(dim, c["rope_theta"], None).to(device)
        self.stretched = rope.frequencies(dim, c["compress_rope_theta"], yarn).to(device)

    def fp8(self, weight: Tensor) -> Tensor:
        if not self.quantize:
            return weight.to(self.dtype)
        rounded = straight_through(weight, lambda t: block_fp8.dequantize_weight(*block_fp8.quantize_weight(t)))
        return rounded.to(self.dtype)

    def fp4(self, weight: Tensor) -> Tensor:
        return (straight_through(weight, mxfp4.round_blocks) if self.quantize else weight).to(self.dtype)

    def act(self, x: Tensor, group: int = 128) -> Tensor:
        return straight_through(x, lambda t: block_fp8.round_rows(t, group)) if self.quantize else x

    def record(self, kv: Tensor) -> Tensor:
        """Round a KV row as the packed record does: E4M3 per 64 outside the rotary tail."""
        if not self.quantize:
            return kv
        nope = kv.shape[-1] - self.c["qk_rope_head_dim"]
        return torch.cat((self.act(kv[..., :nope], 64), kv[..., nope:]), -1)

    def pooled(self, x: Tensor, w: Weights, p: str, ratio: int) -> Tensor:
        """Compressed entries [B, S/ratio, D] of x [B, S, d], normed and rotated at each block's first position."""
        b, s, d = x.shape
        positions = torch.arange(s, device=x.device).repeat(b)
        kv, score = compressor.project(
            x.reshape(-1, d), w[f"{p}.wkv.weight"], w[f"{p}.wgate.weight"], w[f"{p}.ape"], positions
        )
        kv, score = (t.reshape(b, s // ratio, ratio, -1) for t in (kv, score))
        if compressor.overlap(ratio) == 2:
            kv = torch.cat((F.pad(kv, (0, 0, 0, 0, 1, 0))[:, :-1], kv), 2)
            score = torch.cat((F.pad(score, (0, 0, 0, 0, 1, 0), value=_NEG)[:, :-1], score), 2)
        entry = norm.rms_norm(compressor.pool(kv, score, ratio).to(self.dtype), w[f"{p}.norm.weight"], 1e-6)
        starts = (torch.arange(s // ratio, device=x.device) * ratio).repeat(b)
        return rope.apply(entry.flatten(0, 1), starts, self.stretched).view(entry.shape)

    def attention(self, x: Tensor, w: Weights, p: str, ratio: int, sparse: bool) -> tuple[Tensor, Tensor]:
        """x [B, S, d] normed -> (output [B, S, d], indexer cross-entropy [B, S])."""
        c, (b, s, _) = self.c, x.shape
        heads, hd = c["num_attention_heads"], c["head_dim"]
        freqs = self.stretched if ratio else self.plain
        positions = torch.arange(s, device=x.device).repeat(b)
        q, kv, qa = self.latents(x, w, p, positions, freqs)

        query = torch.arange(s, device=x.device)[:, None]
        age = query - torch.arange(s, device=x.device)[None, :]
        visible = ((age >= 0) & (age < c["sliding_window"])).expand(b, s, s)
        index_logits = None
        if ratio:
            kv = torch.cat((kv, self.record(self.pooled(x, w, f"{p}.compressor", ratio))), 1)
            entries = torch.arange(s // ratio, device=x.device)[None, :]
            done = (entries < (query + 1) // ratio).expand(b, s, s // ratio)
            if ratio == 4:
                index_logits = self.index_logits(x.detach(), qa.detach(), w, p, positions).masked_fill(~done, _NEG)
                if sparse and s // ratio > c["index_topk"]:
                    top = index_logits.detach().topk(c["index_topk"], -1).indices
                    done = done & torch.zeros_like(done).scatter(-1, top, True)
            visible = torch.cat((visible, done), -1)

        scores = torch.einsum("bshd,bkd->bshk", q, kv).float() * hd**-0.5
        scores = scores.masked_fill(~visible.unsqueeze(2), float("-inf"))
        sink = w[f"{p}.attn_sink"].expand(b, s, heads).unsqueeze(-1)
        prob = torch.softmax(torch.cat((scores, sink), -1), -1)[..., :-1]
        out = torch.einsum("bshk,bkd->bshd", prob.to(self.dtype), kv)
        y = self.projected(out, w, p, positions, freqs)
        if index_logits is None:
            return y, x.new_zeros(b, s, dtype=torch.float32)
        mass = prob[..., s:].detach().sum(2)
        mass = mass / (mass.sum(-1, keepdim=True) + 1e-9)
        return y, -(mass * torch.log_softmax(index_logits, -1)).sum(-1)

    def latents(self, x: Tensor, w: Weights, p: str, positions: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, S, d] at positions [B * S] -> queries [B, S, h, D], records [B, S, D], rounded query latents."""
        c, (b, s, _) = self.c, x.shape
        heads, hd = c["num_attention_heads"], c["head_dim"]
        a = self.act(x)
        qr = norm.rms_norm(a @ self.fp8(w[f"{p}.wq_a.weight"]).T, w[f"{p}.q_norm.weight"], 1e-6)
        qa = self.act(qr)
        q = norm.rms_norm((qa @ self.fp8(w[f"{p}.wq_b.weight"]).T).view(b * s, heads, hd), None, 1e-6)
        q = rope.apply(q, positions, freqs).view(b, s, heads, hd)
        kv = norm.rms_norm(a @ self.fp8(w[f"{p}.wkv.weight"]).T, w[f"{p}.kv_norm.weight"], 1e-6)
        return q, self.record(rope.apply(kv.view(b * s, hd), positions, freqs).view(b, s, hd)), qa

    def projected(self, out: Tensor, w: Weights, p: str, positions: Tensor, freqs: Tensor) -> Tensor:
        """What the heads read, [B, S, h, D], turned back and through both output matrices: [B, S, d]."""
        b, s, heads, hd = out.shape
        groups = self.c["o_groups"]
        out = rope.apply(out.reshape(b * s, heads, hd), positions, freqs, inverse=True).view(b * s, groups, -1)
        wo_a = self.fp8(w[f"{p}.wo_a.weight"]).view(groups, self.c["o_lora_rank"], -1)
        z = torch.einsum("tgk,gok->tgo", out, wo_a).reshape(b, s, -1)
        return self.act(z) @ self.fp8(w[f"{p}.wo_b.weight"]).T

    def index_logits(self, x: Tensor, qa: Tensor, w: Weights, p: str, positions: Tensor) -> Tensor:
        c, (b, s, _) = self.c, x.shape
        heads, dim = c["index_n_heads"], c["index_head_dim"]
        iq = (qa @ self.fp8(w[f"{p}.indexer.wq_b.weight"]).T).view(b * s, heads, dim)
        iq = rope.apply(iq, positions, self.stretched).view(b, s, heads, dim)
        ik = self.pooled(x, w, f"{p}.indexer.compressor", 4)
        weights = (x @ w[f"{p}.indexer.weights_proj.weight"].to(self.dtype).T).float() * (dim * heads) ** -0.5
        return indexer.logits(iq, ik, weights)

    def ffn(self, x: Tensor, w: Weights, p: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, d] -> (output [T, d], tokens per expert [E]); all experts computed, unchosen ones weighted 0."""
        c = self.c
        e, limit = c["n_routed_experts"], c["swiglu_limit"]
        scores = routing.affinity(x, w[f"{p}.gate.weight"])
        if f"{p}.gate.tid2eid" in w:
            chosen, weights = routing.choose_by_token(
                scores, c["routed_scaling_factor"], w[f"{p}.gate.tid2eid"], ids.flatten()
            )
        else:
            chosen, weights = routing.choose(
                scores, c["num_experts_per_tok"], c["routed_scaling_factor"], w[f"{p}.gate.bias"]
            )
        dense = torch.zeros_like(scores).scatter(-1, chosen, weights)
        a = self.act(x)
        w1, w3 = (self.fp4(w[f"{p}.experts.{n}.weight"]).flatten(0, 1) for n in ("w1", "w3"))
        w2 = self.fp4(w[f"{p}.experts.w2.weight"]).transpose(0, 1).flatten(1)
        h = moe.swiglu(a @ w1.T, a @ w3.T, limit).view(-1, e, w1.shape[0] // e) * dense.unsqueeze(-1)
        y = (self.act(h.to(self.dtype)).flatten(1) @ w2.T).float()
        shared = [self.fp8(w[f"{p}.shared_experts.{n}.weight"]) for n in ("w1", "w3", "w2")]
        hs = moe.swiglu(a @ shared[0].T, a @ shared[1].T, limit).to(self.dtype)
        return (y + (self.act(hs) @ shared[2].T).float()).to(self.dtype), (dense > 0).float().sum(0)

    def layer(self, streams: Tensor, w: Weights, p: str, ratio: int, sparse: bool, ids: Tensor):  # type: ignore[no-untyped-def]
        """One decoder layer: streams [B, S, n, d] -> (streams, indexer cross-entropy [B, S], expert load [E])."""
        return self.block(streams, w, p, ids, lambda u: self.attention(u, w, f"{p}.attn", ratio, sparse))

    def block(  # type: ignore[no-untyped-def]
        self, streams: Tensor, w: Weights, p: str, ids: Tensor, attend: Callable[[Tensor], tuple[Tensor, Tensor]]
    ):
        """Both sites of a block around attend(u [B, S, d]) -> (output, anything): (streams, anything, expert load)."""
        b, s, n, d = streams.shape
        x = streams.view(b * s, n, d)

        def enter(x: Tensor, site: str) -> tuple[Tensor, Tensor, Tensor]:
            fn, base, scale = (w[f"{p}.hc_{site}_{part}"] for part in ("fn", "base", "scale"))
            return self.hyper_pre(x, fn, base, scale, w[f"{p}.{site}_norm.weight"])

        u, post, comb = enter(x, "attn")
        y, beside = attend(u.view(b, s, d))
        x = self.hyper_post(y.reshape(b * s, d), x, post, comb)
        u, post, comb = enter(x, "ffn")
        y, load = self.ffn(u, w, f"{p}.ffn", ids)
        return self.hyper_post(y, x, post, comb).view(b, s, n, d), beside, load

    def hyper_pre(
        self, x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Contract the streams and norm the result: x [T, n, d] -> (normed [T, d], post, comb)."""
        c = self.c
        u, post, comb = hyper.pre(
            x, fn, base, scale, norm_eps=1e-6, hc_eps=c["hc_eps"], iterations=c["hc_sinkhorn_iters"]
        )
        return norm.rms_norm(u, weight, 1e-6), post, comb

    def hyper_post(self, y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        return hyper.post(y, x, post, comb)

    def streams(self, w: Weights, ids: Tensor, sparse: bool):  # type: ignore[no-untyped-def]
        """ids [B, S] -> (streams after the last layer [B, S, n, d], summed index loss [B, S], loads {name: [E]})."""
        x = w["embed.weight"].to(self.dtype)[ids.long()].unsqueeze(2).expand(-1, -1, self.c["hc_mult"], -1).contiguous()
        index_loss = torch.zeros(ids.shape, device=x.device)
        loads = {}
        for i in range(self.c["num_hidden_layers"]):
            x, ce, load = self.layer(x, w, f"layers.{i}", self.c["compress_ratios"][i], sparse, ids)
            index_loss = index_loss + ce
            loads[f"layers.{i}.ffn.gate.bias"] = load
        return x, index_loss, loads

    def logits(self, w: Weights, streams: Tensor, prefix: str = "") -> Tensor:
        """fp32 logits of streams [..., n, d], contracted and normed by the weights under `prefix`."""
        fn, base, scale = (w[f"{prefix}hc_head_{part}"] for part in ("fn", "base", "scale"))
        u = hyper.head(streams, fn, base, scale, norm_eps=1e-6, hc_eps=self.c["hc_eps"])
        h = norm.rms_norm(u, w[f"{prefix}norm.weight"], 1e-6)
        return h.float() @ w["head.weight"].to(self.dtype).float().T

"""Which implementation of every op a model runs: chosen once, with the model's own sizes and every reason.

The workspace of a model on a device asks here which plans to make, `describe` shows the same record, and `wellhead
doctor` comes to it by the same function over the sizes of each op's first case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wellhead.dispatch.capability import host
from wellhead.dispatch.choose import AUTO, Choice, choose_each, wanted
from wellhead.dispatch.features import Features
from wellhead.dispatch.spec import REFERENCE, Sizes
from wellhead.model.config import ModelConfig
from wellhead.model.device_layout import side_parts
from wellhead.model.split import Split
from wellhead.model.state import PAGE_TOKENS, pages_for, records_per_page
from wellhead.ops import registry

INDEX_ROWS = 256  # tokens of a prefill whose index logits exist together


class Choices:
    """A choice for every op, and where an op has several, one for each range of tokens of a step."""

    def __init__(self, choices: Sequence[Choice]):
        self.all = tuple(choices)

    def of(self, op: str, tokens: int = 0) -> str:
        """The implementation of an op in plans for up to that many tokens."""
        for choice in self.all:
            if choice.op == op and (choice.most is None or tokens <= choice.most):
                return choice.impl
        raise ValueError(f"no choice was made for op {op!r}; there are {', '.join(c.op for c in self.all)}")

    def rows(self) -> list[tuple[str, str, str]]:
        """(operation, implementation, why) of every operation."""
        return [choice.row for choice in self.all]

    def check_captured(self) -> None:
        """ValueError if an op runs in its reference, which no graph can hold; sampling comes behind the graph."""
        found = [choice.op for choice in self.all if choice.impl == REFERENCE and choice.op != "sampling"]
        if found:
            raise ValueError(
                f"--impl {found[0]}={REFERENCE}: references synchronise with the host, so their steps cannot be "
                f"captured ({', '.join(found)}); add --eager"
            )


def host_choices(impl: str | Mapping[str, str] = AUTO) -> Choices:
    """Every op's choice for a model in torch on the CPU: its reference, or ValueError with the reason."""
    specs, features = registry.specs(), host()
    asked = wanted(impl, specs)
    return Choices([choice for s in specs for choice in choose_each(s, features, [{}], asked[s.name])])


def choose_ops(config: ModelConfig, split: Split, features: Features, impl: str | Mapping[str, str] = AUTO) -> Choices:
    """Every op's choice for a rank's part of a model. impl: an implementation for all ops, or {op: implementation}.

    ValueError names the ops and implementations that exist, or why the place cannot run what was asked for.
    """
    specs = registry.specs()
    asked, uses = wanted(impl, specs), uses_of(config, split)
    found: list[Choice] = []
    for spec in specs:
        if spec.name in uses:
            found += choose_each(spec, features, uses[spec.name], asked[spec.name])
    return Choices(found)


def uses_of(config: ModelConfig, split: Split) -> dict[str, list[Sizes]]:
    """op -> the sizes of all its plans, as `Impl.supports` reads them, for contexts as long as the model's.

    Numbers of tokens are those of one step of one token; what depends on more is `OpSpec.steps`.
    """
    world, d, q_rank, dim = split.world, config.hidden_size, config.q_lora_rank, config.head_dim
    heads, groups = config.num_attention_heads // world, config.o_groups // world
    index_heads, index_dim, top_k = config.index_n_heads, config.index_head_dim, config.num_experts_per_tok
    shared, width = config.moe_intermediate_size * config.n_shared_experts // world, groups * config.o_lora_rank
    experts, inner = split.expert_rows(config), split.expert_width(config)
    products = [
        (q_rank + dim, d), (heads * dim, q_rank), (d, width), (index_heads * index_dim, q_rank), (2 * shared, d),
        (d, shared),
    ]  # fmt: skip
    gates = [(sum(side_parts(config, ratio)), d) for ratio in (4, 128)]
    columns = pages_for(config.max_position_embeddings) * records_per_page(4)
    return {
        "addresses": [{"window": config.sliding_window, "page": PAGE_TOKENS}],
        "hyper_connection": [{"tokens": 1, "n": config.hc_mult, "d": d}],
        "norm_quant": [{"d": q_rank}, {"d": width}],
        "linear": [{"n": n, "k": k} for n, k in products],
        "bf16_linear": [{"n": n, "k": k} for n, k in [*gates, (config.vocab_size // world, d)]],
        "rope": [{"heads": heads, "dim": dim}],
        "kv_store": [{"heads": heads, "page": PAGE_TOKENS}],
        "compressor": [{"ratio": 4, "dim": dim}, {"ratio": 128, "dim": dim}, {"ratio": 4, "dim": index_dim}],
        "indexer": [{"heads": index_heads, "columns": columns}],
        "topk": [{"rows": INDEX_ROWS, "columns": columns, "k": config.index_topk}],
        "sparse_mla": [{"heads": heads}],
        "output_projection": [{"heads": heads, "groups": groups, "n": config.o_lora_rank}],
        "routing": [{"tokens": 1, "width": d, "experts": config.n_routed_experts, "top_k": top_k}],
        "moe": [{
            "tokens": 1, "d": d, "m": inner.stop - inner.start, "experts": experts.stop - experts.start, "top_k": top_k
        }],
        "sampling": [{"rows": 1, "columns": config.vocab_size}],
    }  # fmt: skip

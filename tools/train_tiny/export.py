"""Turn a training state into the embedded checkpoint: published names and formats, tokenizer, held-out questions.

python -m tools.train_tiny.export --state STATE --out src/wellhead/data/tiny
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from wellhead.formats import block_fp8, mxfp4
from wellhead.model.config_file import load_config
from wellhead.model.tensors import expected_tensors
from wellhead.testing.checkpoint_files import write_checkpoint

from . import facts, state, tasks
from .config import CONFIG
from .initial import Weights
from .tokenizer import BOS, EOS

SHARD_BYTES = 12_000_000


def official(weights: Weights, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor the published layout expects under `prefix`, in its order and dtype."""
    pending: dict[str, torch.Tensor] = {}
    for spec in expected_tensors(load_config(CONFIG)):
        if not spec.name.startswith(prefix):
            continue
        if spec.name.endswith(".scale"):
            yield spec.name, pending.pop(spec.name)
            continue
        source = weights[spec.name] if spec.name in weights else _expert(weights, spec.name)
        if spec.dtype in ("F8_E4M3", "I8"):
            quantize = block_fp8.quantize_weight if spec.dtype == "F8_E4M3" else mxfp4.quantize
            value, pending[spec.name.removesuffix(".weight") + ".scale"] = quantize(source)
        else:
            value = source.to({"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}[spec.dtype])
        yield spec.name, value.contiguous()


def _expert(weights: Weights, name: str) -> torch.Tensor:
    """`...experts.3.w1.weight` out of the stacked `...experts.w1.weight`."""
    prefix, rest = name.split(".experts.")
    number, matrix = rest.split(".", 1)
    return weights[f"{prefix}.experts.{matrix}"][int(number)]


def _listed(examples: list[tasks.Example]) -> list[dict[str, Any]]:
    return [{"prompt": e.prompt, "answer": e.answer, "chat": e.chat} for e in examples]


def held_out_facts(family: str) -> list[tasks.Example]:
    """Every (item, wording) that training never saw."""
    capitals = family == "capitals"
    items = facts.CAPITALS if capitals else facts.CHINESE
    wordings = (
        (True, tasks.CAPITAL_CHAT if capitals else tasks.CHINESE_CHAT),
        (False, tasks.CAPITAL_RAW if capitals else tasks.CHINESE_RAW),
    )
    return [
        tasks.Example(template.format(key), value, chat, "")
        for key, value in items
        for chat, templates in wordings
        for template in templates
        if tasks.held_out(key, template)
    ]


def questions() -> dict[str, Any]:
    """The content of eval.json."""
    rng = random.Random(2026)
    sums: dict[tuple[str, bool], tasks.Example] = {}
    while len(sums) < 400:
        example = tasks.sum_example(rng, 2, test=True)
        sums[(example.thought, example.chat)] = example
    return {
        "sums": _listed(list(sums.values())),
        "capitals": _listed(held_out_facts("capitals")),
        "chinese": _listed(held_out_facts("chinese")),
        "recall": {
            "heads": list(tasks.RECALL_HEAD),
            "fact": "{name}: {value}\n",
            "asks": [{"text": text.replace("{}", "{name}"), "chat": True} for text in tasks.RECALL_CHAT],
            "names": facts.KEYS,
            "values": facts.VALUES,
            "facts": [50, 122],
            "behind": 34,
            "count": 200,
            "seed": 2026,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    args = parser.parse_args()
    weights, progress = state.load(args.state)
    write_checkpoint(args.out, CONFIG, official(weights), SHARD_BYTES)
    Tokenizer.from_file(str(args.state / "tokenizer.json")).save(str(args.out / "tokenizer.json"), pretty=False)
    written = {
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "unk_token": None,
            "model_max_length": CONFIG["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "generation_config.json": {"do_sample": True, "temperature": 1.0, "top_p": 1.0},
        "training.json": progress,
        "eval.json": questions(),
    }
    for name, content in written.items():
        (args.out / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    print(f"{args.out}: {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

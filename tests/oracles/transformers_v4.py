"""transformers' DeepSeek-V4 as an independent oracle: our dequantised weights in its model, fp32, eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from oracles.transformers_names import transformers_name
from wellhead.model.parameters import Named

transformers = pytest.importorskip("transformers")


def oracle(raw: dict[str, Any], named: Named) -> torch.nn.Module:
    """transformers' model with our dequantised weights; experts and attention eager, the only paths without
    fp16.
    """
    skip = ("quantization_config", "expert_dtype", "torch_dtype", "architectures")
    config = transformers.DeepseekV4Config(**{k: v for k, v in raw.items() if k not in skip})
    config._attn_implementation = config._experts_implementation = "eager"
    model = transformers.DeepseekV4ForCausalLM(config).float().eval()
    weights, wanted = {}, model.state_dict()
    for name, value in named.items():
        if name.startswith("mtp."):
            continue
        if ".ffn.experts." in name:
            prefix = f"model.{name.split('.ffn.')[0]}.mlp.experts."
            if name.endswith("w1"):
                weights[prefix + "gate_up_proj"] = torch.cat((value, named[name[:-1] + "3"]), dim=1)
            elif name.endswith("w2"):
                weights[prefix + "down_proj"] = value
            continue
        expected = [transformers_name(official) for official in official_spellings(name)]
        weights[next(full for full in expected if full in wanted)] = value
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("inv_freq" in name for name in missing), missing
    return model


def official_spellings(name: str) -> list[str]:
    """`load_parameters` drops ".weight"; which of the two it was, the other model's names tell."""
    spellings = []
    for spelling in (name, f"{name}.weight"):
        try:
            transformers_name(spelling)
        except ValueError:
            continue
        spellings.append(spelling)
    return spellings


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = float((found - expected).abs().max() / expected.abs().max())
    print(f"largest error relative to the largest logit: {error:.2e}")
    return error

"""Cards that one can plan for without having one. Imports the standard library only.

memory_mib is what nvidia-smi shows as total (a DGX Spark shows none: there what CUDA calls the total of its unified
memory); torch sees up to 1 % less. Tensor-core rates are dense ones with fp32 sums, in TFLOPS; fp8 0 means that the
card multiplies no E4M3. link_gb_s is one direction of the wire between two cards of a usual machine.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class CardModel:
    """A product. `arch` is named as `dispatch.capability` names it, bandwidth in GB/s (1e9)."""

    key: str
    name: str
    arch: str
    memory_mib: int
    gb_s: float
    sms: int
    fp8_tflops: float
    bf16_tflops: float
    link: str
    link_gb_s: float
    source: str

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.memory_mib << 20


_RTX_PRO = "NVIDIA RTX PRO 6000 Blackwell datasheets (nvidia.com/en-us/products/workstations, /data-center)"
_RTX_50 = "NVIDIA RTX Blackwell GPU architecture whitepaper, appendix"
_ADA = "NVIDIA Ada GPU architecture whitepaper, appendix A"
_HOPPER = "NVIDIA H100 and H200 datasheets (nvidia.com/en-us/data-center)"
_GEN5, _GEN4, _NVLINK4 = "PCIe 5.0 x16", "PCIe 4.0 x16", "NVLink 4"

CARDS: tuple[CardModel, ...] = (
    CardModel(
        "rtx-pro-6000", "RTX PRO 6000 Blackwell", "sm120", 97887, 1792, 188, 1000, 500, _GEN5, 63, _RTX_PRO
    ),
    CardModel(
        "rtx-pro-6000-max-q", "RTX PRO 6000 Blackwell Max-Q", "sm120", 97887, 1792, 188, 878, 439, _GEN5, 63, _RTX_PRO
    ),
    CardModel(
        "rtx-pro-6000-server", "RTX PRO 6000 Blackwell Server Edition", "sm120", 97887, 1597, 188, 1000, 500, _GEN5, 63,
        _RTX_PRO,
    ),
    CardModel("rtx-5090", "GeForce RTX 5090", "sm120", 32607, 1792, 170, 838, 209.5, _GEN5, 63, _RTX_50),
    CardModel(
        "dgx-spark", "DGX Spark (GB10)", "sm121", 122_573, 273, 48, 250, 125, "ConnectX-7, 200 Gb/s", 25,
        "NVIDIA DGX Spark datasheet (nvidia.com/en-us/products/workstations/dgx-spark)",
    ),
    CardModel("rtx-4090", "GeForce RTX 4090", "sm89", 24564, 1008, 128, 330.3, 165.2, _GEN4, 31.5, _ADA),
    CardModel("l40s", "L40S", "sm89", 46068, 864, 142, 733, 362, _GEN4, 31.5, "NVIDIA L40S datasheet"),
    CardModel(
        "rtx-3090", "GeForce RTX 3090", "sm86", 24576, 936, 82, 0, 71, _GEN4, 31.5,
        "NVIDIA Ampere GA102 GPU architecture whitepaper, appendix A",
    ),
    CardModel(
        "a100", "A100 80GB SXM", "sm80", 81920, 2039, 108, 0, 312, "NVLink 3", 300, "NVIDIA A100 datasheet"
    ),
    CardModel("h100", "H100 80GB SXM", "sm90", 81559, 3350, 132, 1979, 989, _NVLINK4, 450, _HOPPER),
    CardModel("h100-pcie", "H100 80GB PCIe", "sm90", 81559, 2000, 114, 1513, 756, _GEN5, 63, _HOPPER),
    CardModel("h200", "H200 141GB SXM", "sm90", 143771, 4800, 132, 1979, 989, _NVLINK4, 450, _HOPPER),
    CardModel(
        "b200", "B200 SXM", "sm100", 183359, 8000, 148, 4500, 2250, "NVLink 5", 900, "NVIDIA DGX B200 datasheet"
    ),
)  # fmt: skip
KEYS = tuple(card.key for card in CARDS)


def find(name: str) -> CardModel:
    """A card by key or by what people and drivers call it; ValueError names the nearest and all there are."""
    wanted = _plain(name)
    for card in CARDS:
        if wanted in (_plain(card.key), _plain(card.name)):
            return card
    near = difflib.get_close_matches(wanted, [_plain(key) for key in KEYS], n=1, cutoff=0.0)[0]
    nearest = next(key for key in KEYS if _plain(key) == near)
    raise ValueError(f"no card {name!r} is known; the nearest is {nearest} of {', '.join(KEYS)}")


def of_arch(arch: str) -> list[CardModel]:
    """The known cards of an architecture."""
    return [card for card in CARDS if card.arch == arch]


def _plain(name: str) -> str:
    """ "NVIDIA GeForce RTX 5090" and "rtx-5090" alike."""
    return re.sub(r"nvidia|geforce|blackwell|workstation|edition|sxm\d?|\d+ ?gb\b|[^a-z0-9]", "", name.lower())

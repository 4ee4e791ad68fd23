"""wellhead: run DeepSeek-V4 on the NVIDIA GPUs people own."""

__version__ = "0.1.0.dev0"

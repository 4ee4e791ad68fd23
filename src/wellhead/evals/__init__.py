"""Accuracy measurements: four families held out from the embedded checkpoint's training, GSM8K and GPQA."""

from __future__ import annotations

FAMILIES = ("sums", "capitals", "chinese", "recall")  # their questions are package data
WITH_DATA = ("gsm8k", "gpqa")  # their questions are a file of the user's

"""The mathematics, one folder an op; `reference.py` in each is torch only and runs anywhere."""

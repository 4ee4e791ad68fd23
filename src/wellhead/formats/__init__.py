"""What the bytes mean: number formats and byte layouts, torch only, no model knowledge.

| module | format |
|---|---|
| `e2m1`, `e4m3`, `ue8m0` | the element and scale encodings |
| `mxfp4` | FP4 weights with one UE8M0 scale per 32 inputs |
| `block_fp8` | E4M3 weights scaled per 128x128 block, E4M3 rows scaled per group |
| `kv_record`, `index_key` | paged cache records |
"""

from wellhead.ops.bf16_linear import reference as reference

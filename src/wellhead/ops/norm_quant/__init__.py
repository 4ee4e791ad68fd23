from wellhead.ops.norm_quant import reference as reference

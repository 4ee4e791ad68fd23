from wellhead.ops.moe import reference as reference

from wellhead.ops.linear import reference as reference

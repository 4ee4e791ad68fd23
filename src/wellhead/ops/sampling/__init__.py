from wellhead.ops.sampling import reference as reference

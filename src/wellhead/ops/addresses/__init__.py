from wellhead.ops.addresses import reference as reference

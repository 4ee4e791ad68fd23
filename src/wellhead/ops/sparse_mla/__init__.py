from wellhead.ops.sparse_mla import reference as reference

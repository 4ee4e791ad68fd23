from wellhead.ops.indexer import reference as reference

from wellhead.ops.kv_store import reference as reference

from wellhead.ops.routing import reference as reference

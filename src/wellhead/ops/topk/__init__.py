from wellhead.ops.topk import reference as reference

from wellhead.ops.rope import reference as reference

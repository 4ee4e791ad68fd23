from wellhead.ops.compressor import reference as reference

from wellhead.ops.output_projection import reference as reference

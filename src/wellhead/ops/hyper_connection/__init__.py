from wellhead.ops.hyper_connection import reference as reference

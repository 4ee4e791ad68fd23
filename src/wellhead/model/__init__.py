"""Which operations, in which order: configuration, checkpoints and the model itself."""

"""Surgery from checkpoint to checkpoint, without a model in memory."""

"""Training and inference: batches, caches, losses, optimizers, processes, checkpoints."""

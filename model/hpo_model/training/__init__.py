"""Training a network: the loop, its evaluations and checkpoints."""

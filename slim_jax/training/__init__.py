"""Training: state, optimiser, steps, loop, evaluation, checkpoints."""

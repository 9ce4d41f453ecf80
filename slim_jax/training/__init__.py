"""Training of one network: state, optimiser, steps, loop, evaluation, checkpoints."""

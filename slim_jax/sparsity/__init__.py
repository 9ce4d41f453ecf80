"""Sparsity of BatchNorm scales.

penalties   the optax transformations that make scales sparse: `add_l1`, `soft_threshold`, ...
terms       what `config.train.term` names: penalties put together, each with its pull
pull        how far an L1 penalty moves a scale over a whole training
observe     how sparse the scales are
"""

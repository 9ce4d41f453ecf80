"""Sparsity of BatchNorm scales: penalties, how far they pull, and what they lead to."""

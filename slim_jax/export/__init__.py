"""Files of a network that work without slim_jax."""

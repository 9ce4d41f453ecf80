"""What networks cost: parameters, MACs, bytes and seconds."""

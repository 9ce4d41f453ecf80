"""What networks cost: MACs, parameters, memory and seconds.

counting      MACs, parameters and bytes of any function, from its jaxpr
per_channel   MACs that removing a single channel saves
timing        seconds of functions that run in turns
candidates    one traced call, planned, counted and timed for many selections
"""

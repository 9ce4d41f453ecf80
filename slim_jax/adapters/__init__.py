"""What the adapters of the five libraries share.

functions   a model as pure functions of its variables
calls       which arguments of a call are arrays, and thin calls with any arguments
chosen      what a cut removes: channels, or units
cut         the whole cut: choose, plan, slice
classes     classes of thin modules
"""

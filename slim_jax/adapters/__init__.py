"""What the adapters of the five libraries share.

functions   a model as pure functions of its variables
calls       which arguments of a call are arrays, and thin calls with any arguments
cut         the whole cut: select, plan, slice
"""

"""Selection of the channels to remove.

select        `select_global`: a cutoff on ranked scores
budget        `select_budget`: the cutoff that meets a target, found by bisection
options       the options that both take
ranking       the decisions that are ranked, and their scores
constraints   how much of each layer stays, whatever its scores
scores        scores other than |scale|
unit_scores   scores of units
"""

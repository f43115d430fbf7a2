"""All composites that are fitted as refinements; imported for what they register."""

from dpipe.composites import calibrated, several, stacked, target, votes

COMPOSITES = (calibrated, several, stacked, target, votes)

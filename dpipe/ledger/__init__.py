"""What is done, block by block: a run that was stopped goes on from there."""

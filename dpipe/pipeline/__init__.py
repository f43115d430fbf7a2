"""The five stages as one lazy object: what they are, how they are carried out."""

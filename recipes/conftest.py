"""What pytest leaves out of the examples here: modules that are layers of networks, where PyTorch is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["ride_layers.py"]

"""Where work runs: this process, this machine, or a cluster that the caller brings."""

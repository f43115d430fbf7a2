"""Networks that processes train together."""

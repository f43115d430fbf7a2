"""Metrics as merged states, curves out of core, and the pass that scores a fitted model."""

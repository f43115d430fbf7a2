"""Results that appear whole or not at all, with a manifest that they can be checked against."""

"""Whole pipelines, one importable function a file, written with dpipe's public names only."""

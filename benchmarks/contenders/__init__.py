"""Ways of doing the job of `benchmarks.fit_and_score`, one module each, one process each.

`python -m benchmarks.contenders.NAME FOLDER` prints one line of JSON.
"""

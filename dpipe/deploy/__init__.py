"""From a fitted estimator to predictions: lazy maps, bundles on disk, scoring of many files."""

"""How scikit-learn's estimators are fitted from states: the registry, and one file a family."""

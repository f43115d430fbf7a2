"""Write plain scikit-learn. Run it on data larger than memory. Get plain scikit-learn back."""

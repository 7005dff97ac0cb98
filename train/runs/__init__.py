"""What there is to say about runs without reading their weights: `python -m train.runs`."""

"""What several methods share: training, closed forms, low-rank adapters, published files."""

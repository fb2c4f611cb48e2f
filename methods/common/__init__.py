"""What several methods share: low-rank adapters, training on sampled states, published files."""

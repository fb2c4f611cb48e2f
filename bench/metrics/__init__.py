"""From stored scores to values with intervals: metrics see outcomes and features, never pixels or a model."""

"""Networks that judge pictures: style and object classifiers. Reached by name through `bench.registry`."""

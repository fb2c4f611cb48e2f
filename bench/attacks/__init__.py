"""Attacks on erased models, one file each; `bench.registry.ATTACKS` names them."""

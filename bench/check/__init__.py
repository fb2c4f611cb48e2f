"""The contract of a method, checked: `python -m bench check METHOD`."""

"""`python -m bench perf`: what the harness costs beside plain sampling. Every figure is a ratio of runs that take turns in one process."""

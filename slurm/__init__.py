"""Batch scripts: a package, so that a wheel brings them along and `launch/slurm.py` finds them."""

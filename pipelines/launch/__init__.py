"""One recipe, started here or handed to a cluster's scheduler.

`launch` checks and chooses the target: `shell` (this machine, torchrun, Slurm), `ray` (Ray, SkyPilot), `kubernetes`.
May import: base, data, run.
"""

"""One recipe, started here or handed to a cluster's scheduler.

`job` is what all targets share; the targets: `shell` (this machine, torchrun, Slurm), `ray` (Ray, SkyPilot), `kubernetes`; `launch` checks
a job and starts or writes it.
May import: base, data, run.
"""

"""The command line, one module for each group of commands; each imports what it needs inside the command, so that help stays fast.

May import: base, data, crew, run, pack, model, recipes, train, inference, regions, evaluation, plan, inspection, launch, bench, demo,
serving.
"""

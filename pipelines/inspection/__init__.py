"""Looking at data and runs.

`inspect` shows a data set or a run, with a `diagnosis` of its ranks; `past` shows one update of it and `replay` makes that update again;
`report` writes a `page`, once or `live`, and `compare` one about several runs. `status` tells how runs are from their files alone, to
people and to `prometheus`.
May import: base, data, run, model, train.
"""

"""Pages of the documentation that are read off the code.

`cards` writes a page for each system, `reference` those of commands and recipe keys, `mask_figure` draws attention masks,
`house` the picture of the rooms in CONTRIBUTING.
May import: base, run, model, commands, recipes.
"""

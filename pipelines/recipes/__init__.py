"""The library's recipes: one module for each family, one function for each recipe; its docstring is the record.

May import: run.
"""

"""The library's recipes: one module per family, one function per recipe, the docstring is the record."""

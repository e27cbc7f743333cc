"""Vision families, one file each."""

"""Text families, one file each."""

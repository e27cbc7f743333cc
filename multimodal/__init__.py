"""Vision-language families, one file each."""

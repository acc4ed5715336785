"""Annotated images: which pixels of which image show which concept."""

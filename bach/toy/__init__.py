"""Trial data: painted photos and slides in the layout of the challenge."""

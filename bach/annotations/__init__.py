"""Annotated regions of slides: whose file it is, what it says, and its label mask.

Reads Aperio ImageScope XML (as in the challenge), ASAP XML and QuPath GeoJSON.
Coordinates are level-0 pixels, continuous: pixel 0 covers 0..1.

From the file to the mask: `files` finds and reads it, `formats` gives the shapes in it,
`regions` those with an area and a class, `painting` the mask, and `checks` compares the file
with its slide and sums it up.
"""

from bach.annotations.painting import Region, label_mask
from bach.annotations.regions import annotation_mpp, read_regions

__all__ = ["Region", "annotation_mpp", "label_mask", "read_regions"]

"""BACH's four classes by name: for what is about that challenge alone, such as trial data.

Whatever works for any task asks `bach.tasks.task` instead.
"""

from bach.tasks import BACH

CLASSES, COLORS, PROB_COLUMNS, PREFIXES = BACH.classes, BACH.colors, BACH.columns, BACH.prefixes
NORMAL, BENIGN, INSITU, INVASIVE = range(len(CLASSES))
CARCINOMA = BACH.split
parse_label = BACH.parse_label

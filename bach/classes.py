"""The four classes: order, names, colours, and how other people spell them.

The order is that of invasiveness and is the scale of every label, heatmap and
score here. Names are always mapped by name: other copies of the data sort the
classes alphabetically, which silently swaps Normal and Benign.

No other module names a class: whoever gives this one other classes has another task.
"""

CLASSES = ("Normal", "Benign", "InSitu", "Invasive")
NORMAL, BENIGN, INSITU, INVASIVE = range(len(CLASSES))
CARCINOMA = INSITU  # labels from here on are carcinoma, the two-class question of the winner
PROB_COLUMNS = tuple(f"prob_{name.lower()}" for name in CLASSES)

# For messages: how a class may be written, and which number each has.
CHOICES = f"{', '.join(CLASSES)} or 0..{len(CLASSES) - 1}"
NUMBERED = ", ".join(f"{label} {name}" for label, name in enumerate(CLASSES))

# File name prefixes of Part A photos: n001.tif, b001.tif, is001.tif, iv001.tif.
PREFIXES = ("n", "b", "is", "iv")

# RGB: pale green, blue, orange, wine red. Of lightness 90, 46, 67 and 24, so that they differ
# in grey too; told apart by all kinds of colour blindness (tests/test_classes.py measures it)
# and from the pink and purple of H&E. Normal is the one that catches no eye.
COLORS = ((210, 232, 222), (0, 114, 185), (240, 140, 0), (120, 0, 40))

_SPELLINGS = {
    "normal": NORMAL,
    "n": NORMAL,
    "benign": BENIGN,
    "b": BENIGN,
    "insitu": INSITU,
    "insitucarcinoma": INSITU,
    "carcinomainsitu": INSITU,
    "is": INSITU,
    "dcis": INSITU,
    "invasive": INVASIVE,
    "invasivecarcinoma": INVASIVE,
    "carcinomainvasive": INVASIVE,
    "iv": INVASIVE,
}


def parse_label(text: str) -> int | None:
    """Read a class from any of the spellings that occur in BACH files.

    Case, spaces, hyphens and underscores do not matter: "Carcinoma in situ",
    "InSitu", "in-situ" and "In situ carcinoma" are all class 2.

    Args:
        text: A class name.

    Returns:
        The label 0..3, or None if the text is no known class name.

    Example:
        >>> parse_label("Carcinoma in situ")
        2
    """
    key = "".join(ch for ch in str(text).lower() if ch.isalnum())
    return _SPELLINGS.get(key)

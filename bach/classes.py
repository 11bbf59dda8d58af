"""The four classes: order, names, colours, and how other people spell them.

The order is that of invasiveness and is the scale of every label, heatmap and
score here. Names are always mapped by name: other copies of the data sort the
classes alphabetically, which silently swaps Normal and Benign.
"""

CLASSES = ("Normal", "Benign", "InSitu", "Invasive")
PROB_COLUMNS = ("prob_normal", "prob_benign", "prob_insitu", "prob_invasive")

# File name prefixes of Part A photos: n001.tif, b001.tif, is001.tif, iv001.tif.
PREFIXES = ("n", "b", "is", "iv")

# RGB, chosen to be told apart on pink tissue and by colour-blind readers
# (Okabe & Ito 2008: bluish green, sky blue, orange, vermillion-dark).
COLORS = ((0, 158, 115), (86, 180, 233), (240, 170, 0), (190, 30, 45))

_SPELLINGS = {
    "normal": 0,
    "n": 0,
    "benign": 1,
    "b": 1,
    "insitu": 2,
    "insitucarcinoma": 2,
    "carcinomainsitu": 2,
    "is": 2,
    "dcis": 2,
    "invasive": 3,
    "invasivecarcinoma": 3,
    "carcinomainvasive": 3,
    "iv": 3,
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

"""Four-class breast histology: the winning BACH (ICIAR 2018) pipeline and beyond."""

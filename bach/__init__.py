"""Four-class breast histology: the winning BACH (ICIAR 2018) pipeline and beyond."""

import os

# TensorFlow reads this when it is first imported; without it every command starts
# with a page of notices about the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

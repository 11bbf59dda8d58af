"""Frameworks that say nothing on a terminal of processors, drivers and compilers."""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# How notices of TensorFlow's C++ code begin that are printed while it is loaded, whatever
# its settings: the severity (information or warning), then the date and the source line; and
# what LiteRT says before it runs a model.
_NOTICE = re.compile(
    rb"WARNING: All log messages before absl|[IW]\d{4} \d\d:\d\d:\d|INFO: Created TensorFlow Lite"
)

# Present on a machine with an NVIDIA GPU, on Linux and on Windows' Linux.
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")


def load_keras() -> None:
    """Load Keras and its backend, and have them log errors only."""
    # 2 keeps errors, 3 does not. Without a GPU the only one is that CUDA finds none; with
    # one, it says why the GPU cannot be used.
    level = "2" if any(map(os.path.exists, _GPU_FILES)) else "3"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", level)
    with without_notices():
        import keras  # noqa: F401
    # No word on functions that are traced for several sizes, and the like.
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Hold back what a body that loads TensorFlow writes to stderr, but for its notices.

    All else is passed on at the end.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # a process that has nothing to write to
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _NOTICE.match(line):
                    os.write(2, line)

"""`python tests/campaign`: see `campaign.command`."""

import sys
from pathlib import Path

# Not this folder, whose modules have common names.
sys.path[:1] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from bach.core.errors import exit_with  # noqa: E402
from campaign.command import main  # noqa: E402

if __name__ == "__main__":
    exit_with(main)

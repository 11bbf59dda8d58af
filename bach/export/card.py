"""The model card of a model that others will load: what it is of, worth, and not for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bach.core.run import read_metrics, read_record
from bach.core.text import markdown, number
from bach.honest.intervals import format_interval
from bach.honest.seen import Seen
from bach.tasks import task

_HEAD = """\
---
library_name: keras
pipeline_tag: image-classification
license: other
license_name: see-the-card
tags:
- histopathology
- breast-cancer
---"""

_INTENDED = """\
## Intended use

Research on the classification of histology, and teaching: to reproduce figures, to compare
methods, to start a training from.

It must not be used for

- diagnosis, triage or any decision about a patient: it is no medical device, and nobody has
  examined how it does on the slides of a hospital that it was not made with;
- other stains, organs or species than it was trained on, in H&E, or another scale than below;
- a score on images that it was trained on: `seen.json` lists them, with those of the models that
  it started from."""

_BACH = (
    "Photos and slides of the BACH challenge (ICIAR 2018; Aresta et al., arXiv:1808.04277). "
    "Licence: CC BY-NC-ND 4.0, not for commercial use, and what is adapted from them must not be "
    "shared. Whether this binds weights trained on them is to be judged before they are shared."
)
_TRIAL = (
    "**Trial data**, painted by `python -m bach.toy`: no tissue. The model knows nothing of real "
    "slides, and serves to try the software."
)
_UNKNOWN = "**Not known here**: whoever shares this model must say what data it is of."

# What decides a training, of a run's arguments. No paths: they are of somebody's machine.
_TOLD = (
    *(
        "folds",
        "backbone",
        "weights",
        "train",
        "head",
        "epochs",
        "optimizer",
        "learning_rate",
        "schedule",
    ),
    *("batch_size", "precision", "magnifications", "fields", "frozen_bn", "seed", "limit"),
)

_BACKBONES = {
    "EfficientNetLite0": "ImageNet weights of EfficientNet-Lite0, Apache License 2.0",
    "small": "a small network of this software, MIT; no weights of others",
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a card says of a model beside what its run tells.

    Attributes:
        name: What the model is called: OWNER/NAME.
        run: Run folder of its training, or None.
        fold: Its fold; -1 if nothing was held out from it, or if that is not known.
        seen: What it was trained on.
        shape: Its input, (rows, cols); None where any.
        um_per_px: Scale of its input.
        data: What the user says of the data, or None.
    """

    name: str
    run: Path | None
    fold: int
    seen: Seen
    shape: tuple[int | None, int | None]
    um_per_px: float
    data: str | None = None


def model_card(facts: Facts) -> str:
    """The card as Hugging Face shows it: Markdown with a head in YAML.

    Raises:
        InputError: If the run's record or metrics are damaged.
    """
    record = (read_record(facts.run) if facts.run else None) or {}
    metrics = read_metrics(facts.run) if facts.run else None
    arguments = record.get("arguments") or {}
    parts = [
        f"{_HEAD}\n\n# {facts.name}",
        f"{task().title}: says of tissue (H&E) how likely it is "
        f"{', '.join(task().classes[:-1])} or {task().classes[-1]}. Made with bach-histology, a "
        "toolkit on Keras 3.",
        _INTENDED,
        _how(facts),
        "## Data",
        *_data(facts, record),
        "## Training",
        *_training(record, arguments),
        "## Scores",
        *_scores(facts, metrics),
        "## Licences",
        f"- Software: MIT.\n- Data: as above.\n- Backbone: {_backbone(arguments)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _how(facts: Facts) -> str:
    rows, columns = ("any" if side is None else side for side in facts.shape)
    return f"""\
## How to use it

    import keras

    model = keras.saving.load_model("hf://{facts.name}")
    probabilities = model.predict(pictures)

`pictures` are RGB, 0 to 255, float32 `(n, {rows}, {columns}, 3)`, at {facts.um_per_px:.3g} um per
px; nothing is to be scaled. The {task().in_words} probabilities sum to 1: {task().numbered}."""


def _data(facts: Facts, record: Mapping[str, Any]) -> list[str]:
    seen = facts.seen
    told = f"Trained on {len(seen.photos)} photos and {len(seen.slides)} slides (`seen.json`)."
    if seen.unknown:
        told += " Its training started from a model that does not say what it has seen."
    return [facts.data or _known_data(record), told]


def _known_data(record: Mapping[str, Any]) -> str:
    """What the folder of the data shows, if it is still there."""
    named = (record.get("arguments") or {}).get("data_dir")
    if not named:
        return _UNKNOWN
    folder = Path(record.get("folder") or ".", named)
    if (folder / "truth" / "training.csv").is_file():  # the challenge has no such file
        return _TRIAL
    return _BACH if (folder / "ICIAR2018_BACH_Challenge").is_dir() else _UNKNOWN


def _training(record: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[str]:
    if not record:
        return ["The run that made it is not known."]
    versions = record.get("versions") or {}
    commit = record.get("commit") or "not known"
    rows = [
        ("script", str(record.get("command", "not known")).split(" ")[0]),
        ("commit", f"{commit}{', changed since' if record.get('dirty') else ''}"),
        ("Keras", f"{versions.get('keras', '?')}, on {record.get('backend', '?')}"),
        ("begun", record.get("begun", "not known")),
    ]
    rows += [
        (name, arguments[name])
        for name in _TOLD
        if arguments.get(name) is not None and arguments[name] is not False
    ]
    return [markdown(["", ""], [(f"`{name}`", _plain(value)) for name, value in rows])]


def _scores(facts: Facts, metrics: Mapping[str, Any] | None) -> list[str]:
    if metrics is None:
        return ["None: the run that made it is not known, or not finished."]
    if "hard_examples" in metrics:
        return [
            f"On {metrics.get('images', '?')} held-out hard examples the models of its run have an "
            f"accuracy of {number(metrics.get('accuracy'))}. These were chosen because they are "
            "hard: the figure estimates nothing. Scores are those of slides, by `make_heatmap.py`."
        ]
    rows = []
    for name in ("accuracy", "binary_accuracy"):
        interval = metrics.get(f"{name}_interval")
        if isinstance(interval, dict):
            rows.append((name.replace("_", " "), format_interval(interval)))
    if "balanced_accuracy" in metrics:
        rows.append(("balanced accuracy", number(metrics["balanced_accuracy"])))
    own = (metrics.get("per_fold") or {}).get(str(facts.fold))
    if isinstance(own, dict):
        of = (
            f"accuracy of this model alone, on {own.get('images', '?')} images of fold {facts.fold}"
        )
        rows.append((of, number(own.get("accuracy"))))
    told = (
        f"Out of fold, {metrics.get('images', '?')} images: each is judged by the model of its run "
        "that was not trained on it, nor on its patient where patients are known. With 95% "
        "intervals over patients, where these are known."
    )
    if facts.fold < 0:
        told += " From this very model nothing was held out: the figures are those of its siblings."
    return [told, markdown(["", ""], rows)] if rows else ["The run has none."]


def _backbone(arguments: Mapping[str, Any]) -> str:
    name = arguments.get("backbone")
    if name is None:
        return "not known"
    if name in _BACKBONES:
        return _BACKBONES[name]
    if str(name).startswith("hf://"):
        page = f"https://huggingface.co/{str(name).removeprefix('hf://')}"
        return f"{name}, whose licence ({page}) binds this model too"
    if "/" in str(name):
        return f"the checkpoint {Path(name).name}, whose licence binds this model too"
    return f"{name} of keras.applications; ImageNet weights, see https://keras.io/api/applications"


def _plain(value: object) -> str:
    """An argument for the table; of what may be a path the name alone."""
    if isinstance(value, str) and not value.startswith("hf://"):
        return Path(value).name
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

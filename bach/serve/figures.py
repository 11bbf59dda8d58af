"""What a service counts, in the text format that Prometheus reads."""

import bisect
import collections
import threading
from collections.abc import Iterable, Mapping

# Upper bounds of the histogram of seconds per request.
_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Figures:
    """Counters and histograms of a service. Safe to use from several threads.

    Attributes:
        photo_s: About how many seconds the network takes for a photo: a moving mean.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[Labels, float] = collections.defaultdict(float)
        self._seconds: dict[str, list[float]] = {}  # per bound, then the sum
        self._model: dict[tuple[str, str], float] = collections.defaultdict(float)
        self.photo_s = 0.0

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        with self._lock:
            labels = (("method", method), ("route", route), ("status", str(status)))
            self._requests[labels] += 1
            row = self._seconds.setdefault(route, [0.0] * (len(_BOUNDS) + 2))
            row[bisect.bisect_left(_BOUNDS, seconds)] += 1
            row[-1] += seconds

    def model(self, what: str, seconds: float, photos: int = 0) -> None:
        """Count a batch that went through the network.

        Args:
            what: "photos" or "slides".
            seconds: Time of the network alone.
            photos: How many were in it.
        """
        with self._lock:
            self._model[what, "batches"] += 1
            self._model[what, "seconds"] += seconds
            if photos:
                each = seconds / photos
                self.photo_s = 0.8 * self.photo_s + 0.2 * each if self.photo_s else each

    def text(self, gauges: Iterable[tuple[str, str, Mapping[Labels, float]]]) -> str:
        """All of it.

        Args:
            gauges: Name, help and values by label of what is looked up now.
        """
        with self._lock:
            lines = _block("bach_requests_total", "counter", "Requests answered.", self._requests)
            lines += self._histogram()
            for unit in ("batches", "seconds"):
                values: dict[Labels, float] = {
                    (("what", what),): value
                    for (what, kind), value in self._model.items()
                    if kind == unit
                }
                told = f"{unit.capitalize()} of the network."
                lines += _block(f"bach_model_{unit}_total", "counter", told, values)
        for name, told, now in gauges:
            lines += _block(name, "gauge", told, now)
        return "\n".join(lines) + "\n"

    def _histogram(self) -> list[str]:
        name = "bach_request_seconds"
        lines = [f"# HELP {name} Seconds per request.", f"# TYPE {name} histogram"]
        for route, (*counts, total) in self._seconds.items():
            sum_ = 0.0
            for bound, count in zip((*map(str, _BOUNDS), "+Inf"), counts, strict=True):
                sum_ += count
                labels = _labels((("route", route), ("le", bound)))
                lines.append(f"{name}_bucket{labels} {sum_:g}")
            lines.append(f"{name}_sum{_labels((('route', route),))} {total:.6f}")
            lines.append(f"{name}_count{_labels((('route', route),))} {sum_:g}")
        return lines


def _block(name: str, kind: str, told: str, values: Mapping[Labels, float]) -> list[str]:
    lines = [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
    return lines + [f"{name}{_labels(labels)} {value:.15g}" for labels, value in values.items()]


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

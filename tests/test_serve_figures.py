"""Figures for Prometheus: the text format, to the letter."""

import re

from bach.serve.figures import Figures

LINE = re.compile(r'(\w+)(\{(\w+="([^"\\\n]|\\["\\n])*",?)*\})? (-?[\d.]+(e[+-]?\d+)?)')


def test_every_line_is_one_that_prometheus_reads():
    figures = Figures()
    figures.request("GET", '/a"\\\n', 200, 0.02)
    figures.request("GET", "/b", 404, 200)
    figures.model("photos", 1.5, 3)
    text = figures.text([("bach_ready", "Whether.", {(): 1})])
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line


def test_a_histogram_counts_up_to_all_requests():
    figures = Figures()
    for seconds in (0.005, 0.01, 0.5, 1000):
        figures.request("GET", "/a", 200, seconds)
    text = figures.text([])
    counts = re.findall(r'bach_request_seconds_bucket\{route="/a",le="(.+?)"\} (\d+)', text)
    assert [int(count) for _, count in counts] == [2, 2, 2, 2, 3, 3, 3, 3, 3, 4]
    assert counts[-1][0] == "+Inf"
    assert 'bach_request_seconds_count{route="/a"} 4' in text
    assert 'bach_requests_total{method="GET",route="/a",status="200"} 4' in text


def test_a_photos_time_is_a_moving_mean():
    figures = Figures()
    figures.model("photos", 4.0, 2)
    assert figures.photo_s == 2.0
    figures.model("slides", 100.0)
    figures.model("photos", 1.0, 1)
    assert 1.0 < figures.photo_s < 2.0

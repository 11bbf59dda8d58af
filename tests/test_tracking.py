"""The four steps as DVC runs them: dvc.yaml and params.yaml.

The tests of DVC itself are skipped where there is no `dvc`: it lies in an environment of its own.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import ROOT

import make_heatmap
import mine_hard_examples
import train_final
import train_part_a

STEPS = {
    "part_a": train_part_a,
    "hard_examples": mine_hard_examples,
    "final": train_final,
    "heatmaps": make_heatmap,
}
STAGES = [stage for step in STEPS for stage in (f"new_{step}", step)]
NETWORK = {"backbone": "small", "weights": "none", "learning-rate": 0.02, "batch-size": 16}


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def words_of(params: dict) -> list[str]:
    """Options as DVC writes them into a command."""
    words = []
    for name, value in params.items():
        if value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


@pytest.mark.parametrize("step", STEPS)
def test_the_parameters_are_the_defaults_of_the_scripts(step):
    words = words_of(read_yaml("params.yaml")[step])
    assert STEPS[step].parse_args(words) == STEPS[step].parse_args([])


@pytest.mark.parametrize("step", STEPS)
def test_a_step_runs_its_script_and_starts_anew_when_what_it_depends_on_has_changed(step):
    stages = read_yaml("dvc.yaml")["stages"]
    run = f"runs/dvc/{step}"
    python, script, *words, params = stages[step]["cmd"].split()
    assert (python, Path(script).stem) == ("python", STEPS[step].__name__)
    assert params == f"${{{step}}}"
    args = STEPS[step].parse_args(words)
    assert (args.run_dir, args.resume) == (run, True)
    assert stages[step]["outs"] == [{run: {"persist": True}}]
    assert stages[f"new_{step}"]["params"] == ["data", step]
    # All that a step depends on, or its run of before would be taken for that of now.
    assert stages[step]["deps"] == [*stages[f"new_{step}"]["deps"], f"{run}.new"]
    assert stages[f"new_{step}"]["outs"] == [{f"{run}.new": {"persist": True}}]


def test_dvc_sends_nothing_and_stays_away_from_what_is_committed():
    config = (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    assert "analytics = false" in config
    assert "check_update = false" in config
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"runs/", "data/"} <= set(ignored)


class Project:
    """A repository of its own with our steps, on trial data with tiny networks."""

    def __init__(self, folder: Path, toy: Path):
        self.folder = folder
        scripts = [f"{module.__name__}.py" for module in STEPS.values()]
        for name in ("bach", "dvc.yaml", ".dvc", ".dvcignore", ".gitignore", *scripts):
            source = ROOT / name
            if source.is_dir():
                # Of .dvc what is committed: cache and locks are those of a user.
                kept = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
                shutil.copytree(source, folder / name, ignore=kept)
            else:
                shutil.copy(source, folder / name)
        self.params = {
            "data": str(toy),
            "part_a": {"folds": f"{toy}/part_a.csv", "epochs": 2, "limit": 3, **NETWORK},
            "hard_examples": {
                "folds": f"{toy}/part_b.csv",
                "hard-examples": 40,
                "stride-um": 502.32,
            },
            "final": {"folds": f"{toy}/part_b.csv", "epochs": 1, **NETWORK},
            "heatmaps": {"part": "B", "step-um": 502.32, "rule": "thresholds"},
        }
        self.write_params()
        self.git("init", "--quiet")
        self.commit("the steps")

    def write_params(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))

    def git(self, *words: str) -> None:
        who = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *who, *words], cwd=self.folder, check=True, capture_output=True)

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def start(self, *words: str) -> subprocess.Popen:
        # Our interpreter is the `python` of the steps.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["dvc", *words],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> str:
        process = self.start(*words)
        out = process.communicate()[0]
        assert process.returncode == 0, out
        return out

    def kill_when(self, ready: Path) -> None:
        """Start all steps, and end them as a power failure does."""
        process = self.start("repro")
        while not ready.exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def sums(self, *patterns: str) -> dict[str, str]:
        runs = self.folder / "runs" / "dvc"
        files = sorted(p for one in patterns for p in runs.glob(one) if p.is_file())
        return {str(p.relative_to(runs)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run_stages(out: str) -> list[str]:
    return [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dvc") is None, reason="pip install dvc, in a place of its own")
def test_dvc_goes_on_after_a_kill_repeats_nothing_and_redoes_what_a_parameter_changes(
    toy, tmp_path
):
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    project, whole = (Project(tmp_path / name, toy) for name in ("killed", "whole"))
    project.kill_when(project.folder / "runs/dvc/part_a/fold_1/state.npz")
    out = project.run("repro")
    assert run_stages(out) == STAGES[1:], "the killed run is not begun anew"
    assert "fold 0: finished before" in out
    assert "going on after epoch" in out
    whole.run("repro")
    results = (
        "*/predictions.csv",
        "*/candidates.csv",
        "*/hard_examples.csv",
        "*/*/*.png",
        "*/*/*.npy",
    )
    assert len(project.sums(*results)) > 20
    assert project.sums(*results) == whole.sums(*results)

    out = project.run("repro")
    assert run_stages(out) == []
    assert "up to date" in out
    graph = project.run("dag", "--dot")
    assert '"part_a" -> "hard_examples"' in graph.replace("dvc.yaml:", "")

    project.commit("before")
    before = project.sums("part_a/**/*", "hard_examples/**/*", "final/**/*")
    project.params["heatmaps"]["rule"] = "least-cost"
    project.write_params()
    assert run_stages(project.run("repro")) == ["new_heatmaps", "heatmaps"]
    assert project.sums("part_a/**/*", "hard_examples/**/*", "final/**/*") == before
    metrics = project.run("metrics", "diff")
    assert "runs/dvc/heatmaps/metrics.json" in metrics.replace(os.sep, "/")
    assert "runs/dvc/part_a/metrics.json" not in metrics.replace(os.sep, "/")
    project.run("plots", "diff")
    page = (project.folder / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert "heldout_loss" in page

    # Back to what was committed: DVC brings the files, and has nothing to do.
    project.git("checkout", "--force", "HEAD")
    project.run("checkout")
    assert run_stages(project.run("repro")) == []

"""The steps of the demo; the whole of it is for people to run."""

import importlib

from bach import demo


def test_every_script_of_the_demo_understands_its_options():
    for step in demo.STEPS:
        script, *words = step.command.split()
        if script.endswith(".py"):
            importlib.import_module(script.removesuffix(".py")).parse_args([*words, "--resume"])


def test_a_step_waits_for_what_its_own_command_writes():
    for step in demo.STEPS:
        for path in (step.done, step.resumed):
            assert path is None or f" {path.as_posix()} " in f"{step.command} "


def test_steps_that_are_done_are_left_out_and_runs_that_were_begun_go_on(tmp_path, capsys):
    begun = tmp_path / "begun"
    begun.mkdir()
    steps = [
        demo.Step("-c print(1)", done=begun, result="left_out"),
        demo.Step("-c print(2)", done=tmp_path / "missing", result="done_now"),
        demo.Step("-c print(3)", resumed=begun, result="resumed"),
    ]
    assert demo.run_steps(steps) == {"done_now": 2, "resumed": 3}
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$")]
    assert shown == ["$ python -c print(2)", "$ python -c print(3) --resume"]

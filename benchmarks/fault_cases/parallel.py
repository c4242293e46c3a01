"""Run parts of a row side by side, each in a forked process."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.fault_cases import Outcome
from benchmarks.fault_cases.jobs import Recipe


def in_parallel(work: Sequence[Callable[[], object]], processes: int = 2) -> list:
    """Call each function in a forked process, a few at a time; return the results.

    What a function raises comes back as text, in a `RuntimeError`.
    """
    results: list = [None] * len(work)
    waiting, running = list(range(len(work))), {}
    while waiting or running:
        while waiting and len(running) < processes:
            number = waiting.pop(0)
            running[number] = _start_call(work[number])
        for number, (pid, reader) in list(running.items()):
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                with os.fdopen(reader) as file:
                    file.seek(0)
                    results[number] = json.loads(file.read() or '{"error": "died"}')
                del running[number]
        time.sleep(0.01)
    errors = [r["error"] for r in results if r.get("error")]
    if errors:
        raise RuntimeError(errors[0])
    return [r["result"] for r in results]


def side_by_side(
    outcome: Outcome,
    folder: Path,
    recipes: Mapping[str, Recipe],
    part: Callable[..., object],
    *arguments: object,
) -> list:
    """Run a row on its recipes at once; failures are noted with the recipe's name.

    Arguments
    ---------
    outcome : Outcome
        Of the row.
    folder : Path
        Of the row; each recipe has a folder of its name in it.
    recipes : Mapping[str, Recipe]
        By name.
    part : Callable
        Given recipe, folder, an outcome of its own and the arguments, in a process of
        its own; returns figures that JSON can hold.

    Returns
    -------
    list
        The figures, in the order of the recipes; None where a part broke off.
    """

    def call(name: str, recipe: Recipe) -> tuple[object, list[str]]:
        own, figures = Outcome(), None
        try:
            figures = part(recipe, folder / name, own, *arguments)
        except Exception as error:
            own.expect(False, f"{type(error).__name__}: {error}")
        return figures, own.failures

    results = in_parallel([partial(call, *item) for item in recipes.items()])
    for name, (_, failures) in zip(recipes, results, strict=True):
        for failure in failures:
            outcome.expect(False, f"{name}: {failure}")
    return [figures for figures, _ in results]


def _start_call(function: Callable[[], object]) -> tuple[int, int]:
    """Fork; the child writes what the function returns into a file in memory."""
    result = os.memfd_create("result")
    pid = os.fork()
    if pid:
        return pid, result
    try:
        try:
            answer = {"result": function()}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(result, json.dumps(answer).encode())
    finally:
        os._exit(0)

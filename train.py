"""Train and test a separator.

    python train.py hparams/mossformer2.yaml --data_folder=/data/wsj0-mix/2speakers
    torchrun --standalone --nproc_per_node=2 train.py hparams/mossformer2.yaml ...

The same command again resumes. `--test_only` scores the best checkpoint,
`--key=value` overrides any key of the YAML, and every SpeechBrain run option works;
`--help`, before or after the YAML, lists them.
"""

import functools
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from modules.monitor.records import begin_records
from modules.runtime import distributed
from modules.runtime.cli import as_command
from modules.runtime.files import naming, write_text
from modules.runtime.run_lock import RunLock
from modules.runtime.signals import EXIT_REQUEUE, StopRequest
from recipes.config.load import load
from recipes.config.schema import RunSettings
from recipes.config.settings import settings_of
from recipes.config.usage import usage
from recipes.evaluation import make_manifests
from recipes.parts import Parts
from recipes.report import OnMetrics


def main(arguments: Sequence[str], on_metrics: OnMetrics | None = None) -> dict | None:
    """Run one experiment from its command line.

    Arguments
    ---------
    arguments : Sequence[str]
        The YAML file and the options.
    on_metrics : OnMetrics | None
        Called on the main process with what the logs get, for a live plot or a sweep:
        `on_metrics("batch" | "epoch" | "test", number, {name: value})`.

    Returns
    -------
    dict | None
        The test's summary: `{"metrics": {name: {"mean": ..., ...}}, ...}`; None
        without a test.

    Raises
    ------
    UserError
        What the user can mend; the message says how.
    StopRun
        On request, when a checkpoint is saved.
    """
    if {"-h", "--help"} & set(arguments):
        print(usage(arguments, Path(__file__).parent / "hparams"))
        return None
    with distributed.together(), StopRequest() as stop_request:
        run_opts, hparams, resolved = load(arguments)
        if "parts" in hparams:  # runs that follow each other
            one = functools.partial(main, on_metrics=on_metrics)
            Parts(one, arguments, hparams, run_opts).run()
            return None
        config = RunSettings.read(hparams)  # any YAML may be named
        run_opts = distributed.init_process_group(run_opts, config.ddp_timeout)
        output_folder = Path(config.output_folder)
        folders = {output_folder, Path(config.save_folder)}
        with naming(output_folder), RunLock(*folders):
            apart = run_opts.debug and not run_opts.debug_persistently
            run_folder = output_folder / "debug" if apart else output_folder
            distributed.run_on_main(begin_records, run_folder, Path(__file__))
            manifests = distributed.run_on_main(
                make_manifests,
                *(hparams["prepare"], run_opts.test_only, hparams["test_folder"]),
            )
            if hparams["pretrained"]:
                hparams["load_pretrained"](hparams["separator"], hparams["pretrained"])

            brain = hparams["recipe"](
                modules=hparams["modules"],
                opt_class=hparams["optimizer"],
                hparams=hparams,
                run_opts=run_opts,
                checkpointer=hparams["checkpointer"],
            )
            brain.stop_request = stop_request
            brain.settings = settings_of(resolved)
            brain.reporter.on_metrics = on_metrics
            train_set, valid_set, test_set = brain.make_loaders(manifests)
            # Last, so that a refused command leaves an earlier run's file alone.
            path = run_folder / "hyperparams.yaml"
            notes = training_notes(path, arguments, run_opts.test_only)
            distributed.run_on_main(write_text, path, notes + resolved)
            brain.fit(hparams["epoch_counter"], train_set, valid_set)
            brain.evaluate(test_set, max_key=brain.monitor)
            brain.report()
            return brain.summary


def training_notes(path: Path, arguments: Sequence[str], test_only: bool) -> str:
    """Return comments for the head of a run's YAML: how it was trained, with what.

    A test leaves those of the training.
    """
    if test_only:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return "".join(re.findall(r"^# (?:command|versions): .*\n", text, re.M))
    versions = f"python {platform.python_version()}"
    for name in ("torch", "speechbrain"):
        versions += f", {name} {metadata.version(name)}"
    return (
        f"# command: python train.py {shlex.join(arguments)}\n# versions: {versions}\n"
    )


if __name__ == "__main__":
    status = as_command(lambda: main(sys.argv[1:]))
    if status in (0, EXIT_REQUEUE):
        # Here, where neither `main` nor a traceback holds the network any more.
        distributed.leave_process_group()
    sys.exit(status)

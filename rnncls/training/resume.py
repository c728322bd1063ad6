"""Resume a run from its newest undamaged checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rnncls.config import Config, FilesConfig, flatten, parse_config
from rnncls.data import Task, load_task
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.claim import reopen_run
from rnncls.rundir.moved import OF_RESUMING, with_files_of_run
from rnncls.rundir.of_many import of_many
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World
from rnncls.system.streams import say
from rnncls.training.control import then_control
from rnncls.training.go_on import describe_change, go_on, require_same_run
from rnncls.training.run import Shared


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    shared: Shared | None = None,
    say_directory: Callable[[Path], object] | None = None,
    data_dir: Path | None = None,
    world: World | None = None,
) -> TrainState:
    """Resume a run from its newest undamaged checkpoint, as if it had never stopped.

    On the same kind of machine, with the same versions and thread count, weights, optimizer state
    and logged values are those of an uninterrupted run, to the bit. `overrides` may change how
    training continues, not what is trained. `shared`: what the members of a sweep have in common.
    `say_directory` is called with the run directory once it is known to be one. `data_dir`: where
    data files are looked for that were moved, besides the places beside the run. `world`: the
    processes that train it together, each of which calls this. There may be more or fewer of them
    than before.

    Raises: what `fit` raises, and CheckpointError if there is nothing undamaged to resume from.
    """
    with of_many(reopen_run(Path(run_dir)), world) as run:
        checkpoint = run.recover()
        if say_directory is not None:
            say_directory(run.path)
        config = resumed_config(checkpoint, overrides)
        if isinstance(config.data, FilesConfig):
            # Before the files are parsed: another content may look like a mistake in the data.
            search = shared.search if shared is not None else None
            data = with_files_of_run(checkpoint, config.data, OF_RESUMING, data_dir, search)
            config = config.model_copy(update={"data": data})
        said = None if shared is None else shared.said
        task = restored_task(checkpoint, config, said)
        return then_control(
            lambda asked: go_on(
                checkpoint, config, task, run, shared, world, asked, goes_on=asked is not None
            ),
            task,
            run,
            shared,
            world,
        )


def resumed_config(checkpoint: Checkpoint, overrides: Sequence[str]) -> Config:
    """Return the checkpoint's config with `overrides`, and name each change on stderr.

    Raises: CheckpointError where data, model, seed, kind of optimizer, objective, the metric of the
    best checkpoint or the average of the weights would change. ConfigError.
    """
    # Parsed again, so that overrides are checked as those of a new run are.
    old = checkpoint.config
    config = parse_config(old.model_dump(mode="json"), str(checkpoint.path), overrides)
    before = flatten(old)
    after = flatten(config)
    require_same_run(checkpoint, config)
    for key in after:
        if after[key] != before[key]:
            say(f"changed on resume: {describe_change(key, before, after)}")
    return config


def restored_task(checkpoint: Checkpoint, config: Config, said: set[str] | None = None) -> Task:
    """Return the checkpoint's task. `said` are lines that need not be said again.

    Raises: DataError.
    """
    return load_task(config, checkpoint.vocabulary, progress=True, said=said)

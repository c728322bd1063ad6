"""Start a new run: make a state and a run directory, then train. Start reading here.

A resumed run (resume.py) restores its state, and ends in the same `train` (run.py).
"""

from collections.abc import Callable
from pathlib import Path

from rnncls.config import Config
from rnncls.data import load_task
from rnncls.model.rules import LATEST, StepRules
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.rundir.claim import create_run, require_text, require_unused
from rnncls.rundir.of_many import of_many
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World
from rnncls.system.memory import reporting_memory
from rnncls.training.alike import be_alike
from rnncls.training.control import then_control
from rnncls.training.run import Shared, train
from rnncls.training.states import new_state, say_unread_vectors, warn_of_other_split


def fit(
    config: Config,
    run_dir: str | Path,
    init_from: str | Path | None = None,
    origin: str = "",
    shared: Shared | None = None,
    say_directory: Callable[[Path], object] | None = None,
    numbered: bool = False,
    world: World | None = None,
) -> TrainState:
    """Train `config`, writing everything into `run_dir`, which must be new or empty.

    `init_from`: a checkpoint or run to take the first weights from; with files, its vocabulary and
    labels too. `origin`: where the config comes from, for a comment in the run's own. `shared`:
    what the members of a sweep have in common. `say_directory` is called with the run directory as
    soon as there is one. `numbered`: if the name `run_dir` is taken, the run gets the same one with
    a number, and no error. `world`: the processes that train it together, each of which calls this;
    the first of them owns the directory.

    With `train.baseline: control`, the n-gram control is trained after the model, in control/.

    Raises: ConfigError for a used directory. MachineError without the device. DataError.
    CheckpointError if `init_from` does not fit, or if a folder in `run_dir` is a link.
    NonFiniteError. WriteError. OutOfMemory. Interrupted after a signal, once the step is saved.
    """
    run_dir = Path(run_dir)
    # Asked before files are read, which may take long, and again under the lock.
    require = require_text if numbered else require_unused
    if world is None:
        require(run_dir)
    else:
        world.first(lambda: require(run_dir))

    source = None
    vocabulary = None
    if init_from is not None:
        source = read_checkpoint(find_checkpoint(init_from))
        # With another vocabulary, the weights of an id would be those of another token.
        vocabulary = source.vocabulary
        weights = f"began with the weights of {source.path}, step {source.state.step}"
        origin = f"{origin}; {weights}" if origin else weights

    with reporting_memory(config):
        said = None if shared is None else shared.said
        task = load_task(config, vocabulary, progress=True, said=said)
        if source is not None:
            warn_of_other_split(task, source)
            say_unread_vectors(task)
        step_rules: StepRules = LATEST if shared is None else shared.step_rules
        state = new_state(task, source, step_rules)

    # An engine that cannot work here is an error before anything is written.
    engine = choose(config, state.device, state.step_rules, world)
    if world is not None:
        be_alike(world, state, task, engine[1])

    with of_many(create_run(run_dir, numbered), world) as run:
        if say_directory is not None:
            say_directory(run.path)
        run.begin(state, task, origin)
        return then_control(
            lambda asked: train(
                state, task, run, engine, shared, world, asked, goes_on=asked is not None
            ),
            task,
            run,
            shared,
            world,
        )

"""HParams of TensorBoard: one row for each run, with the same columns whichever run is read first.

TensorBoard takes the columns of all runs from the first one that it finds. So every run writes the
same: every key of the config, for either data source, and the metrics that all runs have. torch's
own `hparams` would write the keys of one run alone.
"""

import json
from functools import cache
from typing import Any, NamedTuple

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from rnncls.config import Config, flatten
from rnncls.config.keys import all_keys

# The columns that TensorBoard shows at first. A run without a value in one of them would be missing
# from the parallel coordinates; all runs have these.
SHOWN = ("model.cell", "model.hidden_size", "optimizer.lr", "train.batch_size", "seed")

# By tag, with the heading of its column where that is another one.
METRICS = {"val/best_value": "best/value", "val/accuracy": "", "val/loss": "", "val/macro_f1": ""}

_NUMBERS = ("integer", "number")


class InSweep(NamedTuple):
    """What TensorBoard is told of a run that is a member of a sweep."""

    keys: tuple[str, ...]  # of the grid
    group: str  # the same for all members that differ in their seed alone: HParams averages them


def start_of_session(config: Config, in_sweep: InSweep | None) -> list[Summary]:
    """Return what a run writes when it begins: the columns, and its own values."""
    keys = SHOWN if in_sweep is None else (*SHOWN, *in_sweep.keys)
    group = "" if in_sweep is None else in_sweep.group
    start = SessionStartInfo(group_name=group)
    for key, value in flatten(config).items():
        # An empty cell, where the key is null: to ask for a slot would already make it.
        if value is not None:
            _set(start.hparams[key], value)
    return [
        _summary(metadata.EXPERIMENT_TAG, experiment=_experiment(keys)),
        _summary(metadata.SESSION_START_INFO_TAG, session_start_info=start),
    ]


def end_of_session() -> Summary:
    """Return what a run writes when it has finished."""
    end = SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=end)


@cache
def _experiment(shown: tuple[str, ...]) -> Any:
    """Return the columns. Those that `differ` come first, and are the ones that show."""
    experiment = api_pb2.Experiment()
    types: dict[str, Any] = {}
    for key in all_keys():
        # Two sources may have the same key; neither has it of another type.
        types.setdefault(key.name, _type_of(key.type))
    for name, kind in types.items():
        experiment.hparam_infos.add(name=name, type=kind, differs=name in shown)

    for tag, heading in METRICS.items():
        experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag), display_name=heading)
    return experiment


def _type_of(words: str) -> Any:
    """Return the type of a column, from the type of its key in words: "integer or null"."""
    kind = words.removesuffix(" or null")
    if kind in _NUMBERS:
        return api_pb2.DATA_TYPE_FLOAT64
    if kind == "true or false":
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING


def _set(slot: Any, value: Any) -> None:
    """Set a google.protobuf.Value."""
    if isinstance(value, bool):
        slot.bool_value = value
    elif isinstance(value, int | float):
        slot.number_value = value
    elif isinstance(value, str):
        slot.string_value = value
    else:
        slot.string_value = json.dumps(value)


def _summary(tag: str, **content: Any) -> Summary:
    data = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])

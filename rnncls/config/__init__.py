"""The config of a run: a YAML file and overrides, validated. Nothing here imports torch."""

from rnncls.config.defaults import COUNTED, number
from rnncls.config.load import (
    config_schema,
    dump_config,
    load_config,
    parse_config,
    parse_saved,
    read_yaml,
    write_yaml,
)
from rnncls.config.ranges import require_generated_data
from rnncls.config.schema import (
    DEVICE_PATTERN,
    Config,
    DataConfig,
    FilesConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SumModConfig,
    TrainConfig,
    check_size,
    counted_later,
    flatten,
    num_parameters,
    sizes,
    with_numbers,
)

__all__ = [
    "COUNTED",
    "DEVICE_PATTERN",
    "Config",
    "DataConfig",
    "FilesConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SumModConfig",
    "TrainConfig",
    "check_size",
    "config_schema",
    "counted_later",
    "dump_config",
    "flatten",
    "load_config",
    "num_parameters",
    "number",
    "parse_config",
    "parse_saved",
    "read_yaml",
    "require_generated_data",
    "sizes",
    "with_numbers",
    "write_yaml",
]

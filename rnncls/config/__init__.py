"""YAML and overrides -> a frozen, validated `Config`. Nothing here imports torch."""

from rnncls.config.load import config_schema, dump_config, flatten, load_config, parse_config
from rnncls.config.schema import (
    DEVICE_PATTERN,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    num_parameters,
)

__all__ = [
    "DEVICE_PATTERN",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "config_schema",
    "dump_config",
    "flatten",
    "load_config",
    "num_parameters",
    "parse_config",
]

"""The faults that `tools/soak.py faults` injects, by kind. Each kind is a function that yields them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from . import data, machine, models, options, runs
from .damage import (
    ANALYSE,
    CHECK,
    EXPORT,
    PREDICT,
    PREDICT_JSON,
    PUBLISH,
    REPORT,
    RESUME,
    STUDY,
    TRAIN,
    VALIDATE,
    Faults,
)  # fmt: skip

SOUND = (TRAIN, RESUME, PREDICT, PREDICT_JSON, VALIDATE, CHECK, PUBLISH, REPORT, ANALYSE, EXPORT, STUDY)

KINDS: dict[str, Callable[[random.Random, Path], Faults]] = {
    'configs': models.configs,
    'weights': models.weights,
    'checkpoints': models.checkpoints,
    'images': data.images,
    'names': data.names,
    'archives': data.archives,
    'yaml': options.yaml_files,
    'options': options.options,
    'states': runs.states,
    'runs': runs.runs,
    'studies': runs.studies,
    'caches': runs.caches,
    'streams': machine.no_streams,
    'disks': machine.disks,
    'rights': machine.rights,
    'memory': machine.memory,
    'signals': machine.signals,
    'moving': machine.moving,
}

"""A TensorFlow checkpoint of variables in memory, for tests without tensorflow."""

from __future__ import annotations

import numpy as np


class FakeReader:
    """Stand for tensorflow's reader of a checkpoint."""

    def __init__(self, variables: dict[str, np.ndarray]):
        self.variables = variables

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        return {name: list(value.shape) for name, value in self.variables.items()}

    def get_tensor(self, name: str) -> np.ndarray:
        return self.variables[name]

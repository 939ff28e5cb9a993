"""The table of parameters against the torch backbone."""

import pytest
import torch

from mfcli.models.metaformer import build_model
from mfcli.models.parameters import find_num_classes, parameter_shapes
from mfcli.models.registry import ARCHITECTURES, Architecture


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=str)
@pytest.mark.parametrize(("num_classes", "in_chans"), [(1000, 3), (1, 1), (21841, 3)])
def test_the_table_is_that_of_the_torch_backbone(architecture: Architecture, num_classes: int, in_chans: int) -> None:
    with torch.device("meta"):
        state = build_model(architecture, num_classes=num_classes, in_chans=in_chans).state_dict()
    expected = [(name, tuple(tensor.shape)) for name, tensor in state.items()]
    shapes = parameter_shapes(architecture, num_classes, in_chans)
    assert list(shapes.items()) == expected
    assert find_num_classes(shapes) == num_classes


def test_a_table_without_a_head_has_no_classes() -> None:
    assert find_num_classes({}) is None
    assert find_num_classes({"head.weight": (0, 512)}) is None
    assert find_num_classes({"head.weight": ()}) is None

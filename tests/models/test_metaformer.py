"""The backbone: logits, eps of the norms, sizes, and training."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from conftest import TRIAL_DATA
from deterministic import pixels
from make_golden import GOLDEN, NAMES, compute
from mfcli import create_model, list_variants
from mfcli.models.metaformer import (
    DOWNSAMPLE_LAYERS,
    Attention,
    LayerNormGeneral,
    LayerNormWithoutBias,
    MetaFormer,
    Mlp,
    MlpHead,
    Pooling,
)
from mfcli.models.registry import Family, Variant

TOLERANCE = 1e-5  # of the logits' standard deviation
EVERY_ROW = pytest.mark.parametrize("variant", list_variants(), ids=lambda v: v.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_golden_ones(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    found = compute(name)
    spread = np.mean(golden["logits_std"])
    assert np.abs(np.subtract(found["logits_first16"], golden["logits_first16"])).max() <= TOLERANCE * spread
    assert np.abs(np.subtract(found["features_first8"], golden["features_first8"])).max() <= 2e-5
    assert found["top5_index"] == golden["top5_index"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["identityformer_s12", "randformer_s12", "poolformerv2_s12", "caformer_s18"])
def test_logits_equal_those_of_the_papers_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TRIAL_DATA / "golden"
    if not (folder / "fill.py").is_file():
        pytest.skip("no reference values here")
    monkeypatch.syspath_prepend(folder)
    import fill

    from parity import compare

    golden = json.loads((folder / "metaformer_logits.json").read_text())[name]
    variant = next(v for v in list_variants() if v.name == name)
    parity = compare(variant, fill, golden)
    assert parity.is_equal, parity
    assert parity.to_paper is not None


@EVERY_ROW
def test_parameter_count(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name)
    assert sum(p.numel() for p in model.parameters()) == variant.params
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.endswith("random_matrix")}
    assert bool(frozen) == (variant.family is Family.RANDFORMER)


@EVERY_ROW
def test_eps_of_every_norm(variant: Variant) -> None:
    with torch.device("meta"):
        model = create_model(variant.name)
    norms = {
        name: module.eps
        for name, module in model.named_modules()
        if isinstance(module, LayerNormGeneral | LayerNormWithoutBias | nn.LayerNorm)
    }
    blocks = sum(variant.architecture.depths)
    first_poolformer = variant.family is Family.POOLFORMER
    expected_count = 2 * blocks + 1 + (0 if first_poolformer else 4) + variant.architecture.mlp_head
    assert len(norms) == expected_count
    for name, eps in norms.items():
        in_block = name.startswith("stages.")
        assert eps == (1e-5 if name == "head.norm" or (in_block and first_poolformer) else 1e-6), name


def test_other_sizes_channels_and_classes() -> None:
    model = create_model("convformer_t8_64", num_classes=3, in_chans=1)
    with torch.inference_mode():
        assert model(torch.zeros(2, 1, 96, 40)).shape == (2, 3)
        assert model.forward_features(torch.zeros(1, 1, 33, 64)).shape == (1, 320)
    assert not model.training


def test_a_picture_does_not_depend_on_its_batch() -> None:
    model = create_model("convformer_t8_64")
    batch = pixels(3, 64)
    with torch.inference_mode():
        assert torch.allclose(model(batch)[1:2], model(batch[1:2]), atol=1e-6)


@pytest.mark.parametrize("name", ["convformer_t8_64", "caformer_s18"])
def test_head_dropout_reaches_linear_and_mlp_heads(name: str) -> None:
    model = create_model(name, head_dropout=0.5)
    assert isinstance(model.head, MlpHead) == (name == "caformer_s18")
    features = torch.ones(1, model.get_parameter("norm.weight").shape[0])
    nn.init.normal_(model.get_parameter("head.fc2.weight" if name == "caformer_s18" else "head.weight"))
    torch.manual_seed(0)
    assert torch.equal(model.head(features), model.head(features))
    model.train()
    assert not torch.equal(model.head(features), model.head(features))


def test_stochastic_depth_grows_from_zero_to_its_rate() -> None:
    model = create_model("convformer_t8_64", drop_path_rate=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in model.stages for block in stage.children()]
    assert rates == pytest.approx([0.4 * i / 7 for i in range(8)])


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = create_model("poolformer_s12")
    weight = model.get_parameter("stages.2.0.mlp.fc1.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m.bias is not None)
    assert torch.equal(model.get_parameter("stages.0.0.layer_scale1.scale"), torch.full((64,), 1e-5))


@pytest.mark.slow
def test_it_trains() -> None:
    torch.manual_seed(0)
    model = create_model("convformer_t8_64", num_classes=4, drop_path_rate=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch, target = pixels(8, 64), torch.arange(8) % 4
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_class_accepts_other_mixers_norms_and_depths() -> None:
    model = MetaFormer(
        depths=(1, 1),
        dims=(32, 64),
        downsample_layers=DOWNSAMPLE_LAYERS[:2],
        num_classes=5,
        token_mixers=(Pooling, Attention),
        mlps=(Mlp, Mlp),
        norm_layers=(LayerNormWithoutBias,) * 2,
        layer_scale_init_values=(1e-5, None),
        res_scale_init_values=(None, 1.0),
    )
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert {"stages.0.0.layer_scale1.scale", "stages.1.0.res_scale2.scale"} <= set(model.state_dict())

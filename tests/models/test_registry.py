"""The registry: complete, consistent with the published figures, and found by every name."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from conftest import TRIAL_DATA
from mfcli.errors import ModelError
from mfcli.models.registry import ARCHITECTURES, VARIANTS, Family, Pretraining, find_variant, list_variants


def test_there_are_61_rows_of_29_architectures() -> None:
    assert Counter(v.family for v in list_variants()) == {
        Family.IDENTITYFORMER: 5,
        Family.RANDFORMER: 5,
        Family.POOLFORMER: 5,
        Family.POOLFORMERV2: 5,
        Family.CONVFORMER: 21,
        Family.CAFORMER: 20,
    }
    assert len(ARCHITECTURES) == 29
    assert {v.architecture.name for v in list_variants()} == set(ARCHITECTURES)


def test_names_and_aliases_are_unique() -> None:
    names = [name for v in list_variants() for name in (v.name, *v.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("caformer_s18_384_in21ft1k", "caformer_s18_384_in21ft1k"),
        ("caformer_s18.sail_in22k_ft_in1k_384", "caformer_s18_384_in21ft1k"),
        ("timm/caformer_s18.sail_in22k_ft_in1k_384", "caformer_s18_384_in21ft1k"),
        ("hf-hub:timm/poolformer_m36.sail_in1k", "poolformer_m36"),
        ("convformer_b36_384_in21kft1k", "convformer_b36_384_in21ft1k"),
        ("CAFormer_S18", "caformer_s18"),
        ("bundled", "convformer_t8_64"),
    ],
)
def test_a_variant_is_found_by_every_name(name: str, row: str) -> None:
    assert find_variant(name).name == row


def test_weights_in_the_place_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "x.pth").touch()
    for path, hint in (
        (tmp_path, f"to use its weights: weights={tmp_path}"),
        (tmp_path / "x.pth", "model=NAME weights="),
    ):
        with pytest.raises(ModelError) as caught:
            find_variant(str(path))
        assert (caught.value.hint or "").startswith(hint)


@pytest.mark.parametrize(("name", "suggestion"), [("caformer_s8", "caformer_s18"), ("convfomer_s36", "convformer_s36")])
def test_an_unknown_name_suggests_similar_ones(name: str, suggestion: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_variant(name)
    assert caught.value.message == f"unknown model '{name}'"
    assert suggestion in (caught.value.hint or "")
    assert caught.value.exit_code == 4


def test_a_name_without_similar_ones_points_to_the_list() -> None:
    with pytest.raises(ModelError) as caught:
        find_variant("zzzz")
    assert caught.value.hint == "All names: mf list-models"


def test_rows_agree_with_the_published_table() -> None:
    table = TRIAL_DATA / "golden" / "published.csv"
    if not table.is_file():
        pytest.skip("no published table here")
    with table.open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {v.name for v in list_variants() if v.pretraining is not Pretraining.BUNDLED}
    for name, row in rows.items():
        v = VARIANTS[name]
        assert (v.family, v.pretraining) == (row["family"], row["pretraining"]), name
        assert v.input_size == (3, int(row["input_size"]), int(row["input_size"])), name
        assert (v.num_classes, v.params) == (int(row["num_classes"]), int(row["params"])), name
        assert (v.url, v.timm_name or "") == (row["url"], row["timm_name"]), name
        figures = ("crop_pct", "published_params_m", "published_macs_g", "published_top1", "timm_measured_top1")
        found = (v.crop_pct, v.published_params_m, v.published_macs_g, v.published_top1, v.timm_top1)
        for figure, value in zip(figures, found, strict=True):
            assert value == (pytest.approx(float(row[figure])) if row[figure] else None), (name, figure)


@pytest.mark.parametrize("variant", [v for v in list_variants() if v.timm_name], ids=lambda v: v.name)
def test_preprocessing_equals_timms_configuration(variant) -> None:  # type: ignore[no-untyped-def]
    import timm

    config = timm.get_pretrained_cfg(variant.timm_name)
    assert config is not None
    assert (variant.input_size, variant.crop_pct) == (config.input_size, config.crop_pct)
    assert (variant.interpolation, variant.num_classes) == (config.interpolation, config.num_classes)
    assert (variant.mean, variant.std) == (config.mean, config.std)

"""The registry: one row per architecture and one per checkpoint, and the look-up of names.

Rows are data, readable without torch. Depths, dims and the published figures are those of Yu et al.,
"MetaFormer Baselines for Vision" (TPAMI 2024, https://arxiv.org/abs/2210.13452, tables 1-3) and of its code
(https://github.com/sail-sg/metaformer); PoolFormer v1 follows Yu et al., "MetaFormer Is Actually What You Need for
Vision" (CVPR 2022) as timm hosts it. `timm_top1` is timm's own measurement (results-imagenet.csv, 1.0.x).
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mfcli.errors import ModelError
from mfcli.files import is_file
from mfcli.settings import BUNDLED_ALIAS, HUB, Settings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Family(StrEnum):
    """Which token mixers and norms a model is made of."""

    IDENTITYFORMER = "identityformer"
    RANDFORMER = "randformer"
    POOLFORMER = "poolformer"
    POOLFORMERV2 = "poolformerv2"
    CONVFORMER = "convformer"
    CAFORMER = "caformer"


class Pretraining(StrEnum):
    """What a checkpoint was trained on.

    IN1K is ImageNet-1k; IN21K the full ImageNet of 21,841 classes; IN21FT1K the latter, then fine-tuned on the
    former; BUNDLED is the small model that ships with the package; OWN is a folder that `mf train` wrote.
    """

    IN1K = "in1k"
    IN21FT1K = "in21ft1k"
    IN21K = "in21k"
    BUNDLED = "bundled"
    OWN = "own"


class Interpolation(StrEnum):
    """The filters of resizing, by timm's and Pillow's names; always with antialiasing."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"
    LANCZOS = "lanczos"
    HAMMING = "hamming"
    BOX = "box"
    NEAREST = "nearest"


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """A published address of a checkpoint.

    Attributes:
        url: on the Hugging Face hub, `{HUB}/{repository}/resolve/{revision}/{path}`.
        sha256: the digest that the file must have, None if none is published.
    """

    url: str
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a backbone: four stages of `depths` blocks with `dims` channels.

    The stem is a 7x7 convolution with `stem_stride` and `stem_padding`; `kernel_size` is that of the depthwise
    convolutions; `mlp_ratio` is the expansion of the channel MLP; `mlp_head` selects the two-layer head with squared
    ReLU instead of a single linear layer.
    """

    name: str
    family: Family
    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    mlp_head: bool = False
    stem_stride: int = 4
    stem_padding: int = 2
    kernel_size: int = 7
    mlp_ratio: int = 4


@dataclass(frozen=True)
class Variant:
    """One published checkpoint: its architecture, training data, preprocessing and published figures.

    Attributes:
        name: the paper's name, for instance `caformer_s18_384_in21ft1k`.
        architecture: the backbone's shape.
        input_size: (C, H, W) in pixels.
        pretraining: the training data.
        num_classes: outputs of the head.
        crop_pct: share of the resized shorter side that the centre crop keeps, as in timm.
        params: number of parameters, RandFormer's frozen mixing matrices included.
        published_params_m: millions of parameters as printed in the paper, None if it prints none.
        published_macs_g: billions of multiply-adds as printed in the paper.
        published_top1: ImageNet-1k top-1 in percent as printed in the paper.
        timm_top1: the same as measured by timm.
        sources: where the checkpoint is published, in the order of trying; empty for the bundled model.
        timm_name: timm's name with its tag, None if timm has no such checkpoint.
        interpolation: the filter of resizing.
        mean: per channel of values scaled to 0..1.
        std: likewise.
        folder: where a model of the user's own classes is; None for a row of the registry.
    """

    name: str
    architecture: Architecture
    input_size: tuple[int, int, int]
    pretraining: Pretraining
    num_classes: int
    crop_pct: float
    params: int
    published_params_m: float | None
    published_macs_g: float | None
    published_top1: float | None
    timm_top1: float | None
    sources: tuple[WeightsSource, ...]
    timm_name: str | None
    interpolation: Interpolation = Interpolation.BICUBIC
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    folder: Path | None = None

    @property
    def family(self) -> Family:
        """The architecture's family."""
        return self.architecture.family

    @property
    def reference(self) -> str:
        """What finds it: the name, or the folder of a model of the user's own classes."""
        return str(self.folder or self.name)

    @property
    def url(self) -> str | None:
        """The first address of the checkpoint, None for the bundled model."""
        return self.sources[0].url if self.sources else None

    def with_input_size(self, height: int, width: int) -> "Variant":
        """Return the row with another input size, in pixels."""
        return replace(self, input_size=(self.input_size[0], height, width))

    def as_record(self) -> dict[str, Any]:
        """Return the row as a record of plain values, sequences as lists."""
        return {
            "name": self.name,
            "aliases": list(self.aliases),
            "family": self.family.value,
            "depths": list(self.architecture.depths),
            "dims": list(self.architecture.dims),
            "stem_stride": self.architecture.stem_stride,
            "kernel_size": self.architecture.kernel_size,
            "mlp_ratio": self.architecture.mlp_ratio,
            "mlp_head": self.architecture.mlp_head,
            "pretraining": self.pretraining.value,
            "num_classes": self.num_classes,
            "params": self.params,
            "published_params_m": self.published_params_m,
            "published_macs_g": self.published_macs_g,
            "published_top1": self.published_top1,
            "timm_top1": self.timm_top1,
            "urls": [source.url for source in self.sources],
            "input_size": list(self.input_size),
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation.value,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @cached_property
    def aliases(self) -> tuple[str, ...]:
        """Other names of this row: timm's, and the `in21kft1k` spelling of the reference's README."""
        aliases = []
        if self.timm_name and self.timm_name != self.name:
            aliases.append(self.timm_name)
        if self.pretraining is Pretraining.IN21FT1K:
            aliases.append(self.name.replace("in21ft1k", "in21kft1k"))
        if self.pretraining is Pretraining.BUNDLED:
            aliases.append(BUNDLED_ALIAS)
        return tuple(aliases)

    def matches(self, glob: str) -> bool:
        """Return whether a glob matches the row's name, or, with a dot in the glob, timm's name of it."""
        pattern = _normalize_name(glob)
        name = self.timm_name if "." in pattern else self.name
        return name is not None and fnmatch.fnmatchcase(name, pattern)


_S, _M = (64, 128, 320, 512), (96, 192, 384, 768)
_DEPTHS_12, _DEPTHS_24, _DEPTHS_36, _DEPTHS_48 = (2, 2, 6, 2), (4, 4, 12, 4), (6, 6, 18, 6), (8, 8, 24, 8)
_PLAIN = (  # size, depths, dims: the families without convolution and attention
    ("s12", _DEPTHS_12, _S),
    ("s24", _DEPTHS_24, _S),
    ("s36", _DEPTHS_36, _S),
    ("m36", _DEPTHS_36, _M),
    ("m48", _DEPTHS_48, _M),
)
_WITH_MLP_HEAD = (  # size, depths, dims: ConvFormer and CAFormer
    ("s18", (3, 3, 9, 3), _S),
    ("s36", (3, 12, 18, 3), _S),
    ("m36", (3, 12, 18, 3), (96, 192, 384, 576)),
    ("b36", (3, 12, 18, 3), (128, 256, 512, 768)),
)


def _build_architectures() -> Mapping[str, Architecture]:
    plain = (Family.IDENTITYFORMER, Family.RANDFORMER, Family.POOLFORMER, Family.POOLFORMERV2)
    rows = [Architecture(f"{f}_{size}", f, depths, dims) for f in plain for size, depths, dims in _PLAIN]
    rows += [
        Architecture(f"{f}_{size}", f, depths, dims, mlp_head=True)
        for f in (Family.CONVFORMER, Family.CAFORMER)
        for size, depths, dims in _WITH_MLP_HEAD
    ]
    rows.append(
        Architecture(
            "convformer_t8",
            Family.CONVFORMER,
            (1, 2, 3, 2),
            (48, 96, 192, 320),
            stem_stride=2,
            stem_padding=3,
            kernel_size=3,
            mlp_ratio=2,
        )
    )
    return MappingProxyType({row.name: row for row in rows})


ARCHITECTURES = _build_architectures()

_Row = tuple[str, int, str, float, int, float | None, float | None, float | None, float | None]

# architecture, input size, pretraining, crop_pct, params; as published: params in M, MACs in G, top-1; timm's top-1
_ROWS: tuple[_Row, ...] = (
    ("convformer_t8", 64, "bundled", 0.95, 3_553_864, None, None, None, None),
    ("identityformer_s12", 224, "in1k", 1.0, 11_891_712, 11.9, 1.8, 74.6, None),
    ("identityformer_s24", 224, "in1k", 1.0, 21_341_464, 21.3, 3.4, 78.2, None),
    ("identityformer_s36", 224, "in1k", 1.0, 30_791_216, 30.8, 5.0, 79.3, None),
    ("identityformer_m36", 224, "in1k", 1.0, 56_077_168, 56.1, 8.8, 80.0, None),
    ("identityformer_m48", 224, "in1k", 1.0, 73_346_056, 73.3, 11.5, 80.4, None),
    ("randformer_s12", 224, "in1k", 1.0, 12_127_010, 12.1, 1.9, 76.6, None),
    ("randformer_s24", 224, "in1k", 1.0, 21_812_060, 21.8, 3.5, 78.2, None),
    ("randformer_s36", 224, "in1k", 1.0, 31_497_110, 31.5, 5.2, 79.5, None),
    ("randformer_m36", 224, "in1k", 1.0, 56_783_062, 56.8, 9.0, 81.2, None),
    ("randformer_m48", 224, "in1k", 1.0, 74_287_248, 74.2, 11.9, 81.4, None),
    ("poolformerv2_s12", 224, "in1k", 1.0, 11_891_712, 11.9, 1.8, 78.0, 78.008),
    ("poolformerv2_s24", 224, "in1k", 1.0, 21_341_464, 21.3, 3.4, 80.7, 80.746),
    ("poolformerv2_s36", 224, "in1k", 1.0, 30_791_216, 30.8, 5.0, 81.6, 81.576),
    ("poolformerv2_m36", 224, "in1k", 1.0, 56_077_168, 56.1, 8.8, 82.2, 82.214),
    ("poolformerv2_m48", 224, "in1k", 1.0, 73_346_056, 73.3, 11.5, 82.6, 82.612),
    ("convformer_s18", 224, "in1k", 1.0, 26_774_448, 27.0, 3.9, 83.0, 82.968),
    ("convformer_s18", 384, "in1k", 1.0, 26_774_448, 27.0, 11.6, 84.4, 84.392),
    ("convformer_s18", 224, "in21ft1k", 1.0, 26_774_448, 27.0, 3.9, 83.7, 83.768),
    ("convformer_s18", 384, "in21ft1k", 1.0, 26_774_448, 27.0, 11.6, 85.0, 85.004),
    ("convformer_s18", 224, "in21k", 1.0, 69_477_657, None, None, None, None),
    ("convformer_s36", 224, "in1k", 1.0, 40_012_152, 40.0, 7.6, 84.1, 84.068),
    ("convformer_s36", 384, "in1k", 1.0, 40_012_152, 40.0, 22.4, 85.4, 85.38),
    ("convformer_s36", 224, "in21ft1k", 1.0, 40_012_152, 40.0, 7.6, 85.4, 85.42),
    ("convformer_s36", 384, "in21ft1k", 1.0, 40_012_152, 40.0, 22.4, 86.4, 86.374),
    ("convformer_s36", 224, "in21k", 1.0, 82_715_361, None, None, None, None),
    ("convformer_m36", 224, "in1k", 1.0, 57_051_640, 57.0, 12.8, 84.5, 84.486),
    ("convformer_m36", 384, "in1k", 1.0, 57_051_640, 57.0, 37.7, 85.6, 85.58),
    ("convformer_m36", 224, "in21ft1k", 1.0, 57_051_640, 57.0, 12.8, 86.1, 86.152),
    ("convformer_m36", 384, "in21ft1k", 1.0, 57_051_640, 57.0, 37.7, 86.9, 86.868),
    ("convformer_m36", 224, "in21k", 1.0, 105_090_145, None, None, None, None),
    ("convformer_b36", 224, "in1k", 1.0, 99_882_616, 100.0, 22.6, 84.8, 84.826),
    ("convformer_b36", 384, "in1k", 1.0, 99_882_616, 100.0, 66.5, 85.7, 85.77),
    ("convformer_b36", 224, "in21ft1k", 1.0, 99_882_616, 100.0, 22.6, 87.0, 86.992),
    ("convformer_b36", 384, "in21ft1k", 1.0, 99_882_616, 100.0, 66.5, 87.6, 87.606),
    ("convformer_b36", 224, "in21k", 1.0, 163_927_009, None, None, None, None),
    ("caformer_s18", 224, "in1k", 1.0, 26_341_656, 26.0, 4.1, 83.6, 83.664),
    ("caformer_s18", 384, "in1k", 1.0, 26_341_656, 26.0, 13.4, 85.0, 85.036),
    ("caformer_s18", 224, "in21ft1k", 1.0, 26_341_656, 26.0, 4.1, 84.1, 84.092),
    ("caformer_s18", 384, "in21ft1k", 1.0, 26_341_656, 26.0, 13.4, 85.4, 85.442),
    ("caformer_s18", 224, "in21k", 1.0, 69_044_865, None, None, None, None),
    ("caformer_s36", 224, "in1k", 1.0, 39_297_102, 39.0, 8.0, 84.5, 84.528),
    ("caformer_s36", 384, "in1k", 1.0, 39_297_102, 39.0, 26.0, 85.7, 85.762),
    ("caformer_s36", 224, "in21ft1k", 1.0, 39_297_102, 39.0, 8.0, 85.8, 85.78),
    ("caformer_s36", 384, "in21ft1k", 1.0, 39_297_102, 39.0, 26.0, 86.9, 86.86),
    ("caformer_s36", 224, "in21k", 1.0, 82_000_311, None, None, None, None),
    ("caformer_m36", 224, "in1k", 1.0, 56_204_878, 56.0, 13.2, 85.2, 85.242),
    ("caformer_m36", 384, "in1k", 1.0, 56_204_878, 56.0, 42.0, 86.2, 86.164),
    ("caformer_m36", 224, "in21ft1k", 1.0, 56_204_878, 56.0, 13.2, 86.6, 86.606),
    ("caformer_m36", 384, "in21ft1k", 1.0, 56_204_878, 56.0, 42.0, 87.5, 87.47),
    ("caformer_m36", 224, "in21k", 1.0, 104_243_383, None, None, None, None),
    ("caformer_b36", 224, "in1k", 1.0, 98_753_614, 99.0, 23.2, 85.5, 85.502),
    ("caformer_b36", 384, "in1k", 1.0, 98_753_614, 99.0, 72.2, 86.4, 86.4),
    ("caformer_b36", 224, "in21ft1k", 1.0, 98_753_614, 99.0, 23.2, 87.4, 87.45),
    ("caformer_b36", 384, "in21ft1k", 1.0, 98_753_614, 99.0, 72.2, 88.1, 88.058),
    ("caformer_b36", 224, "in21k", 1.0, 162_798_007, None, None, None, None),
    ("poolformer_s12", 224, "in1k", 0.9, 11_915_176, 11.92, None, 77.2, 77.238),
    ("poolformer_s24", 224, "in1k", 0.9, 21_388_968, 21.39, None, 80.3, 80.294),
    ("poolformer_s36", 224, "in1k", 0.9, 30_862_760, 30.86, None, 81.4, 81.428),
    ("poolformer_m36", 224, "in1k", 0.95, 56_172_520, 56.17, None, 82.1, 82.104),
    ("poolformer_m48", 224, "in1k", 0.95, 73_473_448, 73.47, None, 82.5, 82.462),
)


def _parse_row(row: _Row) -> Variant:
    architecture_name, size, pretraining_name, crop_pct, params, params_m, macs_g, top1, timm_top1 = row
    architecture, pretraining = ARCHITECTURES[architecture_name], Pretraining(pretraining_name)
    name = architecture.name
    if size != 224:
        name += f"_{size}"
    if pretraining in (Pretraining.IN21FT1K, Pretraining.IN21K):
        name += f"_{pretraining}"
    timm_name = _build_timm_name(architecture, size, pretraining)
    return Variant(
        name=name,
        architecture=architecture,
        input_size=(3, size, size),
        pretraining=pretraining,
        num_classes={Pretraining.IN21K: 21841, Pretraining.BUNDLED: 200}.get(pretraining, 1000),
        crop_pct=crop_pct,
        params=params,
        published_params_m=params_m,
        published_macs_g=macs_g,
        published_top1=top1,
        timm_top1=timm_top1,
        sources=_list_sources(name, architecture.family, pretraining, timm_name),
        timm_name=timm_name,
    )


def _build_timm_name(architecture: Architecture, size: int, pretraining: Pretraining) -> str | None:
    tags = {Pretraining.IN1K: "in1k", Pretraining.IN21FT1K: "in22k_ft_in1k", Pretraining.IN21K: "in22k"}
    if architecture.family in (Family.IDENTITYFORMER, Family.RANDFORMER) or pretraining not in tags:
        return None
    return f"{architecture.name}.sail_{tags[pretraining]}" + (f"_{size}" if size != 224 else "")


def _list_sources(
    name: str, family: Family, pretraining: Pretraining, timm_name: str | None
) -> tuple[WeightsSource, ...]:
    """Return the addresses in the paper's repository, which lacks PoolFormer v1, and in timm's."""
    sources = []
    if pretraining is not Pretraining.BUNDLED and family is not Family.POOLFORMER:
        sources.append(WeightsSource(f"{HUB}/sail/dl/resolve/main/{family}/{name}.pth"))
    if timm_name:
        sources.append(WeightsSource(f"{HUB}/timm/{timm_name}/resolve/main/model.safetensors"))
    return tuple(sources)


VARIANTS: Mapping[str, Variant] = MappingProxyType({v.name: v for v in map(_parse_row, _ROWS)})
_ALIASES = {alias: v.name for v in VARIANTS.values() for alias in v.aliases}


def list_variants() -> tuple[Variant, ...]:
    """Return all variants, the bundled model first."""
    return tuple(VARIANTS.values())


def _normalize_name(name: str) -> str:
    return name.strip().lower().removeprefix("hf-hub:").removeprefix("timm/")


def find_variant(name: str) -> Variant:
    """Return the variant with a name: the paper's, timm's, or an alias; case and a `timm/` prefix are ignored.

    Other names are those of folders that `mf train` wrote, as paths or in the folder of models.

    Raises:
        ModelError: no variant has this name, and the hint suggests similar ones; or the folder is damaged.
    """
    key = _normalize_name(name)
    variant = VARIANTS.get(_ALIASES.get(key, key))
    if variant is None:
        from mfcli.models.own import find_own_variant

        variant = find_own_variant(name)
    if variant is None and is_file(Path(name)):
        raise ModelError(f"{name} is a file, not a model's name", f"model=NAME weights={name}")
    if variant is None:
        import difflib

        near = difflib.get_close_matches(key, [*VARIANTS, *_ALIASES], n=3, cutoff=0.5)
        near = near or sorted((known for known in VARIANTS if key and key in known), key=len)[:3]
        from mfcli.models.own import list_similar_folders

        near = [*list_similar_folders(name), *near][:3]
        did_you_mean = f"did you mean {' or '.join(near)}? " if near else ""
        what = f"unknown model {name!r}" + (", and no such folder" if "/" in key else "")
        raise ModelError(what, f"{did_you_mean}All names: mf list-models")
    return variant


def default_variant(settings: Settings) -> Variant:
    """Return the variant that is used if none is named.

    Raises:
        ModelError: MF_MODEL is not the name of a variant.
    """
    try:
        return find_variant(settings.model)
    except ModelError as error:
        raise ModelError(f"{error.message} (named by MF_MODEL)", error.hint) from error

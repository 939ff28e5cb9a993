"""Checkpoints: every layout loads to the same logits; files that do not fit, or contain code, are refused."""

import argparse
import collections
import json
import math
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deterministic import fill, pixels
from mfcli import create_model
from mfcli.errors import ModelError, OutputError
from mfcli.models.checkpoint import (
    load_checkpoint,
    prove_beginning,
    prove_checkpoint,
    read_checkpoint,
    read_tensors,
    write_random,
)
from mfcli.models.parameters import parameter_shapes
from mfcli.models.registry import find_variant
from parity import map_names

State = dict[str, torch.Tensor]


def make_state(name: str, **options: Any) -> State:
    return dict(fill(create_model(name, **options)).state_dict())


def convert_to_timm_layout(name: str, state: State, num_classes: int) -> State:
    import timm

    twin = timm.create_model(find_variant(name).timm_name, pretrained=False, num_classes=num_classes)
    names, shapes = map_names(twin), twin.state_dict()
    return {names[ours]: tensor.reshape(shapes[names[ours]].shape).clone() for ours, tensor in state.items()}


def convert_to_first_poolformer_layout(state: State) -> State:
    """The layout of the first PoolFormer's code: one flat `network`, 1x1 convolutions, bare layer scales."""
    renamed = {}
    for name, tensor in state.items():
        kind, index, *rest = name.split(".")
        if kind == "downsample_layers":
            place = "patch_embed.proj" if index == "0" else f"network.{2 * int(index) - 1}.proj"
            renamed[".".join([place, rest[-1]])] = tensor
        elif kind == "stages":
            new = ".".join(["network", str(2 * int(index)), *rest])
            new = new.replace("layer_scale1.scale", "layer_scale_1").replace("layer_scale2.scale", "layer_scale_2")
            renamed[new] = tensor[..., None, None] if "mlp" in new and tensor.ndim == 2 else tensor
        else:
            renamed[name] = tensor
    return renamed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caformer_s18", "convformer_s18", "poolformerv2_s12", "poolformer_s12"])
def test_both_layouts_load_to_the_same_logits(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = make_state(name, num_classes=10)
    torch.save(state, tmp_path / "paper.pth")
    save_file(convert_to_timm_layout(name, state, 10), tmp_path / "timm.safetensors")
    batch = pixels(1, 64)
    logits = []
    for file in ("paper.pth", "timm.safetensors"):
        loaded = load_checkpoint(tmp_path / file, find_variant(name))
        assert loaded.num_classes == 10
        assert not loaded.model.training
        with torch.inference_mode():
            logits.append(loaded.model(batch))
    assert torch.equal(*logits)
    assert logits[0].std() > 0.1


@pytest.mark.slow
def test_the_first_poolformers_layout_loads(tmp_path: Path) -> None:
    state = make_state("poolformer_s12")
    torch.save(convert_to_first_poolformer_layout(state), tmp_path / "old.pth.tar")
    loaded = load_checkpoint(tmp_path / "old.pth.tar", find_variant("poolformer_s12")).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def wrap(wrapper: str, state: State) -> Any:
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return {
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "optimizer": {"lr": 0.1}},
        "averaged weights first": {"state_dict": other, "state_dict_ema": state, "metric": 80.1},
        "DataParallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "torch.compile in a wrapper": {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
        "both prefixes": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        "a trainer's arguments": {"arch": "x", "args": argparse.Namespace(lr=0.1, opt="adamw"), "state_dict": state},
        "an empty average": {"state_dict_ema": {}, "ema": {"decay": 0.9, "updates": 3}, "state_dict": state},
        "other things beside": {**state, "epoch": 3},
        "AveragedModel": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}},
        "Lightning": {
            "state_dict": {
                **{f"model.{name}": tensor for name, tensor in state.items()},
                "loss.weight": torch.ones(3),
                "accuracy.total": torch.tensor(3),
            }
        },
        "half precision": {name: tensor.half() for name, tensor in state.items()},
    }[wrapper]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrapper",
    [
        "state_dict",
        "model",
        "averaged weights first",
        "DataParallel",
        "torch.compile in a wrapper",
        "both prefixes",
        "a trainer's arguments",
        "an empty average",
        "other things beside",
        "AveragedModel",
        "Lightning",
        "half precision",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_are_removed(wrapper: str, zipped: bool, tmp_path: Path) -> None:
    state = make_state("bundled")
    torch.save(wrap(wrapper, state), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(tmp_path / "x.pth", find_variant("bundled")).model.state_dict()
    for name, tensor in state.items():
        assert loaded[name].dtype == torch.float32
        assert torch.allclose(loaded[name], tensor, atol=1e-3 if wrapper == "half precision" else 0), name


class Planted:
    """A pickle of this creates a file when it is loaded with weights_only=False."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "x": Planted(trace)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="contains code or objects, not only weights; none of it was run"):
        read_tensors(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # with weights_only=False it does run
    assert trace.exists()


def test_a_plain_pickle_with_code_is_refused(tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps(Planted(trace)))
    with pytest.raises(ModelError):
        read_tensors(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, I am text\n", "is not a checkpoint"),
        (b"cat\ndog\n", "is not a checkpoint"),  # as a pickle: the global dog of the module at
        (b"", "is not a checkpoint"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "is a pointer of Git LFS, .*\nhint: .*git lfs pull",
        ),
        (b"PK\x03\x04 torn", "is not a checkpoint"),
        (b"\xff" * 8 + b'{"a": 1}', "is a damaged safetensors file"),
        (b"\x08" + b"\x00" * 7 + b"{      }", "does not fit"),
    ],
)
def test_files_that_are_not_checkpoints(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(file, find_variant("bundled"))
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="contains no state dict"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(320, dtype=torch.int32), torch.zeros(320, dtype=torch.complex64), torch.zeros(320).to_sparse()],
    ids=["int32", "complex64", "sparse"],
)
def test_tensors_other_than_dense_floats(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({**make_state("bundled"), "norm.weight": tensor}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="has norm.weight as .*; weights are dense floats"):
        read_checkpoint(tmp_path / "x.pth", find_variant("bundled"))


def test_keys_that_are_not_strings(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="contains no state dict"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.slow
def test_a_head_with_inconsistent_shapes(tmp_path: Path) -> None:
    state = make_state("bundled")
    torch.save({**state, "head.bias": torch.zeros(7)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="head.bias \\(7,\\) instead of \\(200,\\)") as caught:
        load_checkpoint(tmp_path / "x.pth", find_variant("bundled"))
    assert caught.value.hint == "these weights fit no model of mf list-models"
    torch.save({**state, "head.bias": torch.zeros(0), "head.weight": torch.zeros(0, 256)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="does not fit"):
        load_checkpoint(tmp_path / "x.pth", find_variant("bundled"))


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    torch.save(make_state("bundled"), tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a checkpoint, or is damaged"):
        read_tensors(tmp_path / "x.pth")


def test_a_flipped_bit_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(make_state("bundled"), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    torch.load(path)  # torch does not compare checksums
    with pytest.raises(ModelError, match="not a checkpoint, or is damaged") as caught:
        read_checkpoint(path, find_variant("bundled"))
    assert caught.value.hint == "get the file again"


def test_a_safetensors_file_whose_last_half_is_zeros(tmp_path: Path) -> None:
    path, variant = tmp_path / "x.safetensors", find_variant("bundled")
    state = make_state("bundled")
    save_file({name: torch.zeros_like(t) if name.endswith("bias") else t for name, t in state.items()}, path)
    prove_checkpoint(path, variant)  # biases begin as zeros
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)
    for read in (prove_checkpoint, read_checkpoint):
        with pytest.raises(ModelError, match="nothing but zeros"):
            read(path, variant)


def test_missing_checksums_and_a_misleading_file_name(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "x.safetensors")  # the content decides
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_tensors(tmp_path / "x.safetensors")["a"].read().tolist() == [1, 1, 1]


def test_a_dictionary_that_contains_itself(tmp_path: Path) -> None:
    loop: dict[str, object] = {}
    loop["state_dict"] = loop
    torch.save(loop, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="contains no state dict"):
        read_tensors(tmp_path / "x.pth")


def test_a_large_dictionary_that_contains_itself_under_every_wrapper(tmp_path: Path) -> None:
    loop: dict[Any, Any] = dict.fromkeys(range(50_000))
    loop |= dict.fromkeys(["state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "net"], loop)
    for zipped in (True, False):
        torch.save(loop, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        started = time.perf_counter()
        with pytest.raises(ModelError, match="contains no state dict"):
            read_tensors(tmp_path / "x.pth")
        assert time.perf_counter() - started < 5


def test_parameters_that_share_one_storage_do_not_multiply_its_size(tmp_path: Path) -> None:
    variant = find_variant("poolformerv2_s12")
    shapes = parameter_shapes(variant.architecture, 5)
    numbers = torch.zeros(max(math.prod(shape) for shape in shapes.values()))
    torch.save({name: numbers[: math.prod(shape)].view(shape) for name, shape in shapes.items()}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="holds fewer numbers than its tensors have"):
        read_checkpoint(tmp_path / "x.pth", variant)


def test_the_weights_do_not_change_with_the_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    state = {name: tensor.contiguous() for name, tensor in make_state("bundled").items()}
    save_file(state, path)
    bias = load_checkpoint(path, find_variant("bundled")).model.get_parameter("head.bias")
    with path.open("r+b") as file:
        file.seek(1 << 16)
        file.write(bytes(path.stat().st_size - (1 << 16)))
    assert torch.equal(bias, state["head.bias"])


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    from safetensors.torch import save

    path = tmp_path / "w\udcff.safetensors"
    path.write_bytes(save({"a": torch.ones(3)}))
    assert read_tensors(path)["a"].read().tolist() == [1, 1, 1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="is a damaged safetensors file"):
        read_tensors(path)


def test_random_weights_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_random(tmp_path / "none" / "x.safetensors", find_variant("bundled"))


def test_negative_views(tmp_path: Path) -> None:
    view = torch.full((200,), 1 - 2j).conj().imag
    assert view.is_neg()
    torch.save({**make_state("bundled"), "head.bias": view}, tmp_path / "x.pth")
    bias = load_checkpoint(tmp_path / "x.pth", find_variant("bundled")).model.get_parameter("head.bias")
    assert bias.detach().numpy().tolist() == [2.0] * 200


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shapes_larger_than_the_storage(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(1, dtype=dtype).expand(10**9, 10**6)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="has more numbers than its storage"):
        read_tensors(tmp_path / "x.pth")
    torch.save({"head.weight": torch.zeros(10**9, 0, dtype=dtype)}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="does not fit"):
        load_checkpoint(tmp_path / "x.pth", find_variant("bundled"))


@pytest.mark.slow
def test_a_mismatch_names_the_first_tensors_and_the_fitting_models(tmp_path: Path) -> None:
    torch.save(make_state("caformer_s18"), tmp_path / "x.pth")
    with pytest.raises(ModelError) as caught:
        load_checkpoint(tmp_path / "x.pth", find_variant("convformer_s18"))
    assert caught.value.message == (
        f"{tmp_path / 'x.pth'} does not fit convformer_s18: "
        "60 missing, first stages.2.0.token_mixer.pwconv1.weight; "
        "24 unexpected, first stages.2.0.token_mixer.qkv.weight"
    )
    assert caught.value.hint == (
        "these weights fit model=caformer_s18 or caformer_s18_384 or caformer_s18_in21ft1k or caformer_s18_384_in21ft1k"
    )


@pytest.mark.slow
def test_a_mismatch_of_shapes_in_timms_layout(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = convert_to_timm_layout("poolformerv2_s12", make_state("poolformerv2_s12"), 1000)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ModelError) as caught:
        load_checkpoint(tmp_path / "x.safetensors", find_variant("poolformerv2_m36"))
    assert "of another shape, first downsample_layers.0.conv.weight (64, 3, 7, 7) instead of (96, 3, 7, 7)" in str(
        caught.value
    )
    assert caught.value.hint == "these weights fit model=identityformer_s12 or poolformerv2_s12"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_fit_no_model(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"resnet.{suffix}"
    state = {"bn1.num_batches_tracked": torch.tensor(0), "conv1.weight": torch.zeros(2, 2)}
    (torch.save if suffix == "pth" else save_file)(state, path)
    with pytest.raises(ModelError, match="206 missing, first .*; 2 unexpected, first") as caught:
        load_checkpoint(path, find_variant("caformer_s18"))
    assert caught.value.hint == "these weights fit no model of mf list-models"


@pytest.mark.slow
def test_only_the_head_may_have_another_size(tmp_path: Path) -> None:
    state = make_state("convformer_t8_64", num_classes=7)
    torch.save(state, tmp_path / "seven.pth")
    assert load_checkpoint(tmp_path / "seven.pth", find_variant("convformer_t8_64")).num_classes == 7
    state["norm.weight"] = torch.ones(319)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match=r"1 of another shape, first norm.weight \(319,\) instead of \(320,\)"):
        load_checkpoint(tmp_path / "bad.pth", find_variant("convformer_t8_64"))


@pytest.mark.parametrize("num_classes", [7, 200])
def test_a_published_checkpoint_is_proved_by_its_header(num_classes: int, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path, bundled = tmp_path / "x.safetensors", find_variant("bundled")
    save_file({n: t.half() for n, t in make_state("bundled", num_classes=num_classes).items()}, path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    assert not any(prove_beginning("x", data[:size], bundled) for size in (0, 8, 9, end - 1))
    if num_classes == 200:
        assert prove_beginning("x", data[:end], bundled)
        prove_checkpoint(path, bundled)
    else:
        with pytest.raises(ModelError, match="^x has a head of 7 classes instead of the 200 of convformer_t8_64"):
            prove_beginning("x", data[:end], bundled)
        with pytest.raises(ModelError, match="x.safetensors has a head of 7 classes"):
            prove_checkpoint(path, bundled)


@pytest.mark.parametrize("beginning", [b"PK\x03\x04" + bytes(9), b"<html>not found</html>"])
def test_the_beginning_of_another_kind_of_file_proves_nothing(beginning: bytes) -> None:
    assert prove_beginning("x", beginning, find_variant("bundled"))


def make_header(shape: list[object]) -> bytes:
    header = json.dumps({"head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("beginning", "reason"),
    [
        (b"\xff" * 8 + b"{", "its header has 18446744073709551615 bytes"),
        (b"\x02" + bytes(7) + b"{x", "its header is not a table of tensors"),
        (b"\x09" + bytes(7) + b'{"a": []}', "its header is not a table of tensors"),
        (make_header(["wide"]), "its header is not a table of tensors"),
        (make_header([math.inf]), "its header is not a table of tensors"),
    ],
)
def test_a_damaged_header_is_refused_at_once(beginning: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^x is a damaged safetensors file: {reason}"):
        prove_beginning("x", beginning, find_variant("bundled"))


@pytest.mark.parametrize(
    "other",
    [
        collections.Counter({30: 1}),
        {1, 2},
        torch.int64,
        torch.device("cpu"),
        bytearray(b"x"),
        1 + 2j,
        torch.zeros(2, dtype=torch.uint16),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
    ],
    ids=str,
)
def test_plain_data_that_only_torch_reads(other: object, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.ones(3)}, "other": other}, path)
    assert read_tensors(path)["a"].read().tolist() == [1, 1, 1]


def test_a_flipped_bit_is_detected_in_what_only_torch_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": make_state("bundled"), "other": torch.int64}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not a checkpoint, or is damaged"):
        read_checkpoint(path, find_variant("bundled"))


def test_a_foreign_safetensors_file_is_refused_by_its_header(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F32","shape":[10000000000],"data_offsets":[0,40000000000]}}'
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 40_000_000_000)  # sparse
    with pytest.raises(ModelError, match="does not fit"):
        read_checkpoint(path, find_variant("bundled"))

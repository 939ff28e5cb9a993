"""What a caller in Python sees of an error: the message and the next step."""

import pickle
from collections.abc import Callable
from unittest.mock import Mock

import pytest

import mfcli
from conftest import Ran
from mfcli.errors import ExitCode, PictureError, is_out_of_memory, package_error


def test_an_error_shows_its_next_step() -> None:
    with pytest.raises(mfcli.ModelError) as caught:
        mfcli.load_predictor("nope")
    assert str(caught.value) == "unknown model 'nope'\nhint: All names: mf list-models"
    assert str(mfcli.MfError("broken")) == "broken"


@pytest.mark.parametrize("error", [mfcli.MfError("a", "b"), PictureError(mfcli.FailureCode.DECODE, "c")])
def test_errors_cross_processes(error: mfcli.MfError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), vars(found), str(found)) == (type(error), vars(error), str(error))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (ImportError("libx.so: failed to map segment from shared object"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("bad node"), False),
    ],
)
def test_memory_has_run_out(
    error: Exception, expected: bool, mf: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_out_of_memory(error) is expected
    assert ("too little memory to load x" in package_error("x", error).message) is expected
    monkeypatch.setattr("mfcli.cli.make_app", Mock(side_effect=error))
    assert mf().code == (ExitCode.ENGINE if expected else ExitCode.BUG)

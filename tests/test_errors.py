"""What a caller in Python sees of an error: the message and the next step."""

import pickle

import pytest

import mfcli
from mfcli.errors import PictureError


def test_an_error_shows_its_next_step() -> None:
    with pytest.raises(mfcli.ModelError) as caught:
        mfcli.load_predictor("nope")
    assert str(caught.value) == "unknown model 'nope'\nhint: All names: mf list-models"
    assert str(mfcli.MfError("broken")) == "broken"


@pytest.mark.parametrize("error", [mfcli.MfError("a", "b"), PictureError(mfcli.FailureCode.DECODE, "c")])
def test_errors_cross_processes(error: mfcli.MfError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), vars(found), str(found)) == (type(error), vars(error), str(error))

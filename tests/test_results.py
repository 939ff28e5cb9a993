"""What a result shows of itself: its first prediction, its row, and its forms as text and HTML."""

import json
import pickle
from html.parser import HTMLParser

from mfcli.errors import FailureCode
from mfcli.results import Failure, PictureResult, Prediction
from mfcli.runs import RunInfo

RUN = RunInfo("caformer_s18", "ab" * 32, "0123456789abcdef", "onnxruntime", "fp32", 4)
LABELS = ("tabby, tabby cat", "<b>fish & 'chips'</b>", "pear", "fig")
PREDICTIONS = tuple(Prediction(rank, rank, None, label, 0.5**rank) for rank, label in enumerate(LABELS, 1))
OK = PictureResult("a.zip", None, "<i>.jpg", 640, 480, PREDICTIONS, None, RUN)
BAD = PictureResult("\x1b.jpg", None, None, None, None, (), Failure(FailureCode.DECODE, "<script>"), RUN)


def test_the_first_prediction_is_at_hand() -> None:
    assert (OK.top, OK.label, OK.prob) == (PREDICTIONS[0], "tabby, tabby cat", 0.5)
    assert (BAD.top, BAD.label, BAD.prob) == (None, None, None)


def test_text_shows_the_first_predictions_on_one_line() -> None:
    shown = "'tabby, tabby cat' 50.0%, \"<b>fish & 'chips'</b>\" 25.0%, 'pear' 12.5%, 1 more"
    assert repr(OK) == f"<PictureResult 'a.zip/<i>.jpg': {shown}>"
    assert repr(BAD) == r"<PictureResult '\x1b.jpg': decode, <script>>"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [f"{name}={value}" for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += f"{data}|"


def test_html_is_escaped_and_loads_nothing() -> None:
    ok, bad = _Page(OK._repr_html_()), _Page(BAD._repr_html_())
    assert ok.text.startswith("a.zip/<i>.jpg, 640 x 480|tabby, tabby cat|50.0 %|<b>fish & 'chips'</b>|25.0 %|")
    assert set(ok.tags) == {"table", "caption", "tr", "td", "div"}
    assert [text for text in ok.attributes if "width:25.0%" in text]
    assert all(text.startswith("style=") and "url" not in text for text in ok.attributes)
    assert (bad.text, bad.tags) == ("\x1b.jpg|: decode, <script>|", ["p", "b"])


def test_a_result_is_plain_data() -> None:
    row = json.loads(json.dumps(BAD.to_dict()))
    assert row == BAD.to_dict()
    assert row["error"] == {"code": "decode", "message": "<script>"}
    assert (row["model"], row["run"], row["predictions"]) == ("caformer_s18", "0123456789abcdef", [])
    assert pickle.loads(pickle.dumps([OK, BAD])) == [OK, BAD]

"""The judge over HTTP against a server of this process."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fedjax_fm.evaluation import judges
from fedjax_fm.evaluation.judges import Pair

KEY = "sk-secret-123"
PAIRS = [
    Pair(prompt=f"Question {i}?", a=f"right {i}", b=f"wrong {i}", reference="right")
    for i in range(3)
]


class Server:
    """Prefers answers that begin with "right"; can be told to say something else."""

    def __init__(self):
        self.seen, self.headers, self.model, self.reply = [], [], "stern-1", None
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                outer.seen.append(body)
                outer.headers.append(self.headers.get("Authorization"))
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.answer(body).encode())

            def log_message(self, *words):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1/chat/completions"

    def answer(self, body):
        if self.reply is not None:
            return self.reply
        text = body["messages"][1]["content"]
        first = text.split("Answer A:\n")[1].startswith("right")
        said = {"message": {"content": "[[A]]" if first else "[[B]]"}}
        return json.dumps({"model": self.model, "choices": [said]})

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server():
    found = Server()
    yield found
    found.close()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("JUDGES_KEY", KEY)


def lines(folder):
    (path,) = (folder / "judges").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked(server, folder, **more):
    return judges.http_judge("stern-1", server.url, folder, **more)


def test_every_request_and_answer_is_kept_and_the_key_is_not(server, key, tmp_path):
    judge = asked(server, tmp_path, key_variable="JUDGES_KEY")
    found = judges.compare(judge, PAIRS, folder=tmp_path)
    assert found.outcomes == ("a", "a", "a")
    assert server.headers == [f"Bearer {KEY}"] * 6  # both orders of three pairs
    kept = lines(tmp_path)
    assert [row["request"] for row in kept] == server.seen
    assert {row["answer"]["model"] for row in kept} == {"stern-1"}
    assert "Question 2?" in kept[2]["request"]["messages"][1]["content"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert not [path for path in files if KEY in path.read_text("utf-8")]


def test_a_server_that_repeats_the_key_does_not_bring_it_into_the_file(
    server, key, tmp_path
):
    server.reply = json.dumps({"echo": f"Bearer {KEY}"})
    judge = asked(server, tmp_path, key_variable="JUDGES_KEY")
    found = judges.compare(judge, PAIRS)
    assert found.outcomes == ("error",) * 3
    assert found.reasons[0] == "the answer is no chat completion"
    assert lines(tmp_path)[0]["answer"] == {"echo": "Bearer [key]"}


def test_another_model_than_was_asked_for_is_not_believed(server, tmp_path):
    server.model = "kind-2"
    found = judges.compare(asked(server, tmp_path), PAIRS)
    assert found.outcomes == ("error",) * 3
    assert found.reasons[0] == "the answer is from 'kind-2', not from 'stern-1'"
    named = asked(server, tmp_path, answers_as="kind-2")
    assert named.name.startswith("kind-2 at 127.0.0.1:")
    assert judges.compare(named, PAIRS).outcomes == ("a",) * 3


@pytest.mark.parametrize("text", ["both are fine", "[[A]] or [[B]]", "[[D]]", ""])
def test_a_judge_that_answers_neither_is_an_error(server, tmp_path, text):
    said = {"message": {"content": text}}
    server.reply = json.dumps({"model": "stern-1", "choices": [said]})
    found = judges.compare(asked(server, tmp_path), PAIRS[:1])
    assert found.outcomes == ("error",)
    assert "expected one" in found.reasons[0]


def test_an_unreachable_judge_leaves_pairs_for_later(server, tmp_path):
    judge = asked(server, tmp_path)
    server.status = 503
    with pytest.warns(UserWarning, match="3 pairs wait"):
        found = judges.compare(judge, PAIRS, folder=tmp_path)
    assert found.outcomes == ("waiting",) * 3
    assert len(server.seen) == 2  # one in each order, and then no more
    assert "it says 503" in lines(tmp_path)[0]["error"]
    rate = judges.win_rate(found)
    assert (rate.waiting, rate.wins) == (3, 0)
    server.status = 200
    later = judges.compare_waiting(judge, tmp_path)
    assert later.outcomes == ("a",) * 3


def test_no_server_at_all(tmp_path):
    gone = Server()
    gone.close()
    judge = asked(gone, tmp_path, timeout=5.0)
    with pytest.warns(UserWarning, match="cannot be reached"):
        assert judges.compare(judge, PAIRS).outcomes == ("waiting",) * 3


@pytest.mark.parametrize(
    ("url", "more", "error"),
    [
        ("ftp://x/y", {}, r"expected url as http"),
        ("http://me:word@x/y", {}, "without user, password and query"),
        ("http://x/y?key=1", {}, "without user, password and query"),
        ("http://x/y", {"temperature": -1.0}, "temperature=-1.0"),
        ("http://x/y", {"timeout": 0}, "timeout=0"),
        ("http://x/y", {"key_variable": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
    ],
)
def test_what_is_refused(tmp_path, url, more, error):
    with pytest.raises((TypeError, ValueError), match=error):
        judges.http_judge("stern-1", url, tmp_path, **more)

"""No secret of an address is ever shown or kept."""

import sys

import pytest
from polymodal.pipelines import cli
from polymodal.pipelines.base.redact import redact
from polymodal.pipelines.run.environment import describe_environment


@pytest.mark.parametrize(("text", "shown"), [
    ("https://user:pass@host:8080/a/b", "https://***@host:8080/a/b"),
    ("https://token@host", "https://***@host"),
    ("https://user:p@ss@host/x@y", "https://***@host/x@y"),
    ("https://host/a?X-Amz-Signature=abc&b=1", "https://host/a?***"),
    ("https://host/a#secret", "https://host/a?***"),
    ("--data=https://u:p@host/a?sig=x=3", "--data=https://***@host/a?***"),
    ("cannot read 'https://u:p@h/a?s=1' and s3://key:secret@bucket/x now", "cannot read 'https://***@h/a?***' and s3://***@bucket/x now"),
    ("HTTPS://U:P@HOST/", "HTTPS://***@HOST/"),
    ("https://host/plain me@example.org a?b=c", "https://host/plain me@example.org a?b=c"),
    ("/data/folder", "/data/folder"),
])
def test_addresses_lose_their_secrets_and_nothing_else(text, shown):
    assert redact(text) == shown and redact(shown) == shown


def test_the_command_of_a_run_is_kept_without_secrets(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["polymodal", "--data", "https://u:hunter2@h/d?sig=topsecret", "--out", "RUN"])
    assert describe_environment()["command"][2:] == ["https://***@h/d?***", "--out", "RUN"]


@pytest.mark.parametrize("arguments", [
    ["inspect", "ftp://u:hunter2@h/d?sig=topsecret"],
    ["pretrain", "gpt2-tiny", "--data", "ftp://u:hunter2@h/d?sig=topsecret", "--out", "OUT"],
    ["pretrain", "gpt2-tiny", "--data", "ftp://u:hunter2@h/d?sig=topsecret=2", "--data", "x", "--out", "OUT"],
    ["pretrain", "https://u:hunter2@h/d?sig=topsecret", "--data", "x", "--out", "OUT"],
])
def test_errors_on_the_command_line_hold_no_secrets(arguments, capsys, tmp_path):
    assert cli.run([a if a != "OUT" else str(tmp_path / "run") for a in arguments]) == 2
    shown = "".join(capsys.readouterr())
    assert "hunter2" not in shown and "topsecret" not in shown and "error:" in shown and not (tmp_path / "run").exists()

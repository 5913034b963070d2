"""No secret of a URL is printed, reported or exported."""

import logging
import pickle
import subprocess
import sys

import pytest

from tests.helpers import small_config
from vlm_jax import config as configs
from vlm_jax.data.storage import Storage
from vlm_jax.errors import UserError
from vlm_jax.redact import hidden, hidden_in

URL = "https://host/data/{0..3}.tar?X-Amz-Credential=AKIA%2Fus&X-Amz-Signature=0123abcd"


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"{URL}.", "https://host/data/{0..3}.tar?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("https://me:pa55@host/x", "https://***@host/x"),
        ("https://me:p@ss@host/x@y", "https://***@host/x@y"),
        ("s3://me@corp:p@ss@bucket/x", "s3://***@bucket/x"),
        ("https://p@ss@host/x", "https://***@host/x"),
        ("s3://key:pa55@bucket/x'", "s3://***@bucket/x'"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("0.tar?sig=a%2Fb: cut off", "0.tar?sig=***"),
        ("'https://h/x?token=abc#p'", "'https://h/x?token=***#p'"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("gs://bucket/x?.tar is it there? no=1", "gs://bucket/x?.tar is it there? no=1"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_what_is_hidden(text, shown):
    assert hidden(text).startswith(shown) and hidden_in([{"a": (text,)}]) == [{"a": (hidden(text),)}]


def test_an_error_shows_none():
    error = UserError(f"{URL} cannot be read.")
    assert "0123abcd" not in str(error) and "AKIA" not in str(error) and "data/{0..3}.tar" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_config_that_is_shown_has_none_and_one_that_is_kept_has_it():
    config = small_config()
    with config.ignore_type():
        config.data.source = configs.bind("data.sources.webdataset.WebDataset", path=URL)
    shown = "\n".join(configs.lines(configs.plain(config)))
    assert "X-Amz-Signature=***" in shown and "0123abcd" not in shown
    assert "0123abcd" in configs.to_json(config)


def test_a_read_that_is_tried_again_logs_none(caplog):
    def fail():
        raise OSError(f"503 for {URL}")

    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as error:
        Storage(tries=1).attempt(URL, fail)
    assert "try 1 of 1 failed" in caplog.text and "0123abcd" not in caplog.text + str(error.value)


def test_the_trace_of_an_error_that_nobody_caught_shows_none():
    program = """
from vlm_jax.main import guarded
import threading
def fails():
    raise OSError("no https://me:{}@host/a.tar?sig={}".format("pass", "hush"))
def both():
    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    fails()
guarded(both)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and "in fails" in done.stderr
    assert done.stderr.endswith("\nOSError: no https://***@host/a.tar?sig=***\n")
    assert done.stderr.count("OSError: no https://***@host") == 2 and "hush" not in done.stderr

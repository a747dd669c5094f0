"""What clients must not learn of each other, and what a wire must not show: salts and TLS."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from statistics import median
from urllib.parse import urlsplit

import pytest

from tests.serve.local import serving
from tests.serve.test_lives import start
from tiefsee.serve.keys import new_key, read_keys

WORDS = "the sea was dark and a king had never seen such ships in his garden again "


@pytest.fixture(scope="module")
def roomy():
    with serving(max_running=4, max_context=2048, snapshot_every=1) as found:
        yield found


def first_token(url, key, prompt):
    """(seconds to the first token, tokens of the prompt that were cached)."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    began = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps(body), {"authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    data = json.loads(answer.read())
    seconds = time.monotonic() - began
    connection.close()
    assert answer.status == 200, data
    return seconds, data["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("salted", [True, False])
def test_a_salt_hides_what_another_key_has_asked(roomy, tmp_path, salted):
    """One key asks; another asks the same and looks at the clock. Without the salt it learns that somebody did."""
    (mine, lines), (yours, more) = new_key("mine"), new_key("yours")
    (tmp_path / "keys.toml").write_text(lines + more)
    with roomy.door(roomy.app(keys=read_keys(tmp_path / "keys.toml", salted=salted))) as url:
        cold, other, own = [], [], []
        for turn in range(5):
            prompt = f"{salted} {turn} " + WORDS * 60
            cold.append(first_token(url, mine, prompt))
            other.append(first_token(url, yours, prompt))
            own.append(first_token(url, mine, prompt))
    assert all(cached == 0 for _, cached in cold)
    assert all(cached > 500 for _, cached in own)
    faster = median(seconds for seconds, _ in other) / median(seconds for seconds, _ in cold)
    print(f"{'salted' if salted else 'without a salt'}: another key's first token takes {faster:.2f} of a cold one's")
    if salted:
        assert all(cached == 0 for _, cached in other)
        assert faster > 0.6
    else:
        assert all(cached > 500 for _, cached in other)
        assert faster < 0.6


def test_tls(tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    process = start(
        "--max-context", "256", "--tls-certificate", str(tmp_path / "certificate.pem"),
        "--tls-key", str(tmp_path / "key.pem"),
    )  # fmt: skip
    try:
        place = next(line for line in process.stderr if "is open" in line).split("https://127.0.0.1:")[1]
        port = int(place.split()[0].strip("/"))
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        assert get(port, trusting) == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            get(port, ssl.create_default_context())
        plain = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        plain.request("GET", "/health")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
    finally:
        process.terminate()
        assert process.wait(20) == 0


def get(port, context):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    connection.request("GET", "/health")
    return connection.getresponse().status

"""URLs without their secrets: nothing that was planted is left, and what identifies them is."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.errors import OneFlowError
from workflows.storage_errors import explain
from workflows.urls import without_secrets

SECRET = "Pl4nted-S3cret.Value~0123456789"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:pw@h/a.tar", "https://h/a.tar"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://h/a.jpg?id=3&w=200", "https://h/a.jpg?id=3&w=200"),
        ("https://h/a?X-Amz-Signature=ab&X-Amz-Date=1&id=3", "https://h/a?id=3"),
        (
            "https://b.blob.core.windows.net/c/a?sv=2021&se=x&sp=r&sig=abc",
            "https://b.blob.core.windows.net/c/a",
        ),
        ("https://h/a#token=x", "https://h/a"),
        ("https://u:p/w@h/a", "https://h/a"),
        ("https://h/@name/a", "https://h/@name/a"),
        ("/local/a?b", "/local/a?b"),
        ("s3://bucket/a*{0..9}.tar", "s3://bucket/a*{0..9}.tar"),
        ("file:///a/b", "file:///a/b"),
    ],
)
def test_what_is_left_of_a_url(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
    assert without_secrets(shown) == shown


@given(
    st.sampled_from(["https", "http", "s3", "gs"]),
    st.sampled_from(["token", "X-Amz-Signature", "sig", "AWSAccessKeyId", "password", "q", "anything"]),
    st.text(max_size=10),
)
def test_a_planted_secret_is_never_left(scheme: str, name: str, around: str) -> None:
    for url in (
        f"{scheme}://h/p?a=1&{name}={SECRET}",
        f"{scheme}://h/p?{quote(name)}={quote(SECRET, safe='')}&b=2",
        f"{scheme}://user:{SECRET}@h/p",
        f"{scheme}://{SECRET}@h/p",
        f"{scheme}://h/p#{SECRET}",
    ):
        assert SECRET not in without_secrets(f"{around} {url} {around}"), url
        assert f"{scheme}://h/p" in without_secrets(url)


def test_errors_never_show_them() -> None:
    url = f"https://user:{SECRET}@h/a.tar?sig={SECRET}"
    told = explain(url, OSError(f"403, url={url!r}"))
    assert SECRET not in str(told) and "https://h/a.tar" in str(told)
    error = OneFlowError(url, f"it was at {url}", f"try {url}")
    assert SECRET not in str(error) and SECRET not in repr(error)

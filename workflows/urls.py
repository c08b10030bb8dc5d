"""URLs as they may be shown: without what lets their holder in."""

import re
from urllib.parse import parse_qsl, unquote

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>\\]+")
_PARTS = re.compile(r"^(?P<scheme>[^:]+://)(?P<place>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?$", re.DOTALL)
_NAMES = re.compile(
    r"sig|token|key|secret|pass|pwd|auth|cred|session|policy|expires|jwt|sas|hmac|x-amz|x-goog|^s[evprt]$|^code$",
    re.IGNORECASE,
)
_RANDOM = re.compile(r"(?=[^A-Za-z]*[A-Za-z])(?=\D*\d)[A-Za-z0-9+/=_.~-]{20,}")


def without_secrets(text: str) -> str:
    """`text` with every URL in it stripped of user, password, fragment and what may be a key or a signature.

    A parameter of a query goes when its name says so, or when its value looks drawn at random; the others stay, as
    they may be what tells one page from another.
    """
    return _URL.sub(lambda match: _stripped(match[0]), text) if "://" in text else text


def _stripped(url: str) -> str:
    found = _PARTS.match(url)
    if not found:
        return url
    host, slash, path = found["place"].partition("/")
    if "@" in found["place"] and "@" not in host:
        # A password may hold a slash that nobody escaped.
        before, _, after = found["place"].rpartition("@")
        host, slash, path = after.partition("/") if ":" in before.partition("/")[0] else (host, slash, path)
    query = "&".join(p for p in (found["query"] or "").split("&") if p and _harmless(p))
    return f"{found['scheme']}{host.rpartition('@')[2]}{slash}{path}{'?' + query if query else ''}"


def _harmless(parameter: str) -> bool:
    name, value = next(iter(parse_qsl(parameter, keep_blank_values=True)), (parameter, ""))
    return not (_NAMES.search(unquote(name)) or _RANDOM.fullmatch(value) or "@" in value)

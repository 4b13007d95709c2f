"""The flags of `loadtest` that say what is sent, when, and how it travels."""

from __future__ import annotations

import os
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tritongen.cli.options import Decorator, Function

if TYPE_CHECKING:
    from tritongen.serving.access import Access

_FILE = click.Path(dir_okay=False)

rate = click.option(
    "--rate",
    metavar="R",
    help="Requests/s, open loop: they leave on time, answers or not. It may change: R@TIME, R1..R2@TIME, "
    "more after commas, as in 100@30s,100..2000@60s; what is shorter than the run is repeated. "
    "With --find-max: where the search begins.",
)
batch_size = click.option(
    "--batch-size",
    "batch_size_text",
    default="1",
    show_default=True,
    metavar="N",
    help="Items in each request; several as 1,4,8, or with weights as 1=3,8=1.",
)
_ACCESS: tuple[Decorator[Any], ...] = (
    click.option(
        "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent along; repeatable."
    ),
    click.option("--token-env", metavar="VARIABLE", help="Where the bearer token is."),
    click.option("--token-file", type=_FILE, metavar="FILE", help="Where the bearer token is."),
    click.option(
        "--tls-ca", type=_FILE, metavar="FILE", help="Certificates to trust.  [default: the system's]"
    ),
    click.option("--tls-cert", type=_FILE, metavar="FILE", help="The client's certificate."),
    click.option("--tls-key", type=_FILE, metavar="FILE", help="Its key, if it is in another file."),
    click.option("--tls-insecure", is_flag=True, help="Trust any certificate."),
)
_TRANSPORT: tuple[Decorator[Any], ...] = (
    click.option("--trace", type=_FILE, metavar="FILE", help="Replay arrivals (CSV, JSON lines)."),
    click.option(
        "--mix",
        multiple=True,
        metavar="MODEL=W",
        help="Several models, by weight; repeatable. MODEL may be left out then, and is the first; "
        "--shape and --range also take MODEL:INPUT.",
    ),
    *_ACCESS,
    click.option("--compression", type=click.Choice(["gzip", "deflate"]), help="Compress the requests."),
    click.option("--streaming", is_flag=True, help="gRPC streams, for decoupled models."),
    click.option(
        "--shared-memory",
        type=click.Choice(["system", "cuda"]),
        help="Inputs and outputs in shared memory; the server is local.",
    ),
    click.option(
        "--grpc-client", type=click.Choice(["h2", "grpcio"]), default="h2", help="grpcio: the reference."
    ),
)


def access_flags(command: Function) -> Function:
    """TLS, tokens and headers."""
    return reduce(lambda decorated, option: option(decorated), reversed(_ACCESS), command)


def transport_flags(command: Function) -> Function:
    """The flags that most load tests do without."""
    return reduce(lambda decorated, option: option(decorated), reversed(_TRANSPORT), command)


_ACCESS_NAMES = ("headers", "token_env", "token_file", "tls_ca", "tls_cert", "tls_key", "tls_insecure")


def access_of(
    *,
    headers: tuple[str, ...],
    token_env: str | None,
    token_file: str | None,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_insecure: bool,
) -> Access:
    """What `access_flags` mean; InputError for what they cannot mean."""
    from tritongen.serving.access import Access

    return Access(
        ca_file=tls_ca,
        certificate_file=tls_cert,
        key_file=tls_key,
        insecure=tls_insecure,
        headers=(*map(_header, headers), *_token(token_env, token_file)),
    )


def load_settings(
    *,
    rate: str | None,
    batch_size_text: str,
    trace: str | None,
    mix: tuple[str, ...],
    shared_memory: str | None,
    **same: Any,
) -> dict[str, Any]:
    """What these flags mean for Settings; InputError for what they cannot mean."""
    from tritongen.loadtest.trace import read_trace

    access = access_of(**{name: same.pop(name) for name in _ACCESS_NAMES})
    return {
        **_rate(rate),
        **_batch_sizes(batch_size_text),
        "trace": None if trace is None else read_trace(Path(trace)),
        "mix": weights("--mix", mix),
        "access": access,
        "shared_memory": shared_memory,
        **same,
    }


def _rate(text: str | None) -> dict[str, Any]:
    from tritongen.loadtest.shape import parse_rate

    if text is None:
        return {"rate": None}
    try:
        return {"rate": float(text)}
    except ValueError:
        shape = parse_rate(text)
    return {"rate": shape.steady} if shape.steady is not None else {"rate_shape": shape}


def _batch_sizes(text: str) -> dict[str, Any]:
    from tritongen.errors import InputError

    try:
        parts = [part.partition("=") for part in text.split(",")]
        sizes = {int(size): float(weight or 1) for size, _, weight in parts}
    except ValueError:
        raise InputError("that is no --batch-size", found=text, expected="8, or 1,4,8, or 1=3,8=1") from None
    if len(sizes) < len(parts):
        raise InputError("--batch-size names a size twice", found=text, fix="give it one weight")
    weighted = len(sizes) > 1 or "=" in text
    return {"batch_size": next(iter(sizes)), "batch_sizes": sizes if weighted else {}}


def weights(flag: str, texts: tuple[str, ...]) -> dict[str, float]:
    """{name: weight} of a repeatable NAME=WEIGHT flag, in order; InputError for what cannot be read."""
    from tritongen.errors import InputError

    found: dict[str, float] = {}
    for text in texts:
        name, _, weight = text.rpartition("=")
        try:
            share = float(weight)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"that is no {flag}", found=text, expected="MODEL=WEIGHT, as in bert=3")
        if name in found:
            raise InputError(f"{flag} names '{name}' twice", found=" ".join(texts), fix="give it one weight")
        found[name] = share
    return found


def _header(text: str) -> tuple[str, str]:
    from tritongen.errors import InputError

    name, colon, value = text.partition(":")
    if not colon:
        raise InputError("that is no --header", expected="NAME: VALUE", fix="write for example 'x-tenant: a'")
    return name.strip(), value.strip()


def _token(variable: str | None, file: str | None) -> list[tuple[str, str]]:
    """The Authorization header; tokens come by ways that the process list does not show."""
    from tritongen.errors import InputError

    if variable is None and file is None:
        return []
    if variable is not None and file is not None:
        raise InputError("two tokens at once", found="--token-env and --token-file", fix="give one of them")
    try:
        token = os.environ[variable] if variable is not None else Path(file or "").read_text(encoding="utf-8")
    except KeyError:
        raise InputError(
            "there is no token there", found=f"{variable} is not set", fix=f"export {variable}=…"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(
            "there is no token there",
            found=f"{file}: {reason}",
            fix="name a file that holds the token and nothing else",
        ) from None
    if not token.strip():
        raise InputError("the token is empty", found=variable or file, fix="see to where it comes from")
    return [("authorization", f"Bearer {token.strip()}")]

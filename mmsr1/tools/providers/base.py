"""What a provider is: one service of one kind, its address, key, price, how it is asked and how its answer is read.

`fetch` returns the raw answer as text and `parse` reads it, so that the raw answer, which was paid for, can be kept and
read again by a later parser (`raw.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import httpx

from mmsr1.tools.base import Answer, CallFailed, Cause
from mmsr1.tools.http import MAX_BYTES, Http, Reply, raise_for
from mmsr1.tools.providers.blame import blames_query
from mmsr1.tools.providers.fields import web_url, without_password
from mmsr1.tools.secrets import Secret

Q = TypeVar("Q")
V = TypeVar("V")
Q_in = TypeVar("Q_in", contravariant=True)
V_out = TypeVar("V_out", covariant=True)


@runtime_checkable
class Provider(Protocol[Q_in, V_out]):
    """One service of one kind.

    `version` is that of the parser. `settings` are everything besides the query that decides the raw answer, as JSON
    and without secrets. `slow`: parsing takes so long that it belongs into a worker thread. `secret` is the key that
    must be there before the first call, None if none is needed.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def price_usd(self) -> float: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def slow(self) -> bool: ...

    @property
    def secret(self) -> Secret | None: ...

    async def fetch(self, query: Q_in) -> Answer[str]:
        """Ask once. `Answer(None)`: there is nothing, and there will be nothing. Raises CallFailed."""
        ...

    def parse(self, raw: str, query: Q_in) -> V_out:
        """Pure. An empty tuple means nothing was found. Raises CallFailed for what is no answer."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True)
class Access:
    """How a provider is reached. None is what the provider itself says: address, variable, list price.

    `results` is how many hits are asked for where a service takes a number. `options` go to the provider. `transport`
    stands in for the network in tests.
    """

    url: str | None = None
    key_env: str | None = None
    price_usd: float | None = None
    results: int = 10
    timeout_s: float = 30.0
    options: Mapping[str, Any] = field(default_factory=dict)
    transport: httpx.AsyncBaseTransport | None = None


class WebProvider(Generic[Q, V]):
    """What the adapters share: options, key, price, address, and how a refusal is read.

    The constructor raises ValueError for an unknown option, an option of the wrong type, a missing or wrong address.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    slow: ClassVar[bool] = False
    home: ClassVar[str | None] = None  # its public address; None: it runs where its users say
    variable: ClassVar[str | None] = None  # that holds the key, unless the configuration names another
    list_price: ClassVar[float] = 0.0
    known: ClassVar[Mapping[str, Any]] = {}  # options and their defaults
    max_bytes: ClassVar[int] = MAX_BYTES

    def __init__(self, access: Access) -> None:
        self.options = chosen_options(self.name, access.options, self.known)
        url = access.url or self.home
        if url is None:
            raise ValueError(f"url=None: {self.name} has no address of its own, so say where it runs")
        without_password("url", url)
        if url and (not web_url(url) or "?" in url or "#" in url):  # it may hold a key: it is not repeated
            raise ValueError(f"url: not what {self.name} can be asked at; give http(s)://host:port/path, no query")
        self._url = url.rstrip("/")
        variable = access.key_env or self.variable
        self.secret = Secret(variable) if variable else None
        self.price_usd = self._default_price() if access.price_usd is None else access.price_usd
        self.results = access.results
        self._elsewhere = {"url": self._url} if access.url else {}
        secrets = () if self.secret is None else (self.secret,)
        self._http = Http(self.name, access.timeout_s, self.max_bytes, access.transport, secrets)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Options, and the address where it is not the public one: another server may know something else."""
        return {**self.options, **self._elsewhere}

    async def aclose(self) -> None:
        await self._http.aclose()

    def _default_price(self) -> float:
        """What one call costs at most if nobody says otherwise."""
        return self.list_price

    def _bearer(self) -> dict[str, str]:
        """The header that carries the key, if there is one. Raises CallFailed("refused") if it cannot be used."""
        return {} if self.secret is None else {"Authorization": f"Bearer {self.secret.value}"}

    @property
    def _key(self) -> str:
        """The key of a service that cannot do without. Raises CallFailed("refused") if it cannot be used."""
        assert self.secret is not None
        return self.secret.value

    def _blames(self, reply: Reply) -> bool:
        """Whether a refusal is about the query itself, and not about anything that was configured."""
        return blames_query(reply)

    def _answer(self, reply: Reply, causes: Mapping[int, Cause] | None = None) -> Answer[str]:
        """The raw answer at the price of a call. Raises CallFailed unless the status is 2xx.

        `causes` are what some statuses mean for this service; all others mean what they mean for most, unless the
        service says that it does not accept the query.
        """
        if causes and reply.status in causes:
            raise CallFailed(causes[reply.status], f"HTTP {reply.status}")
        if reply.status in (400, 422) and self._blames(reply):
            raise CallFailed("invalid", f"HTTP {reply.status}: does not accept the query")
        raise_for(reply)
        return Answer(reply.text, self.price_usd)


def chosen_options(name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults with what was chosen instead. Raises ValueError in one line."""
    for option, value in options.items():
        if option not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ValueError(f"options.{option}: {name} knows no such option; known: {names}")  # the value may be a key
        default = known[option]
        if default is not None and not isinstance(value, type(default)):
            raise ValueError(f"options.{option}={value!r}: {name} expects {type(default).__name__}, as in {default!r}")
    return {**known, **options}

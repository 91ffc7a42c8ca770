"""A client of the agent service (``zeroout serve``)."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from recognizers.errors import ZeroOutError
from recognizers.files import atomic_path

_CHUNK = 2**20


class ServerError(ZeroOutError):
    """The service refuses, or cannot be reached.

    Attributes:
        status: of HTTP; None where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Event:
    """Something that happened to a pruning; see ``GET /v1/prunings/{id}/events``."""

    kind: str
    data: dict[str, Any]
    id: str | None


class Client:
    """Speaks with a service.

    Args:
        url: of the service, e.g. ``http://127.0.0.1:8000``.
        token: made by ``zeroout serve --create-token``; not needed where the service has none.
        http: sends the requests; by default a client with patient timeouts.

    Every method raises :class:`ServerError` where the service refuses or cannot be reached.
    """

    def __init__(self, url: str, token: str | None = None, *, http: httpx2.Client | None = None) -> None:
        self._http = http or httpx2.Client(base_url=url, timeout=httpx2.Timeout(60.0, connect=10.0))
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # --- prunings ---

    def upload(self, path: Path) -> str:
        """Upload weights (safetensors); gives their identifier."""

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk

        if not path.is_file():
            raise ServerError(f"no such file: {path}")
        answer = self._ask(
            "POST", "/v1/weights", content=chunks(), headers={"content-length": str(path.stat().st_size)}
        )
        return str(answer.json()["id"])

    def delete_weights(self, id_: str) -> None:
        """Delete uploaded weights."""
        self._ask("DELETE", f"/v1/weights/{id_}")

    def submit(self, request: Mapping[str, Any]) -> str:
        """Ask for a pruning, see :class:`~agents.service.requests.PruningRequest`; gives its identifier."""
        return str(self._ask("POST", "/v1/prunings", json=dict(request)).json()["id"])

    def pruning(self, id_: str) -> dict[str, Any]:
        """A pruning: its state, and its result once it is finished."""
        return dict(self._ask("GET", f"/v1/prunings/{id_}").json())

    def prunings(self) -> list[dict[str, Any]]:
        """The newest prunings."""
        return list(self._ask("GET", "/v1/prunings").json())

    def cancel(self, id_: str) -> None:
        """End a pruning."""
        self._ask("POST", f"/v1/prunings/{id_}/cancel")

    def download(self, id_: str, artifact: str, path: Path) -> None:
        """Write a file of a finished pruning: mask, model, finetuned, weights or report."""
        try:
            with (
                self._http.stream("GET", f"/v1/prunings/{id_}/{artifact}", headers=self._headers) as answer,
                atomic_path(path) as temporary,
                temporary.open("wb") as file,
            ):
                _check(answer)
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    def events(self, id_: str, seen: str | None = None) -> Iterator[Event]:
        """What happens to a pruning until it has ended, from after the event ``seen``."""
        headers = {**self._headers, **({"last-event-id": seen} if seen else {})}
        try:
            with self._http.stream("GET", f"/v1/prunings/{id_}/events", headers=headers) as answer:
                _check(answer)
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    name, _, value = line.partition(":")
                    if name:
                        fields[name] = value.removeprefix(" ")
                    elif not line and "event" in fields:
                        yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
                        fields = {}
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    def wait(
        self, id_: str, on_event: Callable[[Event], None] = lambda _: None, *, patience: float = 60.0
    ) -> dict[str, Any]:
        """Follow a pruning to its end, over lost connections, too.

        Args:
            id_: of the pruning.
            on_event: called with each event.
            patience: seconds without the service after which it gives up.

        Returns:
            The pruning.
        """
        seen, last = None, time.monotonic()
        while True:
            try:
                for event in self.events(id_, seen):
                    seen, last = event.id or seen, time.monotonic()
                    on_event(event)
                pruning = self.pruning(id_)
                if pruning["ended"] is not None:
                    return pruning
            except ServerError as error:
                if error.status is not None or time.monotonic() > last + patience:
                    raise
            time.sleep(0.5)

    # --- controllers ---

    def controllers(self) -> list[dict[str, Any]]:
        """The controllers that are served."""
        return list(self._ask("GET", "/v1/controllers").json())

    def act(
        self,
        controller: str,
        observations: Sequence[Mapping[str, Any]],
        action_masks: Sequence[Any],
        rewards: Sequence[float] | None = None,
        state: str | None = None,
    ) -> tuple[list[int], str]:
        """Actions for B episodes.

        Args:
            controller: its name.
            observations: of each episode, as the environment gives it.
            action_masks: of each episode, ``[A]``: ``info["action_mask"]``.
            rewards: of the previous steps; None at the beginning.
            state: that came with the previous actions; None at the beginning.

        Returns:
            The actions, and the state to be sent with the next observations.
        """
        content = {
            "observations": [
                {key: np.asarray(value).tolist() for key, value in observation.items()} for observation in observations
            ],
            "action_masks": [np.asarray(mask).tolist() for mask in action_masks],
            "rewards": None if rewards is None else [float(reward) for reward in rewards],
            "state": state,
        }
        answer = self._ask("POST", f"/v1/controllers/{controller}/act", json=content).json()
        return answer["actions"], answer["state"]

    # --- asking ---

    def _ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **content: Any
    ) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, headers={**self._headers, **(headers or {})}, **content)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        _check(answer)
        return answer

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(f"{self._http.base_url} cannot be reached: {error or type(error).__name__}")


def _check(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.text[:200]
    raise ServerError(f"the server refuses ({answer.status_code}): {detail}", answer.status_code)

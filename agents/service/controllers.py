"""Asking trained controllers for actions: any number of episodes at once, whose states the clients carry."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.core.columns import Columns
from torch import Tensor

from agents.r2d2.connectors import PREVIOUS_ACTION, PREVIOUS_REWARD
from agents.r2d2.heads import ACTION_MASK
from agents.r2d2.policy import load_module
from agents.service.errors import ServiceError

_HEADER = 1024
"""Bytes that the header of a state's file has at most."""
Batch = dict[str, Tensor]
"""Tensors of B episodes side by side, ``[B, ...]``: observations, what came before them, valid actions, state."""


class Controller:
    """A trained controller that acts greedily, without lookahead: that would need the environment.

    Args:
        path: run directory of ``zeroout train``, or a checkpoint: the operator's own, for these are pickles.

    Raises:
        FileError: see :func:`~agents.r2d2.policy.load_module`.
    """

    def __init__(self, path: Path) -> None:
        best = path / "checkpoints" / "best"
        self._module = load_module(best if best.is_dir() else path)
        self._module.eval()
        self._size = self._module.network.lstm_size
        self.actions: int = self._module.network.num_actions
        self.spaces: dict[str, spaces.Space[Any]] = {
            key: space
            for key, space in self._module.observation_space.spaces.items()
            if key not in (PREVIOUS_ACTION, PREVIOUS_REWARD, ACTION_MASK)
        }
        digest = hashlib.sha256()
        for name, tensor in sorted(self._module.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        self._fingerprint = torch.tensor(list(digest.digest()[:16]), dtype=torch.uint8)

    def batch(
        self,
        observations: Sequence[dict[str, Any]],
        action_masks: Sequence[Sequence[int]],
        rewards: Sequence[float] | None,
        state: str | None,
    ) -> Batch:
        """What a client sent, checked.

        Args:
            observations: of B episodes.
            action_masks: ``[B, A]``, 1 for valid actions.
            rewards: of the previous steps, ``[B]``; 0 if not given.
            state: that came with the previous actions; None at the beginning of episodes.

        Raises:
            ServiceError: something has the wrong shape or impossible values.
        """
        count = len(observations)
        batch = {key: self._observed(key, observations) for key in self.spaces}
        batch[ACTION_MASK] = _array("action_masks", action_masks, (count, self.actions))
        if not torch.isin(batch[ACTION_MASK], torch.tensor([0.0, 1.0])).all():
            raise ServiceError("action_masks hold values other than 0 and 1")
        if not batch[ACTION_MASK].any(dim=1).all():
            raise ServiceError("an action mask leaves no action: that episode has ended")
        batch[PREVIOUS_REWARD] = _array("rewards", [0.0] * count if rewards is None else rewards, (count,))
        return batch | (self._first(count) if state is None else self._decoded(state, count))

    def act(self, batch: Batch) -> Batch:
        """The valid actions of the highest Q, ``[B]`` under ``actions``, and the state after them."""
        inputs = {key: batch[key][:, None] for key in (*self.spaces, ACTION_MASK, PREVIOUS_ACTION, PREVIOUS_REWARD)}
        state = {"h": batch["h"], "c": batch["c"]}
        with torch.no_grad():
            out = self._module.compute_q_values({Columns.OBS: inputs, Columns.STATE_IN: state})
        q = out[QF_PREDS][:, 0]  # [B, A]
        actions = torch.where(batch[ACTION_MASK].bool(), q, torch.full_like(q, -torch.inf)).argmax(dim=1)
        return {"actions": actions, **out[Columns.STATE_OUT], PREVIOUS_ACTION: actions + 1}

    def encoded(self, after: Batch) -> str:
        """The state of B episodes as an opaque text."""
        kept = {key: after[key].contiguous() for key in ("h", "c", PREVIOUS_ACTION)}
        return base64.b64encode(safetensors.torch.save({**kept, "controller": self._fingerprint})).decode()

    def _first(self, count: int) -> Batch:
        h, c = self._module.network.initial_state(count)
        return {"h": h, "c": c, PREVIOUS_ACTION: torch.zeros(count, dtype=torch.int64)}

    def _decoded(self, text: str, count: int) -> Batch:
        most = count * (2 * 4 * self._size + 8) + _HEADER  # bytes
        if len(text) > 4 * (most // 3 + 1):
            raise ServiceError(f"state is too long for {count} episodes of this controller")
        try:
            state = safetensors.torch.load(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise ServiceError("state is not one that this service gave") from error
        wanted = {
            "h": ((count, self._size), torch.float32),
            "c": ((count, self._size), torch.float32),
            PREVIOUS_ACTION: ((count,), torch.int64),
            "controller": (tuple(self._fingerprint.shape), torch.uint8),
        }
        if {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()} != wanted:
            raise ServiceError(f"state is not one of {count} episodes of this controller")
        if not torch.equal(state.pop("controller"), self._fingerprint):
            raise ServiceError("state comes from another controller")
        previous = state[PREVIOUS_ACTION]
        if not all(state[key].isfinite().all() for key in "hc") or bool(
            ((previous < 0) | (previous > self.actions)).any()
        ):
            raise ServiceError("state holds impossible values")
        return state

    def _observed(self, key: str, observations: Sequence[dict[str, Any]]) -> Tensor:
        shape = self.spaces[key].shape or ()
        for observation in observations:
            if observation.keys() != self.spaces.keys():
                raise ServiceError(f"an observation has the keys {sorted(self.spaces)}")
        values = _array(key, [observation[key] for observation in observations], (len(observations), *shape))
        space = self.spaces[key]
        low, high = (space.low, space.high) if isinstance(space, spaces.Box) else (0.0, 1.0)
        array = values.numpy()
        if not ((array >= low) & (array <= high)).all():
            raise ServiceError(f"observation {key!r} holds values outside of its bounds")
        return values


def _array(name: str, values: Any, shape: tuple[int, ...]) -> Tensor:
    """Numbers as float32."""
    try:
        array: NDArray[np.float32] = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise ServiceError(f"{name!r} is no array of numbers of shape {shape}") from error
    if array.shape != shape:
        raise ServiceError(f"{name!r} has shape {array.shape}, not {shape}")
    if not np.isfinite(array).all():
        raise ServiceError(f"{name!r} holds numbers that are not finite")
    return torch.from_numpy(array)


@dataclass
class _Waiting:
    batch: Batch
    future: "asyncio.Future[Batch]"


class Gathering:
    """Computes what came in while the last computation ran in one go.

    A lone request waits for nobody; the more come at once, the larger the batches.

    Args:
        compute: row-wise: each row of the result depends on the same row of the input.
        most: rows at once, beyond the first request's.
        on_batch: called with the number of rows.
    """

    def __init__(self, compute: Callable[[Batch], Batch], *, most: int, on_batch: Callable[[int], None]) -> None:
        self._compute, self._most, self._on_batch = compute, most, on_batch
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, batch: Batch) -> Batch:
        """The result for one request's rows."""
        waiting = _Waiting(batch, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await waiting.future

    async def _run(self) -> None:
        try:
            while self._waiting:
                taken = self._take()
                try:
                    results = await asyncio.to_thread(self._together, [waiting.batch for waiting in taken])
                except Exception as error:
                    for waiting in taken:
                        if not waiting.future.done():
                            waiting.future.set_exception(error)
                    continue
                for waiting, result in zip(taken, results, strict=True):
                    if not waiting.future.done():  # its client may have gone
                        waiting.future.set_result(result)
        finally:
            self._task = None

    def _take(self) -> list[_Waiting]:
        taken, rows = [self._waiting.pop(0)], 0
        rows += _rows(taken[0].batch)
        while self._waiting and rows + _rows(self._waiting[0].batch) <= self._most:
            taken.append(self._waiting.pop(0))
            rows += _rows(taken[-1].batch)
        return taken

    def _together(self, batches: list[Batch]) -> list[Batch]:
        sizes = [_rows(batch) for batch in batches]
        self._on_batch(sum(sizes))
        result = self._compute({key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
        split = {key: value.split(sizes) for key, value in result.items()}
        return [{key: parts[index] for key, parts in split.items()} for index in range(len(batches))]


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))

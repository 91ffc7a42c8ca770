"""Controllers, which can be asked for actions."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from agents.service.errors import NotFoundError, ServiceError
from agents.service.routes.common import PROTECTED, ServiceOf

router = APIRouter(prefix="/v1/controllers", tags=["controllers"], **PROTECTED)


class ControllerView(BaseModel):
    """A controller that can be asked for actions."""

    name: str
    actions: int = Field(description="A, the number of actions")
    observation: dict[str, list[int]] = Field(description="shapes of the entries of an observation")


class ActRequest(BaseModel):
    """What B episodes look like now."""

    model_config = ConfigDict(extra="forbid")
    observations: list[dict[str, Any]] = Field(min_length=1, description="of each episode, as the environment gives it")
    action_masks: list[list[int]] = Field(min_length=1, description="[B, A], 1 for valid actions")
    rewards: list[float] | None = Field(None, description="of the previous steps, [B]; leave out at the beginning")
    state: str | None = Field(None, description="as it came with the previous actions; leave out at the beginning")


class Acted(BaseModel):
    """What a controller does."""

    actions: list[int] = Field(description="of each episode")
    state: str = Field(description="to be sent with the next observations; opaque")


@router.get("")
def available(service: ServiceOf) -> list[ControllerView]:
    """The controllers that are served."""
    return [
        ControllerView(
            name=name,
            actions=controller.actions,
            observation={key: list(space.shape or ()) for key, space in controller.spaces.items()},
        )
        for name, controller in service.controllers.items()
    ]


@router.post("/{name}/act")
async def act(name: str, request: ActRequest, service: ServiceOf) -> Acted:
    """Actions of the highest value, for any number of episodes at once. The service keeps nothing of them."""
    if name not in service.controllers:
        raise NotFoundError(f"no such controller: {name}; there are {sorted(service.controllers)}")
    if len(request.observations) > service.settings.limits.batch:
        raise ServiceError(f"a request may hold {service.settings.limits.batch} observations")
    controller = service.controllers[name]
    batch = controller.batch(request.observations, request.action_masks, request.rewards, request.state)
    after = await service.gatherings[name](batch)
    return Acted(actions=after["actions"].tolist(), state=controller.encoded(after))

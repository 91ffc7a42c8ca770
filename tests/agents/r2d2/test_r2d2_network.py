"""Masking, dueling, burn-in and the unit head of the network."""

import time

import pytest
import torch

from agents.r2d2.heads import UnitHead, dueling
from agents.r2d2.network import NetworkConfig, RecurrentQNetwork
from recognizers.errors import ConfigurationError

ACTIONS, UNITS, LAYERS = 5, 10, 2
TABLE = {
    "layer_of_action": [0, 0, 0, 1, 1],
    "action_of_unit": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
    "features": [[0.0, 0.1], [0.0, 0.5], [0.0, 0.9], [1.0, 0.2], [1.0, 0.8]],
}
SHAPES = {"accuracy": (1,), "reduction": (1,), "mask": (UNITS,), "action_mask": (ACTIONS,)}


def make_network(head="unit", **kwargs):
    torch.manual_seed(0)
    config = NetworkConfig(head=head, encoder_size=16, lstm_size=12, embedding_size=8, **kwargs)
    return RecurrentQNetwork(config, SHAPES, ACTIONS, TABLE)


def make_inputs(batch=3, steps=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    observation = {
        "accuracy": torch.rand(batch, steps, 1, generator=generator),
        "reduction": torch.rand(batch, steps, 1, generator=generator),
        "mask": torch.randint(0, 2, (batch, steps, UNITS), generator=generator, dtype=torch.int8),
        "action_mask": torch.randint(0, 2, (batch, steps, ACTIONS), generator=generator, dtype=torch.int8),
    }
    observation["action_mask"][..., 0] = 1
    previous_action = torch.randint(0, ACTIONS + 1, (batch, steps), generator=generator)
    return observation, previous_action, torch.randn(batch, steps, generator=generator)


@pytest.mark.parametrize("head", ["unit", "flat"])
def test_stepping_equals_unrolling(head):
    network = make_network(head)
    observation, action, reward = make_inputs()
    whole, end = network(observation, action, reward, network.initial_state(3))
    assert whole.shape == (3, 7, ACTIONS)
    state = network.initial_state(3)
    for t in range(7):
        at = slice(t, t + 1)
        q, state = network({k: v[:, at] for k, v in observation.items()}, action[:, at], reward[:, at], state)
        torch.testing.assert_close(q[:, 0], whole[:, t])
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("head", ["unit", "flat"])
def test_burn_in_state_equals_unrolled_state_of_every_row(head):
    network = make_network(head)
    encoded = network.encode(*make_inputs()).detach()
    lengths = torch.tensor([0, 3, 7])
    start = (torch.randn(3, 12), torch.randn(3, 12))
    h, c = network.burn_in(encoded.requires_grad_(), lengths, start)
    assert not h.requires_grad
    for row, length in enumerate(lengths.tolist()):
        own = (start[0][row : row + 1], start[1][row : row + 1])
        expected = network.unroll(encoded[row : row + 1, :length], own)[1] if length else own
        torch.testing.assert_close((h[row : row + 1], c[row : row + 1]), expected)
    untouched = network.burn_in(encoded[:, :0], torch.zeros(3, dtype=torch.long), start)
    assert untouched is start


@pytest.mark.parametrize("head", ["unit", "flat"])
def test_without_recurrence_every_step_is_a_first_one(head):
    network = make_network(head, recurrent=False)
    observation, action, reward = make_inputs()
    start = (torch.zeros(3, 12), torch.zeros(3, 12))
    whole, end = network(observation, action, reward, start)
    recurrent = make_network(head)
    for t in range(7):
        at = slice(t, t + 1)
        q, _ = recurrent({k: v[:, at] for k, v in observation.items()}, action[:, at], reward[:, at], start)
        torch.testing.assert_close(whole[:, t], q[:, 0])
    torch.testing.assert_close(end, start)
    warm = network.burn_in(network.encode(observation, action, reward), torch.tensor([0, 3, 7]), start)
    torch.testing.assert_close(warm, start)


def test_dueling_mean_counts_valid_actions_only():
    value, advantage = torch.tensor([[2.0]]), torch.tensor([[1.0, 3.0, 1000.0]])
    assert dueling(value, advantage, torch.tensor([[1, 1, 0]]))[0, :2].tolist() == [1.0, 3.0]
    assert dueling(value, advantage, torch.zeros(1, 3)).isfinite().all()


@pytest.mark.parametrize("head", ["unit", "flat"])
def test_q_of_valid_actions_averages_to_the_value(head):
    network = make_network(head)
    observation, action, reward = make_inputs()
    hidden, _ = network.unroll(network.encode(observation, action, reward), network.initial_state(3))
    q, mask = network.q_values(hidden, observation), observation["action_mask"].bool()
    mean = torch.where(mask, q, torch.zeros_like(q)).sum(-1) / mask.sum(-1)
    torch.testing.assert_close(mean, network.head.value(hidden).squeeze(-1))


def test_kept_shares_equal_counting():
    head = make_network().head
    mask = make_inputs()[0]["mask"]
    actions, layers = head.kept_shares(mask)
    for a in range(ACTIONS):
        own = [u for u in range(UNITS) if TABLE["action_of_unit"][u] == a]
        torch.testing.assert_close(actions[..., a], mask[..., own].float().mean(-1))
    torch.testing.assert_close(layers[..., 0], mask[..., :6].float().mean(-1))
    torch.testing.assert_close(layers[..., 1], mask[..., 6:].float().mean(-1))


def test_advantage_is_the_inner_product_with_the_described_action():
    """The cheap form in the code equals <P h, d_a (x) z_a>, action by action."""
    network = make_network()
    head = network.head
    observation, action, reward = make_inputs(batch=2, steps=3)
    hidden, _ = network.unroll(network.encode(observation, action, reward), network.initial_state(2))
    own, layer = head.kept_shares(observation["mask"])
    layer_of_action = torch.tensor(TABLE["layer_of_action"])
    dynamic = torch.stack([torch.ones_like(own), own, layer[..., layer_of_action]], dim=-1)  # [B, T, A, 3]
    described = dynamic.unsqueeze(-1) * head.static_embedding()[:, None]  # [B, T, A, 3, E]
    advantage = (head.project(hidden)[:, :, None] * described.flatten(-2)).sum(-1) * 8**-0.5  # [B, T, A]
    expected = dueling(head.value(hidden), advantage, observation["action_mask"])
    torch.testing.assert_close(network.q_values(hidden, observation), expected)


def test_action_embedding_can_be_left_out():
    shared, single = make_network(action_embedding=False), make_network()
    assert shared.head.action_embedding is None
    extra = sum(p.numel() for p in single.parameters()) - sum(p.numel() for p in shared.parameters())
    assert extra == (ACTIONS + LAYERS) * 8
    assert shared.transferable and not single.transferable and not make_network("flat").transferable


OTHER = {
    "layer_of_action": [0, 1, 1, 2, 2, 2, 2],
    "action_of_unit": [0, 0, 0, 1, 2, 3, 4, 5, 6],
    "features": [[0.0, 0.3], [0.5, 0.1], [0.5, 0.7], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]],
}


def test_a_carried_network_is_the_one_built_for_the_other_actions():
    carried = make_network(action_embedding=False)
    shapes = {"accuracy": (1,), "reduction": (1,), "mask": (9,), "action_mask": (7,)}
    config = NetworkConfig(encoder_size=16, lstm_size=12, embedding_size=8, action_embedding=False)
    built = RecurrentQNetwork(config, shapes, 7, OTHER)
    parameters = dict(carried.named_parameters())
    assert {name: value.shape for name, value in built.named_parameters()} == {
        name: value.shape for name, value in parameters.items()
    }
    built.load_state_dict(parameters, strict=False)
    carried.carry_to(OTHER)
    assert carried.num_actions == 7
    observation = {
        "accuracy": torch.rand(2, 3, 1),
        "reduction": torch.rand(2, 3, 1),
        "mask": torch.randint(0, 2, (2, 3, 9)),
        "action_mask": torch.ones(2, 3, 7),
    }
    inputs = observation, torch.randint(0, 8, (2, 3)), torch.randn(2, 3), carried.initial_state(2)
    torch.testing.assert_close(carried(*inputs), built(*inputs))


def test_what_cannot_be_carried_is_said():
    for network in (make_network(), make_network("flat")):
        with pytest.raises(ConfigurationError, match="action_embedding=false"):
            network.carry_to(OTHER)
    more = {**OTHER, "features": [[*row, 1.0] for row in OTHER["features"]]}
    with pytest.raises(ConfigurationError, match="2 features per action, the environment has 3"):
        make_network(action_embedding=False).carry_to(more)


def test_layer_summary_is_the_mean_over_described_layers():
    head = make_network().head
    _, share = head.kept_shares(make_inputs()[0]["mask"])
    described = [torch.tensor([[0.0, 0.5, 0.6], [1.0, 0.5, 0.4]])[layer] for layer in range(LAYERS)]
    expected = sum(
        head.summarize(torch.cat([described[layer].expand(3, 7, 3), share[..., layer : layer + 1]], dim=-1))
        for layer in range(LAYERS)
    )
    torch.testing.assert_close(head.layer_summary(share), expected / LAYERS)


def test_previous_reward_is_scaled_like_the_targets():
    plain, scaled = make_network(reward_scale=1.0), make_network(reward_scale=4.0)
    observation, action, reward = make_inputs()
    torch.testing.assert_close(
        scaled.encode(observation, action, reward), plain.encode(observation, action, 4 * reward)
    )


def test_thousands_of_units_cost_megabytes():
    units, batch, steps = 4000, 8, 20
    table = {
        "layer_of_action": [unit * 20 // units for unit in range(units)],
        "action_of_unit": list(range(units)),
        "features": [[unit / units] * 4 for unit in range(units)],
    }
    sizes = {"encoder_size": 64, "embedding_size": 32, "lstm_size": 64}
    head = UnitHead(table, action_embedding=True, **sizes)
    observation = {"mask": torch.ones(batch, steps, units, dtype=torch.int8)}
    hidden = torch.randn(batch, steps, 64, requires_grad=True)
    started = time.perf_counter()
    head(hidden, observation, torch.ones(batch, steps, units)).sum().backward()
    assert time.perf_counter() - started < 5.0  # [B, T, A, E] alone would have 20 million entries


def test_observation_without_mask_leaves_all_actions_valid():
    network = RecurrentQNetwork(NetworkConfig(head="flat", lstm_size=4), {"observation": (2,)}, 3)
    q, _ = network(
        {"observation": torch.zeros(1, 2, 2)}, torch.zeros(1, 2), torch.zeros(1, 2), network.initial_state(1)
    )
    assert network.action_mask({"observation": torch.zeros(1, 2, 2)}).all()
    assert q.shape == (1, 2, 3)


def test_forget_gate_starts_open():
    lstm = make_network().lstm
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0)[12:24].tolist() == [1.0] * 12


@pytest.mark.parametrize(
    ("shapes", "table", "actions", "message"),
    [
        (SHAPES, None, ACTIONS, "needs an action table"),
        ({"accuracy": (1,)}, TABLE, ACTIONS, "needs observations"),
        (SHAPES, TABLE, 6, "the action space has 6"),
        ({**SHAPES, "mask": (11,)}, TABLE, ACTIONS, "describes 10 units"),
        (SHAPES, {**TABLE, "action_of_unit": [9] * UNITS}, ACTIONS, "does not exist"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(shapes, table, actions, message):
    with pytest.raises(ConfigurationError, match=message):
        RecurrentQNetwork(NetworkConfig(head="unit"), shapes, actions, table)

"""Which layers are fitted, and to what."""

from collections.abc import Callable

import odd_networks
import pytest
import torch
from fitted_networks import NETWORKS, SITES, Block, EveryPlace
from torch import Tensor, fx, nn

from recognizers.execution.stages import Stage, cut
from recognizers.reconstruction.sites import Site, execution_order, find_sites

Build = Callable[[], nn.Module]


def _stages(network: nn.Module) -> tuple[Stage, ...]:
    stages = cut(network.eval(), torch.randn(2, 1, 8, 8))
    assert stages[0].graph is not None
    return stages


def _sites(network: nn.Module) -> dict[str, Site]:
    return {site.path: site for stage in _stages(network) for site in find_sites(stage, network)}


def _module(node: fx.Node | None) -> str | None:
    """Path of the module that a node calls; the name of other nodes."""
    return None if node is None else str(node.target) if node.op == "call_module" else node.name


@pytest.mark.parametrize("name", NETWORKS)
def test_usual_networks(name: str) -> None:
    sites = _sites(NETWORKS[name]())
    assert [(path, site.norm) for path, site in sites.items()] == [(path, norm) for path, norm, _ in SITES[name]]
    for path, norm, other in SITES[name]:
        site = sites[path]
        assert (site.other is not None) == (other is not None)
        if other is None:
            assert _module(site.target) == (norm or path)
        else:
            assert site.target.op == "call_function"


class TestSums:
    def test_the_three_kinds_of_shortcuts(self) -> None:
        sites = _sites(NETWORKS["residual"]())
        assert _module(sites["one.conv2"].other) == "one.shortcut"
        assert _module(sites["two.conv2"].other) == "two.shortcut.1"
        assert _module(sites["three.conv2"].other) == "pad"
        assert all(sites[f"{block}.conv2"].relu for block in ("one", "two", "three"))

    def test_of_two_layers_that_meet_the_larger_one_makes_up_for_the_other(self) -> None:
        """Else each would wait for the other."""
        sites = _sites(NETWORKS["residual"]())
        larger, smaller = sites["two.conv2"], sites["two.shortcut.0"]
        assert larger.relu and not smaller.relu
        assert smaller.other is None and _module(smaller.target) == "two.shortcut.1"

    def test_equal_layers_do_not_wait_for_each_other(self) -> None:
        class Equals(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Conv2d(1, 4, 1)
                self.one, self.other = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

            def forward(self, images: Tensor) -> Tensor:
                features = self.stem(images).sigmoid()
                both: Tensor = self.one(features) + self.other(features)
                return both.relu().mean((2, 3))

        sites = _sites(Equals())
        assert sorted(site.other is None for site in sites.values() if site.path != "stem") == [False, True]

    def test_a_chain_of_sums(self) -> None:
        class Chained(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem = nn.Conv2d(1, 4, 1)
                self.a, self.b, self.c = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, (3, 1)), nn.Conv2d(4, 4, 3)
                self.pool = nn.MaxPool2d(3, 1)

            def forward(self, images: Tensor) -> Tensor:
                features = self.stem(images).relu()
                both = self.a(features) + self.pool(features)
                logits: Tensor = (self.c(features) + both).relu().mean((2, 3)) + self.b(features).mean((2, 3))
                return logits

        network = Chained()
        sites = _sites(network)
        assert _module(sites["a"].other) == "pool" and not sites["a"].relu
        assert sites["c"].other is sites["a"].target and sites["c"].relu
        assert sites["b"].other is None and sites["b"].target is sites["b"].node

    @pytest.mark.parametrize("name", NETWORKS)
    def test_layers_come_behind_what_they_read_and_what_is_added_to_them(self, name: str) -> None:
        network = NETWORKS[name]()
        for stage in _stages(network):
            assert stage.graph is not None
            sites = find_sites(stage, network)
            order = execution_order(stage.graph, sites)
            assert sorted(order, key=id) == sorted(stage.graph.nodes, key=id)
            place = {node: position for position, node in enumerate(order)}
            assert all(place[read] < place[node] for node in order for read in node.all_input_nodes)
            assert all(place[site.other] < place[site.node] for site in sites if site.other is not None)

    def test_a_projection_that_is_written_last_comes_first(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 6, 1), Block(6, 7, nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))))
        *_, stage = _stages(network)
        assert stage.graph is not None
        names = [node.name for node in execution_order(stage.graph, find_sites(stage, network))]
        assert names.index("_1_shortcut_1") < names.index("_1_conv2")


class TestOthers:
    """What is left as it is."""

    def test_depthwise_convolutions(self) -> None:
        assert "deep" not in _sites(NETWORKS["grouped"]())

    def test_linear_layers_that_read_every_place(self) -> None:
        assert list(_sites(EveryPlace())) == ["stem", "head"]

    def test_hooks(self) -> None:
        assert "second" not in _sites(odd_networks.Hooked())
        network = odd_networks.Odd()
        network.norm.register_forward_hook(lambda _module, _inputs, output: 2 * output)
        site = _sites(network)["first"]
        assert site.norm is None and site.target is site.node

    def test_layers_that_compute_something_else(self) -> None:
        sites = _sites(odd_networks.OwnLayers())
        assert "second" not in sites and "first" in sites

    def test_other_paddings(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Conv2d(4, 4, 3, padding=1))
        assert list(_sites(network)) == ["1"]

    def test_a_norm_is_folded_only_where_nothing_else_reads_the_layer(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4)
                self.free = nn.BatchNorm2d(4, track_running_stats=False)
                self.conv2 = nn.Conv2d(4, 4, 1)

            def forward(self, images: Tensor) -> Tensor:
                features = self.conv(images)
                logits: Tensor = self.free(self.conv2(self.norm(features) * features)).mean((2, 3))
                return logits

        sites = _sites(Twice())
        for path in ("conv", "conv2"):  # the second norm has no statistics
            assert sites[path].norm is None and sites[path].target is sites[path].node and not sites[path].relu

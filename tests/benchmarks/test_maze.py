"""The maze benchmark's table, and that the maze asks for memory."""

import pytest

from tests.agents.r2d2.r2d2_toys import TMaze, mean_return
from tests.benchmarks import maze
from tests.benchmarks.tables import read_rows


def test_the_table_is_filled_and_resumed(tmp_path, capsys, monkeypatch):
    table = tmp_path / "maze.csv"
    arguments = ["--delay", "2", "--seeds", "1", "--max-steps", "500", "--out", str(table)]
    status = maze.main(arguments)
    (row,) = read_rows(table)
    assert (row["delay"], row["seed"]) == ("2", "0")
    assert int(row["environment steps"]) >= 500
    assert status == (0 if float(row["return"]) >= 0.95 and float(row["return with zeroed state"]) <= 0.65 else 1)
    monkeypatch.setattr(maze, "train_maze", lambda *_: pytest.fail("what is there is not trained again"))
    assert maze.main(arguments) == status
    assert "of 1 reach 95%" in capsys.readouterr().out


@pytest.mark.parametrize("delay", [8, 30])
def test_only_memory_solves_the_maze(delay):
    class Remembers:
        def reset(self, env):
            self.cue = None

        def act(self, observation, info):
            if self.cue is None:
                self.cue = observation["signal"][0]
            return (1 if self.cue > 0 else 2) if observation["signal"][1] else 0

    env = TMaze(delay)
    assert mean_return(Remembers(), env, maze.EPISODES) == 1.0
    assert 0.35 <= mean_return(Remembers(), env, maze.EPISODES, forget=True) <= 0.65
    assert env.length == delay

"""The agent service: prunes other people's networks over HTTP, and lets them ask trained controllers for actions.

From below: :mod:`~agents.service.store` (what is recorded), :mod:`~agents.service.work` (one pruning, in any process),
:mod:`~agents.service.supervisor` (which one runs when), :mod:`~agents.service.app` (HTTP) and
:mod:`~agents.service.deployment` (Ray Serve).
"""

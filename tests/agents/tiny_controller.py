"""Settings of a controller that learns nothing much, in seconds."""

TINY = [
    "network.lstm_size=8",
    "network.encoder_size=8",
    "network.embedding_size=4",
    "replay.warmup=40",
    "learning.batch_size=4",
    "sampling.num_envs_per_env_runner=2",
    "sampling.rollout_length=10",
]

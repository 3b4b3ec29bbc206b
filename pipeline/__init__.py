"""Raw pretraining text -> packed token shards, and reading them. Never imports torch."""
